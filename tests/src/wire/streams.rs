//! Ethernet, IP and TCP headers off, segments in order: byte streams.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::{Result, bail};

/// An end of a TCP connection.
pub type Endpoint = SocketAddr;

/// One direction of a TCP connection.
#[derive(Debug)]
pub struct Direction {
    /// Who sends.
    pub from: Endpoint,
    /// Who receives.
    pub to: Endpoint,
    /// Whether the sender opened the connection.
    pub from_client: bool,
    initial: Option<u32>,
    segments: Vec<(u32, Vec<u8>)>,
}

/// All TCP streams of a recording. A connection is told from an earlier one of the same
/// ports by its SYN.
#[derive(Debug, Default)]
pub struct Streams {
    directions: Vec<Direction>,
    /// Frames that are no TCP, by what they are.
    pub others: BTreeMap<&'static str, usize>,
}

struct Segment<'a> {
    from: Endpoint,
    to: Endpoint,
    sequence: u32,
    flags: u8,
    payload: &'a [u8],
}

const SYN: u8 = 0x02;
const ACK: u8 = 0x10;

impl Streams {
    pub(super) fn new<'a>(frames: impl Iterator<Item = &'a [u8]>) -> Self {
        let mut streams = Self::default();
        let mut current: BTreeMap<(Endpoint, Endpoint), usize> = BTreeMap::new();
        for frame in frames {
            match parse(frame) {
                Ok(segment) => streams.add(&mut current, &segment),
                Err(what) => *streams.others.entry(what).or_default() += 1,
            }
        }
        streams
    }

    fn add(&mut self, current: &mut BTreeMap<(Endpoint, Endpoint), usize>, segment: &Segment<'_>) {
        let key = (segment.from, segment.to);
        let syn = segment.flags & SYN != 0;
        let known = current.get(&key).copied();
        // A retransmitted SYN has the sequence number of the first.
        let fresh =
            known.is_none_or(|i| syn && self.directions[i].initial != Some(segment.sequence));
        let index = if fresh {
            self.directions.push(Direction {
                from: segment.from,
                to: segment.to,
                from_client: syn && segment.flags & ACK == 0,
                initial: syn.then_some(segment.sequence),
                segments: Vec::new(),
            });
            current.insert(key, self.directions.len() - 1);
            self.directions.len() - 1
        } else {
            known.unwrap_or_default()
        };
        if !segment.payload.is_empty() {
            let start = segment.sequence.wrapping_add(u32::from(syn));
            self.directions[index]
                .segments
                .push((start, segment.payload.to_vec()));
        }
    }

    /// Each direction of each connection.
    pub fn directions(&self) -> impl Iterator<Item = &Direction> {
        self.directions.iter()
    }

    /// Only connections whose two ends are as asked, in either order.
    #[must_use]
    pub fn between(mut self, one: impl Fn(IpAddr) -> bool, other: impl Fn(IpAddr) -> bool) -> Self {
        self.directions.retain(|d| {
            let (from, to) = (d.from.ip(), d.to.ip());
            (one(from) && other(to)) || (one(to) && other(from))
        });
        self
    }

    /// Whether these bytes are in the payload of any stream.
    #[must_use]
    pub fn contain(&self, needle: &[u8]) -> bool {
        self.directions
            .iter()
            .any(|d| d.runs().iter().any(|run| has(run, needle)))
    }
}

impl Direction {
    /// Whether it neither began nor carried a byte while the capture ran: such are the RST and ACK
    /// that a kernel sends for connections that it does not know.
    #[must_use]
    pub fn is_bare(&self) -> bool {
        self.initial.is_none() && self.segments.is_empty()
    }

    /// All its bytes, from the first after SYN.
    ///
    /// # Errors
    /// If the capture did not see its start, or bytes in between.
    pub fn payload(&self) -> Result<Vec<u8>> {
        if self.segments.is_empty() {
            return Ok(Vec::new());
        }
        let Some(initial) = self.initial else {
            bail!("{self}: began before the capture");
        };
        let mut runs = self.runs();
        let first = initial.wrapping_add(1);
        let start = self
            .segments
            .iter()
            .map(|(s, _)| s.wrapping_sub(first))
            .min();
        if runs.len() != 1 || start != Some(0) {
            bail!("{self}: the capture misses some of its bytes");
        }
        Ok(runs.swap_remove(0))
    }

    /// Its bytes in order, a new run wherever some are missing.
    fn runs(&self) -> Vec<Vec<u8>> {
        let base = self.initial.or(self.segments.first().map(|(s, _)| *s));
        let base = base.unwrap_or_default();
        let mut position = 0u64;
        let mut placed: Vec<(u64, &[u8])> = Vec::with_capacity(self.segments.len());
        for (sequence, bytes) in &self.segments {
            // Unwrapped near where the stream is: sequence numbers wrap after 4 GiB.
            let low = base.wrapping_add((position & 0xffff_ffff).try_into().unwrap_or_default());
            let ahead = i64::from(sequence.wrapping_sub(low).cast_signed());
            let at = position.saturating_add_signed(ahead);
            placed.push((at, bytes));
            position = position.max(at + bytes.len() as u64);
        }
        placed.sort_by_key(|(at, _)| *at);
        let mut runs: Vec<Vec<u8>> = Vec::new();
        let mut end = 0;
        for (at, bytes) in placed {
            match runs.last_mut() {
                Some(run) if at <= end => {
                    let known = usize::try_from(end - at).unwrap_or(usize::MAX);
                    run.extend_from_slice(bytes.get(known..).unwrap_or_default());
                }
                _ => runs.push(bytes.to_vec()),
            }
            end = end.max(at + bytes.len() as u64);
        }
        runs
    }
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TCP {} → {}", self.from, self.to)
    }
}

pub(super) fn has(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|w| w == needle)
}

/// The TCP segment in a frame, or what the frame is instead.
fn parse(frame: &[u8]) -> Result<Segment<'_>, &'static str> {
    let ether_type = frame.get(12..14).ok_or("short frame")?;
    let packet = &frame[14..];
    match ether_type {
        [0x08, 0x00] => parse_v4(packet),
        [0x86, 0xdd] => parse_v6(packet),
        [0x08, 0x06] => Err("ARP"),
        _ => Err("other Ethernet type"),
    }
}

fn parse_v4(packet: &[u8]) -> Result<Segment<'_>, &'static str> {
    let header = packet.get(..20).ok_or("short IPv4")?;
    let header_len = usize::from(header[0] & 15) * 4;
    let total = usize::from(u16::from_be_bytes([header[2], header[3]]));
    if u16::from_be_bytes([header[6], header[7]]) & 0x3fff != 0 {
        return Err("IPv4 fragment");
    }
    let address =
        |at: usize| Ipv4Addr::from([header[at], header[at + 1], header[at + 2], header[at + 3]]);
    let (from, to) = (IpAddr::V4(address(12)), IpAddr::V4(address(16)));
    let body = packet.get(header_len..total).ok_or("truncated IPv4")?;
    match header[9] {
        6 => parse_tcp(from, to, body),
        1 => Err("ICMP"),
        17 => Err("UDP"),
        _ => Err("other IPv4 protocol"),
    }
}

fn parse_v6(packet: &[u8]) -> Result<Segment<'_>, &'static str> {
    let header: &[u8; 40] = packet.first_chunk().ok_or("short IPv6")?;
    let address = |at: usize| {
        let mut bytes = [0; 16];
        bytes.copy_from_slice(&header[at..at + 16]);
        IpAddr::V6(Ipv6Addr::from(bytes))
    };
    let total = usize::from(u16::from_be_bytes([header[4], header[5]]));
    let body = packet.get(40..40 + total).ok_or("truncated IPv6")?;
    match header[6] {
        6 => parse_tcp(address(8), address(24), body),
        58 => Err("ICMPv6"),
        17 => Err("UDP"),
        _ => Err("other IPv6 protocol"),
    }
}

fn parse_tcp(from: IpAddr, to: IpAddr, body: &[u8]) -> Result<Segment<'_>, &'static str> {
    let header: &[u8; 20] = body.first_chunk().ok_or("short TCP")?;
    let port = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
    let payload = body
        .get(usize::from(header[12] >> 4) * 4..)
        .ok_or("short TCP")?;
    Ok(Segment {
        from: SocketAddr::new(from, port(0)),
        to: SocketAddr::new(to, port(2)),
        sequence: u32::from_be_bytes([header[4], header[5], header[6], header[7]]),
        flags: header[13],
        payload,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A frame of Ethernet, IPv4, TCP.
    fn frame(ports: (u16, u16), sequence: u32, flags: u8, payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![0; 12];
        frame.extend([0x08, 0x00, 0x45, 0]);
        let total = u16::try_from(40 + payload.len()).unwrap();
        frame.extend(total.to_be_bytes());
        frame.extend([0, 0, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
        frame.extend(ports.0.to_be_bytes());
        frame.extend(ports.1.to_be_bytes());
        frame.extend(sequence.to_be_bytes());
        frame.extend([0, 0, 0, 0, 0x50, flags, 0, 0, 0, 0, 0, 0]);
        frame.extend(payload);
        // Ethernet pads short frames.
        frame.resize(frame.len().max(60), 0xee);
        frame
    }

    fn payload_of(frames: &[Vec<u8>]) -> Result<Vec<u8>> {
        let streams = Streams::new(frames.iter().map(Vec::as_slice));
        let direction = streams.directions().next().unwrap();
        direction.payload()
    }

    #[test]
    fn segments_out_of_order_repeated_and_past_the_wrap_are_put_together() {
        let start = u32::MAX - 3;
        let at = |offset: u32| start.wrapping_add(1).wrapping_add(offset);
        let frames = [
            frame((1, 2), start, SYN, b""),
            frame((1, 2), start, SYN, b""),
            frame((1, 2), at(5), ACK, b"world"),
            frame((1, 2), at(0), ACK, b"hello"),
            frame((1, 2), at(3), ACK, b"lowor"),
        ];
        assert_eq!(payload_of(&frames).unwrap(), b"helloworld");
    }

    #[test]
    fn a_gap_or_a_missing_start_is_an_error() {
        let gap = [frame((1, 2), 9, SYN, b""), frame((1, 2), 12, ACK, b"x")];
        assert!(payload_of(&gap).is_err());
        assert!(payload_of(&[frame((1, 2), 12, ACK, b"x")]).is_err());
    }

    #[test]
    fn a_needle_is_found_across_segments() {
        let frames = [
            frame((1, 2), 9, SYN, b""),
            frame((1, 2), 10, ACK, b"see"),
            frame((1, 2), 13, ACK, b"kme"),
        ];
        let streams = Streams::new(frames.iter().map(Vec::as_slice));
        assert!(streams.contain(b"seekme"));
        assert!(!streams.contain(b"seekyou"));
    }

    #[test]
    fn the_same_ports_after_a_new_syn_are_a_new_connection() {
        let frames = [
            frame((1, 2), 9, SYN, b""),
            frame((1, 2), 10, ACK, b"a"),
            frame((1, 2), 900, SYN, b""),
            frame((1, 2), 901, ACK, b"b"),
        ];
        let streams = Streams::new(frames.iter().map(Vec::as_slice));
        let all: Vec<_> = streams.directions().map(|d| d.payload().unwrap()).collect();
        assert_eq!(all, [b"a", b"b"]);
    }
}
