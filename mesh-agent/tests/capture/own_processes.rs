//! Processes that use a pod's network and are none of the pod's own.

use std::fs;
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::unix::fs::MetadataExt;

use mesh_common::{
    KernelReason, OWN_KNOWN, OWN_REFUSE_ENTERED, OWN_REFUSE_FOREIGN, OWN_TELL_ENTERED, OwnProcesses,
};
use nix::sched::{CloneFlags, setns, unshare};

use crate::lab::Lab;
use crate::names::address;
use crate::policy::assert_eperm;

const LOOPBACK: [&str; 2] = ["127.0.0.1:8080", "[::1]:8080"];
/// What is captured: the worker's listener accepts.
const OUTSIDE: &str = "192.0.2.9:443";

/// The cgroup of [`Lab::app`] is the pod's own; the test's isn't.
fn tell_apart(lab: &mut Lab, flags: u32) {
    let cgroup = fs::metadata(lab.app_cgroup()).unwrap();
    let own = OwnProcesses {
        cgroup_id: cgroup.ino(),
        cgroup_level: 1,
        flags,
    };
    lab.capture().set_processes(0, own).unwrap();
}

fn listen(lab: &Lab) -> [TcpListener; 2] {
    lab.in_pod(|| LOOPBACK.map(|at| TcpListener::bind(at).unwrap()))
}

fn dial(lab: &Lab, to: &str) -> io::Result<TcpStream> {
    lab.in_pod(|| TcpStream::connect(to))
}

/// A datagram from a socket that is connected, or from one that isn't.
fn send(lab: &Lab, to: SocketAddr, connected: bool) -> io::Result<usize> {
    lab.in_pod(|| {
        let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let socket = UdpSocket::bind(any)?;
        if !connected {
            return socket.send_to(b"word", to);
        }
        socket.connect(to)?;
        socket.send(b"word")
    })
}

#[test]
fn a_process_from_outside_is_counted_and_refused_where_that_is_wanted() {
    let mut lab = Lab::new();
    let _listeners = listen(&lab);
    let app = lab.app();
    let all = [LOOPBACK[0], LOOPBACK[1], OUTSIDE];
    let foreign = KernelReason::ForeignProcess;
    let call_all = |lab: &Lab| -> Vec<io::Result<()>> {
        let tcp = all.map(|to| dial(lab, to).map(drop));
        let udp = [
            ("127.0.0.1:9", true),
            ("127.0.0.1:9", false),
            ("[::1]:9", false),
        ];
        let udp = udp.map(|(to, connected)| send(lab, address(to), connected).map(drop));
        tcp.into_iter().chain(udp).collect()
    };
    // As long as nobody has said whose the processes are.
    for result in call_all(&lab) {
        result.unwrap();
    }
    assert_eq!(lab.audited(0, foreign), 0);

    tell_apart(&mut lab, OWN_KNOWN | OWN_TELL_ENTERED);
    for result in call_all(&lab) {
        result.unwrap();
    }
    assert_eq!((lab.audited(0, foreign), lab.refused(0, foreign)), (6, 0));

    tell_apart(&mut lab, OWN_KNOWN | OWN_REFUSE_FOREIGN);
    for result in call_all(&lab) {
        assert_eperm(result, "refused");
    }
    assert_eq!((lab.audited(0, foreign), lab.refused(0, foreign)), (6, 6));

    // The pod's own processes and its worker are no foreign ones.
    for to in all {
        app.dial(address(to)).unwrap();
    }
    lab.worker().process.dial(address(LOOPBACK[0])).unwrap();
    assert_eq!((lab.audited(0, foreign), lab.refused(0, foreign)), (6, 6));

    // A slot's next pod has nothing of it.
    lab.enrol(0);
    dial(&lab, LOOPBACK[0]).unwrap();
    assert_eq!((lab.audited(0, foreign), lab.refused(0, foreign)), (0, 0));
}

#[test]
fn a_process_that_was_put_into_a_container_is_told_by_its_descent() {
    let mut lab = Lab::new();
    let _listeners = listen(&lab);
    let entered = KernelReason::EnteredProcess;
    // Of a pod in the node's pid namespace nobody can be told.
    let unseparated = lab.app();
    let outside = fs::File::open("/proc/self/ns/pid").unwrap();
    unshare(CloneFlags::CLONE_NEWPID).unwrap();
    let first = lab.app();
    let second = lab.app();
    setns(&outside, CloneFlags::CLONE_NEWPID).unwrap();
    let to = address(LOOPBACK[0]);

    tell_apart(&mut lab, OWN_KNOWN);
    second.dial(to).unwrap();
    assert_eq!(lab.audited(0, entered), 0);

    tell_apart(&mut lab, OWN_KNOWN | OWN_TELL_ENTERED);
    for own in [&unseparated, &first] {
        own.dial(to).unwrap();
    }
    assert_eq!(lab.audited(0, entered), 0);
    second.dial(to).unwrap();
    assert_eq!((lab.audited(0, entered), lab.refused(0, entered)), (1, 0));

    let refuse = OWN_KNOWN | OWN_TELL_ENTERED | OWN_REFUSE_FOREIGN | OWN_REFUSE_ENTERED;
    tell_apart(&mut lab, refuse);
    for own in [&unseparated, &first] {
        own.dial(to).unwrap();
    }
    for to in [LOOPBACK[0], LOOPBACK[1], OUTSIDE] {
        assert_eperm(second.dial(address(to)), to);
    }
    assert_eq!((lab.audited(0, entered), lab.refused(0, entered)), (1, 3));
    assert_eq!(lab.refused(0, KernelReason::ForeignProcess), 0);
}
