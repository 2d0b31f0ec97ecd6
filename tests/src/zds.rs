//! The part of Istio's CNI agent that a ztunnel needs: a socket over which it is handed its
//! pods (`proto/zds.proto` of ztunnel).

use std::io::{IoSlice, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::socket::{
    self, AddressFamily, Backlog, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, sockopt,
};
use nix::sys::time::TimeVal;

use crate::pod::Pod;

/// How long a ztunnel may take to connect, and for each answer.
const PATIENCE_S: u32 = 20;

/// The fields of a request: `WorkloadRequest.add`, `.del` and `.snapshot_sent`.
const ADD: u8 = 1;
const DEL: u8 = 2;
const SNAPSHOT_SENT: u8 = 3;

/// `WorkloadResponse { ack: Ack { error: "" } }`.
const ACK: [u8; 2] = [1 << 3 | 2, 0];

/// Where one ztunnel will connect.
#[derive(Debug)]
pub struct Agent(UnixListener);

impl Agent {
    /// Listens there.
    ///
    /// # Errors
    /// If it can't.
    pub fn listen(path: &Path) -> Result<Self> {
        let listen = || {
            let listener = socket::socket(
                AddressFamily::Unix,
                SockType::SeqPacket,
                SockFlag::SOCK_CLOEXEC,
                None,
            )?;
            // Bounds `accept` too.
            let patience = TimeVal::new(PATIENCE_S.into(), 0);
            socket::setsockopt(&listener, sockopt::ReceiveTimeout, &patience)?;
            socket::bind(listener.as_raw_fd(), &UnixAddr::new(path)?)?;
            socket::listen(&listener, Backlog::new(1)?)?;
            nix::Result::Ok(listener)
        };
        let listener = listen().with_context(|| format!("listening on {}", path.display()))?;
        Ok(Self(listener.into()))
    }

    /// Waits for the ztunnel, and hands it these pods as all that it has. It keeps them for as
    /// long as what is returned stays open.
    ///
    /// # Errors
    /// If it does not connect, or does not take them.
    pub fn hand_over(&self, pods: &[&Pod]) -> Result<UnixStream> {
        let (mut stream, _) = self.0.accept().context("waiting for ztunnel to connect")?;
        stream.set_read_timeout(Some(Duration::from_secs(PATIENCE_S.into())))?;
        let mut hello = [0; 64];
        let length = stream.read(&mut hello).context("ztunnel's hello")?;
        ensure!(length > 0, "ztunnel hung up instead of a hello");

        for pod in pods {
            add(&mut stream, pod).with_context(|| format!("handing over {}", pod.key()))?;
        }
        stream.write_all(&field(SNAPSHOT_SENT, &[]))?;
        acknowledged(&mut stream).context("ending the list of pods")?;
        Ok(stream)
    }
}

/// Sends a pod's name and its network namespace, and waits until the ztunnel has it.
///
/// # Errors
/// With what it answered, if it does not take it.
pub fn add(stream: &mut UnixStream, pod: &Pod) -> Result<()> {
    let workload = [
        field(1, pod.name().as_bytes()),
        field(2, pod.namespace().as_bytes()),
        // The lab's pods have service accounts of their own name.
        field(3, pod.name().as_bytes()),
    ]
    .concat();
    let add = [field(1, pod.key().as_bytes()), field(2, &workload)].concat();
    socket::sendmsg::<()>(
        stream.as_raw_fd(),
        &[IoSlice::new(&field(ADD, &add))],
        &[ControlMessage::ScmRights(&[pod.netns.as_fd().as_raw_fd()])],
        MsgFlags::empty(),
        None,
    )?;
    acknowledged(stream)
}

/// Takes a pod from the ztunnel.
///
/// # Errors
/// With what it answered, if it does not let go of it.
pub fn remove(stream: &mut UnixStream, pod: &Pod) -> Result<()> {
    let uid = field(2, pod.key().as_bytes());
    stream.write_all(&field(DEL, &uid))?;
    acknowledged(stream)
}

fn acknowledged(stream: &mut UnixStream) -> Result<()> {
    let mut answer = [0; 1024];
    let length = stream.read(&mut answer).context("ztunnel's answer")?;
    let answer = &answer[..length];
    ensure!(
        answer == ACK,
        "ztunnel answered: {}",
        String::from_utf8_lossy(answer)
    );
    Ok(())
}

/// A length-delimited field of a protobuf message.
fn field(number: u8, content: &[u8]) -> Vec<u8> {
    let mut bytes = vec![number << 3 | 2];
    let mut length = content.len();
    while length > 0x7f {
        bytes.push(length.to_le_bytes()[0] | 0x80);
        length >>= 7;
    }
    bytes.push(length.to_le_bytes()[0]);
    bytes.extend(content);
    bytes
}

#[cfg(test)]
mod tests {
    use super::field;

    #[test]
    fn fields_are_as_protobuf_has_them() {
        assert_eq!(field(2, b"ab"), [0x12, 2, b'a', b'b']);
        // 300 is the example of protobuf's description of varints.
        assert_eq!(field(1, &[7; 300])[..4], [0x0a, 0xac, 0x02, 7]);
    }
}
