//! Captured connections of the pod's app, on their way to other workloads.

use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::rc::Rc;

use mesh_common::RESERVED_PORTS;
use mesh_core::reason::Reason;
use tokio::net::TcpStream;

use super::balance::OpenConnection;
use super::connect::OpenStream;
use super::context::Context;
use super::discovery::Endpoint;
use super::fault::{Direction, Fault};
use super::metrics::Count;
use super::pool::Pool;
use super::relay::{ByteCounts, relay};
use super::relay_local::relay_local;
use super::route::{self, Way};
use super::socket;

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
    match Box::pin(find(&context, &pool, to, client)).await {
        Err(fault) => refuse(&context, app, &fault, client, Some(to)),
        Ok((Way::Local(server), _open)) => {
            let (counts, never) = (ByteCounts::OUTBOUND, std::future::pending());
            relay_local(app, server, &context.metrics, counts, never).await;
        }
        Ok((Way::Tunnel(stream), _open)) => {
            let OpenStream {
                receive,
                send,
                lease,
            } = *stream;
            let (counts, never) = (ByteCounts::OUTBOUND, std::future::pending());
            relay(app, receive, send, &context, counts, never).await;
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

/// The way to where the app wants to go, and what is to be held while it is in use.
async fn find(
    context: &Rc<Context>,
    pool: &Rc<Pool>,
    to: SocketAddr,
    client: SocketAddr,
) -> Result<(Way, Option<OpenConnection>), Fault> {
    if context.pod.has(to.ip()) {
        let app = route::local(context, to, client).await?;
        return Ok((Way::Local(app), None));
    }
    let destination = context.discovery.resolve(to).await?;
    if !destination.known {
        return Err(Fault::new(Reason::DestinationUnknown, to));
    }
    let admit = |endpoint: &Endpoint| admit(context, endpoint);
    let found = route::find(context, pool, &destination, (client, to), admit).await?;
    Ok((found.way, Some(found.open)))
}

/// Whether this worker may open a flow to `endpoint`.
fn admit(context: &Context, endpoint: &Endpoint) -> Result<(), Fault> {
    if endpoint.hbone || context.pod.has(endpoint.address.ip()) {
        return Ok(());
    }
    let fault = Fault::new(Reason::DestinationNotEnrolled, endpoint.address);
    Err(fault.of_peer(&endpoint.identity))
}
