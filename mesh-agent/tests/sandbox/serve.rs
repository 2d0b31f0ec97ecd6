//! The worker of these tests: after the same birth as in production it serves on the same
//! runtime, so that what is shown is that a confined process works, not only that it is shut in.

use std::process::ExitCode;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use mesh_agent::channel::WorkerChannel;
use mesh_agent::sandbox::{Confined, become_worker};
use mesh_api::worker::{Metrics, Ready, ToSupervisor, ToWorker, to_supervisor, to_worker};

/// Where it echoes, in its pod's network namespace.
pub(crate) const ECHO: &str = "127.0.0.1:15001";

pub(crate) fn worker() -> ExitCode {
    let Ok(confined) = become_worker() else {
        return ExitCode::from(70);
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let served = runtime.map(|runtime| runtime.block_on(serve(confined)));
    ExitCode::from(if matches!(served, Ok(Ok(()))) { 0 } else { 71 })
}

/// Says Ready, then answers every request for metrics and echoes on every connection.
async fn serve(confined: Confined) -> std::io::Result<()> {
    let channel = WorkerChannel::new(confined.channel)?;
    let listener = TcpListener::bind(ECHO).await?;
    let ready = to_supervisor::Message::Ready(Ready::default());
    channel.send(&message(ready), &[]).await?;
    loop {
        tokio::select! {
            received = channel.recv() => match received? {
                Some((ToWorker { message: Some(to_worker::Message::MetricsRequest(_)) }, _)) => {
                    let metrics = to_supervisor::Message::Metrics(Metrics::default());
                    channel.send(&message(metrics), &[]).await?;
                }
                Some(_) => {}
                None => return Ok(()),
            },
            accepted = listener.accept() => {
                let (mut stream, _) = accepted?;
                stream.set_nodelay(true)?;
                tokio::spawn(async move {
                    let mut bytes = vec![0; 4096];
                    while let Ok(count @ 1..) = stream.read(&mut bytes).await {
                        if stream.write_all(&bytes[..count]).await.is_err() {
                            break;
                        }
                    }
                });
            }
        }
    }
}

fn message(message: to_supervisor::Message) -> ToSupervisor {
    ToSupervisor {
        message: Some(message),
    }
}
