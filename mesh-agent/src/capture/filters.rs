//! The filters of a clsact qdisc as the kernel lists them.

use std::io;

use aya::programs::tc::TcAttachType;

use crate::netlink::{List, attributes, malformed, text, word};

/// `struct tcmsg`.
const MESSAGE_BYTES: usize = 20;

const FILTERS: List = List {
    protocol: netlink_sys::protocols::NETLINK_ROUTE,
    ask: libc::RTM_GETTFILTER,
    entry: libc::RTM_NEWTFILTER,
    limit: usize::MAX,
};

/// `tcm_parent` of what comes in and of what goes out, at a clsact qdisc.
const INGRESS: u32 = 0xffff_fff2;
const EGRESS: u32 = 0xffff_fff3;

const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
const TCA_CHAIN: u16 = 11;
const TCA_BPF_NAME: u16 = 7;
const TCA_BPF_ID: u16 = 11;

/// A filter, of whatever kind.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Filter {
    pub(super) priority: u16,
    pub(super) handle: u32,
    /// Set for eBPF programs.
    pub(super) program_id: Option<u32>,
    /// The eBPF program's name.
    pub(super) name: String,
}

/// The filters at a device of the caller's network namespace, in the order in which they run;
/// none where there is no qdisc for them.
pub(super) fn list(ifindex: u32, direction: TcAttachType) -> io::Result<Vec<Filter>> {
    let parent = match direction {
        TcAttachType::Egress => EGRESS,
        _ => INGRESS,
    };
    // Family; index; handle; parent; info.
    let request = [0, ifindex, 0, parent, 0];
    let request: Vec<u8> = request.iter().flat_map(|word| word.to_ne_bytes()).collect();
    let found = FILTERS.dump(&request, read)?;
    Ok(found.into_iter().flatten().collect())
}

/// `None` for a classifier as such, which is listed besides its filters, and for other chains,
/// which are only run if a filter says so.
fn read(message: &[u8]) -> io::Result<Option<Filter>> {
    let (handle, info) = (word(message, 8)?, word(message, 16)?);
    let mut filter = Filter {
        priority: u16::try_from(info >> 16).expect("sixteen bits"),
        handle,
        ..Filter::default()
    };
    let (mut chain, mut is_bpf) = (0, false);
    for attribute in attributes(message.get(MESSAGE_BYTES..).ok_or_else(malformed)?) {
        let (kind, value) = attribute?;
        match kind {
            TCA_CHAIN => chain = word(value, 0)?,
            // The same numbers say other things of other kinds.
            TCA_KIND => is_bpf = value == b"bpf\0",
            TCA_OPTIONS if is_bpf => read_options(value, &mut filter)?,
            _ => {}
        }
    }
    Ok((handle != 0 && chain == 0).then_some(filter))
}

fn read_options(options: &[u8], filter: &mut Filter) -> io::Result<()> {
    for option in attributes(options) {
        let (kind, value) = option?;
        match kind {
            TCA_BPF_ID => filter.program_id = Some(word(value, 0)?),
            TCA_BPF_NAME => filter.name = text(value),
            _ => {}
        }
    }
    Ok(())
}
