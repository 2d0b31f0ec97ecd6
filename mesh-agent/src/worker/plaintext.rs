//! Plaintext from outside the mesh: refused, unless the pod's policy takes it from there.

use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;

use mesh_core::reason::Reason;
use tokio::net::TcpStream;

use super::context::Context;
use super::fault::{Direction, Fault};
use super::flow::Flow;
use super::metrics::Count;
use super::relay::ByteCounts;
use super::relay_local::relay_local;
use super::socket;

/// Serves one connection from accept to its end.
pub(crate) async fn serve(context: Rc<Context>, stream: TcpStream, peer: SocketAddr) {
    let peer = socket::canonical(peer);
    let to = match context.hooks.inbound_destination(&stream) {
        Ok(to) => to,
        Err(error) => {
            let fault = Fault::new(Reason::OriginalDestinationUnknown, error);
            let reports = &context.reports;
            reports.refusal(Direction::Inbound, &fault, peer, "unknown");
            return socket::reset(stream);
        }
    };
    let admitted = context.admit();
    let _open = context.metrics.open(Count::InboundOpen);
    let opened = match admitted {
        // Large and short-lived.
        Ok(()) => Box::pin(open(&context, peer, to)).await,
        Err(fault) => Err(fault),
    };
    match opened {
        Err(fault) => {
            let reports = &context.reports;
            reports.refusal(Direction::Inbound, &fault, peer, to);
            socket::reset(stream);
        }
        Ok((app, mut flow)) => {
            context.metrics.add(Count::InboundConnections, 1);
            context.metrics.add(Count::PlainInbound, 1);
            let (counts, cut) = (ByteCounts::INBOUND, pin!(flow.cut(&context)));
            relay_local(app, stream, &context.metrics, counts, cut).await;
        }
    }
}

async fn open(
    context: &Context,
    peer: SocketAddr,
    to: SocketAddr,
) -> Result<(TcpStream, Flow), Fault> {
    let mut flow = Flow::inbound(context, peer, to, None, None);
    flow.admit(context).await?;
    let app = context.dial_app(to, peer).await?;
    flow.confirm(context).await?;
    Ok((app, flow))
}
