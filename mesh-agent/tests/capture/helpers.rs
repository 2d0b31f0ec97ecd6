//! Which helpers the kernel gives to which programs, where the design follows from it.

use aya::util::KernelVersion;

use crate::program::{self, calling};

const GET_NETNS_COOKIE: u32 = 122;

const CGROUP_SKB: u32 = 8;
const SOCK_OPS: u32 = 13;
const SK_MSG: u32 = 16;
const CGROUP_SOCKOPT: u32 = 25;

/// Pods are told apart by the cookie wherever a socket is at hand. Steering has none: there is
/// one instance per pod, which knows its pod from its own data.
#[test]
fn network_namespaces_are_known_where_there_is_a_socket_and_not_in_steering() {
    let socket_hooks = [
        (program::CGROUP_SOCK_ADDR, 8, "bind4"),
        (program::CGROUP_SOCK_ADDR, 10, "connect4"),
        (program::CGROUP_SOCK_ADDR, 14, "sendmsg4"),
        (program::CGROUP_SOCK_ADDR, 19, "recvmsg4"),
        (program::CGROUP_SOCK_ADDR, 29, "getpeername4"),
        (program::CGROUP_SOCK_ADDR, 31, "getsockname4"),
        (SOCK_OPS, 3, "sockops"),
        (SK_MSG, 7, "sk_msg"),
        (CGROUP_SOCKOPT, 21, "getsockopt"),
        (CGROUP_SOCKOPT, 22, "setsockopt"),
    ];
    for (kind, attach_type, hook) in socket_hooks {
        calling(kind, attach_type, GET_NETNS_COOKIE).unwrap_or_else(|e| panic!("{hook}: {e}"));
    }
    let steering = calling(
        program::SK_LOOKUP,
        program::ATTACH_SK_LOOKUP,
        GET_NETNS_COOKIE,
    );
    assert_eq!(steering.unwrap_err().raw_os_error(), Some(libc::EINVAL));
    // On packets it came between the kernels that these tests run on.
    let kernel = KernelVersion::current().unwrap();
    for (kind, attach_type) in [(program::SCHED_CLS, 0), (CGROUP_SKB, 1)] {
        let loads = calling(kind, attach_type, GET_NETNS_COOKIE).is_ok();
        if kernel < KernelVersion::new(6, 13, 0) {
            assert!(!loads, "program type {kind}");
        }
        if kernel >= KernelVersion::new(6, 18, 0) {
            assert!(loads, "program type {kind}");
        }
    }
}
