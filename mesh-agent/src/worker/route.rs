//! The way of one captured connection: endpoint after endpoint until one answers.
//!
//! Trying again is safe, whatever has happened on the way: until a CONNECT is answered nothing
//! of what the app sends has been read. At worst a peer's app sees a connection that ends
//! without a byte.

use std::cell::Cell;
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use mesh_core::reason::Reason;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout, timeout_at};

use super::balance::{self, Candidate, OpenConnection};
use super::connect::{OpenStream, open_stream};
use super::context::Context;
use super::destination::{Destination, Endpoint};
use super::fault::{Direction, Fault};
use super::pool::Pool;
use super::socket;

/// Endpoints tried for one connection before it is refused.
const ATTEMPTS: u32 = 5;
/// How long one endpoint may take while there is another to try. The last one has the rest of
/// [`WITHIN`].
const ATTEMPT: Duration = Duration::from_secs(1);
/// How long all attempts for one connection may take together.
const WITHIN: Duration = Duration::from_secs(20);

/// A way that was found.
pub(crate) struct Route {
    pub(crate) way: Way,
    /// Where it leads.
    pub(crate) endpoint: Rc<Endpoint>,
    /// To be held as long as the flow lives.
    pub(crate) open: OpenConnection,
}

/// Where a flow goes once it is through.
pub(crate) enum Way {
    /// The pod itself.
    Local(TcpStream),
    /// A stream of a tunnel.
    Tunnel(Box<OpenStream>),
    /// A connection out of the mesh.
    Plain(TcpStream),
}

/// Finds a way to one of the endpoints of `destination`, which was dialled as `to`.
///
/// `admit` decides whether this worker may open the flow to an endpoint at all. One that is
/// refused is passed over; if all are, the first refusal is the flow's. A fault that is the
/// endpoint's own leads to the next one, any other ends the search.
pub(crate) async fn find(
    context: &Rc<Context>,
    pool: &Rc<Pool>,
    destination: &Rc<Destination>,
    (client, to): (SocketAddr, SocketAddr),
    admit: impl Fn(&Rc<Endpoint>) -> Result<(), Fault>,
) -> Result<Route, Fault> {
    let deadline = Instant::now() + WITHIN;
    let mut refused = None;
    let mut admitted = balance::candidates(destination).filter(|candidate| {
        let fault = admit(&candidate.endpoint).err();
        let passed = fault.is_none();
        refused = refused.take().or(fault);
        passed
    });
    let mut last = None;
    let mut turn = admitted.next();
    let mut left = ATTEMPTS;
    while let Some(candidate) = turn {
        left -= 1;
        let another = || if left > 0 { admitted.next() } else { None };
        let open = candidate.open();
        let waits_for = Cell::new(Reason::TunnelConnect);
        let way = attempt(context, pool, &candidate.endpoint, client, &waits_for);
        let too_slow = |limit| {
            let Endpoint {
                address, identity, ..
            } = &*candidate.endpoint;
            let detail = format!("{address}: nothing within {limit:?}");
            Fault::new(waits_for.get(), detail).of_peer(identity)
        };
        let (outcome, next) = limited(way, deadline, too_slow, another).await;
        let fault = match outcome {
            Ok(way) => {
                candidate.succeeded();
                let endpoint = candidate.endpoint;
                return Ok(Route {
                    way,
                    endpoint,
                    open,
                });
            }
            Err(fault) => fault,
        };
        if is_of_endpoint(fault.reason) {
            candidate.failed(&context.metrics);
        }
        if next.is_some() {
            context.metrics.failed_over(fault.reason);
            if is_of_identity(fault.reason) {
                // The flow may yet succeed, but somebody is not who he should be.
                let reports = &context.reports;
                reports.refusal(Direction::Outbound, &fault, client, to);
            }
        }
        last = Some(fault);
        turn = next;
    }
    drop(admitted);
    Err(last
        .or(refused)
        .unwrap_or_else(|| Fault::new(Reason::NoEndpoint, to)))
}

/// Runs one attempt as long as it may take. Where it fails and another endpoint may do, that
/// one, which is then `another`, is returned with the fault.
async fn limited(
    attempt: impl Future<Output = Result<Way, Fault>>,
    deadline: Instant,
    too_slow: impl Fn(Duration) -> Fault,
    another: impl FnOnce() -> Option<Candidate>,
) -> (Result<Way, Fault>, Option<Candidate>) {
    let mut attempt = pin!(attempt);
    match timeout(ATTEMPT, &mut attempt).await {
        Ok(Err(fault)) if is_of_endpoint(fault.reason) => (Err(fault), another()),
        Ok(outcome) => (outcome, None),
        Err(_) => match another() {
            Some(next) => (Err(too_slow(ATTEMPT)), Some(next)),
            None => {
                let outcome = timeout_at(deadline, attempt).await;
                (outcome.unwrap_or_else(|_| Err(too_slow(WITHIN))), None)
            }
        },
    }
}

/// Whether the endpoint, or the way to it, is at fault: another may do. It is not where this
/// worker is at fault, nor where the peer's policy refuses: that is an answer.
fn is_of_endpoint(reason: Reason) -> bool {
    is_of_identity(reason)
        || matches!(
            reason,
            Reason::AppConnect
                | Reason::DestinationConnect
                | Reason::TunnelConnect
                | Reason::TunnelTls
                | Reason::TunnelRefused
                | Reason::TunnelProtocol
                | Reason::HandshakeTimeout
        )
}

/// Whether the peer did not prove who it should be.
fn is_of_identity(reason: Reason) -> bool {
    matches!(
        reason,
        Reason::PeerIdentity
            | Reason::PeerExpired
            | Reason::PeerUntrusted
            | Reason::PeerIsCa
            | Reason::PeerKeyUsage
            | Reason::PeerTrustDomain
            | Reason::PeerNoIdentity
            | Reason::PeerNoCertificate
            | Reason::PeerRevoked
    )
}

/// One attempt. `waits_for` becomes the reason it fails for if it is not given more time.
async fn attempt(
    context: &Rc<Context>,
    pool: &Rc<Pool>,
    endpoint: &Rc<Endpoint>,
    client: SocketAddr,
    waits_for: &Cell<Reason>,
) -> Result<Way, Fault> {
    let to = endpoint.address;
    if context.pod.has(to.ip()) {
        return local(context, to, client).await.map(Way::Local);
    }
    if !endpoint.hbone {
        waits_for.set(Reason::DestinationConnect);
        return plain(context, to).await.map(Way::Plain);
    }
    let client = seen_client(context, to, client);
    let stream = open_stream(context, pool, endpoint, client, waits_for).await?;
    Ok(Way::Tunnel(Box::new(stream)))
}

/// Dials a place outside the mesh. That policy names it is the caller's to know.
pub(crate) async fn plain(context: &Context, to: SocketAddr) -> Result<TcpStream, Fault> {
    let fault = |e| Fault::new(Reason::DestinationConnect, format!("{to}: {e}"));
    let socket = context.dialler(to).map_err(fault)?;
    socket::reset_on_close(&socket);
    let dialled = socket::connect(socket, to, context.limits().connect_timeout).await;
    dialled.map_err(fault)
}

/// Dials the pod's own app.
pub(crate) async fn local(
    context: &Context,
    to: SocketAddr,
    client: SocketAddr,
) -> Result<TcpStream, Fault> {
    let seen = seen_client(context, to, client);
    context.dial_app(to, seen).await
}

/// The client as others see it: the app's socket is a loopback one, its own address is the
/// pod's.
pub(crate) fn seen_client(context: &Context, to: SocketAddr, client: SocketAddr) -> SocketAddr {
    let ip = context.pod.address_like(to.ip()).unwrap_or(client.ip());
    SocketAddr::new(ip, client.port())
}
