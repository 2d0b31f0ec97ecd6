//! The mesh's ports in a pod's namespace: kept out of the kernel's automatic choice, where
//! the bind hook doesn't see them (`bind(0)`), and checked for apps that sit on one already.

use std::collections::BTreeSet;
use std::fs;
use std::io;

use mesh_common::RESERVED_PORTS;

use super::netns::{Netns, NetnsError};
use super::sock_diag::listening;

const SYSCTL: &str = "/proc/sys/net/ipv4/ip_local_reserved_ports";

/// Reserves the mesh's ports and returns those that weren't reserved before, to be given
/// to [`release`] when the pod leaves.
pub(super) fn reserve(netns: &Netns) -> Result<Vec<u16>, NetnsError> {
    netns.inside(
        "reserving the mesh's ports (ip_local_reserved_ports)",
        || {
            let before = read()?;
            let added: Vec<u16> = RESERVED_PORTS
                .into_iter()
                .filter(|port| !before.contains(port))
                .collect();
            if !added.is_empty() {
                write(
                    &before
                        .union(&added.iter().copied().collect())
                        .copied()
                        .collect(),
                )?;
            }
            Ok(added)
        },
    )
}

/// Takes back what [`reserve`] added; what others reserved stays.
pub(super) fn release(netns: &Netns, added: &[u16]) -> Result<(), NetnsError> {
    netns.inside(
        "giving the mesh's ports back (ip_local_reserved_ports)",
        || {
            let now = read()?;
            write(
                &now.into_iter()
                    .filter(|port| !added.contains(port))
                    .collect(),
            )
        },
    )
}

/// Those of the mesh's ports that something in the pod listens on, lowest first.
pub(super) fn taken(netns: &Netns) -> Result<Vec<u16>, NetnsError> {
    netns.inside("looking for apps on the mesh's ports", || {
        let mut taken = listening().or_else(|e| match e.raw_os_error() {
            // A kernel without `tcp_diag`, or a node without its module.
            Some(libc::ENOENT | libc::EPROTONOSUPPORT) => listening_by_tables(),
            _ => Err(e),
        })?;
        taken.retain(|port| RESERVED_PORTS.contains(port));
        Ok(taken.into_iter().collect())
    })
}

fn listening_by_tables() -> io::Result<BTreeSet<u16>> {
    let mut ports = BTreeSet::new();
    for table in ["/proc/thread-self/net/tcp", "/proc/thread-self/net/tcp6"] {
        match fs::read_to_string(table) {
            Ok(text) => ports.extend(listening_in(&text)),
            // The kernel has no IPv6.
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(e),
        }
    }
    Ok(ports)
}

fn read() -> io::Result<BTreeSet<u16>> {
    let text = fs::read_to_string(SYSCTL)?;
    parse(text.trim()).ok_or_else(|| {
        let what = format!("{SYSCTL} holds {text:?}, which is no list of ports");
        io::Error::new(io::ErrorKind::InvalidData, what)
    })
}

fn write(ports: &BTreeSet<u16>) -> io::Result<()> {
    // An empty list is written as a newline: the kernel ignores an empty write.
    fs::write(SYSCTL, format!("{}\n", format(ports)))
}

/// `1,5-7` → {1, 5, 6, 7}.
pub(super) fn parse(text: &str) -> Option<BTreeSet<u16>> {
    let mut ports = BTreeSet::new();
    for part in text.split(',').filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        ports.extend(first.trim().parse::<u16>().ok()?..=last.trim().parse::<u16>().ok()?);
    }
    Some(ports)
}

/// {1, 5, 6, 7} → `1,5-7`.
pub(super) fn format(ports: &BTreeSet<u16>) -> String {
    let mut ranges: Vec<(u16, u16)> = Vec::new();
    for &port in ports {
        match ranges.last_mut() {
            Some((_, last)) if last.checked_add(1) == Some(port) => *last = port,
            _ => ranges.push((port, port)),
        }
    }
    let text = ranges.iter().map(|(first, last)| match first == last {
        true => first.to_string(),
        false => format!("{first}-{last}"),
    });
    text.collect::<Vec<_>>().join(",")
}

/// Local ports in state LISTEN (0A) of a `/proc/net/tcp` table.
pub(super) fn listening_in(table: &str) -> impl Iterator<Item = u16> + '_ {
    table.lines().skip(1).filter_map(|line| {
        let mut fields = line.split_whitespace();
        let local = fields.nth(1)?;
        let state = fields.nth(1)?;
        let port = local.rsplit_once(':')?.1;
        (state == "0A").then(|| u16::from_str_radix(port, 16).ok())?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn port_lists_read_and_write_as_the_kernel_does() {
        assert_eq!(parse("").unwrap(), BTreeSet::new());
        let ports = parse("8080,15001,30000-30002").unwrap();
        assert_eq!(ports.len(), 5);
        assert_eq!(format(&ports), "8080,15001,30000-30002");
        assert_eq!(format(&[65534, 65535].into()), "65534-65535");
        assert_eq!(parse("many"), None);
    }

    #[test]
    fn only_listeners_take_a_port() {
        let table = "  sl  local_address rem_address   st tx_queue\n\
             0: 0100007F:3A99 00000000:0000 0A 00000000:00000000\n\
             1: 0100007F:3A9E 0100007F:0001 01 00000000:00000000\n";
        assert_eq!(listening_in(table).collect::<Vec<_>>(), [15001]);
    }
    #[test]
    fn the_kernel_and_its_tables_say_the_same() {
        let listeners = ["127.0.0.1:0", "[::1]:0"].map(std::net::TcpListener::bind);
        let ports = listeners.iter().flatten();
        let ports: Vec<u16> = ports.map(|l| l.local_addr().unwrap().port()).collect();
        assert!(!ports.is_empty());
        for found in [listening().unwrap(), listening_by_tables().unwrap()] {
            assert!(ports.iter().all(|port| found.contains(port)), "{found:?}");
        }
    }
}
