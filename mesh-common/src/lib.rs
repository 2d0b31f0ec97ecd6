//! The kernel↔user ABI of Nodemesh: every type and number that crosses between the
//! eBPF programs (`mesh-ebpf`) and the node agent, and nothing else.
//!
//! Rules: fixed-width integers, no `bool`, no `Option`, no padding, sizes asserted at
//! compile time. Addresses are always 16 bytes, IPv4 in its v4-mapped form, so that one
//! flow has one key whatever family either end's socket has. Ports are in host order.
//! A change of any layout or meaning raises [`ABI_VERSION`].
//!
//! Agents of different versions take over from each other, so some things hold between versions:
//!
//! - A map whose layout or meaning changes gets another name: `PODS`, then `PODS_2`. What two
//!   versions call by one name they share, with all that is in it.
//! - The values of `CONFIG`, `PODS` and `WALLS` only grow, at their end, and zero in a new field
//!   means what was so before there was the field. Their keys stay. So every version can copy them
//!   from every other, newer or older.
//! - Links keep their names: a hook's, `steer-<slot>`, `shut-<slot>-<ifindex>-<way>`,
//!   `wall-<ifindex>`, `wall_in-<ifindex>`.
//! - Workers outlive their agent: ports, options and the values of options ([`ClientLabel`])
//!   stay as they are; what is new has a new number.
#![no_std]
#![forbid(unsafe_code)]

mod event;
mod flow;
mod foreign;
mod grandfathered;
mod pod;
mod policy;
mod probe;

pub use event::{
    EVENT_AUDITED, EVENTS_PER_POD_PER_SECOND, EventBudget, KernelReason, REASON_SLOTS, RefusalEvent,
};
pub use flow::{ClientLabel, FLOW_KIND_APP_DIAL, FLOW_KIND_CAPTURED, Flow, FlowKey};
pub use flow::{
    SOCKET_APP_ACCEPTED, SOCKET_CAPTURED, SOCKET_FROM_APP, SOCKET_NONE, SOCKET_PROBE,
    SOCKET_PROBE_ACCEPTED, SOCKET_WORKER, SocketState,
};
pub use foreign::{
    ForeignEvent, OWN_KNOWN, OWN_REFUSE_ENTERED, OWN_REFUSE_FOREIGN, OWN_TELL_ENTERED,
    OwnProcesses, TaskLayout,
};
pub use grandfathered::{GRANDFATHERED_INBOUND, GRANDFATHERED_PER_POD, Grandfathered};
pub use pod::{
    GlobalConfig, LISTENER_PLAINTEXT_V4, LISTENER_PLAINTEXT_V6, LISTENERS_PER_POD, POD_CUT_OFF,
    POD_HAS_LISTENER_V6, POD_HAS_V4, POD_HAS_V6, PodConfig, WALL_CUT_OFF, WALL_DEVICE_DOWN,
    WallConfig,
};
pub use policy::{
    POLICY_ALLOW, POLICY_AUDIT, POLICY_BLOCK, POLICY_CLASS_BITS, POLICY_DENY,
    POLICY_ENTRIES_PER_POD, POLICY_HEAD_BITS, POLICY_PORTS, POLICY_SOME_UDP, POLICY_TCP_OUT,
    POLICY_UDP_IN, POLICY_UDP_OUT, PolicyEntry, PolicyKey,
};
pub use probe::{PROBE_PORTS_PER_POD, PROBES_PER_NODE, Probe, ProbePort};

/// Version of everything in this crate. Pins live in a folder named after it.
pub const ABI_VERSION: u32 = 5 + cfg!(feature = "abi-next") as u32;

/// The oldest version whose capture this one can take over; those before it had other rules.
pub const ABI_VERSION_OLDEST: u32 = 3;

/// Most pods one agent can enrol; slots are `0..MAX_PODS`.
pub const MAX_PODS: u32 = 1024;

/// Most captured or app-bound connections of one pod that are between `connect()` and
/// the accept side's establishment at one time, as many as a worker's listener lets wait. One more is
/// refused with `EAGAIN`.
pub const FLOWS_PER_POD: u32 = 4_096;

/// Port of the worker's listener for captured outbound connections (loopback).
pub const PORT_OUTBOUND: u16 = 15001;
/// Port of the worker's listener for inbound plaintext, fed by `sk_lookup`.
pub const PORT_PLAINTEXT: u16 = 15006;
/// Port of the worker's HBONE listener.
pub const PORT_HBONE: u16 = 15008;
/// Port of the worker's DNS listener.
pub const PORT_DNS: u16 = 15053;
/// Every port an enrolled pod can't bind or dial in its own namespace.
pub const RESERVED_PORTS: [u16; 4] = [PORT_OUTBOUND, PORT_PLAINTEXT, PORT_HBONE, PORT_DNS];

/// Socket option level of Nodemesh's private options. Answered only for sockets of the
/// mesh's cgroup subtree; for any other socket the kernel knows no such option.
pub const SOL_NODEMESH: i32 = 0x4e4d;
/// `setsockopt(SOL_NODEMESH, SO_CLIENT_LABEL, &ClientLabel)`: the next `connect` of this
/// worker socket dials the pod's app on behalf of that client.
pub const SO_CLIENT_LABEL: i32 = 1;
/// `getsockopt(SOL_IP | SOL_IPV6, SO_ORIGINAL_DST)`: the standard option (netfilter's
/// number for both families), answered from the accepted socket's own storage.
pub const SO_ORIGINAL_DST: i32 = 80;

/// Names of the maps, as the object file and the pins have them: what the map is, and from its
/// second layout on the layout's number.
pub mod map_name {
    const fn next(this: &'static str, next: &'static str) -> &'static str {
        if cfg!(feature = "abi-next") {
            next
        } else {
            this
        }
    }

    /// What a map is, whatever its layout: the name without the number.
    #[must_use]
    pub fn base(name: &str) -> &str {
        match name.rsplit_once('_') {
            Some((base, layout)) if layout.bytes().all(|b| b.is_ascii_digit()) => base,
            _ => name,
        }
    }

    /// Array of one [`crate::GlobalConfig`].
    pub const CONFIG: &str = "CONFIG";
    /// Hash: netns cookie (u64) → [`crate::PodConfig`].
    pub const PODS: &str = next("PODS", "PODS_2");
    /// Array of maps: slot → hash of [`crate::FlowKey`] → [`crate::Flow`].
    pub const FLOWS: &str = "FLOWS";
    /// Array of maps: slot → hash of socket cookie (u64) → u64 (unused): the pod's quota.
    pub const PENDING: &str = "PENDING";
    /// Sockmap: slot * [`crate::LISTENERS_PER_POD`] + kind → listener.
    pub const LISTENERS: &str = "LISTENERS";
    /// Socket storage: [`crate::SocketState`].
    pub const SOCKETS: &str = "SOCKETS";
    /// Hash: host-side ifindex (u32) → [`crate::WallConfig`].
    pub const WALLS: &str = "WALLS";
    /// Array: slot * [`crate::REASON_SLOTS`] + reason → count (u64, atomic).
    pub const REFUSALS: &str = "REFUSALS";
    /// Array: slot * [`crate::REASON_SLOTS`] + reason → count (u64, atomic) of what was let
    /// through because the pod is in audit.
    pub const AUDITED: &str = "AUDITED";
    /// Array of maps: slot → longest-prefix trie of [`crate::PolicyKey`] →
    /// [`crate::PolicyEntry`]. None: nothing is denied to TCP, and no UDP is allowed.
    pub const POLICIES: &str = next("POLICIES", "POLICIES_2");
    /// Array of maps: slot → hash of socket cookie (u64) → [`crate::Grandfathered`]. None: no
    /// connection of the pod is older than its enrolment.
    pub const GRANDFATHERED: &str = "GRANDFATHERED";
    /// Hash: [`crate::ProbePort`] → slot (u32).
    pub const PROBE_PORTS: &str = "PROBE_PORTS";
    /// Hash: [`crate::FlowKey`] → [`crate::Probe`].
    pub const PROBES: &str = "PROBES";
    /// Array: slot → probes that arrived at the pod's app (u64, atomic).
    pub const PROBED: &str = "PROBED";
    /// Ring buffer of [`crate::RefusalEvent`].
    pub const EVENTS: &str = next("EVENTS", "EVENTS_2");
    /// Array: slot → [`crate::OwnProcesses`].
    pub const PROCESSES: &str = "PROCESSES";
    /// Ring buffer of [`crate::ForeignEvent`].
    pub const FOREIGN: &str = "FOREIGN";
    /// Array: slot → [`crate::EventBudget`], of both ring buffers.
    pub const EVENT_BUDGETS: &str = "EVENT_BUDGETS";
}

/// 16 bytes of an IPv4 address in v4-mapped form.
#[must_use]
pub const fn mapped_v4(octets: [u8; 4]) -> [u8; 16] {
    let [a, b, c, d] = octets;
    [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d]
}
