//! What the agent tells the programs: about itself, about each enrolled pod, about walls.

/// The one entry of `CONFIG`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GlobalConfig {
    /// cgroup v2 id of the instance's mesh subtree. Compared on restart, never changed.
    pub mesh_cgroup_id: u64,
    /// Depth of the mesh subtree's root (the hierarchy's root is 0). A pod's worker cgroup
    /// is at `mesh_cgroup_level + 1`.
    pub mesh_cgroup_level: u32,
    /// [`crate::ABI_VERSION`] of the agent that wrote this.
    pub abi_version: u32,
    /// cgroup v2 id of the node's kubelet, whose connections pass as probes; 0: nobody's do.
    pub kubelet_cgroup_id: u64,
    /// Depth of that cgroup.
    pub kubelet_cgroup_level: u32,
    /// 0.
    pub reserved: u32,
    /// Cookie of the node's own network namespace, which probes come from.
    pub node_netns_cookie: u64,
}

/// A pod that is enrolled, keyed by the cookie of its network namespace.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PodConfig {
    /// cgroup v2 id of the pod's worker: the only cgroup whose sockets leave the pod.
    pub worker_cgroup_id: u64,
    /// Index of this pod in every per-pod map.
    pub slot: u32,
    /// `POD_*` flags.
    pub flags: u32,
    /// The pod's IPv4 address, v4-mapped; zero without [`POD_HAS_V4`].
    pub address_v4: [u8; 16],
    /// The pod's IPv6 address; zero without [`POD_HAS_V6`].
    pub address_v6: [u8; 16],
    /// ABI version of the agent that wrote it; 0 is one that didn't say.
    #[cfg(feature = "abi-next")]
    pub written_by: u64,
}

impl PodConfig {
    /// A pod; the addresses are zero where it has none.
    #[must_use]
    pub const fn new(
        worker_cgroup_id: u64,
        slot: u32,
        flags: u32,
        address_v4: [u8; 16],
        address_v6: [u8; 16],
    ) -> Self {
        Self {
            worker_cgroup_id,
            slot,
            flags,
            address_v4,
            address_v6,
            #[cfg(feature = "abi-next")]
            written_by: crate::ABI_VERSION as u64,
        }
    }
}

/// The pod has an IPv4 address and route: IPv4 destinations are captured, else `ENETUNREACH`.
pub const POD_HAS_V4: u32 = 1;
/// The pod has an IPv6 address and route: IPv6 destinations are captured, else `ENETUNREACH`.
pub const POD_HAS_V6: u32 = 1 << 1;
/// The worker has a listener on `::1` (a pod can have IPv6 switched off).
pub const POD_HAS_LISTENER_V6: u32 = 1 << 2;

/// Nothing is captured: every TCP connect is refused, over loopback as well, the worker's too.
/// For a pod that can't be served safely.
pub const POD_CUT_OFF: u32 = 1 << 3;

/// A pod's host-side device, keyed by its ifindex in the node's namespace.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WallConfig {
    /// As in [`PodConfig`].
    pub worker_cgroup_id: u64,
    /// As in [`PodConfig`].
    pub slot: u32,
    /// `WALL_*` flags.
    pub flags: u32,
    /// As in [`PodConfig`]: what leaves has this source, or one that is valid on its link only.
    pub address_v4: [u8; 16],
    /// As in [`PodConfig`].
    pub address_v6: [u8; 16],
}

/// Nothing passes, in either direction.
pub const WALL_CUT_OFF: u32 = 1;
/// The agent's own note: it has set the device down, because a wall could not be put up at it.
pub const WALL_DEVICE_DOWN: u32 = 1 << 1;

/// Listeners of one pod in the `LISTENERS` sockmap.
pub const LISTENERS_PER_POD: u32 = 2;
/// Offset of the IPv4 plaintext listener.
pub const LISTENER_PLAINTEXT_V4: u32 = 0;
/// Offset of the IPv6 plaintext listener.
pub const LISTENER_PLAINTEXT_V6: u32 = 1;

const _: () = assert!(size_of::<GlobalConfig>() == 40);
const _: () = assert!(size_of::<PodConfig>() == 48 + 8 * cfg!(feature = "abi-next") as usize);
const _: () = assert!(size_of::<WallConfig>() == 48);
