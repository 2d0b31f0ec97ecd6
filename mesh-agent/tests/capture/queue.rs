//! What waits to be accepted, while the worker is stopped or there is none.

use std::fs;
use std::io::{ErrorKind, Write};
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::Duration;

use socket2::{Domain, Socket, Type};

use crate::lab::{Lab, eventually};

/// What a worker gives to those who wait; the kernel doubles it.
const WAITING_BUFFER: usize = 32 * 1024;
const BACKLOG: i32 = 8;
/// More than the sender's own buffer can hold.
const SENT: usize = 1 << 20;

/// Connects from outside, and sends as much as fits.
fn caller(lab: &Lab) -> Option<Socket> {
    let to = SocketAddr::new(lab.pod().v4, 8080);
    lab.in_node(|| {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket
            .connect_timeout(&to.into(), Duration::from_millis(1500))
            .ok()?;
        socket.set_nonblocking(true).unwrap();
        let mut left = SENT;
        loop {
            match (&socket).write(&vec![7; left]) {
                Ok(n) if n < left => left -= n,
                Ok(_) => panic!("{SENT} bytes fit into the buffers"),
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Some(socket),
                Err(e) => panic!("{e}"),
            }
        }
    })
}

/// Bytes of the socket that the other end does not have yet.
fn unacknowledged(socket: &Socket) -> usize {
    queued(socket, libc::TIOCOUTQ)
}

fn queued(socket: &Socket, direction: libc::Ioctl) -> usize {
    let mut bytes = 0_i32;
    // SAFETY: the kernel writes one integer.
    let status = unsafe { libc::ioctl(socket.as_raw_fd(), direction, &raw mut bytes) };
    assert_eq!(status, 0);
    usize::try_from(bytes).unwrap()
}

/// The backlog bounds how many wait, and the receive buffer what each may hold.
#[test]
fn what_waits_is_bounded() {
    let lab = Lab::new();
    let listener = &lab.worker().plaintext_v4;
    listener.set_recv_buffer_size(WAITING_BUFFER).unwrap();
    listener.listen(BACKLOG).unwrap();
    let mut waiting = Vec::new();
    while let Some(caller) = caller(&lab) {
        waiting.push(caller);
        assert!(
            waiting.len() <= 2 * BACKLOG as usize,
            "the backlog is no bound"
        );
    }
    assert!(waiting.len() >= BACKLOG as usize);
    for _ in &waiting {
        let (accepted, _) = listener.accept().unwrap();
        let held = queued(&accepted, libc::FIONREAD);
        assert!((1..=2 * WAITING_BUFFER).contains(&held), "{held}");
    }
}

/// The kernel's memory for sockets of a cgroup, in bytes.
fn socket_memory(cgroup: &Path) -> u64 {
    let stat = fs::read_to_string(cgroup.join("memory.stat")).unwrap();
    let line = stat.lines().find_map(|line| line.strip_prefix("sock "));
    line.unwrap().parse().unwrap()
}

#[test]
fn what_waits_is_charged_to_nobody_and_then_to_who_accepts_it() {
    let lab = Lab::new();
    let root = &lab.options.cgroup_root;
    let controllers = fs::read_to_string(root.join("cgroup.controllers")).unwrap();
    if !controllers.split_whitespace().any(|name| name == "memory") {
        println!("test skipped: the memory controller is not one of cgroup2's here");
        return;
    }
    for parent in [root, &lab.options.mesh_cgroup] {
        fs::write(parent.join("cgroup.subtree_control"), "+memory").unwrap();
    }
    let (worker, next) = (&lab.pod().cgroup, lab.app());
    let caller = caller(&lab).unwrap();
    eventually("the listener's end has all that it takes", || {
        (unacknowledged(&caller) < SENT).then_some(())
    });
    let other = lab.app_cgroup();
    assert_eq!((socket_memory(worker), socket_memory(&other)), (0, 0));
    let _accepted = next.accept(&lab.worker().plaintext_v4);
    eventually("who accepted is charged", || {
        (socket_memory(&other) > 0).then_some(())
    });
    assert_eq!(socket_memory(worker), 0);
}
