//! The test's end of a worker's channel: signs, answers, writes down.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex};

use mesh_api::worker::{
    Certificate, CertificateRefused, Change, Changes, FdKind, Refusal, ToWorker, change,
    to_supervisor, to_worker,
};
use tokio::sync::mpsc;

use super::harness::Mesh;
use super::pki::Leaf;
use crate::channel::SupervisorChannel;

/// What the worker has said so far.
#[derive(Default)]
pub(super) struct Heard {
    pub(super) refusals: Vec<Refusal>,
    pub(super) requests: usize,
    pub(super) ready: Vec<i64>,
    pub(super) hellos: Vec<u32>,
    pub(super) listeners: Vec<Vec<FdKind>>,
    pub(super) keys: usize,
    pub(super) asked: Vec<(Vec<u8>, u32)>,
    pub(super) asked_who: Vec<Vec<u8>>,
    pub(super) drained: bool,
    pub(super) start_failed: Option<String>,
    pub(super) metrics: HashMap<u64, Vec<(String, String, u64)>>,
    pub(super) fds: HashMap<i32, OwnedFd>,
    pub(super) chain: Vec<Vec<u8>>,
    pub(super) applied: Vec<String>,
    pub(super) tunnels: Vec<(String, String, String)>,
    pub(super) health: Vec<(bool, String)>,
}

/// The test's end of a worker's channel.
pub(super) async fn supervise(
    channel: OwnedFd,
    mesh: Arc<Mesh>,
    heard: Arc<Mutex<Heard>>,
    mut mail: mpsc::UnboundedReceiver<(to_worker::Message, Vec<OwnedFd>)>,
    signer: (Leaf, usize),
) {
    let channel = SupervisorChannel::new(channel).unwrap();
    loop {
        tokio::select! {
            posted = mail.recv() => {
                let Some((message, fds)) = posted else { return };
                let borrowed: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
                let message = ToWorker { message: Some(message) };
                // A worker that has ended is seen on the next receive.
                let _ended = channel.send(&message, &borrowed).await;
            }
            received = channel.recv() => {
                let (message, fds) = match received {
                    Ok(Some(received)) => received,
                    // What the worker had said before is still to be read (unix(7)).
                    Err(error) if error.kind() == io::ErrorKind::ConnectionReset => continue,
                    Ok(None) | Err(_) => return,
                };
                let answer = hear(&mesh, &heard, message.message.unwrap(), fds, &signer);
                if let Some(message) = answer {
                    let message = ToWorker { message: Some(message) };
                    let _ended = channel.send(&message, &[]).await;
                }
            }
        }
    }
}

fn hear(
    mesh: &Mesh,
    heard: &Mutex<Heard>,
    message: to_supervisor::Message,
    fds: Vec<OwnedFd>,
    (leaf, certificates): &(Leaf, usize),
) -> Option<to_worker::Message> {
    use to_supervisor::Message as M;
    let mut heard = heard.lock().unwrap();
    match message {
        M::Hello(hello) => heard.hellos.push(hello.protocol_version),
        M::Listeners(listeners) => {
            assert_eq!(listeners.fds.len(), fds.len());
            let kinds = listeners.fds.iter().map(|k| FdKind::try_from(*k).unwrap());
            heard.listeners.push(kinds.collect());
            heard.fds.extend(listeners.fds.into_iter().zip(fds));
        }
        M::PrivateKey(_) => {
            heard.keys += 1;
            let key = fds.into_iter().next().unwrap();
            heard.fds.insert(FdKind::PrivateKey as i32, key);
        }
        M::CertificateRequest(request) => {
            heard.requests += 1;
            if heard.requests > *certificates {
                let why = "the test says so".to_owned();
                return Some(to_worker::Message::CertificateRefused(CertificateRefused {
                    why,
                }));
            }
            let chain = mesh.pki.sign(&request.csr, leaf);
            heard.chain.clone_from(&chain);
            return Some(to_worker::Message::Certificate(Certificate { chain }));
        }
        M::ResolveDestination(question) => {
            let key = (question.address.clone(), question.port);
            heard.asked.push(key);
            return mesh
                .look_up(&question.address, question.port)
                .map(|found| tell([change::Change::Destination(found)]));
        }
        M::ResolveSource(question) => {
            heard.asked_who.push(question.address.clone());
            return mesh
                .source(&question.address)
                .map(|found| tell([change::Change::Source(found)]));
        }
        M::Ready(ready) => heard.ready.push(ready.certificate_not_after_s),
        M::Refusal(refusal) => heard.refusals.push(refusal),
        M::Metrics(metrics) => {
            let counters = metrics.counters.into_iter();
            let counters = counters.map(|c| (c.name, c.label, c.value)).collect();
            heard.metrics.insert(metrics.id, counters);
        }
        M::Drained(_) => heard.drained = true,
        M::StartFailed(failed) => heard.start_failed = Some(failed.why),
        M::Applied(applied) => heard.applied.push(applied.version),
        M::Health(health) => heard.health.push((health.unhealthy, health.detail)),
        M::TunnelOpened(opened) => {
            let parts = (opened.direction, opened.peer_identity, opened.tls);
            heard.tunnels.push(parts);
        }
    }
    None
}

/// A whole batch.
pub(super) fn tell(changes: impl IntoIterator<Item = change::Change>) -> to_worker::Message {
    let changes = changes.into_iter().map(|change| Change {
        change: Some(change),
    });
    to_worker::Message::Changes(Changes {
        changes: changes.collect(),
        more: false,
    })
}
