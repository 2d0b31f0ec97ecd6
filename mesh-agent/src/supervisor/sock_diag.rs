//! `sock_diag(7)`: the TCP sockets of the calling thread's network namespace, whosever they are.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use netlink_sys::protocols::NETLINK_SOCK_DIAG;

use crate::netlink::{self, List, attributes, half, malformed, word};

const SOCK_DIAG_BY_FAMILY: u16 = 20;
/// Ends a connection as `abort` of its owner would (`CONFIG_INET_DIAG_DESTROY`).
const SOCK_DESTROY: u16 = 21;
/// Most sockets of a family that are looked at.
const MOST_SOCKETS: usize = 65_536;
/// `SOCK_DIAG_BY_FAMILY` asks, and is what each entry is called.
const SOCKETS: List = List {
    protocol: NETLINK_SOCK_DIAG,
    ask: SOCK_DIAG_BY_FAMILY,
    entry: SOCK_DIAG_BY_FAMILY,
    limit: MOST_SOCKETS,
};

/// `TCP_LISTEN`, as a bit of a set of states.
const LISTENERS: u32 = 1 << 10;
const SYN_RECV: u8 = 3;
/// `TCP_ESTABLISHED`, `SYN_SENT`, `SYN_RECV`, `FIN_WAIT1`, `FIN_WAIT2`, `CLOSE_WAIT`, `LAST_ACK`
/// and `CLOSING`. What is in `TIME_WAIT` needs nobody.
const CONNECTIONS: u32 = 1 << 1 | 1 << 2 | 1 << 3 | 1 << 4 | 1 << 5 | 1 << 8 | 1 << 9 | 1 << 11;

/// Attribute of an entry: id of the socket's cgroup (`linux/inet_diag.h`).
const INET_DIAG_CGROUP_ID: u16 = 21;
/// `struct inet_diag_msg`, and where in it `struct inet_diag_sockid` is.
const ENTRY_BYTES: usize = 72;
const ID_AT: usize = 4;
const ID_BYTES: usize = 48;

/// One connection's socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Connection {
    /// The kernel's number for it, never used again until the next boot.
    pub(super) cookie: u64,
    pub(super) local: SocketAddr,
    pub(super) remote: SocketAddr,
    /// Id of the cgroup that it belongs to. What has no socket of its own yet, or any more, has
    /// none.
    pub(super) cgroup: Option<u64>,
    /// It is being accepted.
    pub(super) is_request: bool,
    family: u8,
    id: [u8; ID_BYTES],
}

/// Local ports of all listeners. Only those are walked through: `/proc/net/tcp` goes through the
/// whole node's table of connections, which takes milliseconds even when it is empty, and on a
/// kernel without preemption nobody else has the processor meanwhile.
pub(super) fn listening() -> io::Result<BTreeSet<u16>> {
    dump(LISTENERS, local_port)
}

/// All connections, but those in `TIME_WAIT`.
pub(super) fn connections() -> io::Result<Vec<Connection>> {
    dump(CONNECTIONS, read_connection)
}

/// Resets a connection, for both ends. One that is gone is no error.
pub(super) fn destroy(connection: &Connection) -> io::Result<()> {
    let request = request(connection.family, 0, &connection.id);
    match netlink::request_of(NETLINK_SOCK_DIAG, SOCK_DESTROY, 0, &request) {
        Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        other => other,
    }
}

/// Whether this kernel resets connections: it looks for one that there isn't, or does not even look.
///
/// # Errors
/// If it can't, or has no `sock_diag` for TCP.
pub(crate) fn can_destroy() -> io::Result<()> {
    // A kernel without any of it says the same as one that finds no such connection.
    listening()?;
    let [family, ..] = libc::AF_INET.to_le_bytes();
    let request = request(family, 0, &[0; ID_BYTES]);
    match netlink::request_of(NETLINK_SOCK_DIAG, SOCK_DESTROY, 0, &request) {
        Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        other => other,
    }
}

fn dump<T, C: FromIterator<T>>(
    states: u32,
    read: impl Fn(&[u8]) -> io::Result<T>,
) -> io::Result<C> {
    let mut found = Vec::new();
    for family in [libc::AF_INET, libc::AF_INET6] {
        let [family, ..] = family.to_le_bytes();
        found.extend(SOCKETS.dump(&request(family, states, &[0; ID_BYTES]), &read)?);
    }
    Ok(found.into_iter().collect())
}

/// `struct inet_diag_req_v2`: family, protocol, two bytes of nothing; states; a socket.
fn request(family: u8, states: u32, id: &[u8; ID_BYTES]) -> Vec<u8> {
    let [tcp, ..] = libc::IPPROTO_TCP.to_le_bytes();
    let mut request = vec![family, tcp, 0, 0];
    request.extend_from_slice(&states.to_ne_bytes());
    request.extend_from_slice(id);
    request
}

/// Of a `struct inet_diag_msg`: in network byte order after four single bytes.
pub(super) fn local_port(entry: &[u8]) -> io::Result<u16> {
    half(entry, ID_AT).map(u16::from_be)
}

pub(super) fn read_connection(entry: &[u8]) -> io::Result<Connection> {
    let fixed: &[u8; ENTRY_BYTES] = entry.first_chunk().ok_or_else(malformed)?;
    let [family, state, ..] = *fixed;
    let id = *fixed[ID_AT..].first_chunk().ok_or_else(malformed)?;
    let remote_port = half(&id, 2).map(u16::from_be)?;
    let mut connection = Connection {
        cookie: u64::from(word(&id, 40)?) | u64::from(word(&id, 44)?) << 32,
        local: SocketAddr::new(address(family, &id, 4)?, local_port(entry)?),
        remote: SocketAddr::new(address(family, &id, 20)?, remote_port),
        cgroup: None,
        is_request: state == SYN_RECV,
        family,
        id,
    };
    for attribute in attributes(&entry[ENTRY_BYTES..]) {
        if let (INET_DIAG_CGROUP_ID, value) = attribute? {
            let id = u64::from_ne_bytes(*value.first_chunk().ok_or_else(malformed)?);
            connection.cgroup = Some(id);
        }
    }
    Ok(connection)
}

/// IPv4 whatever the socket's family, where it is IPv4 that is spoken.
fn address(family: u8, id: &[u8; ID_BYTES], at: usize) -> io::Result<IpAddr> {
    let bytes: &[u8; 16] = id[at..].first_chunk().ok_or_else(malformed)?;
    let [a, b, c, d, ..] = *bytes;
    match i32::from(family) {
        libc::AF_INET => Ok(Ipv4Addr::new(a, b, c, d).into()),
        libc::AF_INET6 => Ok(Ipv6Addr::from(*bytes).to_canonical()),
        _ => Err(malformed()),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn a_connection_is_found_with_both_ends_and_destroyed() {
        for ip in ["127.0.0.1:0", "[::1]:0"] {
            let listener = TcpListener::bind(ip).unwrap();
            let at = listener.local_addr().unwrap();
            let mut client = TcpStream::connect(at).unwrap();
            let (mut server, from) = listener.accept().unwrap();
            let found = connections().unwrap();
            let of = |local, remote| {
                let ours = |c: &&Connection| (c.local, c.remote) == (local, remote);
                found.iter().find(ours).unwrap()
            };
            let (one, other) = (of(from, at), of(at, from));
            assert!(one.cookie != other.cookie && one.cgroup.is_some() && !one.is_request);
            // Root may, on a kernel that can.
            match destroy(one) {
                Ok(()) => {
                    assert!(client.read(&mut [0]).is_err() && server.read(&mut [0]).is_err());
                    destroy(one).unwrap();
                }
                Err(e) => println!("not destroyed: {e}"),
            }
        }
    }

    #[test]
    fn what_is_cut_off_is_an_error() {
        let mut entry = vec![0; ENTRY_BYTES];
        entry[0] = 2;
        assert_eq!(read_connection(&entry).unwrap().cgroup, None);
        assert!(read_connection(&entry[1..]).is_err());
        entry.extend([8, 0, 21, 0, 1, 2, 3, 4]);
        assert!(read_connection(&entry).is_err());
        entry[0] = 1;
        assert!(read_connection(&entry[..ENTRY_BYTES]).is_err());
    }
}
