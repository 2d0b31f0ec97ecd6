//! Plaintext from outside the mesh: refused, counted, told.

use std::net::SocketAddr;
use std::rc::Rc;

use mesh_core::reason::Reason;
use tokio::net::TcpStream;

use super::context::Context;
use super::fault::{Direction, Fault};
use super::socket;

/// Refuses one connection; its local address is where its caller wanted to go.
pub(crate) fn refuse(context: &Rc<Context>, stream: TcpStream, peer: SocketAddr) {
    let peer = socket::canonical(peer);
    let to = stream.local_addr().map(socket::canonical);
    let to = to.map_or_else(|e| format!("unknown ({e})"), |to| to.to_string());
    let fault = Fault::new(Reason::InboundPlaintext, "");
    context
        .reports
        .refusal(Direction::Inbound, &fault, peer, to);
    socket::reset(stream);
}
