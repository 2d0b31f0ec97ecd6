//! The channel between supervisor and worker: a `SOCK_SEQPACKET` pair, one protobuf
//! message a packet, descriptors by `SCM_RIGHTS`.
//!
//! The worker keeps a duplicate of the supervisor's end (see [`WORKER_END`] and
//! [`SUPERVISOR_END`]): a supervisor that comes back takes it out of the worker by
//! `pidfd_getfd`, so the channel outlives every supervisor and nobody else has to hold it.
//! A worker that is seized gains nothing by it: it could only talk to itself.

use std::io::{self, IoSlice, IoSliceMut};
use std::marker::PhantomData;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, UnixAddr,
    recvmsg, sendmsg, socketpair,
};
use prost::Message;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use mesh_api::worker::{ToSupervisor, ToWorker};

use crate::handed::Handed;

/// Descriptor number of the worker's end, in the worker.
pub const WORKER_END: RawFd = 3;
/// Descriptor number of the duplicate of the supervisor's end, in the worker.
pub const SUPERVISOR_END: RawFd = 4;
/// Largest packet, in bytes. A destination with 1,000 endpoints stays below.
pub const MAX_PACKET: usize = 160 * 1024;
/// Most descriptors in one packet.
pub const MAX_FDS: usize = 16;
/// Most that the kernel lets ride along (`SCM_MAX_FD`). There is room for all of them: those of a
/// message that is cut short would be open, and nobody would know of them.
const KERNEL_MAX_FDS: usize = 253;

/// A channel end that sends `S` and receives `R`.
#[derive(Debug)]
pub struct Channel<S, R> {
    fd: AsyncFd<OwnedFd>,
    marker: PhantomData<fn(S) -> R>,
}

/// The supervisor's end.
pub type SupervisorChannel = Channel<ToWorker, ToSupervisor>;
/// The worker's end.
pub type WorkerChannel = Channel<ToSupervisor, ToWorker>;

/// A new pair: the supervisor's end and the worker's end, both non-blocking and
/// close-on-exec.
///
/// # Errors
/// Whatever `socketpair` gives.
pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(
        AddressFamily::Unix,
        SockType::SeqPacket,
        None,
        SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
    )?)
}

impl<S: Message, R: Message + Default> Channel<S, R> {
    /// Takes an end into the current tokio runtime.
    ///
    /// # Errors
    /// If the descriptor can't be registered.
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        // SAFETY: the descriptor is owned by the `AsyncFd` and never replaced or closed in it.
        let fd = unsafe { AsyncFd::register(fd) }.map_err(|e| e.into_parts().1)?;
        Ok(Self {
            fd,
            marker: PhantomData,
        })
    }

    /// The descriptor, to duplicate it for the worker to keep.
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.get_ref().as_fd()
    }

    /// Sends one message with descriptors. Waits while the other end's queue is full.
    /// Cancel-safe: the message was sent whole or not at all.
    ///
    /// # Errors
    /// `BrokenPipe` or `ConnectionReset` when nobody holds the other end any more;
    /// `InvalidInput` for a message or a number of descriptors over the limits.
    pub async fn send(&self, message: &S, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        let bytes = encode(message, fds.len())?;
        self.fd
            .async_io(Interest::WRITABLE, |fd| {
                send_packet(fd.as_raw_fd(), &bytes, fds)
            })
            .await
    }

    /// Receives one message with its descriptors; `None` when the other end is gone.
    /// Cancel-safe.
    ///
    /// # Errors
    /// `InvalidData` for what is no message; the packet is consumed.
    pub async fn recv(&self) -> io::Result<Option<(R, Vec<OwnedFd>)>> {
        let received = self.recv_from_anybody().await?;
        Ok(received.map(|(message, fds)| {
            let fds = fds.into_iter().map(Handed::into_inner);
            (message, fds.collect())
        }))
    }

    /// As [`Channel::recv`], from somebody who may be seized: whatever becomes of the
    /// descriptors, nobody waits for it.
    pub(crate) async fn recv_from_anybody(&self) -> io::Result<Option<(R, Vec<Handed>)>> {
        let packet = self
            .fd
            .async_io(Interest::READABLE, |fd| recv_packet(fd.as_raw_fd()))
            .await?;
        let Some((bytes, fds)) = packet else {
            return Ok(None);
        };
        let message = R::decode(bytes.as_slice())
            .map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))?;
        Ok(Some((message, fds)))
    }
}

/// Sends one message without a runtime and without waiting: for the end of a worker that
/// could not be confined.
///
/// # Errors
/// As [`Channel::send`], and `WouldBlock` while the other end's queue is full.
pub fn send_now<M: Message>(socket: BorrowedFd<'_>, message: &M) -> io::Result<()> {
    send_packet(socket.as_raw_fd(), &encode(message, 0)?, &[])
}

fn encode<M: Message>(message: &M, fds: usize) -> io::Result<Vec<u8>> {
    let bytes = message.encode_to_vec();
    if bytes.len() > MAX_PACKET || fds > MAX_FDS {
        let what = format!("message of {} bytes with {fds} descriptors", bytes.len());
        return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
    }
    Ok(bytes)
}

fn send_packet(socket: RawFd, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let raw: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let control = if raw.is_empty() {
        &rights[..0]
    } else {
        &rights[..]
    };
    // An empty packet would look like the end of the stream; protobuf's default message is one.
    let data = [IoSlice::new(&[PACKET_MARK]), IoSlice::new(bytes)];
    // Whoever holds a duplicate of this end, as a worker does, can make it a blocking one.
    let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
    sendmsg::<UnixAddr>(socket, &data, control, flags, None)?;
    Ok(())
}

/// First byte of every packet.
const PACKET_MARK: u8 = 0x4e;

fn recv_packet(socket: RawFd) -> io::Result<Option<(Vec<u8>, Vec<Handed>)>> {
    let mut bytes = vec![0; MAX_PACKET + 1];
    let mut space = nix::cmsg_space!([RawFd; KERNEL_MAX_FDS]);
    let mut data = [IoSliceMut::new(&mut bytes)];
    let received = recvmsg::<UnixAddr>(
        socket,
        &mut data,
        Some(&mut space),
        MsgFlags::MSG_CMSG_CLOEXEC | MsgFlags::MSG_DONTWAIT,
    )?;
    let mut fds = Vec::new();
    for control in received.cmsgs()? {
        if let ControlMessageOwned::ScmRights(raw) = control {
            // SAFETY: the kernel has just made these descriptors for us; nobody else owns them.
            fds.extend(
                raw.into_iter()
                    .map(|fd| Handed::from(unsafe { OwnedFd::from_raw_fd(fd) })),
            );
        }
    }
    let (len, flags) = (received.bytes, received.flags);
    if len == 0 {
        return Ok(None);
    }
    let whole = !flags.intersects(MsgFlags::MSG_TRUNC | MsgFlags::MSG_CTRUNC);
    if !whole || fds.len() > MAX_FDS || bytes[0] != PACKET_MARK {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "truncated or foreign packet",
        ));
    }
    bytes.truncate(len);
    bytes.remove(0);
    Ok(Some((bytes, fds)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use mesh_api::worker::{Ready, Resync, to_supervisor, to_worker};

    #[tokio::test]
    async fn messages_and_descriptors_arrive_in_order() {
        let (supervisor, worker) = pair().unwrap();
        let supervisor = SupervisorChannel::new(supervisor).unwrap();
        let worker = WorkerChannel::new(worker).unwrap();
        let empty = ToWorker { message: None };
        let resync = ToWorker {
            message: Some(to_worker::Message::Resync(Resync {})),
        };
        let stdin = io::stdin();
        supervisor.send(&empty, &[]).await.unwrap();
        supervisor
            .send(&resync, &[stdin.as_fd(), stdin.as_fd()])
            .await
            .unwrap();
        let (message, fds) = worker.recv().await.unwrap().unwrap();
        assert_eq!((message, fds.len()), (empty, 0));
        let (message, fds) = worker.recv().await.unwrap().unwrap();
        assert_eq!((message, fds.len()), (resync, 2));
        drop(supervisor);
        assert!(worker.recv().await.unwrap().is_none());
    }

    /// What rides along with a packet that is refused is closed.
    #[tokio::test]
    async fn descriptors_beyond_the_limit_are_refused_and_not_kept() {
        use std::io::Read;
        let (supervisor, worker) = pair().unwrap();
        let supervisor = SupervisorChannel::new(supervisor).unwrap();
        for count in [MAX_FDS + 1, KERNEL_MAX_FDS] {
            let (mut end, held) = io::pipe().unwrap();
            send_packet(worker.as_raw_fd(), &[], &vec![held.as_fd(); count]).unwrap();
            drop(held);
            let error = supervisor.recv().await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{error}");
            assert_eq!(end.read(&mut [0]).unwrap(), 0, "no duplicate is left");
        }
    }

    /// A worker has a duplicate of the supervisor's end, and with it its flags.
    #[tokio::test]
    async fn an_end_that_was_made_blocking_does_not_block() {
        let (supervisor, _worker) = pair().unwrap();
        nix::fcntl::fcntl(
            &supervisor,
            nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::empty()),
        )
        .unwrap();
        let would_block = |error: io::Error| assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        would_block(recv_packet(supervisor.as_raw_fd()).unwrap_err());
        let full =
            (0..10_000).find_map(|_| send_packet(supervisor.as_raw_fd(), &[0; 1_000], &[]).err());
        would_block(full.expect("a queue has an end"));
    }

    #[tokio::test]
    async fn what_is_too_large_is_refused_before_it_is_sent() {
        let (supervisor, _worker) = pair().unwrap();
        let supervisor = WorkerChannel::new(supervisor).unwrap();
        let ready = to_supervisor::Message::Ready(Ready {
            certificate_not_after_s: 1,
        });
        let ready = ToSupervisor {
            message: Some(ready),
        };
        let stdin = io::stdin();
        let error = supervisor
            .send(&ready, &[stdin.as_fd(); 17])
            .await
            .unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }
}
