//! Connections that are older than their pod's enrolment.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::fd::AsRawFd;
use std::time::Duration;

use mesh_agent::capture::{Capture, kernel_clock_ns};
use mesh_common::{FlowKey, Grandfathered, KernelReason, mapped_v4};
use socket2::{Domain, Socket, Type};

use crate::frame::{self, ACK};
use crate::lab::{Lab, NODE_V4, NODE_V6, eventually, in_netns};
use crate::names::{accept, local, peer};
use crate::wall::{TCP, raw_socket, walled};

/// The kernel's number of a socket.
fn cookie(socket: &impl AsRawFd) -> u64 {
    let mut cookie = 0_u64;
    let mut len = 8;
    // SAFETY: both live on this stack, and `len` says how large the value is.
    let status = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut len,
        )
    };
    assert_eq!(status, 0, "{}", std::io::Error::last_os_error());
    cookie
}

fn bytes(address: SocketAddr) -> [u8; 16] {
    match address {
        SocketAddr::V4(v4) => mapped_v4(v4.ip().octets()),
        SocketAddr::V6(v6) => v6.ip().octets(),
    }
}

/// What the wall is told of a socket of the pod, which may go on for so long.
fn told(socket: &Socket, time: Duration) -> (u64, Grandfathered) {
    let (own, other) = (local(socket), peer(socket));
    let time_ns = u64::try_from(time.as_nanos()).unwrap();
    let older = Grandfathered {
        until_ns: kernel_clock_ns() + time_ns,
        tuple: FlowKey {
            source: bytes(own),
            destination: bytes(other),
            source_port: own.port(),
            destination_port: other.port(),
        },
        flags: 0,
    };
    (cookie(socket), older)
}

fn listener(ip: &str, port: u16) -> Socket {
    let at = SocketAddr::new(ip.parse().unwrap(), port);
    let listener = Socket::new(Domain::for_address(at), Type::STREAM, None).unwrap();
    listener.bind(&at.into()).unwrap();
    listener.listen(8).unwrap();
    listener
}

const LONG: Duration = Duration::from_secs(3_600);

/// A pod that has called the node, both ends of that, and the number of calls it has open.
fn called(lab: &Lab, ip: &str) -> (Socket, Socket) {
    let listener = lab.in_node(|| listener(ip, 0));
    let old = lab.app().dial(local(&listener)).unwrap();
    let (node, _) = accept(&listener);
    (old, node)
}

fn exchange(pod: &Socket, node: &Socket) {
    let (mut pod, mut node) = (pod, node);
    let mut word = [0; 4];
    pod.write_all(b"ping").unwrap();
    node.read_exact(&mut word).unwrap();
    node.write_all(b"pong").unwrap();
    pod.read_exact(&mut word).unwrap();
    assert_eq!(&word, b"pong");
}

#[test]
fn an_old_connection_goes_on_and_closes_in_both_families() {
    let mut lab = Lab::node();
    lab.add_pod();
    let both = [NODE_V4, NODE_V6].map(|ip| called(&lab, ip));
    lab.enrol(0);
    for (pod, _) in &both {
        let told = told(pod, LONG);
        lab.capture().grandfather(0, &[told]).unwrap();
        assert!(lab.capture().grandfathered(0).unwrap().contains(&told));
    }
    for (pod, node) in both {
        pod.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        exchange(&pod, &node);
        drop(pod);
        assert_eq!((&node).read(&mut [0; 1]).unwrap(), 0);
    }
    assert_eq!(walled(&lab), []);
}

#[test]
fn what_the_pod_was_called_for_and_has_not_accepted_goes_on() {
    let mut lab = Lab::node();
    lab.add_pod();
    let app = lab.app();
    let at = SocketAddr::new(lab.pod().v4, 7000);
    let listener = app.listen(at).unwrap();
    let node = lab.in_node(|| TcpStream::connect(at).unwrap());
    // Its socket has no descriptor yet: this is how the kernel tells of it.
    let (own, other) = (node.peer_addr().unwrap(), node.local_addr().unwrap());
    lab.enrol(0);
    let (pod, _) = accept(&listener);
    assert_eq!((local(&pod), peer(&pod)), (own, other));
    lab.capture().grandfather(0, &[told(&pod, LONG)]).unwrap();
    exchange(&pod, &Socket::from(node));
    assert_eq!(walled(&lab), []);
}

#[test]
fn only_that_socket_passes_and_only_with_its_tuple() {
    let mut lab = Lab::node();
    lab.add_pod();
    let ((old, _node), (other, _other)) = (called(&lab, NODE_V4), called(&lab, NODE_V4));
    lab.enrol(0);
    let (cookie, right) = told(&old, LONG);
    let mut wrong = right;
    wrong.tuple.destination_port ^= 1;
    lab.capture().grandfather(0, &[(cookie, wrong)]).unwrap();
    (&old).write_all(b"elsewhere").unwrap();
    eventually("the wall counts another tuple", || {
        (lab.refused(0, KernelReason::WallTupleMismatch) > 0).then_some(())
    });
    (&other).write_all(b"in clear").unwrap();
    eventually("the wall counts another socket", || {
        (lab.refused(0, KernelReason::WallNotWorker) > 0).then_some(())
    });
    // A frame that looks like the socket's is another socket's.
    lab.capture().grandfather(0, &[(cookie, right)]).unwrap();
    let before = lab.refused(0, KernelReason::WallNotWorker);
    let app = lab.app();
    let SocketAddr::V4(to) = peer(&old) else {
        panic!("IPv4")
    };
    let mut segment = frame::tcp(to.port(), ACK, &[], b"forged");
    segment[..2].copy_from_slice(&local(&old).port().to_be_bytes());
    let own = Ipv4Addr::new(10, 88, 0, 2);
    let packet = frame::ipv4(own, *to.ip(), TCP, 0, &segment);
    frame::send_packet(&raw_socket(&app), *to.ip(), &packet);
    eventually("the wall counts the frame", || {
        (lab.refused(0, KernelReason::WallNotWorker) > before).then_some(())
    });
}

#[test]
fn it_ends_in_time_without_an_agent_or_when_it_is_forgotten() {
    let mut lab = Lab::node();
    lab.add_pod();
    let all = [(); 3].map(|()| called(&lab, NODE_V4));
    lab.enrol(0);
    let over = told(&all[0].0, Duration::ZERO);
    let [forgotten, standing] = [&all[1].0, &all[2].0].map(|pod| told(pod, LONG));
    lab.capture()
        .grandfather(0, &[over, forgotten, standing])
        .unwrap();
    lab.capture()
        .forget_grandfathered(0, &[forgotten.0])
        .unwrap();
    // The next agent finds what stands.
    lab.capture = None;
    lab.capture = Some(Capture::open(&lab.options).unwrap());
    assert!(lab.capture().grandfathered(0).unwrap().contains(&standing));
    for ((pod, node), reason) in [
        (&all[0], KernelReason::WallGrandfatherEnded),
        (&all[1], KernelReason::WallNotWorker),
    ] {
        let mut pod = pod;
        pod.write_all(b"in clear").unwrap();
        eventually("the wall counts it", || {
            (lab.refused(0, reason) > 0).then_some(())
        });
        node.set_nonblocking(true).unwrap();
        let mut node = node;
        let error = node.read(&mut [0; 8]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::WouldBlock, "{reason:?}");
    }
    exchange(&all[2].0, &all[2].1);
    lab.capture().end_grandfathering(0).unwrap();
    assert_eq!(lab.capture().grandfathered(0).unwrap(), []);
    (&all[2].0).write_all(b"in clear").unwrap();
    let before = lab.refused(0, KernelReason::WallNotWorker);
    eventually("the wall counts that too", || {
        (lab.refused(0, KernelReason::WallNotWorker) > before).then_some(())
    });
}

#[test]
fn a_socket_that_connects_again_is_captured() {
    let mut lab = Lab::node();
    lab.add_pod();
    let app = lab.app();
    let (old, _node) = called(&lab, NODE_V4);
    lab.enrol(0);
    lab.capture().grandfather(0, &[told(&old, LONG)]).unwrap();
    // AF_UNSPEC: the socket is as new, its cookie is the same.
    let unspecified = [0_u8; 16];
    // SAFETY: the address lives on this stack and has this size.
    let status = unsafe { libc::connect(old.as_raw_fd(), unspecified.as_ptr().cast(), 16) };
    assert_eq!(status, 0);
    app.connect(&old, "192.0.2.9:443".parse().unwrap()).unwrap();
    let (worker, _) = accept(&lab.worker().outbound_v4);
    assert_eq!(local(&worker).ip(), Ipv4Addr::LOCALHOST);
    in_netns(&lab.pod().netns, || assert_eq!(walled(&lab), []));
}
