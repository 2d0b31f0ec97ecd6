//! What the embedded programs use, what for, and since when Linux has it. Versions are those of
//! the hook or the helper in *these* program types, where that came later.

use aya::maps::MapType;
use aya_obj::generated::bpf_func_id;

/// Programs of one purpose, and what attaching them takes.
pub(super) struct Hook {
    pub(super) programs: &'static [&'static str],
    pub(super) purpose: &'static str,
    pub(super) since: &'static str,
    pub(super) config: &'static str,
}

const fn hook(
    programs: &'static [&'static str],
    purpose: &'static str,
    since: &'static str,
    config: &'static str,
) -> Hook {
    Hook {
        programs,
        purpose,
        since,
        config,
    }
}

const CGROUP: &str = "CONFIG_CGROUP_BPF";
const CLS: &str = "CONFIG_NET_CLS_ACT";

pub(super) const HOOKS: [Hook; 11] = [
    hook(
        &["connect4", "connect6"],
        "captures what apps connect to",
        "4.17",
        CGROUP,
    ),
    hook(
        &["sendmsg4", "sendmsg6"],
        "tells apps' datagrams from those of other processes in a pod",
        "4.18",
        CGROUP,
    ),
    hook(
        &["bind4", "bind6"],
        "keeps apps off the mesh's ports",
        "4.17",
        CGROUP,
    ),
    hook(
        &["getpeername4", "getpeername6"],
        "shows apps the peer they called",
        "5.8",
        CGROUP,
    ),
    hook(
        &["getsockname4", "getsockname6"],
        "shows apps their pod's address",
        "5.8",
        CGROUP,
    ),
    hook(
        &["sock_release"],
        "gives back what a closed socket had reserved",
        "5.9",
        CGROUP,
    ),
    hook(
        &["tcp_events"],
        "hands flows over to the worker",
        "4.13",
        CGROUP,
    ),
    hook(
        &["getsockopt", "setsockopt"],
        "tells a worker where a flow was going",
        "5.3",
        CGROUP,
    ),
    hook(
        &["steer"],
        "brings a pod's inbound TCP to its worker",
        "5.9",
        "CONFIG_INET, CONFIG_NET_NS, CONFIG_BPF_SYSCALL",
    ),
    hook(
        &["shut"],
        "closes a device in a pod that can have no wall",
        "4.1",
        CLS,
    ),
    hook(
        &["wall", "wall_in"],
        "drops what did not come through the worker",
        "4.1",
        CLS,
    ),
];

/// A function of the kernel that programs call.
pub(super) struct Helper {
    pub(super) number: bpf_func_id,
    pub(super) name: &'static str,
    pub(super) purpose: &'static str,
    pub(super) since: &'static str,
    pub(super) config: &'static str,
}

const fn helper(
    number: bpf_func_id,
    name: &'static str,
    purpose: &'static str,
    since: &'static str,
    config: &'static str,
) -> Helper {
    Helper {
        number,
        name,
        purpose,
        since,
        config,
    }
}

const BASE: &str = "CONFIG_BPF_SYSCALL";
const SOCKET_CGROUP: &str = "CONFIG_SOCK_CGROUP_DATA";

pub(super) const HELPERS: [Helper; 25] = [
    helper(
        bpf_func_id::BPF_FUNC_map_lookup_elem,
        "bpf_map_lookup_elem",
        "reads maps",
        "3.19",
        BASE,
    ),
    helper(
        bpf_func_id::BPF_FUNC_map_update_elem,
        "bpf_map_update_elem",
        "writes maps",
        "3.19",
        BASE,
    ),
    helper(
        bpf_func_id::BPF_FUNC_map_delete_elem,
        "bpf_map_delete_elem",
        "writes maps",
        "3.19",
        BASE,
    ),
    helper(
        bpf_func_id::BPF_FUNC_ktime_get_ns,
        "bpf_ktime_get_ns",
        "limits events",
        "4.1",
        BASE,
    ),
    helper(
        bpf_func_id::BPF_FUNC_ringbuf_output,
        "bpf_ringbuf_output",
        "tells of refusals",
        "5.8",
        BASE,
    ),
    helper(
        bpf_func_id::BPF_FUNC_skb_load_bytes,
        "bpf_skb_load_bytes",
        "reads packets",
        "4.5",
        CLS,
    ),
    helper(
        bpf_func_id::BPF_FUNC_get_socket_cookie,
        "bpf_get_socket_cookie",
        "tells sockets apart",
        "5.12",
        CGROUP,
    ),
    helper(
        bpf_func_id::BPF_FUNC_get_netns_cookie,
        "bpf_get_netns_cookie",
        "tells pods apart",
        "5.15",
        "CONFIG_NET_NS",
    ),
    helper(
        bpf_func_id::BPF_FUNC_get_current_ancestor_cgroup_id,
        "bpf_get_current_ancestor_cgroup_id",
        "tells workers from apps",
        "5.7",
        "CONFIG_CGROUPS",
    ),
    helper(
        bpf_func_id::BPF_FUNC_get_current_cgroup_id,
        "bpf_get_current_cgroup_id",
        "names the cgroup of a process that is none of a pod's",
        "5.7",
        "CONFIG_CGROUPS",
    ),
    helper(
        bpf_func_id::BPF_FUNC_get_current_pid_tgid,
        "bpf_get_current_pid_tgid",
        "names a process that is none of a pod's",
        "5.10",
        BASE,
    ),
    helper(
        bpf_func_id::BPF_FUNC_get_current_uid_gid,
        "bpf_get_current_uid_gid",
        "names the user of a process that is none of a pod's",
        "4.18",
        BASE,
    ),
    helper(
        bpf_func_id::BPF_FUNC_get_current_comm,
        "bpf_get_current_comm",
        "names a process that is none of a pod's",
        "5.10",
        BASE,
    ),
    helper(
        bpf_func_id::BPF_FUNC_get_current_task,
        "bpf_get_current_task",
        "without it processes that are put into a container (exec) are not noticed",
        "5.10",
        "CONFIG_BPF_SYSCALL, CONFIG_DEBUG_INFO_BTF",
    ),
    helper(
        bpf_func_id::BPF_FUNC_probe_read_kernel,
        "bpf_probe_read_kernel",
        "without it processes that are put into a container (exec) are not noticed",
        "5.10",
        "CONFIG_BPF_EVENTS, CONFIG_DEBUG_INFO_BTF; kernel lockdown not at `confidentiality`",
    ),
    helper(
        bpf_func_id::BPF_FUNC_sk_storage_get,
        "bpf_sk_storage_get",
        "keeps a flow's destination with its socket",
        "5.9",
        BASE,
    ),
    helper(
        bpf_func_id::BPF_FUNC_set_retval,
        "bpf_set_retval",
        "gives apps the errno that fits",
        "5.18",
        CGROUP,
    ),
    helper(
        bpf_func_id::BPF_FUNC_setsockopt,
        "bpf_setsockopt",
        "lets apps bind a port that the worker's flows had (SO_REUSEADDR from 6.1 on)",
        "5.8",
        CGROUP,
    ),
    helper(
        bpf_func_id::BPF_FUNC_sock_ops_cb_flags_set,
        "bpf_sock_ops_cb_flags_set",
        "learns when a flow ends",
        "4.16",
        "CONFIG_INET",
    ),
    helper(
        bpf_func_id::BPF_FUNC_sk_assign,
        "bpf_sk_assign",
        "picks the worker's listener",
        "5.9",
        BASE,
    ),
    helper(
        bpf_func_id::BPF_FUNC_sk_release,
        "bpf_sk_release",
        "picks the worker's listener",
        "5.9",
        BASE,
    ),
    helper(
        bpf_func_id::BPF_FUNC_sk_fullsock,
        "bpf_sk_fullsock",
        "compares a packet with its socket",
        "5.1",
        CLS,
    ),
    helper(
        bpf_func_id::BPF_FUNC_skb_cgroup_id,
        "bpf_skb_cgroup_id",
        "tells who sent a packet",
        "4.18",
        SOCKET_CGROUP,
    ),
    helper(
        bpf_func_id::BPF_FUNC_skb_ancestor_cgroup_id,
        "bpf_skb_ancestor_cgroup_id",
        "tells who sent a packet",
        "4.19",
        SOCKET_CGROUP,
    ),
    helper(
        bpf_func_id::BPF_FUNC_skc_to_mptcp_sock,
        "bpf_skc_to_mptcp_sock",
        "without it MPTCP sockets of apps are not captured but refused",
        "5.19",
        "CONFIG_MPTCP, CONFIG_DEBUG_INFO_BTF",
    ),
];

/// A kind of map.
pub(super) struct Map {
    pub(super) kind: MapType,
    pub(super) name: &'static str,
    pub(super) purpose: &'static str,
    pub(super) since: &'static str,
    pub(super) config: &'static str,
}

const fn map(
    kind: MapType,
    name: &'static str,
    purpose: &'static str,
    since: &'static str,
    config: &'static str,
) -> Map {
    Map {
        kind,
        name,
        purpose,
        since,
        config,
    }
}

pub(super) const MAPS: [Map; 7] = [
    map(
        MapType::Hash,
        "hash maps",
        "who is enrolled, and flows",
        "3.19",
        BASE,
    ),
    map(
        MapType::Array,
        "arrays",
        "counters and settings",
        "3.19",
        BASE,
    ),
    map(
        MapType::ArrayOfMaps,
        "arrays of maps",
        "flows and policy of each pod",
        "4.12",
        BASE,
    ),
    map(
        MapType::LpmTrie,
        "longest-prefix tries",
        "policy of each pod",
        "4.11",
        BASE,
    ),
    map(
        MapType::RingBuf,
        "ring buffers",
        "tells of refusals",
        "5.8",
        BASE,
    ),
    map(
        MapType::SockMap,
        "sockmaps",
        "holds the workers' listeners",
        "5.6",
        "CONFIG_BPF_STREAM_PARSER, CONFIG_INET",
    ),
    map(
        MapType::SkStorage,
        "socket storage",
        "keeps a flow's destination with its socket",
        "5.2",
        BASE,
    ),
];
