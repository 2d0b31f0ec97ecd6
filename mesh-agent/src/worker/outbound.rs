//! Captured connections of the pod's app, on their way to other workloads.

use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::pin::pin;
use std::rc::Rc;

use mesh_api::worker::refusal::Outcome;
use mesh_common::RESERVED_PORTS;
use mesh_core::reason::Reason;
use tokio::net::TcpStream;

use super::balance::OpenConnection;
use super::connect::OpenStream;
use super::context::Context;
use super::discovery::Endpoint;
use super::fault::{Direction, Fault};
use super::flow::Flow;
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
    let accepted_from = client;
    let client = socket::canonical(client);
    if let Err(fault) = context.admit() {
        return refuse(&context, app, &fault, client, None);
    }
    let _open = context.metrics.open(Count::OutboundOpen);
    let to = match original_destination(&context, &app, accepted_from) {
        Ok(to) => to,
        Err(fault) => return refuse(&context, app, &fault, client, None),
    };
    let client = route::seen_client(&context, to, client);
    // The routing future is large and short-lived: it must not be part of this task.
    let (way, flow, _open) = match Box::pin(find(&context, &pool, to, client)).await {
        Ok(Found { way, flow, open }) => (way, flow, open),
        Err(fault) => return refuse(&context, app, &fault, client, Some(to)),
    };
    let counts = ByteCounts::OUTBOUND;
    let cut = pin!(until_cut(&context, flow));
    match way {
        Way::Local(server) => relay_local(app, server, &context.metrics, counts, cut).await,
        Way::Plain(server) => {
            context.metrics.add(Count::PlainOutbound, 1);
            relay_local(app, server, &context.metrics, counts, cut).await;
        }
        Way::Tunnel(stream) => {
            let OpenStream {
                receive,
                send,
                lease,
            } = *stream;
            relay(app, receive, send, &context, counts, cut).await;
            drop(lease);
        }
    }
}

/// What never leaves the pod is nobody's to cut.
async fn until_cut(context: &Context, flow: Option<Flow>) {
    match flow {
        Some(mut flow) => flow.cut(context).await,
        None => std::future::pending().await,
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

fn original_destination(
    context: &Context,
    app: &TcpStream,
    accepted_from: SocketAddr,
) -> Result<SocketAddr, Fault> {
    let unknown = |detail: String| Fault::new(Reason::OriginalDestinationUnknown, detail);
    let to = context
        .hooks
        .original_destination(app.as_fd(), accepted_from)
        .map_err(|e| unknown(format!("SO_ORIGINAL_DST: {e}")))?;
    let own = to.ip().is_loopback() || context.pod.has(to.ip());
    if to.ip().is_unspecified() || to.port() == 0 || (own && RESERVED_PORTS.contains(&to.port())) {
        return Err(unknown(format!("{to} is no destination of an app")));
    }
    Ok(to)
}

/// The way to where the app wants to go.
struct Found {
    way: Way,
    /// As policy sees it; what stays in the pod it does not see.
    flow: Option<Flow>,
    open: Option<OpenConnection>,
}

async fn find(
    context: &Rc<Context>,
    pool: &Rc<Pool>,
    to: SocketAddr,
    client: SocketAddr,
) -> Result<Found, Fault> {
    if context.pod.has(to.ip()) {
        // A pod may always call itself: nothing of it leaves the pod.
        let app = route::local(context, to, client).await?;
        return Ok(Found {
            way: Way::Local(app),
            flow: None,
            open: None,
        });
    }
    let first = context.policy.first().await?;
    let destination = context.discovery.resolve(to).await?;
    // What is in force from here on is what decides; what changes meanwhile is seen at the end.
    let changes = context.policy.subscribe();
    let policy = context.policy.in_force().unwrap_or(first);
    let ends = (client, to);
    if !destination.known {
        let mut flow = Flow::outbound(ends, destination, None, changes);
        flow.admit(context).await?;
        let way = Way::Plain(route::plain(context, to).await?);
        flow.confirm(context).await?;
        return Ok(Found {
            way,
            flow: Some(flow),
            open: None,
        });
    }
    let flow_to = |endpoint: &Rc<Endpoint>| {
        let endpoint = Some(endpoint.clone());
        Flow::outbound(ends, destination.clone(), endpoint, changes.clone())
    };
    let check = |endpoint: &Rc<Endpoint>| match context.pod.has(endpoint.address.ip()) {
        true => Ok(()),
        false => flow_to(endpoint).check(context, &policy),
    };
    // Audit changes the choice of an endpoint only where policy leaves none.
    let mut audited = policy.audit() && !destination.endpoints.is_empty();
    if audited {
        audited = destination.endpoints.iter().all(|e| check(e).is_err());
    }
    let admit = |endpoint: &Rc<Endpoint>| if audited { Ok(()) } else { check(endpoint) };
    let found = route::find(context, pool, &destination, ends, admit).await?;
    if context.pod.has(found.endpoint.address.ip()) {
        return Ok(Found {
            way: found.way,
            flow: None,
            open: Some(found.open),
        });
    }
    let mut flow = flow_to(&found.endpoint);
    match check(&found.endpoint) {
        Err(fault) if audited => flow.tell(context, Outcome::Audited, &fault),
        _ => {}
    }
    flow.confirm(context).await?;
    Ok(Found {
        way: found.way,
        flow: Some(flow),
        open: Some(found.open),
    })
}
