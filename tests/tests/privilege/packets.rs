//! Packets on a worker's channel, made by hand: what a seized worker sends is not bound to what
//! the mesh's own encoder would make.

use std::io;

use mesh_lab::inject::{DATA, Tracee};

/// The worker's end of its channel.
pub(crate) const CHANNEL: u64 = 3;
/// A duplicate of the supervisor's, in the worker.
pub(crate) const OTHER_END: u64 = 4;
/// First byte of every packet.
pub(crate) const MARK: u8 = 0x4e;

/// Numbers of messages in `ToSupervisor` (`worker.proto`).
pub(crate) const HELLO: u8 = 1;
pub(crate) const LISTENERS: u8 = 2;
pub(crate) const PRIVATE_KEY: u8 = 3;
pub(crate) const CERTIFICATE_REQUEST: u8 = 4;
pub(crate) const RESOLVE_DESTINATION: u8 = 5;

/// A message of one kind, as a packet.
pub(crate) fn packet(kind: u8, body: &[u8]) -> Vec<u8> {
    let mut packet = vec![MARK];
    packet.extend(bytes(kind, body));
    packet
}

/// A field of bytes.
pub(crate) fn bytes(field: u8, value: &[u8]) -> Vec<u8> {
    let mut encoded = vec![field << 3 | 2];
    encoded.extend(varint(value.len()));
    encoded.extend(value);
    encoded
}

/// A field that is a number.
pub(crate) fn number(field: u8, value: usize) -> Vec<u8> {
    let mut encoded = vec![field << 3];
    encoded.extend(varint(value));
    encoded
}

fn varint(mut value: usize) -> Vec<u8> {
    let mut encoded = Vec::new();
    loop {
        let low = u8::try_from(value & 0x7f).unwrap();
        value >>= 7;
        if value == 0 {
            encoded.push(low);
            return encoded;
        }
        encoded.push(low | 0x80);
    }
}

/// Sends a packet from the worker, without waiting. What the call returned.
pub(crate) fn send(worker: &mut Tracee, packet: &[u8]) -> i64 {
    let flags = (libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL).unsigned_abs();
    let args = [CHANNEL, DATA, packet.len() as u64, flags.into(), 0, 0];
    worker.call(libc::SYS_sendto, args, packet).unwrap()
}

/// Sends `packet` as often as `times` says in one packet, with descriptors of the worker. An
/// error if the worker has ended by it.
pub(crate) fn send_message(
    worker: &mut Tracee,
    packet: &[u8],
    times: u64,
    fds: &[i32],
) -> io::Result<i64> {
    // struct msghdr, its vectors, its control message, then the packet.
    const HEADER: u64 = 56;
    let vectors_at = HEADER;
    let control_at = vectors_at + 16 * times;
    let control = rights(fds);
    let packet_at = control_at + control.len() as u64;
    let mut data = words(&[0, 0, DATA + vectors_at, times]);
    let control_len = if fds.is_empty() {
        0
    } else {
        16 + 4 * fds.len()
    };
    data.extend(words(&[DATA + control_at, control_len as u64, 0]));
    for _ in 0..times {
        data.extend(words(&[DATA + packet_at, packet.len() as u64]));
    }
    data.extend(control);
    data.extend(packet);
    let flags = (libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL).unsigned_abs();
    let args = [CHANNEL, DATA, flags.into(), 0, 0, 0];
    worker.call(libc::SYS_sendmsg, args, &data)
}

/// `SCM_RIGHTS`, padded to whole words.
fn rights(fds: &[i32]) -> Vec<u8> {
    if fds.is_empty() {
        return Vec::new();
    }
    let mut message = words(&[16 + 4 * fds.len() as u64]);
    for value in [libc::SOL_SOCKET, libc::SCM_RIGHTS].iter().chain(fds) {
        message.extend(value.to_ne_bytes());
    }
    message.resize(message.len().next_multiple_of(8), 0);
    message
}

fn words(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}
