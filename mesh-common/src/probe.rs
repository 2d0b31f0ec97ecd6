//! Kubelet's probes: connections of the node's kubelet to ports that a pod declares for them.

/// A port of a pod that kubelet's connections go to past the worker: the key of `PROBE_PORTS`, whose
/// value is the pod's slot.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ProbePort {
    /// An address of the pod.
    pub address: [u8; 16],
    /// The port.
    pub port: u32,
}

/// A probe that is on its way, by its tuple: kubelet's socket wrote it before its SYN.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Probe {
    /// Cookie of kubelet's socket: what it did not send is no probe.
    pub cookie: u64,
    /// Slot of the pod that it goes to.
    pub slot: u32,
    /// 0.
    pub reserved: u32,
}

/// Most ports of one pod that kubelet's connections pass to; a pod that declares more has the lowest.
pub const PROBE_PORTS_PER_POD: u32 = 16;

/// Most probes of one node that are between kubelet's `connect` and the app's end of the connection.
/// What is beyond them goes to the pod's worker, like any call.
pub const PROBES_PER_NODE: u32 = 16_384;

const _: () = assert!(size_of::<ProbePort>() == 20);
const _: () = assert!(size_of::<Probe>() == 16);
