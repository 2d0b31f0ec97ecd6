//! A supervisor of one worker that runs on a thread in a network namespace.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use mesh_agent::channel::{SupervisorChannel, pair};
use mesh_api::WORKER_PROTOCOL_VERSION;
use mesh_api::worker::{
    Certificate, Change, Changes, Drain, FdKind, Pod, PodPolicy, Start, ToWorker, TrustBundle,
    change, to_supervisor, to_worker,
};
use mesh_lab::netns::Netns;
use tokio::sync::mpsc;

use crate::pki::{Leaf, Pki};

const PATIENCE: Duration = Duration::from_secs(20);

#[derive(Default)]
struct Heard {
    listeners: BTreeMap<i32, OwnedFd>,
    order: Vec<&'static str>,
    refusals: Vec<String>,
    start_failed: Option<String>,
    drained: bool,
}

/// The test's end of the channel.
pub(crate) struct Supervisor {
    heard: Arc<Mutex<Heard>>,
    post: mpsc::UnboundedSender<to_worker::Message>,
    worker: Option<JoinHandle<anyhow::Result<()>>>,
}

impl Supervisor {
    /// Starts a worker and waits until it is ready.
    pub(crate) fn start(netns: &Netns) -> Self {
        let this = Self::launch(netns);
        this.until("the worker is ready", |heard| {
            heard.order.contains(&"ready")
        });
        let order = this.heard.lock().unwrap().order.clone();
        assert!(order.contains(&"applied"), "{order:?}");
        let order: Vec<_> = order
            .into_iter()
            .filter(|said| *said != "applied")
            .collect();
        assert_eq!(order[..4], ["hello", "listeners", "key", "request"]);
        this
    }

    /// Starts a worker that can't come up, and gives its reason.
    pub(crate) fn start_in_vain(netns: &Netns) -> String {
        let mut this = Self::launch(netns);
        this.until("the worker gives up", |heard| heard.start_failed.is_some());
        assert!(this.worker.take().unwrap().join().unwrap().is_err());
        let why = this.heard.lock().unwrap().start_failed.take();
        why.unwrap()
    }

    fn launch(netns: &Netns) -> Self {
        let (ours, theirs) = pair().unwrap();
        // The worker's thread stays in the namespace that the thread which made it was in.
        let worker = netns.run(|| std::thread::spawn(move || mesh_agent::worker::run(theirs)));
        let heard = Arc::new(Mutex::new(Heard::default()));
        let (post, mail) = mpsc::unbounded_channel();
        let shared = heard.clone();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(serve(ours, &shared, mail));
        });
        let start = Start {
            protocol_version: WORKER_PROTOCOL_VERSION,
            pod: Some(Pod {
                namespace: "test".to_owned(),
                name: "a".to_owned(),
                service_account: "a".to_owned(),
                trust_domain: "cluster.local".to_owned(),
                addresses: vec![vec![10, 0, 0, 1]],
                ..Pod::default()
            }),
            ..Start::default()
        };
        post.send(to_worker::Message::Start(start)).unwrap();
        // Nothing is allowed, and nothing is tried that would have to be.
        let policy = change::Change::Policy(PodPolicy {
            version: "1".to_owned(),
            ..PodPolicy::default()
        });
        let changes = Changes {
            changes: vec![Change {
                change: Some(policy),
            }],
            more: false,
        };
        post.send(to_worker::Message::Changes(changes)).unwrap();
        Self {
            heard,
            post,
            worker: Some(worker),
        }
    }

    fn until(&self, what: &str, condition: impl Fn(&Heard) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !condition(&self.heard.lock().unwrap()) {
            assert!(Instant::now() < deadline, "{what}: not within {PATIENCE:?}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// The kinds that were handed over last.
    pub(crate) fn listeners(&self) -> Vec<FdKind> {
        let heard = self.heard.lock().unwrap();
        let kinds = heard.listeners.keys();
        kinds.map(|kind| FdKind::try_from(*kind).unwrap()).collect()
    }

    /// A duplicate of a listener that was handed over.
    pub(crate) fn listener(&self, kind: FdKind) -> OwnedFd {
        let heard = self.heard.lock().unwrap();
        heard.listeners[&(kind as i32)].try_clone().unwrap()
    }

    /// Waits until another socket was handed over for this kind.
    pub(crate) fn until_replaced(&self, kind: FdKind, before: &OwnedFd) {
        let old = inode(before);
        self.until("a new listener", |heard| {
            let new = heard.listeners.get(&(kind as i32));
            new.is_some_and(|new| inode(new) != old)
        });
    }

    /// Waits until so many refusals for this reason were told.
    pub(crate) fn until_refused(&self, reason: &str, times: usize) {
        self.until(reason, |heard| {
            heard.refusals.iter().filter(|r| *r == reason).count() == times
        });
    }

    /// Drains the worker and waits for its end.
    pub(crate) fn drain(mut self) {
        let drain = to_worker::Message::Drain(Drain { deadline_ms: 1000 });
        self.post.send(drain).unwrap();
        self.until("the drain", |heard| heard.drained);
        self.worker.take().unwrap().join().unwrap().unwrap();
    }
}

fn inode(fd: &OwnedFd) -> u64 {
    nix::sys::stat::fstat(fd).unwrap().st_ino
}

async fn serve(
    channel: OwnedFd,
    heard: &Mutex<Heard>,
    mut mail: mpsc::UnboundedReceiver<to_worker::Message>,
) {
    let channel = SupervisorChannel::new(channel).unwrap();
    let pki = Pki::new();
    loop {
        tokio::select! {
            posted = mail.recv() => {
                let Some(message) = posted else { return };
                let message = ToWorker { message: Some(message) };
                // A worker that has ended is seen on the next receive.
                let _ended = channel.send(&message, &[]).await;
            }
            received = channel.recv() => {
                let (message, fds) = match received {
                    Ok(Some(received)) => received,
                    // What the worker had said before is still to be read (unix(7)).
                    Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => continue,
                    Ok(None) | Err(_) => return,
                };
                for message in hear(&pki, heard, message.message.unwrap(), fds) {
                    let message = ToWorker { message: Some(message) };
                    channel.send(&message, &[]).await.unwrap();
                }
            }
        }
    }
}

fn hear(
    pki: &Pki,
    heard: &Mutex<Heard>,
    message: to_supervisor::Message,
    fds: Vec<OwnedFd>,
) -> Vec<to_worker::Message> {
    use to_supervisor::Message as M;
    let mut heard = heard.lock().unwrap();
    match message {
        M::Hello(_) => heard.order.push("hello"),
        M::Listeners(listeners) => {
            heard.order.push("listeners");
            assert_eq!(listeners.fds.len(), fds.len());
            heard.listeners = listeners.fds.into_iter().zip(fds).collect();
        }
        M::PrivateKey(_) => {
            heard.order.push("key");
            assert_eq!(fds.len(), 1);
            // The supervisor can't read it: memfd_secret has no read().
            let mut bytes = [0; 4];
            let read = nix::unistd::read(fds[0].as_fd(), &mut bytes);
            assert!(
                read.is_err(),
                "the key's memory can be read through its descriptor"
            );
        }
        M::CertificateRequest(request) => {
            heard.order.push("request");
            let leaf = Leaf::of("spiffe://cluster.local/ns/test/sa/a");
            let chain = pki.sign(&request.csr, &leaf);
            let roots = pki.roots();
            return vec![
                to_worker::Message::TrustBundle(TrustBundle {
                    roots,
                    ..TrustBundle::default()
                }),
                to_worker::Message::Certificate(Certificate { chain }),
            ];
        }
        M::Applied(applied) => {
            assert_eq!(applied.version, "1");
            heard.order.push("applied");
        }
        M::Ready(_) => heard.order.push("ready"),
        M::Refusal(refusal) => heard.refusals.push(refusal.reason),
        M::StartFailed(failed) => heard.start_failed = Some(failed.why),
        M::Drained(_) => heard.drained = true,
        _ => {}
    }
    Vec::new()
}
