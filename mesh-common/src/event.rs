//! Refusals that the kernel programs decide: each has a reason, a counter and an event.

/// Why a program refused or dropped something. The numbers are ABI; `0` is never used.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KernelReason {
    /// connect: the destination is one of the worker's own ports.
    ConnectReservedPort = 1,
    /// connect: the pod has no route for the destination's family.
    ConnectNoRoute = 2,
    /// connect: the socket is bound to a device, which a redirect to loopback can't honour.
    ConnectBoundDevice = 3,
    /// connect: the pod's quota of unfinished connections is used up.
    ConnectQuota = 4,
    /// connect: no storage for the socket's original destination.
    ConnectNoStorage = 5,
    /// bind: a reserved port.
    BindReservedPort = 6,
    /// sockops: the tuple could not be published.
    PublishFailed = 7,
    /// `sk_lookup`: the worker has no listener (yet).
    LookupNoListener = 8,
    /// `sk_lookup`: the listener could not be assigned.
    LookupAssignFailed = 9,
    /// wall: TCP that no socket of the worker sent.
    WallNotWorker = 10,
    /// wall: a worker's packet whose addresses or ports are not its socket's.
    WallTupleMismatch = 11,
    /// wall: a frame that can't be parsed.
    WallUnparsable = 12,
    /// wall: a protocol that may not leave the pod.
    WallProtocol = 13,
    /// wall: a fragment of TCP, or one that hides its protocol.
    WallFragment = 14,
    /// wall: a packet without a full worker socket that carries more than a bare
    /// RST, ACK or SYN+ACK may.
    WallBareSegment = 15,
    /// connect: policy denies TCP to this address and port.
    ConnectPolicy = 16,
    /// wall, either direction: UDP that policy does not allow.
    WallUdp = 17,
    /// wall: the source of a packet, or the address that ARP or neighbour discovery claims, is
    /// not the pod's.
    WallSource = 18,
    /// connect, wall in either direction: the pod is cut off.
    CutOff = 19,
    /// wall: a connection older than the enrolment whose time is over.
    WallGrandfatherEnded = 20,
    /// wall, to the pod: a SYN with the tuple of a probe of kubelet's, from another socket.
    WallProbe = 21,
    /// sockops: a probe of kubelet's found no room, so the pod's worker gets it.
    ProbeNoRoom = 22,
    /// connect, sendmsg: a process that is not in the pod's own cgroup.
    ForeignProcess = 23,
    /// connect, sendmsg: a process that was put into one of the pod's containers from outside.
    EnteredProcess = 24,
}

/// Counters a pod has in `REFUSALS`; greater than every [`KernelReason`].
pub const REASON_SLOTS: u32 = 32;

/// In [`RefusalEvent::flags`]: it was let through, because the pod is in audit.
pub const EVENT_AUDITED: u8 = 1;

/// One refusal, as the ring buffer carries it.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RefusalEvent {
    /// `bpf_ktime_get_ns` at the refusal.
    pub time_ns: u64,
    /// A [`KernelReason`].
    pub reason: u32,
    /// The pod's slot.
    pub slot: u32,
    /// Source address; zero where it isn't known yet.
    pub source: [u8; 16],
    /// Destination address.
    pub destination: [u8; 16],
    /// Source port, or 0.
    pub source_port: u16,
    /// Destination port, or 0.
    pub destination_port: u16,
    /// IP protocol number, or 0.
    pub protocol: u8,
    /// [`EVENT_AUDITED`], or 0.
    pub flags: u8,
    /// Events of this pod that its budget swallowed since the last one.
    pub suppressed: u16,
}

/// Events one pod may put into the ring buffer in a second; counters are exact always.
pub const EVENTS_PER_POD_PER_SECOND: u32 = 50;

/// A pod's budget of events, so that one pod's refusals don't crowd out another's.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EventBudget {
    /// Start of the current one-second window, `bpf_ktime_get_ns`.
    pub window_start_ns: u64,
    /// Events in this window.
    pub sent: u32,
    /// Events swallowed since the last one sent.
    pub suppressed: u32,
}

impl KernelReason {
    /// Every reason, in the order of its number.
    pub const ALL: [Self; 24] = [
        Self::ConnectReservedPort,
        Self::ConnectNoRoute,
        Self::ConnectBoundDevice,
        Self::ConnectQuota,
        Self::ConnectNoStorage,
        Self::BindReservedPort,
        Self::PublishFailed,
        Self::LookupNoListener,
        Self::LookupAssignFailed,
        Self::WallNotWorker,
        Self::WallTupleMismatch,
        Self::WallUnparsable,
        Self::WallProtocol,
        Self::WallFragment,
        Self::WallBareSegment,
        Self::ConnectPolicy,
        Self::WallUdp,
        Self::WallSource,
        Self::CutOff,
        Self::WallGrandfatherEnded,
        Self::WallProbe,
        Self::ProbeNoRoom,
        Self::ForeignProcess,
        Self::EnteredProcess,
    ];
}

const _: () = assert!(size_of::<RefusalEvent>() == 56);
const _: () = assert!(size_of::<EventBudget>() == 16);
const _: () = assert!(KernelReason::ALL.len() < REASON_SLOTS as usize);
