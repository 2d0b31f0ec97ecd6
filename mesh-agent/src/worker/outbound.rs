//! Captured connections of the pod's app, on their way to other workloads.

use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::rc::Rc;
use std::time::Duration;

use http::{HeaderValue, Method, Request, StatusCode, Uri, header::FORWARDED};
use mesh_common::RESERVED_PORTS;
use mesh_core::reason::Reason;
use tokio::net::TcpStream;

use super::context::Context;
use super::discovery::Endpoint;
use super::fault::{Direction, Fault};
use super::metrics::Count;
use super::pool::{Lease, Pool};
use super::relay::{ByteCounts, relay};
use super::relay_local::relay_local;
use super::socket;
use super::tunnel::fault_of_h2;

/// Endpoints of a service tried for one connection before it is refused.
const ATTEMPTS: usize = 3;
/// How long the peer may take to answer a CONNECT: its own dial of the app and some.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);

/// Where a flow goes once it is through.
enum Route {
    /// The pod itself.
    Local(TcpStream),
    /// A stream of a tunnel.
    Tunnel(Box<OpenStream>),
}

/// A stream whose CONNECT was answered with 200.
struct OpenStream {
    receive: h2::RecvStream,
    send: h2::SendStream<super::chunk::Chunk>,
    lease: Lease,
}

/// Serves one captured connection from accept to its end.
pub(crate) async fn serve(
    context: Rc<Context>,
    pool: Rc<Pool>,
    app: TcpStream,
    client: SocketAddr,
) {
    context.metrics.add(Count::OutboundConnections, 1);
    // Also while the way out is being made.
    socket::reset_on_close(&app);
    let client = socket::canonical(client);
    if let Err(fault) = context.admit() {
        return refuse(&context, app, &fault, client, None);
    }
    let _open = context.metrics.open(Count::OutboundOpen);
    let to = match original_destination(&context, &app) {
        Ok(to) => to,
        Err(fault) => return refuse(&context, app, &fault, client, None),
    };
    // Without it small writes wait for each other; a socket that is gone shows it on use.
    let _gone = app.set_nodelay(true);
    // The routing future is large and short-lived: it must not be part of this task.
    match Box::pin(route(&context, &pool, to, client)).await {
        Err(fault) => refuse(&context, app, &fault, client, Some(to)),
        Ok(Route::Local(server)) => relay_local(app, server, &context.metrics).await,
        Ok(Route::Tunnel(stream)) => {
            let OpenStream {
                receive,
                send,
                lease,
            } = *stream;
            let counts = ByteCounts {
                from_app: Count::OutboundSent,
                to_app: Count::OutboundReceived,
            };
            relay(app, receive, send, &context, counts).await;
            drop(lease);
        }
    }
}

fn refuse(
    context: &Context,
    app: TcpStream,
    fault: &Fault,
    client: SocketAddr,
    to: Option<SocketAddr>,
) {
    let to = to.map_or_else(String::new, |to| to.to_string());
    context
        .reports
        .refusal(Direction::Outbound, fault, client, to);
    socket::reset(app);
}

fn original_destination(context: &Context, app: &TcpStream) -> Result<SocketAddr, Fault> {
    let unknown = |detail: String| Fault::new(Reason::OriginalDestinationUnknown, detail);
    let to = context
        .hooks
        .original_destination(app.as_fd())
        .map_err(|e| unknown(format!("SO_ORIGINAL_DST: {e}")))?;
    let own = to.ip().is_loopback() || context.pod.has(to.ip());
    if to.ip().is_unspecified() || to.port() == 0 || (own && RESERVED_PORTS.contains(&to.port())) {
        return Err(unknown(format!("{to} is no destination of an app")));
    }
    Ok(to)
}

async fn route(
    context: &Rc<Context>,
    pool: &Rc<Pool>,
    to: SocketAddr,
    client: SocketAddr,
) -> Result<Route, Fault> {
    if context.pod.has(to.ip()) {
        return local(context, to, client).await;
    }
    let destination = context.discovery.resolve(to).await?;
    if !destination.known {
        return Err(Fault::new(Reason::DestinationUnknown, to));
    }
    let mut last = None;
    let mut attempts = 0;
    for endpoint in destination.candidates() {
        if context.pod.has(endpoint.address.ip()) {
            return local(context, endpoint.address, client).await;
        }
        if let Err(fault) = admit(&endpoint) {
            last.get_or_insert(fault);
            continue;
        }
        if attempts == ATTEMPTS {
            break;
        }
        attempts += 1;
        match open_stream(context, pool, &endpoint, client).await {
            Ok(stream) => return Ok(Route::Tunnel(Box::new(stream))),
            // Nothing has been sent: another endpoint may do.
            Err(fault) if fault.reason == Reason::TunnelConnect => last = Some(fault),
            Err(fault) => return Err(fault),
        }
    }
    Err(last.unwrap_or_else(|| Fault::new(Reason::NoEndpoint, to)))
}

/// Whether this worker may open a flow to `endpoint`. One that is refused is passed over; if all
/// are, the first fault is the flow's.
fn admit(endpoint: &Endpoint) -> Result<(), Fault> {
    if endpoint.hbone {
        return Ok(());
    }
    let fault = Fault::new(Reason::DestinationNotEnrolled, endpoint.address);
    Err(fault.of_peer(&endpoint.identity))
}

async fn local(context: &Context, to: SocketAddr, client: SocketAddr) -> Result<Route, Fault> {
    let seen = seen_client(context, to, client);
    Ok(Route::Local(context.dial_app(to, seen).await?))
}

/// The client as others see it: the app's socket is a loopback one, its own address is the
/// pod's.
fn seen_client(context: &Context, to: SocketAddr, client: SocketAddr) -> SocketAddr {
    let ip = context.pod.address_like(to.ip()).unwrap_or(client.ip());
    SocketAddr::new(ip, client.port())
}

async fn open_stream(
    context: &Rc<Context>,
    pool: &Rc<Pool>,
    endpoint: &Endpoint,
    client: SocketAddr,
) -> Result<OpenStream, Fault> {
    let client = seen_client(context, endpoint.address, client);
    // A tunnel on its way out may refuse the stream before it has looked at it; a new one
    // gets a second try.
    match try_stream(context, pool, endpoint, client).await {
        Err(Attempt::NotProcessed) => match try_stream(context, pool, endpoint, client).await {
            Ok(stream) => Ok(stream),
            Err(Attempt::NotProcessed) => {
                let detail = format!("{} refused the stream twice", endpoint.address);
                Err(Fault::new(Reason::TunnelRefused, detail))
            }
            Err(Attempt::Failed(fault)) => Err(fault),
        },
        Ok(stream) => Ok(stream),
        Err(Attempt::Failed(fault)) => Err(fault),
    }
}

enum Attempt {
    NotProcessed,
    Failed(Fault),
}

async fn try_stream(
    context: &Context,
    pool: &Rc<Pool>,
    endpoint: &Endpoint,
    client: SocketAddr,
) -> Result<OpenStream, Attempt> {
    let failed = |reason, detail: &dyn std::fmt::Display| {
        let detail = format!("{}: {detail}", endpoint.address);
        Attempt::Failed(Fault::new(reason, detail).of_peer(&endpoint.identity))
    };
    let lease = pool.lease(endpoint).await.map_err(Attempt::Failed)?;
    let request = connect_request(context, endpoint.address, client)
        .map_err(|e| failed(Reason::TunnelProtocol, &e))?;
    let (response, send) = lease.request(request).map_err(|_| Attempt::NotProcessed)?;
    let response = tokio::time::timeout(ANSWER_TIMEOUT, response)
        .await
        .map_err(|_| failed(Reason::TunnelRefused, &"no answer to CONNECT in 15 s"))?
        .map_err(|error| {
            let refused = error.reason() == Some(h2::Reason::REFUSED_STREAM);
            if error.is_remote() && (refused || error.is_go_away()) {
                return Attempt::NotProcessed;
            }
            let fault = fault_of_h2(&error);
            failed(fault.reason, &fault.detail)
        })?;
    if response.status() != StatusCode::OK {
        let detail = format!("the peer answered {}", response.status());
        return Err(failed(Reason::TunnelRefused, &detail));
    }
    lease.data_sent();
    Ok(OpenStream {
        receive: response.into_body(),
        send,
        lease,
    })
}

fn connect_request(
    context: &Context,
    to: SocketAddr,
    client: SocketAddr,
) -> Result<Request<()>, http::Error> {
    let authority = Uri::builder().authority(to.to_string()).build()?;
    let forwarded = HeaderValue::try_from(format!("for=\"{client}\""))?;
    Request::builder()
        .method(Method::CONNECT)
        .uri(authority)
        .header(FORWARDED, forwarded)
        .header("baggage", context.pod.baggage.clone())
        .body(())
}
