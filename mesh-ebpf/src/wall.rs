//! tc ingress on the host's side of the pod's veth: TCP leaves the pod only from a socket
//! of the pod's own worker, from one that answers kubelet's probe, or from one that is older than the
//! pod's enrolment and may go on, with that socket's own addresses and ports, and nothing leaves under
//! an address that is not the pod's. What the kernel sends
//! without a full socket (RST, the ACK of TIME_WAIT, a SYN cookie) passes bare. UDP leaves
//! where policy allows it.

use aya_ebpf::bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC, bpf_sock};
use aya_ebpf::helpers::generated::{
    bpf_sk_fullsock, bpf_skb_ancestor_cgroup_id, bpf_skb_cgroup_id,
};
use aya_ebpf::programs::TcContext;
use mesh_common::{KernelReason, WALL_CUT_OFF, WallConfig};

use crate::address::Address;
use crate::context::{IPPROTO_TCP, field};
use crate::maps::WALLS;
use crate::packet::{
    Frame, Kind, PROTOCOL_ICMP, PROTOCOL_ICMPV6, PROTOCOL_TCP, PROTOCOL_UDP, Packet, Segment,
    TCP_ACK, TCP_FIN, TCP_PSH, TCP_RST, TCP_SYN, TCP_URG, load, parse,
};
use crate::pod::worker_level;
use crate::refusal::{self, Attempt};
use crate::{grandfathered, probe, source, udp};

/// What a wall has no objection to; later programs on the device still decide.
const PASS: i32 = TC_ACT_UNSPEC;
const DROP: i32 = TC_ACT_SHOT as i32;
/// `TCP_LISTEN` in `bpf_sock.state`.
const STATE_LISTEN: u32 = 10;
/// `TCP_CLOSE` in `bpf_sock.state`.
const STATE_CLOSE: u32 = 7;

const OPTION_END: u8 = 0;
const OPTION_NOP: u8 = 1;
const OPTION_MSS: u8 = 2;
const OPTION_WINDOW_SCALE: u8 = 3;
const OPTION_SACK_PERMITTED: u8 = 4;
const OPTION_TIMESTAMP: u8 = 8;
/// Options a bare segment can have; 40 bytes hold no more that make sense.
const BARE_OPTIONS: usize = 16;

/// Why a frame is refused, with what is known of it.
pub(crate) struct Refused {
    pub(crate) reason: KernelReason,
    pub(crate) attempt: Attempt,
    /// It passes all the same, because the pod is in audit.
    pub(crate) audited: bool,
}

impl Refused {
    /// A packet whose ports play no part.
    #[inline(always)]
    pub(crate) fn of(reason: KernelReason, packet: &Packet) -> Self {
        let attempt = Attempt {
            source: packet.source,
            source_port: 0,
            destination: packet.destination,
            destination_port: 0,
            protocol: u32::from(packet.protocol),
        };
        Self {
            reason,
            attempt,
            audited: false,
        }
    }

    /// A frame that is no packet.
    #[inline(always)]
    pub(crate) fn unparsed(reason: KernelReason) -> Self {
        Self {
            reason,
            attempt: Attempt::to(Address::UNSPECIFIED, 0, 0),
            audited: false,
        }
    }

    #[inline(always)]
    pub(crate) fn with_ports(mut self, source: u16, destination: u16) -> Self {
        self.attempt.source_port = source;
        self.attempt.destination_port = destination;
        self
    }
}

#[inline(always)]
pub(crate) fn wall(ctx: &TcContext) -> i32 {
    decide(ctx, judge)
}

/// What becomes of a frame at the device of a pod, by what `judge` says of it.
#[inline(always)]
pub(crate) fn decide(
    ctx: &TcContext,
    judge: impl FnOnce(&TcContext, &WallConfig) -> Result<(), Refused>,
) -> i32 {
    let skb = ctx.skb.skb;
    let ifindex = field!(skb, ifindex);
    // SAFETY: the entry is only read.
    let Some(wall) = (unsafe { WALLS.get(ifindex) }) else {
        // Attached, but nobody says for whom: nothing passes.
        return DROP;
    };
    match judge(ctx, wall) {
        Ok(()) => PASS,
        Err(refused) if refused.audited => {
            refusal::record_audited(wall.slot, refused.reason, &refused.attempt);
            PASS
        }
        Err(refused) => {
            refusal::record(wall.slot, refused.reason, &refused.attempt);
            DROP
        }
    }
}

/// Nothing passes the wall of a pod that is cut off, in either direction, whatever it is.
#[inline(always)]
pub(crate) fn check_cut_off(wall: &WallConfig, frame: &Frame) -> Result<(), Refused> {
    if wall.flags & WALL_CUT_OFF == 0 {
        return Ok(());
    }
    Err(Refused::of(KernelReason::CutOff, &frame.packet))
}

#[inline(always)]
fn judge(ctx: &TcContext, wall: &WallConfig) -> Result<(), Refused> {
    let frame = parse(ctx).map_err(Refused::unparsed)?;
    check_cut_off(wall, &frame)?;
    match frame.kind {
        Kind::Arp => return source::judge_arp(ctx, wall).map_err(Refused::unparsed),
        Kind::Other => return Err(Refused::unparsed(KernelReason::WallProtocol)),
        Kind::Ip => {}
    }
    let packet = frame.packet;
    source::judge(ctx, wall, &packet).map_err(|reason| Refused::of(reason, &packet))?;
    let refused = |reason| Refused::of(reason, &packet);
    match packet.protocol {
        PROTOCOL_TCP if packet.fragment => Err(refused(KernelReason::WallFragment)),
        PROTOCOL_TCP => {
            let segment = packet.segment(ctx).map_err(refused)?;
            judge_tcp(ctx, wall, &packet, &segment).map_err(|reason| {
                refused(reason).with_ports(segment.source_port, segment.destination_port)
            })
        }
        PROTOCOL_UDP => udp::judge_out(ctx, wall.slot, &packet),
        PROTOCOL_ICMP if !packet.v6 => Ok(()),
        PROTOCOL_ICMPV6 if packet.v6 => Ok(()),
        // A fragment whose first header hides what follows.
        _ if packet.fragment => Err(refused(KernelReason::WallFragment)),
        _ => Err(refused(KernelReason::WallProtocol)),
    }
}

#[inline(always)]
fn judge_tcp(
    ctx: &TcContext,
    wall: &WallConfig,
    packet: &Packet,
    segment: &Segment,
) -> Result<(), KernelReason> {
    let skb = ctx.skb.skb;
    let Some(level) = worker_level() else {
        return Err(KernelReason::WallNotWorker);
    };
    // SAFETY: takes the program's context and a number.
    let cgroup = unsafe { bpf_skb_ancestor_cgroup_id(skb, level) };
    let worker = cgroup != 0 && cgroup == wall.worker_cgroup_id;
    if worker || probe::is_answer(ctx, packet, segment) {
        return judge_socket(ctx, packet, segment);
    }
    if probe::is_greeting(wall.slot, packet, segment) {
        return Ok(());
    }
    if let Some(judged) = grandfathered::judge(ctx, wall.slot, packet, segment) {
        return judged;
    }
    // The kernel's own answers have the root cgroup or none, by its version.
    // SAFETY: take the program's context and a number.
    let (own, root) = unsafe { (bpf_skb_cgroup_id(skb), bpf_skb_ancestor_cgroup_id(skb, 0)) };
    if own != root {
        return Err(KernelReason::WallNotWorker);
    }
    judge_bare(ctx, packet, segment)
}

/// What may leave must carry its own socket's tuple: a pod with `CAP_NET_ADMIN` can rewrite what
/// its worker sends.
#[inline(always)]
fn judge_socket(ctx: &TcContext, packet: &Packet, segment: &Segment) -> Result<(), KernelReason> {
    let skb = ctx.skb.skb;
    let sk: *mut bpf_sock = field!(skb, __bindgen_anon_2.sk);
    if sk.is_null() {
        return Err(KernelReason::WallTupleMismatch);
    }
    let tuple = SocketTuple::of(sk, packet.v6);
    let state = field!(sk, state);
    if state == STATE_LISTEN {
        // A listener has no peer. Since Linux 6.13 the kernel's answers to stray segments are
        // owned by the listener that they met, whose port `sk_lookup` makes another.
        return judge_bare(ctx, packet, segment);
    }
    let matches = if state == STATE_CLOSE {
        is_tcp(sk) && tuple.was(packet, segment)
    } else {
        tuple.is(packet, segment)
    };
    if matches {
        Ok(())
    } else {
        Err(KernelReason::WallTupleMismatch)
    }
}

/// Whether a full socket is of TCP: raw and packet sockets are in `TCP_CLOSE` all their life.
#[inline(always)]
fn is_tcp(sk: *mut bpf_sock) -> bool {
    // SAFETY: takes a socket that the verifier knows.
    let full = unsafe { bpf_sk_fullsock(sk) };
    !full.is_null() && field!(full, protocol) == IPPROTO_TCP
}

/// Both ends as the sending socket has them.
struct SocketTuple {
    source: Address,
    source_port: u16,
    destination: Address,
    destination_port: u16,
}

impl SocketTuple {
    /// Both families are read whatever the packet is: LLVM would merge two branches' loads
    /// into one at a variable offset, which the verifier refuses.
    #[inline(always)]
    fn of(sk: *mut bpf_sock, v6: bool) -> Self {
        let (source4, destination4) = (field!(sk, src_ip4), field!(sk, dst_ip4));
        let source6 = Address([
            field!(sk, src_ip6[0]),
            field!(sk, src_ip6[1]),
            field!(sk, src_ip6[2]),
            field!(sk, src_ip6[3]),
        ]);
        let destination6 = Address([
            field!(sk, dst_ip6[0]),
            field!(sk, dst_ip6[1]),
            field!(sk, dst_ip6[2]),
            field!(sk, dst_ip6[3]),
        ]);
        let (source, destination) = if v6 {
            (source6, destination6)
        } else {
            (Address::v4(source4), Address::v4(destination4))
        };
        Self {
            source,
            source_port: field!(sk, src_port) as u16,
            destination,
            destination_port: u16::from_be(field!(sk, dst_port)),
        }
    }

    #[inline(always)]
    fn is(&self, packet: &Packet, segment: &Segment) -> bool {
        self.source_port == segment.source_port
            && self.destination_port == segment.destination_port
            && self.source == packet.source
            && self.destination == packet.destination
    }

    /// A socket that was closed while its last segments were on their way has lost its port,
    /// and after an abortive close its address and its peer's port; what it still has must match.
    #[inline(always)]
    fn was(&self, packet: &Packet, segment: &Segment) -> bool {
        let source_lost = self.source.is_unspecified();
        (self.source_port == 0 || self.source_port == segment.source_port)
            && (self.destination_port == 0 || self.destination_port == segment.destination_port)
            && (source_lost || self.source == packet.source)
            && self.destination == packet.destination
    }
}

/// RST, a bare ACK or SYN+ACK, without payload and without options that could carry any.
#[inline(always)]
fn judge_bare(ctx: &TcContext, packet: &Packet, segment: &Segment) -> Result<(), KernelReason> {
    let flags = segment.flags & (TCP_FIN | TCP_SYN | TCP_RST | TCP_PSH | TCP_ACK | TCP_URG);
    let syn_ack = flags == TCP_SYN | TCP_ACK;
    let kind = syn_ack || flags == TCP_ACK || flags == TCP_RST || flags == TCP_RST | TCP_ACK;
    let nothing_more = segment.payload == packet.end && packet.end == ctx.len();
    if !kind || !nothing_more || !bare_options(ctx, segment, syn_ack) {
        return Err(KernelReason::WallBareSegment);
    }
    Ok(())
}

/// NOP and timestamp; a SYN cookie's SYN+ACK negotiates MSS, window scale and SACK as well.
#[inline(always)]
fn bare_options(ctx: &TcContext, segment: &Segment, syn_ack: bool) -> bool {
    let mut at = segment.options;
    for _ in 0..BARE_OPTIONS {
        if at >= segment.payload {
            return at == segment.payload;
        }
        let Ok(kind) = load::<u8>(ctx, at) else {
            return false;
        };
        at += match kind {
            OPTION_END | OPTION_NOP => 1,
            OPTION_TIMESTAMP => 10,
            OPTION_MSS if syn_ack => 4,
            OPTION_WINDOW_SCALE if syn_ack => 3,
            OPTION_SACK_PERMITTED if syn_ack => 2,
            _ => return false,
        };
    }
    at == segment.payload
}
