//! The supervisor's admin socket, `<run-dir>/agent.sock`: JSON lines, root only. A CNI
//! plugin speaks it, and so do `mesh-agent pod …` and `mesh-agent status`.

use std::io::{self, BufRead, BufReader, Write};
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream as BlockingStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use socket2::{Domain, SockAddr, Socket, Type};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::timeout;

use super::report::{PodReport, PodState, StatusReport};

/// Name of the socket in the run folder.
pub const SOCKET_NAME: &str = "agent.sock";
/// Longest request line, in bytes.
const MAX_LINE: u64 = 64 * 1024;
/// How much longer than the supervisor a client waits for an answer.
const CLIENT_MARGIN: Duration = Duration::from_secs(5);
/// How long answers take that wait for nothing but a worker's end.
const PROMPT: Duration = Duration::from_secs(30);

/// One line from a client.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "kebab-case")]
pub enum Request {
    /// A pod has come up: pair it with its network namespace.
    PodAdd(PodAdd),
    /// A pod is going away.
    PodRemove {
        /// Kubernetes namespace.
        namespace: String,
        /// Pod name.
        name: String,
        /// The sandbox that is going away: if the pod has another by now, that one stays. Empty:
        /// whichever there is.
        #[serde(default)]
        container: String,
    },
    /// Everything about the supervisor and its pods.
    Status,
    /// Replace workers that run another program than the supervisor's, though that has stopped or
    /// waits for this.
    Roll {
        /// Every worker, whatever it runs.
        all: bool,
    },
}

/// A pod that has come up.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodAdd {
    /// Kubernetes namespace.
    pub namespace: String,
    /// Pod name.
    pub name: String,
    /// Path of its network namespace, such as `/run/netns/x` or `/proc/1/ns/net`.
    pub netns: PathBuf,
    /// How long to wait for its enrolment.
    pub timeout_ms: u64,
    /// The pod's UID as kubelet has it; empty where it is not known. While control knows another
    /// pod of that name, it is not enrolled.
    #[serde(default)]
    pub uid: String,
    /// The runtime's id of the pod's sandbox; empty where no runtime asks. A pod that comes with
    /// another takes the place of the one before.
    #[serde(default)]
    pub container: String,
    /// What the runtime's network plugins say that the pod's addresses are: used whatever control
    /// knows, and checked in the namespace as control's are.
    #[serde(default)]
    pub addresses: Vec<IpAddr>,
    /// It was found running: its apps may have connections that began without the mesh.
    #[serde(default)]
    pub running: bool,
}

/// One line back.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Response {
    /// Absent when all is well.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// The pod asked about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<PodReport>,
    /// Answer to [`Request::Status`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<StatusReport>,
}

/// What the admin socket asks of the supervisor's main task.
#[derive(Debug)]
pub(super) enum Ask {
    /// Register a pod; the answer follows its state.
    Add {
        pod: PodAdd,
        reply: oneshot::Sender<Result<watch::Receiver<PodReport>, AddFault>>,
    },
    /// Take a pod out; answered once nothing of it is left.
    Remove {
        namespace: String,
        name: String,
        container: String,
        reply: oneshot::Sender<Result<(), String>>,
    },
    /// Report.
    Status {
        reply: oneshot::Sender<StatusReport>,
    },
    /// Replace workers; answered at once with what there is to do.
    Roll {
        all: bool,
        reply: oneshot::Sender<StatusReport>,
    },
}

/// Why a pod is not taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum AddFault {
    /// What is in the way of it.
    Refused(String),
    /// This sandbox of it is still there, and is to go first.
    Superseded(String),
}

impl From<String> for AddFault {
    fn from(why: String) -> Self {
        Self::Refused(why)
    }
}

/// Makes the socket. A socket that an earlier supervisor left is replaced: the lock on the
/// run folder makes sure that nobody serves it.
///
/// # Errors
/// If the socket can't be made.
pub(super) fn listen(run_dir: &Path) -> io::Result<UnixListener> {
    let path = run_dir.join(SOCKET_NAME);
    match std::fs::remove_file(&path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let listener = UnixListener::bind(&path)?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Serves the socket until the main task is gone.
pub(super) async fn serve(listener: UnixListener, asks: mpsc::Sender<Ask>) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let asks = asks.clone();
                tokio::spawn(async move {
                    if let Err(e) = serve_client(stream, asks).await {
                        tracing::debug!(error = %e, "admin client gone");
                    }
                });
            }
            Err(e) => {
                // Out of descriptors, most likely: wait for some to come back.
                tracing::warn!(error = %e, "admin socket: accept failed");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn serve_client(stream: UnixStream, asks: mpsc::Sender<Ask>) -> io::Result<()> {
    let (read, mut write) = stream.into_split();
    let mut reader = tokio::io::BufReader::new(read);
    loop {
        let mut line = String::new();
        (&mut reader).take(MAX_LINE).read_line(&mut line).await?;
        if line.is_empty() {
            return Ok(());
        }
        let response = match serde_json::from_str(&line) {
            Ok(request) => answer(request, &asks).await,
            Err(e) => failure(format!("not a request: {e}")),
        };
        let mut bytes = serde_json::to_vec(&response)?;
        bytes.push(b'\n');
        write.write_all(&bytes).await?;
    }
}

fn failure(why: impl Into<String>) -> Response {
    Response {
        error: Some(why.into()),
        ..Response::default()
    }
}

const GOING_AWAY: &str = "the supervisor is going away; try again";

async fn answer(request: Request, asks: &mpsc::Sender<Ask>) -> Response {
    match request {
        Request::PodAdd(pod) => match add(pod, asks).await {
            Ok(response) => response,
            Err(why) => failure(why),
        },
        Request::PodRemove {
            namespace,
            name,
            container,
        } => match remove(namespace, name, container, asks).await {
            Ok(()) => Response::default(),
            Err(why) => failure(why),
        },
        Request::Status => {
            let (reply, answer) = oneshot::channel();
            status(asks, Ask::Status { reply }, answer).await
        }
        Request::Roll { all } => {
            let (reply, answer) = oneshot::channel();
            status(asks, Ask::Roll { all, reply }, answer).await
        }
    }
}

async fn status(
    asks: &mpsc::Sender<Ask>,
    ask: Ask,
    answer: oneshot::Receiver<StatusReport>,
) -> Response {
    if asks.send(ask).await.is_err() {
        return failure(GOING_AWAY);
    }
    answer.await.map_or_else(
        |_| failure(GOING_AWAY),
        |status| Response {
            status: Some(status),
            ..Response::default()
        },
    )
}

async fn add(pod: PodAdd, asks: &mpsc::Sender<Ask>) -> Result<Response, String> {
    let patience = Duration::from_millis(pod.timeout_ms);
    let known = match ask_to_add(pod.clone(), asks).await? {
        Err(AddFault::Superseded(container)) => {
            let PodAdd {
                namespace, name, ..
            } = pod.clone();
            remove(namespace, name, container, asks).await?;
            ask_to_add(pod, asks).await?
        }
        known => known,
    };
    match known {
        Ok(pod) => Ok(await_enrolment(pod, patience).await),
        Err(AddFault::Refused(why)) => Err(why),
        Err(AddFault::Superseded(container)) => Err(format!(
            "the pod's sandbox {container} came meanwhile; try again"
        )),
    }
}

async fn ask_to_add(
    pod: PodAdd,
    asks: &mpsc::Sender<Ask>,
) -> Result<Result<watch::Receiver<PodReport>, AddFault>, String> {
    let (reply, answer) = oneshot::channel();
    let sent = asks.send(Ask::Add { pod, reply }).await;
    sent.map_err(|_| GOING_AWAY)?;
    Ok(answer.await.map_err(|_| GOING_AWAY)?)
}

async fn remove(
    namespace: String,
    name: String,
    container: String,
    asks: &mpsc::Sender<Ask>,
) -> Result<(), String> {
    let (reply, answer) = oneshot::channel();
    let ask = Ask::Remove {
        namespace,
        name,
        container,
        reply,
    };
    asks.send(ask).await.map_err(|_| GOING_AWAY)?;
    answer.await.map_err(|_| GOING_AWAY)?
}

/// Waits until it is decided whether the pod is enrolled.
async fn await_enrolment(mut pod: watch::Receiver<PodReport>, patience: Duration) -> Response {
    let decided = |p: &PodReport| {
        use PodState::{CutOff, Enrolled, NotInMesh, Refused};
        matches!(p.state, CutOff | Enrolled | NotInMesh | Refused)
    };
    let outcome = timeout(patience, pod.wait_for(decided)).await;
    let gone = matches!(outcome, Ok(Err(_)));
    let decided = matches!(outcome, Ok(Ok(_)));
    drop(outcome);
    let report = pod.borrow().clone();
    let PodReport {
        namespace, name, ..
    } = &report;
    let error = match (decided, report.state) {
        _ if gone => Some(format!("{namespace}/{name} was removed meanwhile")),
        (true, PodState::Refused) => Some(format!(
            "{namespace}/{name} can't be enrolled: {}",
            report.reason
        )),
        (true, PodState::CutOff) => Some(format!(
            "{namespace}/{name} can't be enrolled and is cut off: {}",
            report.reason
        )),
        (true, _) => None,
        (false, _) => Some(format!(
            "{namespace}/{name} is not enrolled after {} ms: {}",
            patience.as_millis(),
            report.reason
        )),
    };
    Response {
        error,
        pod: Some(report),
        status: None,
    }
}

/// Asks a running supervisor, from another process.
///
/// # Errors
/// If no supervisor answers on that socket in time.
pub fn ask(run_dir: &Path, request: &Request) -> io::Result<Response> {
    let patience = match request {
        Request::PodAdd(pod) => Duration::from_millis(pod.timeout_ms),
        _ => PROMPT,
    };
    ask_for(run_dir, request, patience + CLIENT_MARGIN)
}

/// [`ask`], waiting no longer than that for the answer.
///
/// # Errors
/// If no supervisor answers on that socket in time.
pub fn ask_for(run_dir: &Path, request: &Request, patience: Duration) -> io::Result<Response> {
    let path = run_dir.join(SOCKET_NAME);
    let explain = |e: io::Error| {
        let what = format!(
            "{}: {e} (is `mesh-agent run` up with this --run-dir?)",
            path.display()
        );
        io::Error::new(e.kind(), what)
    };
    let mut stream = connect(&path, patience).map_err(explain)?;
    stream.set_read_timeout(Some(patience))?;
    let mut line = serde_json::to_vec(request)?;
    line.push(b'\n');
    stream.write_all(&line).map_err(explain)?;
    let mut answer = String::new();
    BufReader::new(stream)
        .read_line(&mut answer)
        .map_err(explain)?;
    if answer.is_empty() {
        return Err(explain(io::ErrorKind::UnexpectedEof.into()));
    }
    Ok(serde_json::from_str(&answer)?)
}

/// One that is stopped accepts nothing, and then its queue is full: that is waited for, too.
fn connect(path: &Path, patience: Duration) -> io::Result<BlockingStream> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.set_write_timeout(Some(patience))?;
    socket.connect(&SockAddr::unix(path)?)?;
    Ok(BlockingStream::from(std::os::fd::OwnedFd::from(socket)))
}
