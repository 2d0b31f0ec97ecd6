//! The worker's listeners: made or taken over, handed on, made anew when something kills them.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::time::Duration;

use futures_util::FutureExt as _;
use mesh_api::worker::{FdKind, Listeners as ListenersMessage, to_supervisor::Message};
use mesh_common::{PORT_HBONE, PORT_OUTBOUND, PORT_PLAINTEXT};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpStream};

use super::admission::Way;
use super::context::Context;
use super::fault::Direction;
use super::metrics::Count;
use super::{socket, turn};

/// Every kind of listener.
pub(crate) const KINDS: [FdKind; 6] = [
    FdKind::OutboundV4,
    FdKind::OutboundV6,
    FdKind::PlaintextV4,
    FdKind::PlaintextV6,
    FdKind::HboneV4,
    FdKind::HboneV6,
];
const BACKLOG: i32 = 4096;
/// Receive buffer of a connection nobody has accepted yet, in bytes (the kernel doubles it).
const WAITING_BUFFER: usize = 32 * 1024;
/// How long `accept` rests when there are no descriptors or memory, at first and at most.
const REST: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(500));

/// A listener could not be made.
#[derive(Debug, thiserror::Error)]
#[error(
    "listening on {address} ({kind:?}) failed: {source}; is another process of the pod on that port?"
)]
pub(crate) struct ListenError {
    kind: FdKind,
    address: SocketAddr,
    source: io::Error,
}

/// The worker's listeners, by kind.
pub(crate) struct Listeners {
    all: RefCell<BTreeMap<i32, Rc<TcpListener>>>,
}

impl Listeners {
    /// Takes over what an earlier worker left and makes the rest. IPv6 ones are optional: a
    /// pod can have IPv6 switched off.
    pub(crate) fn new(handed_over: BTreeMap<i32, OwnedFd>) -> Result<Self, ListenError> {
        let mut all = BTreeMap::new();
        let mut handed_over = handed_over;
        for kind in KINDS {
            let taken = handed_over
                .remove(&(kind as i32))
                .and_then(|fd| take_over(kind, fd));
            let listener = match taken {
                Some(listener) => listener,
                None => match make(kind) {
                    Ok(listener) => listener,
                    Err(error) if is_v6(kind) && no_ipv6(&error.source) => continue,
                    Err(error) => return Err(error),
                },
            };
            all.insert(kind as i32, Rc::new(listener));
        }
        Ok(Self {
            all: RefCell::new(all),
        })
    }

    /// The kinds there are.
    pub(crate) fn kinds(&self) -> Vec<FdKind> {
        let all = self.all.borrow();
        let kinds = KINDS.into_iter();
        kinds
            .filter(|kind| all.contains_key(&(*kind as i32)))
            .collect()
    }

    /// Duplicates for the supervisor, with the message they go with.
    pub(crate) fn hand_over(&self, kinds: &[FdKind]) -> io::Result<(Message, Vec<OwnedFd>)> {
        let all = self.all.borrow();
        let mut fds = Vec::new();
        let mut named = Vec::new();
        for kind in kinds {
            if let Some(listener) = all.get(&(*kind as i32)) {
                fds.push(listener.as_fd().try_clone_to_owned()?);
                named.push(*kind as i32);
            }
        }
        Ok((Message::Listeners(ListenersMessage { fds: named }), fds))
    }

    fn get(&self, kind: FdKind) -> Option<Rc<TcpListener>> {
        self.all.borrow().get(&(kind as i32)).cloned()
    }

    /// Accepts on one listener until the worker drains, handing every connection to `serve`.
    pub(crate) async fn accept<F, S>(self: Rc<Self>, context: Rc<Context>, kind: FdKind, serve: F)
    where
        F: Fn(TcpStream, SocketAddr) -> S,
        S: Future<Output = ()> + 'static,
    {
        let serving = async {
            let mut rest = REST.0;
            let (way, direction) = way(kind);
            loop {
                if let Some(wait) = context.admission.rest(way) {
                    context.metrics.add(Count::AcceptRested, 1);
                    tokio::time::sleep(wait).await;
                }
                let error = match self.get(kind) {
                    None => None,
                    Some(listener) => match listener.accept().await {
                        Ok((stream, peer)) => {
                            rest = REST.0;
                            turn::give_way();
                            match context.admission.rate(way) {
                                Ok(()) => {
                                    // Counted from here on: a worker that begins to drain before
                                    // the task has had its first turn waits for it.
                                    let in_hand = context.metrics.open(Count::InHand);
                                    // Not a block that awaits, which would hold the future twice.
                                    let served = serve(stream, peer).map(move |()| drop(in_hand));
                                    tokio::task::spawn_local(served);
                                }
                                Err(fault) => {
                                    let peer = socket::canonical(peer);
                                    let reports = &context.reports;
                                    reports.refusal(direction, &fault, peer, "");
                                    socket::reset(stream);
                                }
                            }
                            continue;
                        }
                        Err(error) => Some(error),
                    },
                };
                rest = self.recover(&context, kind, error, rest).await;
            }
        };
        tokio::select! {
            () = serving => {}
            () = context.draining() => {}
        }
    }

    /// After an error of `accept`, or without a listener: rests, or makes the listener anew.
    /// Returns the next rest.
    async fn recover(
        &self,
        context: &Context,
        kind: FdKind,
        error: Option<io::Error>,
        rest: Duration,
    ) -> Duration {
        match error.as_ref().map(io::Error::raw_os_error) {
            // Errors of a connection that was waiting, not of the listener (accept(2)).
            Some(Some(
                libc::ECONNABORTED
                | libc::ENETDOWN
                | libc::EPROTO
                | libc::ENOPROTOOPT
                | libc::EHOSTDOWN
                | libc::ENONET
                | libc::EHOSTUNREACH
                | libc::EOPNOTSUPP
                | libc::ENETUNREACH
                | libc::EPERM
                | libc::EINTR,
            )) => {
                context.metrics.add(Count::AcceptAborted, 1);
                return REST.0;
            }
            // Someone with CAP_NET_ADMIN in the pod killed the listener (`ss -K`).
            Some(Some(libc::EINVAL)) | None => {
                if self.remake(context, kind).await {
                    return REST.0;
                }
            }
            Some(_) => {
                context.metrics.add(Count::AcceptExhausted, 1);
                if rest == REST.0 {
                    tracing::warn!(?kind, ?error, "accepting a connection failed; resting");
                }
            }
        }
        tokio::time::sleep(rest).await;
        (rest * 2).min(REST.1)
    }

    /// Replaces a listener that was killed, here and at the supervisor. Its port may be taken
    /// until the supervisor has closed its duplicate too: a message without this kind says so.
    async fn remake(&self, context: &Context, kind: FdKind) -> bool {
        let was_held = self.all.borrow_mut().remove(&(kind as i32)).is_some();
        let made = make(kind);
        let done = made.is_ok();
        match made {
            Ok(listener) => {
                let listener = Rc::new(listener);
                self.all.borrow_mut().insert(kind as i32, listener);
                context.metrics.add(Count::ListenerRemade, 1);
                tracing::warn!(?kind, "a listener was killed and has been made anew");
            }
            Err(error) if was_held => {
                tracing::error!(%error, "a listener was killed and can't be made anew yet");
            }
            Err(_) => return false,
        }
        match self.hand_over(&self.kinds()) {
            Ok((message, fds)) => context.outbox.send(message, fds).await,
            Err(error) => tracing::error!(?kind, %error, "handing over the listeners failed"),
        }
        done
    }

    /// Lets go of every listener.
    pub(crate) fn close(&self) {
        self.all.borrow_mut().clear();
    }
}

fn is_v6(kind: FdKind) -> bool {
    matches!(
        kind,
        FdKind::OutboundV6 | FdKind::PlaintextV6 | FdKind::HboneV6
    )
}

/// Whether what is accepted is an app's own connection. A tunnel has an end of its own inside
/// TLS, and closing it must not overtake its last frames.
fn carries_app_data(kind: FdKind) -> bool {
    !matches!(kind, FdKind::HboneV4 | FdKind::HboneV6)
}

/// How what is accepted comes in.
fn way(kind: FdKind) -> (Way, Direction) {
    match kind {
        FdKind::OutboundV4 | FdKind::OutboundV6 => (Way::Outbound, Direction::Outbound),
        FdKind::PlaintextV4 | FdKind::PlaintextV6 => (Way::Plaintext, Direction::Inbound),
        _ => (Way::Handshake, Direction::Inbound),
    }
}

fn no_ipv6(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EADDRNOTAVAIL | libc::EAFNOSUPPORT)
    )
}

fn address(kind: FdKind) -> SocketAddr {
    let ip =
        |v4: Ipv4Addr, v6: Ipv6Addr| -> IpAddr { if is_v6(kind) { v6.into() } else { v4.into() } };
    let any = ip(Ipv4Addr::UNSPECIFIED, Ipv6Addr::UNSPECIFIED);
    match kind {
        FdKind::OutboundV4 | FdKind::OutboundV6 => {
            SocketAddr::new(ip(Ipv4Addr::LOCALHOST, Ipv6Addr::LOCALHOST), PORT_OUTBOUND)
        }
        FdKind::PlaintextV4 | FdKind::PlaintextV6 => SocketAddr::new(any, PORT_PLAINTEXT),
        _ => SocketAddr::new(any, PORT_HBONE),
    }
}

fn take_over(kind: FdKind, fd: OwnedFd) -> Option<TcpListener> {
    let socket = Socket::from(fd);
    let usable = socket.is_listener().unwrap_or(false) && socket.set_nonblocking(true).is_ok();
    if !usable {
        tracing::warn!(
            ?kind,
            "the listener that was handed over is dead; making it anew"
        );
        return None;
    }
    // An older version may have made it.
    inherit(kind, &socket).ok()?;
    TcpListener::from_std(socket.into()).ok()
}

/// Sets what every connection of the listener is to start with.
fn inherit(kind: FdKind, listener: &Socket) -> io::Result<()> {
    socket::no_delay(listener)?;
    if carries_app_data(kind) {
        socket::reset_on_close(listener);
    }
    Ok(())
}

fn make(kind: FdKind) -> Result<TcpListener, ListenError> {
    let address = address(kind);
    let socket = || {
        let socket = Socket::new(
            Domain::for_address(address),
            Type::STREAM.nonblocking(),
            Some(Protocol::TCP),
        )?;
        socket.set_reuse_address(true)?;
        if is_v6(kind) {
            socket.set_only_v6(true)?;
        }
        socket::bound_receive_buffer(&socket, WAITING_BUFFER)?;
        socket.bind(&address.into())?;
        inherit(kind, &socket)?;
        socket.listen(BACKLOG)?;
        TcpListener::from_std(socket.into())
    };
    socket().map_err(|source| ListenError {
        kind,
        address,
        source,
    })
}
