//! Tunnels that go to the port of the app that is called, and not to 15008: rules of the network by
//! port, such as a NetworkPolicy's, then mean what they meant without the mesh.
//!
//! Whatever comes to a port of an app is steered to the worker's listener for plaintext. A tunnel
//! among that is told by where it comes from, before anything is read of it (a server may speak
//! first): from one of [`SOURCE_PORTS`], and from an address that discovery says is of the mesh.
//! Nothing else leaves a pod of the mesh from there but what its worker sends, and a worker sends
//! nothing else to pods of the mesh. Such a tunnel carries streams to that one port.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::rc::Rc;

use mesh_core::reason::Reason;
use socket2::Socket;
use tokio::net::TcpStream;

use super::context::Context;
use super::fault::{Direction, Fault};
use super::sources::Word;
use super::{inbound, plaintext, socket};

/// Where tunnels to original ports come from: above what systems choose from by themselves
/// (`net.ipv4.ip_local_port_range`).
pub(crate) const SOURCE_PORTS: RangeInclusive<u16> = 61_440..=65_535;
/// Ports that are tried for one dial before it fails.
const ATTEMPTS: usize = 16;

/// Dials a peer's worker at a port of its app.
pub(crate) async fn dial(context: &Context, to: SocketAddr) -> io::Result<TcpStream> {
    let mut last = None;
    for _ in 0..ATTEMPTS {
        let dialled = async {
            let socket = bound(context.source_like(to.ip()))?;
            socket::connect(socket, to, context.limits().connect_timeout).await
        };
        match dialled.await {
            // The port is an app's listener's, or leads there from an earlier tunnel.
            Err(error) if is_taken(&error) => last = Some(error),
            outcome => return outcome,
        }
    }
    Err(last.unwrap_or_else(|| io::ErrorKind::AddrInUse.into()))
}

fn bound(from: IpAddr) -> io::Result<Socket> {
    let socket = socket::new(from)?;
    // Tunnels to different places share a port.
    socket.set_reuse_address(true)?;
    socket.bind(&SocketAddr::new(from, fastrand::u16(SOURCE_PORTS)).into())?;
    socket::no_delay(&socket)?;
    Ok(socket)
}

fn is_taken(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::AddrInUse | io::ErrorKind::AddrNotAvailable
    )
}

/// Serves what was steered to the listener for plaintext: a tunnel, or plaintext.
pub(crate) async fn serve(context: Rc<Context>, stream: TcpStream, peer: SocketAddr) {
    if is_tunnel(&context, peer).await {
        // An end of its own is inside TLS, and a reset must not overtake its last frames.
        socket::close_orderly(&stream);
        match context.hooks.inbound_destination(&stream) {
            Ok(to) => inbound::serve(context, stream, peer, Some(to.port())).await,
            Err(error) => {
                let fault = Fault::new(Reason::OriginalDestinationUnknown, error);
                let reports = &context.reports;
                reports.refusal(Direction::Inbound, &fault, peer, "unknown");
                socket::reset(stream);
            }
        }
    } else {
        plaintext::serve(context, stream, peer).await;
    }
}

async fn is_tunnel(context: &Context, peer: SocketAddr) -> bool {
    if !SOURCE_PORTS.contains(&peer.port()) {
        return false;
    }
    let source = context.sources.look_up(peer.ip().to_canonical());
    // Who does not get to be known is plaintext, which policy decides on.
    let of_mesh = source.told(|word| match word {
        Word::None => None,
        Word::Unknown => Some(false),
        Word::Known(attributes) => Some(attributes.hbone),
    });
    of_mesh.await.unwrap_or(false)
}
