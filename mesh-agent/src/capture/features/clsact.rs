//! Whether walls can be filters on the clsact qdisc: tried in a network namespace that ends
//! with the call, for the kernel may have to load modules first.

use std::io;
use std::thread;

use aya::programs::tc;
use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::tc::{TcAttribute, TcHandle, TcMessage};
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};
use nix::sched::{CloneFlags, unshare};

/// Index of `lo` in every network namespace.
const LOOPBACK: i32 = 1;

pub(super) fn probe() -> Result<(), String> {
    thread::scope(|scope| scope.spawn(inside).join())
        .unwrap_or_else(|_| Err("the thread that tried it panicked".to_owned()))
}

fn inside() -> Result<(), String> {
    unshare(CloneFlags::CLONE_NEWNET).map_err(|e| format!("making a network namespace: {e}"))?;
    tc::qdisc_add_clsact("lo").map_err(|e| format!("no clsact qdisc: {e}"))?;
    match add_filter() {
        // A filter without a program is refused by the classifier itself, so there is one.
        Err(e) if e.raw_os_error() == Some(libc::EINVAL) => Ok(()),
        Err(e) => Err(format!("no bpf filters: {e}")),
        Ok(()) => Ok(()),
    }
}

fn add_filter() -> io::Result<()> {
    let mut filter = TcMessage::with_index(LOOPBACK);
    filter.header.parent = TcHandle {
        major: 0xffff,
        minor: TcHandle::MIN_INGRESS,
    };
    // Priority 1, every protocol (ETH_P_ALL in network order).
    filter.header.info = 1 << 16 | u32::from(3u16.to_be());
    filter.attributes.push(TcAttribute::Kind("bpf".to_owned()));
    let mut message = NetlinkMessage::from(RouteNetlinkMessage::NewTrafficFilter(filter));
    message.header.flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL;
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    let socket = Socket::new(NETLINK_ROUTE)?;
    socket.send_to(&bytes, &SocketAddr::new(0, 0), 0)?;
    let (answer, _) = socket.recv_from_full()?;
    let answer =
        NetlinkMessage::<RouteNetlinkMessage>::deserialize(&answer).map_err(io::Error::other)?;
    match answer.payload {
        NetlinkPayload::Error(error) if error.code.is_some() => Err(error.to_io()),
        _ => Ok(()),
    }
}
