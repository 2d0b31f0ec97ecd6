//! Netlink, as far as the agent speaks it: lists of what the kernel has, and routing requests.
//! Of a message only the attributes are read that somebody asks for. Pods have a hand in the
//! others too, and those differ between kernels.

use std::io;
use std::iter;

use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};

/// `struct nlmsghdr`.
const MESSAGE_HEADER: usize = 16;
/// `struct nlattr`.
const ATTRIBUTE_HEADER: usize = 4;
/// Messages and attributes begin at multiples of this.
const ALIGNMENT: usize = 4;
/// Bits of an attribute's type that say how it is encoded (`NLA_F_NESTED`, `NLA_F_NET_BYTEORDER`).
const TYPE_MASK: u16 = 0x3fff;

/// A list that the kernel can be asked for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct List {
    /// `NETLINK_*`.
    pub(crate) protocol: isize,
    /// `RTM_GET*`, or what stands for it.
    pub(crate) ask: u16,
    /// `RTM_NEW*`, or what stands for it, of which there is one for each entry.
    pub(crate) entry: u16,
    /// Most entries that are read.
    pub(crate) limit: usize,
}

impl List {
    /// Asks for the list, by the fixed part of a request, in the calling thread's network
    /// namespace. `read` makes something of what follows each entry's header.
    pub(crate) fn dump<T>(
        self,
        request: &[u8],
        read: impl Fn(&[u8]) -> io::Result<T>,
    ) -> io::Result<Vec<T>> {
        let socket = send(self.protocol, self.ask, libc::NLM_F_DUMP, request)?;
        let mut found = Vec::new();
        loop {
            let (packet, _) = socket.recv_from_full()?;
            if self.read_packet(&packet, &read, &mut found)? {
                return Ok(found);
            }
        }
    }

    /// Takes in the entries of one packet; true with the end of the list, or the last entry that
    /// is wanted.
    pub(crate) fn read_packet<T>(
        self,
        packet: &[u8],
        read: impl Fn(&[u8]) -> io::Result<T>,
        found: &mut Vec<T>,
    ) -> io::Result<bool> {
        let mut rest = packet;
        while let Some((kind, message)) = next_message(&mut rest)? {
            match i32::from(kind) {
                libc::NLMSG_DONE => return Ok(true),
                libc::NLMSG_ERROR => return acknowledged(message).map(|()| true),
                _ if kind == self.entry => found.push(read(message)?),
                _ => {}
            }
            if found.len() >= self.limit {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// Makes a routing request that the kernel only acknowledges. `flags` are those of its kind.
pub(crate) fn request(kind: u16, flags: i32, body: &[u8]) -> io::Result<()> {
    request_of(NETLINK_ROUTE, kind, flags, body)
}

/// Makes a request of any `NETLINK_*` protocol that the kernel only acknowledges.
pub(crate) fn request_of(protocol: isize, kind: u16, flags: i32, body: &[u8]) -> io::Result<()> {
    let socket = send(protocol, kind, flags | libc::NLM_F_ACK, body)?;
    let (packet, _) = socket.recv_from_full()?;
    match next_message(&mut packet.as_slice())? {
        Some((kind, message)) if i32::from(kind) == libc::NLMSG_ERROR => acknowledged(message),
        _ => Err(malformed()),
    }
}

fn send(protocol: isize, kind: u16, flags: i32, body: &[u8]) -> io::Result<Socket> {
    let mut socket = Socket::new(protocol)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    let len = u32::try_from(MESSAGE_HEADER + body.len()).map_err(io::Error::other)?;
    let flags = (flags | libc::NLM_F_REQUEST).cast_unsigned();
    // Length; type and flags; sequence number; port.
    let header = [len, u32::from(kind) | flags << 16, 1, 0];
    let mut message: Vec<u8> = header.iter().flat_map(|word| word.to_ne_bytes()).collect();
    message.extend_from_slice(body);
    socket.send(&message, 0)?;
    Ok(socket)
}

/// Takes a message off: its type, and what follows its header.
fn next_message<'a>(rest: &mut &'a [u8]) -> io::Result<Option<(u16, &'a [u8])>> {
    if rest.is_empty() {
        return Ok(None);
    }
    let (len, kind) = (word(rest, 0)?, half(rest, 4)?);
    let len = usize::try_from(len).map_err(|_| malformed())?;
    Ok(Some((kind, take(rest, len, MESSAGE_HEADER)?)))
}

/// The attributes in what is left of a message, or within another attribute: type and value of
/// each. What is broken is the last.
pub(crate) fn attributes(message: &[u8]) -> impl Iterator<Item = io::Result<(u16, &[u8])>> {
    let mut rest = message;
    iter::from_fn(move || {
        (!rest.is_empty()).then(|| next_attribute(&mut rest).inspect_err(|_| rest = &[]))
    })
}

fn next_attribute<'a>(rest: &mut &'a [u8]) -> io::Result<(u16, &'a [u8])> {
    let (len, kind) = (half(rest, 0)?, half(rest, 2)?);
    Ok((kind & TYPE_MASK, take(rest, len.into(), ATTRIBUTE_HEADER)?))
}

/// Takes off what is `len` bytes long with its header, and the padding; what follows the header.
fn take<'a>(rest: &mut &'a [u8], len: usize, header: usize) -> io::Result<&'a [u8]> {
    let value = rest.get(header..len).ok_or_else(malformed)?;
    let next = len.next_multiple_of(ALIGNMENT);
    *rest = rest.get(next..).unwrap_or_default();
    Ok(value)
}

/// `struct nlmsgerr` begins with the negative error number, or zero.
fn acknowledged(message: &[u8]) -> io::Result<()> {
    match word(message, 0)?.cast_signed() {
        0 => Ok(()),
        code => Err(io::Error::from_raw_os_error(code.saturating_neg())),
    }
}

/// A number of 32 bits that begins at a byte.
pub(crate) fn word(bytes: &[u8], at: usize) -> io::Result<u32> {
    array(bytes, at).map(u32::from_ne_bytes)
}

/// A number of 16 bits that begins at a byte.
pub(crate) fn half(bytes: &[u8], at: usize) -> io::Result<u16> {
    array(bytes, at).map(u16::from_ne_bytes)
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> io::Result<[u8; N]> {
    let found = bytes.get(at..).and_then(<[u8]>::first_chunk);
    found.copied().ok_or_else(malformed)
}

/// Text that a zero byte ends. Names may be of any bytes.
pub(crate) fn text(bytes: &[u8]) -> String {
    let text = bytes.split(|&byte| byte == 0).next();
    String::from_utf8_lossy(text.unwrap_or_default()).into_owned()
}

/// The kernel's answer is not what its documentation says.
pub(crate) fn malformed() -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        "an answer of the kernel's over netlink can't be read",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINKS: List = List {
        protocol: NETLINK_ROUTE,
        ask: libc::RTM_GETLINK,
        entry: libc::RTM_NEWLINK,
        limit: 2,
    };

    fn message(kind: u16, body: &[u8]) -> Vec<u8> {
        let len = u32::try_from(MESSAGE_HEADER + body.len()).unwrap();
        let mut bytes = len.to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend([0; 10]);
        bytes.extend(body);
        bytes.resize(bytes.len().next_multiple_of(ALIGNMENT), 0);
        bytes
    }

    fn read(packet: &[u8]) -> (Result<bool, Option<i32>>, Vec<Vec<u8>>) {
        let mut found = Vec::new();
        let end = LINKS.read_packet(packet, |entry| Ok(entry.to_vec()), &mut found);
        (end.map_err(|e| e.raw_os_error()), found)
    }

    #[test]
    fn a_list_ends_where_the_kernel_says_or_at_its_limit() {
        let (one, other) = (
            message(libc::RTM_NEWLINK, b"one"),
            message(libc::RTM_NEWADDR, b"?"),
        );
        let done = message(3, &[0; 4]);
        let packet = |parts: &[&[u8]]| read(&parts.concat());
        assert_eq!(packet(&[&one, &other]), (Ok(false), vec![b"one".to_vec()]));
        assert_eq!(
            packet(&[&one, &done, &one]),
            (Ok(true), vec![b"one".to_vec()])
        );
        let two = vec![b"one".to_vec(); 2];
        assert_eq!(packet(&[&one, &one, &one]), (Ok(true), two));
    }

    #[test]
    fn an_error_is_told_and_what_is_cut_off_is_one() {
        let refused = message(2, &(-libc::EPERM).to_ne_bytes());
        assert_eq!(read(&refused), (Err(Some(libc::EPERM)), vec![]));
        let one = message(libc::RTM_NEWLINK, b"four");
        for len in 1..one.len() {
            assert_eq!(read(&one[..len]), (Err(None), vec![]), "{len} bytes");
        }
    }

    #[test]
    fn attributes_end_with_a_broken_one() {
        let good = [7, 0, 3, 0x80, b'a', b'b', 0, 0];
        let all = |bytes: &[u8]| -> Vec<Option<(u16, Vec<u8>)>> {
            let all = attributes(bytes).map(io::Result::ok);
            all.map(|found| found.map(|(kind, value)| (kind, value.to_vec())))
                .collect()
        };
        let read = || Some((3, b"ab\0".to_vec()));
        assert_eq!(all(&good), [read()]);
        // The last one needs no padding.
        assert_eq!(all(&good[..7]), [read()]);
        for broken in [[3, 0, 1, 0], [99, 0, 1, 0], [0, 0, 1, 0]] {
            let bytes = [good.as_slice(), &broken, &good].concat();
            assert_eq!(all(&bytes), [read(), None], "{broken:?}");
        }
    }
}
