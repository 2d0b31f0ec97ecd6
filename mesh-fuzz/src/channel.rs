//! The channel between supervisor and worker below its messages: packets and descriptors.

use std::io::{self, IoSlice, PipeReader, Read as _};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use mesh_agent::channel::{self, Channel, MAX_FDS, SupervisorChannel, WorkerChannel};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::socket::{ControlMessage, MsgFlags, UnixAddr, sendmsg};
use prost::Message;
use tokio::runtime::Runtime;
use tokio::time::timeout;

use crate::input::Input;
use crate::runtime::inside;

/// Packets of any bytes with any number of descriptors, both ways, while the worker does what it
/// likes to the end that it shares. Every packet is taken or refused at once, and no descriptor is
/// left open by it.
pub(crate) fn channel(bytes: &[u8]) {
    inside(|runtime| {
        let (supervisor, worker) = channel::pair().expect("a pair");
        let ends = [supervisor.try_clone(), worker.try_clone()].map(|end| end.expect("an end"));
        let supervisor = SupervisorChannel::new(supervisor).expect("a channel");
        let worker = WorkerChannel::new(worker).expect("a channel");
        let mut input = Input(bytes);
        while !input.0.is_empty() {
            let (what, fds) = (input.byte(), input.byte());
            let packet = input.piece();
            match what % 4 {
                0 => {
                    let flags = OFlag::from_bits_truncate(i32::from(fds) << 4);
                    fcntl(&ends[0], FcntlArg::F_SETFL(flags)).expect("flags");
                }
                1 | 2 => send(runtime, &ends[1], packet, fds, &supervisor),
                _ => send(runtime, &ends[0], packet, fds, &worker),
            }
        }
    });
}

fn send<S: Message, R: Message + Default>(
    runtime: &Runtime,
    from: &OwnedFd,
    packet: &[u8],
    fds: u8,
    to: &Channel<S, R>,
) {
    let (ended, passed) = io::pipe().expect("a pipe");
    let raw = vec![passed.as_raw_fd(); usize::from(fds)];
    let rights = [ControlMessage::ScmRights(&raw)];
    let rights = &rights[..usize::from(fds > 0)];
    let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
    let data = [IoSlice::new(packet)];
    if sendmsg::<UnixAddr>(from.as_raw_fd(), &data, rights, flags, None).is_err() {
        return;
    }
    let received = runtime.block_on(async { timeout(Duration::from_secs(1), to.recv()).await });
    match received.expect("a packet that is there is taken") {
        Ok(Some((_, fds))) => assert!(fds.len() <= MAX_FDS),
        // A packet without a byte looks like the other end's.
        Ok(None) => assert!(packet.is_empty()),
        Err(error) => assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{error}"),
    }
    drop(passed);
    assert!(is_ended(ended), "a descriptor is still open");
}

/// A pipe ends with the last descriptor of its other end.
fn is_ended(mut pipe: PipeReader) -> bool {
    fcntl(&pipe, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).expect("flags");
    matches!(pipe.read(&mut [0]), Ok(0))
}
