//! Connections that are older than their pod's enrolment.

use crate::FlowKey;

/// A connection that an app had open when its pod was enrolled, keyed by the cookie of its socket:
/// the wall lets the socket's packets out until then.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grandfathered {
    /// `bpf_ktime_get_ns` from which on nothing of it passes.
    pub until_ns: u64,
    /// The socket's own end is the source, whichever end it was that connected.
    pub tuple: FlowKey,
    /// `GRANDFATHERED_*` flags.
    pub flags: u32,
}

/// The pod's own port is one that it listens on: the other end connected.
pub const GRANDFATHERED_INBOUND: u32 = 1;

/// Most connections of one pod that may outlive its enrolment.
pub const GRANDFATHERED_PER_POD: u32 = 16_384;

const _: () = assert!(size_of::<Grandfathered>() == 48);
