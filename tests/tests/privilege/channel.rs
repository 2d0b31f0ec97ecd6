//! A live worker, taken over: what it sends on its channel to the supervisor.

use std::fs;
use std::net::Ipv4Addr;
use std::time::Instant;

use mesh_lab::inject::{DATA, Tracee};
use mesh_lab::wait;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::packets::{
    CHANNEL, HELLO, LISTENERS, MARK, OTHER_END, PRIVATE_KEY, RESOLVE_DESTINATION, bytes, number,
    packet, send, send_message,
};
use crate::{CLIENT, NEIGHBOUR, WEB, assert_carried, lab, supervisor, worker};

/// Something on the channel that no worker would send.
struct Hostile {
    what: &'static str,
    packet: Vec<u8>,
    /// How often the packet is repeated in one.
    times: u64,
    /// Descriptors of the worker that ride along.
    fds: Vec<i32>,
}

fn hostile(what: &'static str, packet: Vec<u8>) -> Hostile {
    Hostile {
        what,
        packet,
        times: 1,
        fds: Vec::new(),
    }
}

fn all_that_is_hostile() -> Vec<Hostile> {
    let listener_kind = number(1, 1);
    vec![
        hostile("no mark", b"hello".to_vec()),
        hostile("no message", vec![MARK, 0xff, 0xff, 0xff, 0xff]),
        hostile("another version", packet(HELLO, &number(1, 999))),
        hostile("a key without a descriptor", packet(PRIVATE_KEY, &[])),
        hostile(
            "an address of no family",
            packet(RESOLVE_DESTINATION, &bytes(1, &[1, 2, 3])),
        ),
        Hostile {
            times: 4,
            ..hostile("more than a packet takes", vec![MARK; 48 * 1024])
        },
        Hostile {
            fds: vec![0; 100],
            ..hostile("more descriptors than a packet takes", vec![MARK])
        },
        Hostile {
            fds: vec![0],
            ..hostile("a file as a listener", packet(LISTENERS, &listener_kind))
        },
    ]
}

/// Each costs the worker that sends it its life: the next one serves the pod. Nobody else
/// notices, and the supervisor keeps nothing of it.
#[test]
fn what_no_worker_would_send_ends_the_worker_and_harms_nobody_else() {
    let (lab, _server) = lab();
    let (client, web) = (lab.pod(CLIENT), lab.pod(WEB));
    let agent = lab.agent(client.node());
    let (victim, supervisor_before) = (worker(&lab, WEB), supervisor(&lab, CLIENT));
    let descriptors = || {
        let folder = format!("/proc/{supervisor_before}/fd");
        fs::read_dir(folder).unwrap().count()
    };
    let before = descriptors();
    let attacks = all_that_is_hostile();
    let count = attacks.len();
    for attack in attacks {
        let taken = worker(&lab, CLIENT);
        let mut seized = Tracee::seize(taken).unwrap();
        let sent = send_message(&mut seized, &attack.packet, attack.times, &attack.fds);
        // The supervisor may have killed it before the call is seen to return.
        assert!(!matches!(sent, Ok(..=0)), "{}: {sent:?}", attack.what);
        drop(seized);
        let next = agent.wait_new_worker(client, taken, wait::PATIENCE);
        assert!(next.is_ok(), "{}: {next:?}", attack.what);
        assert_carried(client, web);
    }
    let status = agent.pod_status(client).unwrap();
    assert_eq!(status["restarts"], count, "{status}");
    assert_eq!(worker(&lab, WEB), victim, "the other worker lived on");
    assert_eq!(supervisor(&lab, CLIENT), supervisor_before);
    wait::until_true("no descriptor to be left", wait::PATIENCE, || {
        Ok(descriptors() <= before)
    })
    .unwrap();
}

/// More than the supervisor takes from one worker: it stops reading, not serving.
#[test]
fn a_flood_of_messages_is_held_back_and_starves_nobody() {
    const FLOOD: usize = 20_000;
    // What is taken at once, and in a second; what waits in the socket comes on top.
    const BURST: f64 = 1_000.0;
    const PER_SECOND: f64 = 500.0;
    const WAITING: f64 = 1_000.0;
    let (lab, _server) = lab();
    let (client, web) = (lab.pod(CLIENT), lab.pod(WEB));
    let taken = worker(&lab, CLIENT);
    let mut seized = Tracee::seize(taken).unwrap();
    let began = Instant::now();
    let mut accepted = 0;
    for port in 0..FLOOD {
        let question = [bytes(1, &[192, 0, 2, 1]), number(2, port)].concat();
        let sent = send(&mut seized, &packet(RESOLVE_DESTINATION, &question));
        accepted += u32::from(sent > 0);
        assert!(sent > 0 || sent == -i64::from(libc::EAGAIN), "{sent}");
    }
    let most = BURST + PER_SECOND * began.elapsed().as_secs_f64() + WAITING;
    println!("{accepted} of {FLOOD} messages taken, at most {most:.0}");
    assert!(f64::from(accepted) < most, "{accepted} messages were taken");
    // While the worker is still held, and its questions still wait.
    let status = lab.agent(client.node()).pod_status(client).unwrap();
    assert_eq!(status["worker_pid"], taken, "{status}");
    drop(seized);
    assert_carried(client, web);
    assert_eq!(worker(&lab, CLIENT), taken, "it was slowed down, not ended");
}

/// The worker's duplicate of the supervisor's end shares its flags.
#[test]
fn a_channel_that_is_made_blocking_blocks_nobody() {
    let (lab, _server) = lab();
    let (client, neighbour) = (lab.pod(CLIENT), lab.pod(NEIGHBOUR));
    let taken = worker(&lab, CLIENT);
    let mut seized = Tracee::seize(taken).unwrap();
    let set = libc::F_SETFL.unsigned_abs().into();
    let blocking = seized.call(libc::SYS_fcntl, [OTHER_END, set, 0, 0, 0, 0], &[]);
    assert_eq!(blocking.unwrap(), 0);
    // The supervisor reads until there is nothing more.
    let question = [bytes(1, &[192, 0, 2, 1]), number(2, 80)].concat();
    assert!(send(&mut seized, &packet(RESOLVE_DESTINATION, &question)) > 0);
    // It serves others while that worker is held, and gives them new workers.
    let other = worker(&lab, NEIGHBOUR);
    kill(Pid::from_raw(other), Signal::SIGKILL).unwrap();
    let agent = lab.agent(client.node());
    let next = agent.wait_new_worker(neighbour, other, wait::PATIENCE);
    assert!(next.is_ok(), "{next:?}");
    assert_carried(neighbour, lab.pod(WEB));
    drop(seized);
    assert_carried(client, lab.pod(WEB));
}

/// A TCP socket can be made to linger: whoever closes it last waits until its data is taken.
#[test]
fn a_socket_that_lingers_holds_nobody_up() {
    let (lab, _server) = lab();
    let (client, web) = (lab.pod(CLIENT), lab.pod(WEB));
    let agent = lab.agent(client.node());
    let stopped = worker(&lab, WEB);
    kill(Pid::from_raw(stopped), Signal::SIGSTOP).unwrap();
    // Kept or refused as its key; with a message that takes none; and behind a packet that ends
    // the session, so that it is still in the channel then.
    let key = packet(PRIVATE_KEY, &[]);
    let hello = packet(HELLO, &number(1, 1));
    for (before, with) in [(None, &key), (None, &hello), (Some(&[][..]), &hello)] {
        let taken = worker(&lab, CLIENT);
        let mut seized = Tracee::seize(taken).unwrap();
        let socket = lingering(&mut seized, web.v4());
        // An error is the worker's end, which is what it has coming.
        let _ = before.map(|packet| send_message(&mut seized, packet, 1, &[]));
        let close = [socket.unsigned_abs().into(), 0, 0, 0, 0, 0];
        let _ = send_message(&mut seized, with, 1, &[socket])
            .and_then(|_| seized.call(libc::SYS_close, close, &[]))
            .and_then(|_| send_message(&mut seized, &key, 1, &[0]));
        drop(seized);
        let next = agent.wait_new_worker(client, taken, wait::PATIENCE);
        assert!(next.is_ok(), "{before:?}, {with:?}: {next:?}");
    }
    kill(Pid::from_raw(stopped), Signal::SIGCONT).unwrap();
    assert_carried(client, web);
}

/// A connection of the worker's to a peer that reads nothing: full, and set to linger.
fn lingering(worker: &mut Tracee, to: Ipv4Addr) -> i32 {
    let inet = libc::AF_INET.unsigned_abs().into();
    let stream = libc::SOCK_STREAM.unsigned_abs().into();
    let socket = worker.call(libc::SYS_socket, [inet, stream, 0, 0, 0, 0], &[]);
    let fd = socket.unwrap().unsigned_abs();
    let mut address = libc::AF_INET.to_ne_bytes()[..2].to_vec();
    address.extend(15008_u16.to_be_bytes());
    address.extend(to.octets());
    address.extend([0; 8]);
    let args = [fd, DATA, address.len() as u64, 0, 0, 0];
    assert_eq!(worker.call(libc::SYS_connect, args, &address).unwrap(), 0);
    let flags = libc::MSG_DONTWAIT.unsigned_abs().into();
    let data = vec![0; 48 * 1024];
    let args = [fd, DATA, data.len() as u64, flags, 0, 0];
    let full = (0..10_000).any(|_| worker.call(libc::SYS_sendto, args, &data).unwrap() < 0);
    assert!(full, "the peer reads");
    let level = libc::SOL_SOCKET.unsigned_abs().into();
    let option = libc::SO_LINGER.unsigned_abs().into();
    let value = [1_i32, 600].map(i32::to_ne_bytes).concat();
    let args = [fd, level, option, DATA, value.len() as u64, 0];
    let set = worker.call(libc::SYS_setsockopt, args, &value);
    assert_eq!(set.unwrap(), 0);
    i32::try_from(fd).unwrap()
}

/// A worker can put its own end in the place where the next supervisor looks for the other.
#[test]
fn a_channel_that_was_swapped_is_not_served() {
    let (mut lab, _server) = lab();
    let node = lab.pod(CLIENT).node();
    let taken = worker(&lab, CLIENT);
    let mut seized = Tracee::seize(taken).unwrap();
    let closed = seized.call(libc::SYS_close, [OTHER_END, 0, 0, 0, 0, 0], &[]);
    assert_eq!(closed.unwrap(), 0);
    let duplicate = libc::F_DUPFD_CLOEXEC.unsigned_abs().into();
    let swapped = seized.call(
        libc::SYS_fcntl,
        [CHANNEL, duplicate, OTHER_END, 0, 0, 0],
        &[],
    );
    assert_eq!(swapped.unwrap(), 4, "its end takes the other's number");
    drop(seized);
    let (agent, host) = lab.agent_mut(node);
    agent.daemon.kill9().unwrap();
    agent.start(host).unwrap();
    let (client, web) = (lab.pod(CLIENT), lab.pod(WEB));
    let agent = lab.agent(node);
    agent
        .wait_new_worker(client, taken, wait::PATIENCE)
        .unwrap();
    assert_carried(client, web);
}
