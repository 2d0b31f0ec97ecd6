//! The admin socket, `<state-dir>/control.sock`: JSON lines, root only. `meshctl` speaks it;
//! the messages are [`mesh_api::admin`]'s.

mod why;

use std::io;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream as BlockingStream;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mesh_api::admin::{MAX_LINE, Request, Response, SOCKET_NAME, Status};
use mesh_core::sharing::default_alone;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};

use crate::clocks::Clocks;
use crate::observe::Series;
use crate::registry::Registry;

/// What the socket answers from.
pub struct Admin {
    /// The state of the mesh.
    pub registry: Arc<Registry>,
    /// DNS resolvers beside the model's `kube-system/kube-dns`, as the nodes' agents have them.
    pub resolvers: Vec<IpAddr>,
    /// What nodes' clocks say.
    pub clocks: Arc<Clocks>,
    /// The component's series.
    pub series: Series,
}

/// Makes the socket. One that an earlier control component left is replaced.
///
/// # Errors
/// A socket that can't be made, or that another control component serves.
pub fn listen(state_dir: &Path) -> io::Result<UnixListener> {
    let path = state_dir.join(SOCKET_NAME);
    if BlockingStream::connect(&path).is_ok() {
        let what = format!(
            "another mesh-control serves {}: give each its own --state-dir",
            path.display()
        );
        return Err(io::Error::new(io::ErrorKind::AddrInUse, what));
    }
    match std::fs::remove_file(&path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let listener = UnixListener::bind(&path)?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Serves the socket until it is aborted.
pub async fn serve(listener: UnixListener, admin: Arc<Admin>) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let admin = admin.clone();
                tokio::spawn(async move {
                    if let Err(error) = admin.serve_client(stream).await {
                        tracing::debug!(%error, "admin client gone");
                    }
                });
            }
            Err(error) => {
                // Out of descriptors, most likely: wait for some to come back.
                tracing::warn!(%error, "admin socket: accept failed");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

impl Admin {
    async fn serve_client(&self, stream: UnixStream) -> io::Result<()> {
        let (read, mut write) = stream.into_split();
        let mut reader = BufReader::new(read);
        loop {
            let mut line = String::new();
            (&mut reader).take(MAX_LINE).read_line(&mut line).await?;
            if line.is_empty() {
                return Ok(());
            }
            let response = match serde_json::from_str(&line) {
                Ok(request) => self.answer(&request),
                Err(error) => failure(format!("not a request: {error}")),
            };
            let mut bytes = serde_json::to_vec(&response)?;
            bytes.push(b'\n');
            write.write_all(&bytes).await?;
        }
    }

    fn status(&self) -> Status {
        let mut status = self.registry.status(Instant::now());
        for node in &mut status.nodes {
            if let Some(report) = &mut node.report {
                report.clock_ahead_s = self.clocks.ahead_s(&node.name);
            }
        }
        let registry = self.registry.current();
        status.namespaces_on_default = default_alone(registry.mesh()).into_keys().collect();
        status
    }

    /// Answers one request.
    #[must_use]
    pub fn answer(&self, request: &Request) -> Response {
        match request {
            Request::Status => Response {
                status: Some(self.status()),
                ..Response::default()
            },
            Request::Metrics => Response {
                metrics: Some(self.series.render()),
                ..Response::default()
            },
            Request::Why {
                source,
                destination,
                port,
                protocol,
            } => {
                let asked = why::Asked {
                    source,
                    destination,
                    port: *port,
                    protocol: *protocol,
                };
                let cut_off = self.registry.cut_off();
                let directory = self.registry.current();
                match asked.answer(directory.mesh(), &self.resolvers, &cut_off) {
                    Ok(why) => Response {
                        why: Some(why),
                        ..Response::default()
                    },
                    Err(error) => failure(error.to_string()),
                }
            }
        }
    }
}

fn failure(why: impl Into<String>) -> Response {
    Response {
        error: Some(why.into()),
        ..Response::default()
    }
}
