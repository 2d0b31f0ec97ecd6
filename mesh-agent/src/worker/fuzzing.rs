//! The worker's parsers of what others worded, for `mesh-fuzz`. Each entry checks what must hold
//! whatever the bytes are.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::BorrowedFd;
use std::rc::Rc;
use std::time::Duration;

use futures_util::FutureExt as _;
use http::header::FORWARDED;
use http::uri::Authority;
use http::{HeaderValue, Method, Request, Uri};
use mesh_api::WORKER_PROTOCOL_VERSION;
use mesh_api::worker::{Change, Changes, Pod, Start, ToWorker, change, to_worker};
use mesh_common::RESERVED_PORTS;
use prost::Message as _;
use tokio::io::{AsyncWriteExt as _, duplex};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::certificate::Certifier;
use super::changes::Batch;
use super::context::Context;
use super::destination::address_of;
use super::health;
use super::inbound;
use super::key::PodKey;
use super::outbox::Outbox;
use super::peer_settings::{Parser, PeerSettings};
use super::socket::CaptureHooks;

struct NoHooks;

impl CaptureHooks for NoHooks {
    fn original_destination(
        &self,
        _accepted: BorrowedFd<'_>,
        _client: SocketAddr,
    ) -> io::Result<SocketAddr> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn inbound_destination(&self, _accepted: &TcpStream) -> io::Result<SocketAddr> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn label_client(&self, _socket: BorrowedFd<'_>, _client: SocketAddr) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

fn pod() -> Pod {
    Pod {
        namespace: "shop".to_owned(),
        name: "cart".to_owned(),
        service_account: "cart".to_owned(),
        trust_domain: "cluster.local".to_owned(),
        addresses: vec![vec![10, 0, 0, 2]],
        ..Pod::default()
    }
}

/// What an HBONE peer asks for: a method, an authority or URI, and `Forwarded` headers. A request
/// is for the pod's own address and no port of the mesh, or refused; and the app sees the tunnel's
/// proven address whatever the headers say.
pub fn hbone_request(method: &[u8], target: &[u8], forwarded: &[&[u8]]) {
    let (outbox, _queue) = Outbox::new();
    let start = Start {
        protocol_version: WORKER_PROTOCOL_VERSION,
        pod: Some(pod()),
        ..Start::default()
    };
    let Ok(context) = Context::new(&start, None, outbox, Box::new(NoHooks)) else {
        unreachable!("the pod is a valid one");
    };
    let Ok(method) = Method::from_bytes(method) else {
        return;
    };
    let authority = Authority::try_from(target).map(Uri::from);
    let Ok(uri) = authority.or_else(|_| Uri::try_from(target)) else {
        return;
    };
    let mut request = Request::new(());
    *request.method_mut() = method;
    *request.uri_mut() = uri;
    for value in forwarded {
        if let Ok(value) = HeaderValue::from_bytes(value) {
            request.headers_mut().append(FORWARDED, value);
        }
    }
    if let Ok(to) = inbound::target(&context, &request, None) {
        assert!(context.pod.has(to.ip()), "{to} is not the pod's");
        assert!(to.port() != 0 && !RESERVED_PORTS.contains(&to.port()));
        assert_eq!(request.method(), Method::CONNECT);
    }
    let peer = SocketAddr::from((Ipv4Addr::new(10, 0, 0, 7), 40_000));
    let client = inbound::client(request.headers(), peer);
    assert_eq!(client.ip(), peer.ip());
    assert_ne!(client.port(), 0);
}

/// A supervisor's words: `Start`, then messages. Half a batch, or one that can't be read, changes
/// nothing of the policy in force.
pub fn supervisor_messages<'a>(start: &[u8], messages: impl Iterator<Item = &'a [u8]>) {
    let Ok(start) = Start::decode(start) else {
        return;
    };
    let start = Start {
        protocol_version: WORKER_PROTOCOL_VERSION,
        pod: Some(start.pod.unwrap_or_else(pod)),
        ..start
    };
    let (outbox, _queue) = Outbox::new();
    let Ok(context) = Context::new(&start, None, outbox, Box::new(NoHooks)) else {
        return;
    };
    let Ok(key) = PodKey::generate() else {
        return;
    };
    let mut certifier = Certifier::new(context.clone(), key, false);
    let mut batch = Batch::default();
    for message in messages {
        let Some(message) = ToWorker::decode(message).ok().and_then(|m| m.message) else {
            continue;
        };
        use to_worker::Message as M;
        match message {
            M::Changes(changes) => {
                ask_for(&context, &changes.changes);
                let before = context.policy.in_force();
                if !batch.receive(changes, &context) {
                    let after = context.policy.in_force();
                    let same = match (&before, &after) {
                        (Some(before), Some(after)) => Rc::ptr_eq(before, after),
                        (before, after) => before.is_none() && after.is_none(),
                    };
                    assert!(same, "a policy that is not in force by itself");
                }
            }
            M::Certificate(certificate) => {
                let fresh = certifier.certificate(certificate.chain);
                assert!(!fresh, "the key is new: nobody has signed it");
            }
            M::TrustBundle(bundle) => drop(certifier.trust_bundle(bundle)),
            M::CertificateRefused(refused) => certifier.refused(&refused.why),
            _ => {}
        }
    }
}

/// A pod's policy as the supervisor tells it, in parts: it is in force with the last one.
pub fn policy_is_taken(changes: &[Vec<u8>]) {
    let (outbox, _queue) = Outbox::new();
    let start = Start {
        protocol_version: WORKER_PROTOCOL_VERSION,
        pod: Some(pod()),
        ..Start::default()
    };
    let Ok(context) = Context::new(&start, None, outbox, Box::new(NoHooks)) else {
        unreachable!("the pod is a valid one");
    };
    let mut batch = Batch::default();
    for (index, part) in changes.iter().enumerate() {
        let part = Changes::decode(part.as_slice());
        let in_force = part.is_ok_and(|part| batch.receive(part, &context));
        assert_eq!(in_force, index + 1 == changes.len());
    }
}

/// What was not asked for is not taken in.
fn ask_for(context: &Context, changes: &[Change]) {
    for Change { change } in changes {
        match change {
            Some(change::Change::Destination(destination)) => {
                let port = u16::try_from(destination.port).ok();
                if let Some(to) = address_of(&destination.address).zip(port) {
                    // Only the question matters; its answer is what is parsed.
                    let _unanswered = context.discovery.resolve(to.into()).now_or_never();
                }
            }
            Some(change::Change::Source(source)) => {
                if let Some(address) = address_of(&source.address) {
                    context.sources.look_up(address);
                }
            }
            _ => {}
        }
    }
}

/// The bytes of an HTTP/2 peer, as they come in at once and in pieces: what is read off them does
/// not depend on how they are cut.
pub fn peer_settings(bytes: &[u8], piece: usize) {
    let read = |pieces: &mut dyn Iterator<Item = &[u8]>| {
        let (settings, mut parser) = (PeerSettings::new(), Parser::new());
        for piece in pieces {
            parser.feed(piece, &settings);
            assert!(settings.independent_streams() >= 1);
        }
        (
            settings.heard(),
            settings.leaving(),
            settings.independent_streams(),
        )
    };
    let whole = read(&mut std::iter::once(bytes));
    assert_eq!(whole, read(&mut bytes.chunks(piece.max(1))));
}

/// An app's answer to a health check.
///
/// # Panics
/// Must be called in a tokio runtime with time.
pub async fn health_answer(answer: &[u8]) {
    let (ours, mut app) = duplex(answer.len() + 1024);
    let asked = health::get(ours, "/ready", "app");
    let answered = async {
        // It may have hung up already.
        let _heard = app.write_all(answer).await;
        drop(app);
    };
    let both = async { tokio::join!(asked, answered) };
    let ended = timeout(Duration::from_secs(1), both).await;
    assert!(ended.is_ok(), "a check that does not end with its answer");
}
