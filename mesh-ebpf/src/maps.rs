//! Every map. Their names are ABI (`mesh_common::map_name`).

use aya_ebpf::bindings::BPF_F_NO_PREALLOC;
use aya_ebpf::btf_maps::{Array, ArrayOfMaps, HashMap, LpmTrie, RingBuf, SkStorage, SockMap};
use aya_ebpf::macros::btf_map;
use mesh_common::{
    EventBudget, FLOWS_PER_POD, Flow, FlowKey, ForeignEvent, GRANDFATHERED_PER_POD, GlobalConfig,
    Grandfathered, LISTENERS_PER_POD, MAX_PODS, OwnProcesses, POLICY_ENTRIES_PER_POD,
    PROBE_PORTS_PER_POD, PROBES_PER_NODE, PodConfig, PolicyEntry, PolicyKey, Probe, ProbePort,
    REASON_SLOTS, RefusalEvent, SocketState, TaskLayout, WallConfig,
};

const PODS_LEN: usize = MAX_PODS as usize;
const EVENTS_BYTES: usize = 256 * 1024;
/// A pod has two addresses at most.
const PROBE_PORTS_LEN: usize = 2 * PODS_LEN * PROBE_PORTS_PER_POD as usize;
const FOREIGN_BYTES: usize = 64 * 1024;

/// Tuples of one pod.
pub(crate) type PodFlows =
    HashMap<FlowKey, Flow, { FLOWS_PER_POD as usize }, { BPF_F_NO_PREALLOC as usize }>;
/// Sockets of one pod between `connect` and the accept side's establishment.
pub(crate) type PodPending =
    HashMap<u64, u64, { FLOWS_PER_POD as usize }, { BPF_F_NO_PREALLOC as usize }>;
/// Connections of one pod that are older than its enrolment.
pub(crate) type PodGrandfathered =
    HashMap<u64, Grandfathered, { GRANDFATHERED_PER_POD as usize }, { BPF_F_NO_PREALLOC as usize }>;
/// Policy of one pod.
pub(crate) type PodPolicy = LpmTrie<PolicyKey, PolicyEntry, { POLICY_ENTRIES_PER_POD as usize }>;

#[btf_map]
pub(crate) static CONFIG: Array<GlobalConfig, 1> = Array::new();

#[cfg_attr(not(feature = "abi-next"), btf_map)]
#[cfg_attr(feature = "abi-next", btf_map(name = "PODS_2"))]
pub(crate) static PODS: HashMap<u64, PodConfig, PODS_LEN> = HashMap::new();

#[btf_map]
pub(crate) static FLOWS: ArrayOfMaps<PodFlows, PODS_LEN> = ArrayOfMaps::new();

#[btf_map]
pub(crate) static PENDING: ArrayOfMaps<PodPending, PODS_LEN> = ArrayOfMaps::new();

#[btf_map]
pub(crate) static GRANDFATHERED: ArrayOfMaps<PodGrandfathered, PODS_LEN> = ArrayOfMaps::new();

#[btf_map]
pub(crate) static LISTENERS: SockMap<{ PODS_LEN * LISTENERS_PER_POD as usize }> = SockMap::new();

#[btf_map]
pub(crate) static SOCKETS: SkStorage<SocketState> = SkStorage::new();

#[btf_map]
pub(crate) static WALLS: HashMap<u32, WallConfig, { 4 * PODS_LEN }> = HashMap::new();

#[btf_map]
pub(crate) static REFUSALS: Array<u64, { PODS_LEN * REASON_SLOTS as usize }> = Array::new();

#[btf_map]
pub(crate) static AUDITED: Array<u64, { PODS_LEN * REASON_SLOTS as usize }> = Array::new();

#[cfg_attr(not(feature = "abi-next"), btf_map)]
#[cfg_attr(feature = "abi-next", btf_map(name = "POLICIES_2"))]
pub(crate) static POLICIES: ArrayOfMaps<PodPolicy, PODS_LEN> = ArrayOfMaps::new();

#[cfg_attr(not(feature = "abi-next"), btf_map)]
#[cfg_attr(feature = "abi-next", btf_map(name = "EVENTS_2"))]
pub(crate) static EVENTS: RingBuf<RefusalEvent, EVENTS_BYTES> = RingBuf::new();

#[btf_map]
pub(crate) static PROCESSES: Array<OwnProcesses, PODS_LEN> = Array::new();

#[btf_map]
pub(crate) static FOREIGN: RingBuf<ForeignEvent, FOREIGN_BYTES> = RingBuf::new();

#[btf_map]
pub(crate) static EVENT_BUDGETS: Array<EventBudget, PODS_LEN> = Array::new();

#[btf_map]
pub(crate) static PROBE_PORTS: HashMap<
    ProbePort,
    u32,
    PROBE_PORTS_LEN,
    { BPF_F_NO_PREALLOC as usize },
> = HashMap::new();

#[btf_map]
pub(crate) static PROBES: HashMap<
    FlowKey,
    Probe,
    { PROBES_PER_NODE as usize },
    { BPF_F_NO_PREALLOC as usize },
> = HashMap::new();

#[btf_map]
pub(crate) static PROBED: Array<u64, PODS_LEN> = Array::new();

/// The slot that this instance of `sk_lookup` serves; the loader sets it for each pod.
#[unsafe(no_mangle)]
pub(crate) static SLOT: u32 = u32::MAX;

/// Whether this kernel has MPTCP; the loader says so. On one that hasn't, the verifier
/// would refuse the helper if it could be reached.
#[unsafe(no_mangle)]
pub(crate) static MPTCP: u32 = 0;

/// Where the kernel has a process's descent; the loader says so. Of zeros nothing is called that
/// the verifier could refuse.
#[unsafe(no_mangle)]
pub(crate) static TASK: TaskLayout = TaskLayout {
    real_parent: 0,
    group_leader: 0,
    thread_pid: 0,
    level: 0,
    numbers: 0,
    number_bytes: 0,
    nr: 0,
};
