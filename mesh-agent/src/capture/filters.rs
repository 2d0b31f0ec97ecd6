//! The filters of a clsact qdisc as the kernel lists them.

use std::io;

use aya::programs::tc::TcAttachType;
use netlink_packet_core::NlasIterator;
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};

/// `struct nlmsghdr` and `struct tcmsg`.
const HEADER_BYTES: usize = 16;
const MESSAGE_BYTES: usize = 20;

/// `tcm_parent` of what comes in and of what goes out, at a clsact qdisc.
const INGRESS: u32 = 0xffff_fff2;
const EGRESS: u32 = 0xffff_fff3;

const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
const TCA_CHAIN: u16 = 11;
const TCA_BPF_NAME: u16 = 7;
const TCA_BPF_ID: u16 = 11;
/// Marks attributes that hold attributes.
const NLA_F_NESTED: u16 = 1 << 15;

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
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    socket.send(&request(ifindex, parent), 0)?;
    let mut found = Vec::new();
    loop {
        let (received, _) = socket.recv_from_full()?;
        let mut rest = received.as_slice();
        while let Some((kind, message)) = next_message(&mut rest)? {
            match kind {
                libc::NLMSG_DONE => return Ok(found),
                libc::NLMSG_ERROR => return Err(error(message)),
                _ => found.extend(read(message)?),
            }
        }
    }
}

fn request(ifindex: u32, parent: u32) -> Vec<u8> {
    let len = u32::try_from(HEADER_BYTES + MESSAGE_BYTES).expect("a small number");
    let kind = u32::from(libc::RTM_GETTFILTER);
    let flags = (libc::NLM_F_REQUEST | libc::NLM_F_DUMP).cast_unsigned();
    // Length; type and flags; sequence number; port; family; index; handle; parent; info.
    let words = [len, kind | flags << 16, 0, 0, 0, ifindex, 0, parent, 0];
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

/// Takes a message off: its type, and what follows its header.
fn next_message<'a>(rest: &mut &'a [u8]) -> io::Result<Option<(i32, &'a [u8])>> {
    if rest.is_empty() {
        return Ok(None);
    }
    let len = word(rest, 0).and_then(|len| usize::try_from(len).ok());
    let len = len.filter(|len| (HEADER_BYTES..=rest.len()).contains(len));
    let (Some(len), Some(kind)) = (len, half(rest, 4)) else {
        return Err(malformed());
    };
    let message = &rest[HEADER_BYTES..len];
    *rest = rest.get(len.next_multiple_of(4)..).unwrap_or_default();
    Ok(Some((kind.into(), message)))
}

/// `None` for a classifier as such, which is listed besides its filters, and for other chains,
/// which are only run if a filter says so.
fn read(message: &[u8]) -> io::Result<Option<Filter>> {
    let (Some(handle), Some(info)) = (word(message, 8), word(message, 16)) else {
        return Err(malformed());
    };
    let mut filter = Filter {
        priority: u16::try_from(info >> 16).expect("sixteen bits"),
        handle,
        ..Filter::default()
    };
    let (mut chain, mut is_bpf) = (0, false);
    let attributes = message.get(MESSAGE_BYTES..).unwrap_or_default();
    for attribute in NlasIterator::new(attributes) {
        let attribute = attribute.map_err(|_| malformed())?;
        match attribute.kind() & !NLA_F_NESTED {
            TCA_CHAIN => chain = word(attribute.value(), 0).unwrap_or_default(),
            // The same numbers say other things of other kinds.
            TCA_KIND => is_bpf = attribute.value() == b"bpf\0",
            TCA_OPTIONS if is_bpf => read_options(attribute.value(), &mut filter)?,
            _ => {}
        }
    }
    Ok((handle != 0 && chain == 0).then_some(filter))
}

fn read_options(options: &[u8], filter: &mut Filter) -> io::Result<()> {
    for option in NlasIterator::new(options) {
        let option = option.map_err(|_| malformed())?;
        match option.kind() {
            TCA_BPF_ID => filter.program_id = word(option.value(), 0),
            TCA_BPF_NAME => {
                let name = option.value().split(|&b| b == 0).next();
                filter.name = String::from_utf8_lossy(name.unwrap_or_default()).into_owned();
            }
            _ => {}
        }
    }
    Ok(())
}

fn error(message: &[u8]) -> io::Error {
    let errno = word(message, 0).unwrap_or_default().cast_signed();
    io::Error::from_raw_os_error(-errno)
}

fn malformed() -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        "the kernel's list of filters can't be read",
    )
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..at + 4)?;
    Some(u32::from_ne_bytes(bytes.try_into().ok()?))
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    let bytes = bytes.get(at..at + 2)?;
    Some(u16::from_ne_bytes(bytes.try_into().ok()?))
}
