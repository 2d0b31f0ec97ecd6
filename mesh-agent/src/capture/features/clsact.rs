//! Whether walls can be filters on the clsact qdisc: tried in a network namespace that ends
//! with the call, for the kernel may have to load modules first.

use std::io;
use std::thread;

use aya::programs::tc;
use nix::sched::{CloneFlags, unshare};

use crate::netlink;

/// Index of `lo` in every network namespace.
const LOOPBACK: u32 = 1;
/// `tcm_parent` of what comes in, at a clsact qdisc.
const INGRESS: u32 = 0xffff_fff2;
/// Priority 1, every protocol (`ETH_P_ALL` in network order).
const FIRST_OF_ALL: u32 = 1 << 16 | 3u16.to_be() as u32;

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
    // Family; index; handle; parent; info.
    let message = [0, LOOPBACK, 0, INGRESS, FIRST_OF_ALL];
    let mut filter: Vec<u8> = message.iter().flat_map(|word| word.to_ne_bytes()).collect();
    // One attribute: its length, TCA_KIND, and the kind's name.
    filter.extend([8u16, 1].iter().flat_map(|half| half.to_ne_bytes()));
    filter.extend(b"bpf\0");
    let flags = libc::NLM_F_CREATE | libc::NLM_F_EXCL;
    netlink::request(libc::RTM_NEWTFILTER, flags, &filter)
}
