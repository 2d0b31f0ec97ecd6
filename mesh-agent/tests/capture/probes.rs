//! Kubelet's connections pass to the ports that a pod declares, by the cgroup and the socket that
//! they come from, and nothing else does.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use aya::maps::{HashMap, Map, MapData};
use mesh_agent::capture::{Capture, CgroupRef, netns_cookie};
use mesh_common::{ABI_VERSION, KernelReason, PROBES_PER_NODE, map_name};
use socket2::Socket;

use crate::frame::{self, SYN};
use crate::lab::{Lab, NODE_V4, eventually, netns_path};
use crate::names::{accept, local};
use crate::process::Process;
use crate::wall::{TCP, raw_socket, walled};

/// What the pod declares for probes.
const PORT: u16 = 8080;
/// Another port of its app.
const OTHER: u16 = 8081;

/// A process in kubelet's cgroup, in the node's namespace.
struct Kubelet {
    process: Option<Process>,
    cgroup: PathBuf,
}

impl Kubelet {
    /// Starts it, and tells the capture who it is and which port the pod declares.
    fn start(lab: &mut Lab) -> Self {
        let cgroup = lab
            .options
            .cgroup_root
            .join(format!("{}kubelet", lab.prefix));
        fs::create_dir(&cgroup).unwrap();
        let kubelet = Self {
            process: Some(Process::spawn(&netns_path(&lab.node_netns()), &cgroup)),
            cgroup,
        };
        kubelet.tell(lab);
        let addresses = [lab.pod().v4, lab.pod().v6];
        let ports = [PORT].into();
        lab.capture()
            .set_probe_ports(0, &addresses, &ports)
            .unwrap();
        kubelet
    }

    fn tell(&self, lab: &mut Lab) {
        let node = fs::File::open(netns_path(&lab.node_netns())).unwrap();
        let node = netns_cookie(node.as_fd()).unwrap();
        let cgroup = reference(&self.cgroup);
        lab.capture().set_kubelet(node, Some(cgroup)).unwrap();
    }

    fn process(&self) -> &Process {
        self.process.as_ref().unwrap()
    }
}

impl Drop for Kubelet {
    fn drop(&mut self) {
        self.process = None;
        eventually("kubelet's cgroup is empty", || {
            fs::remove_dir(&self.cgroup).is_ok().then_some(())
        });
    }
}

fn reference(cgroup: &Path) -> CgroupRef {
    let id = fs::metadata(cgroup).unwrap().ino();
    CgroupRef { id, level: 1 }
}

/// The pod's app: its process, and its listeners by address and port.
struct App {
    _process: Process,
    listeners: Vec<(SocketAddr, Socket)>,
}

impl App {
    fn start(lab: &Lab) -> Self {
        let process = lab.app();
        let both = [lab.pod().v4, lab.pod().v6];
        let all = both.map(|ip| [PORT, OTHER].map(|port| SocketAddr::new(ip, port)));
        let listeners = all.into_iter().flatten();
        let listeners = listeners.map(|at| (at, process.listen(at).unwrap()));
        Self {
            listeners: listeners.collect(),
            _process: process,
        }
    }

    fn at(&self, at: SocketAddr) -> &Socket {
        let mut listeners = self.listeners.iter();
        &listeners.find(|(own, _)| *own == at).unwrap().1
    }
}

/// Who got a connection.
fn reached<'a>(lab: &'a Lab, app: &'a App, to: SocketAddr) -> [(&'static str, &'a Socket); 2] {
    let worker = match to.ip() {
        IpAddr::V4(_) => &lab.worker().plaintext_v4,
        IpAddr::V6(_) => &lab.worker().plaintext_v6,
    };
    [("app", app.at(to)), ("worker", worker)]
}

/// Accepts a caller's connection where it must have come, and nowhere else.
fn assert_reaches(lab: &Lab, app: &App, caller: &Socket, to: SocketAddr, whom: &str) -> Socket {
    let mut got = None;
    for (who, listener) in reached(lab, app, to) {
        if who == whom {
            let (socket, from) = accept(listener);
            assert_eq!(from, local(caller), "{whom}");
            got = Some(socket);
        } else {
            listener.set_nonblocking(true).unwrap();
            let nobody = listener.accept();
            listener.set_nonblocking(false).unwrap();
            assert!(nobody.is_err(), "{to} reached the {who}");
        }
    }
    got.unwrap()
}

fn exchange(one: &Socket, other: &Socket) {
    let (mut one, mut other) = (one, other);
    let mut word = [0; 4];
    one.write_all(b"ping").unwrap();
    other.read_exact(&mut word).unwrap();
    other.write_all(b"pong").unwrap();
    one.read_exact(&mut word).unwrap();
    assert_eq!(&word, b"pong");
}

fn targets(lab: &Lab, port: u16) -> [SocketAddr; 2] {
    [lab.pod().v4, lab.pod().v6].map(|ip| SocketAddr::new(ip, port))
}

fn passed(lab: &Lab) -> u64 {
    lab.capture.as_ref().unwrap().probes_passed(0).unwrap()
}

fn on_their_way(lab: &Lab) -> usize {
    lab.capture.as_ref().unwrap().probes_on_their_way().unwrap()
}

#[test]
fn kubelet_reaches_the_app_at_declared_ports_in_both_families() {
    let mut lab = Lab::new();
    let kubelet = Kubelet::start(&mut lab);
    let app = App::start(&lab);
    for to in targets(&lab, PORT) {
        let probe = kubelet.process().dial(to).unwrap();
        let answering = assert_reaches(&lab, &app, &probe, to, "app");
        exchange(&probe, &answering);
        // The app closes first, and then kubelet.
        drop(answering);
        assert_eq!((&probe).read(&mut [0; 1]).unwrap(), 0);
    }
    assert_eq!(passed(&lab), 2);
    for to in targets(&lab, OTHER) {
        let call = kubelet.process().dial(to).unwrap();
        assert_reaches(&lab, &app, &call, to, "worker");
    }
    assert_eq!((passed(&lab), on_their_way(&lab)), (2, 0));
    assert_eq!(walled(&lab), []);
    // One that nobody listens for is refused by the kernel, as without the mesh.
    drop(app);
    let to = targets(&lab, PORT)[0];
    eventually("the app's listener is closed", || {
        kubelet.process().dial(to).err()
    });
    assert_eq!(on_their_way(&lab), 0);
}

/// As a probe by TCP: kubelet's end is gone before the app has accepted.
#[test]
fn what_closes_at_once_leaves_nothing_and_no_segment_is_refused() {
    let mut lab = Lab::new();
    let kubelet = Kubelet::start(&mut lab);
    let app = App::start(&lab);
    let to = targets(&lab, PORT)[0];
    for round in 0..40 {
        let probe = kubelet.process().dial(to).unwrap();
        if round % 2 == 0 {
            probe.set_linger(Some(Duration::ZERO)).unwrap();
        }
        drop(probe);
        let (answering, _) = accept(app.at(to));
        // The end of the file, or the reset.
        let _: std::io::Result<usize> = (&answering).read(&mut [0; 1]);
    }
    assert_eq!((passed(&lab), on_their_way(&lab)), (40, 0));
    assert_eq!(walled(&lab), []);
}

#[test]
fn nobody_else_passes_with_the_nodes_address() {
    let mut lab = Lab::new();
    lab.add_pod();
    let kubelet = Kubelet::start(&mut lab);
    let app = App::start(&lab);
    let to = targets(&lab, PORT)[0];
    // Another process of the node.
    let stranger = Process::spawn(&netns_path(&lab.node_netns()), &lab.app_cgroup());
    let call = stranger.dial(to).unwrap();
    assert_reaches(&lab, &app, &call, to, "worker");
    // A process of kubelet's cgroup in the namespace of another pod, with that pod's address.
    let lodger = Process::spawn(&netns_path(&lab.pods[1].netns), &kubelet.cgroup);
    lab.in_node(|| fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap());
    let call = lodger.dial(to).unwrap();
    assert_reaches(&lab, &app, &call, to, "worker");
    // One below kubelet's cgroup is kubelet's.
    let below = kubelet.cgroup.join("own");
    fs::create_dir(&below).unwrap();
    let child = Process::spawn(&netns_path(&lab.node_netns()), &below);
    let probe = child.dial(to).unwrap();
    assert_reaches(&lab, &app, &probe, to, "app");
    drop((child, lodger));
    eventually("its cgroup is empty", || {
        fs::remove_dir(&below).is_ok().then_some(())
    });
    assert_eq!(passed(&lab), 1);
}

#[test]
fn a_tuple_that_kubelet_had_is_nobody_elses() {
    let mut lab = Lab::new();
    let kubelet = Kubelet::start(&mut lab);
    let app = App::start(&lab);
    let to = targets(&lab, PORT)[0];
    let probe = kubelet.process().dial(to).unwrap();
    let answering = assert_reaches(&lab, &app, &probe, to, "app");
    let own = local(&probe);
    // Without TIME_WAIT at either end.
    probe.set_linger(Some(Duration::ZERO)).unwrap();
    drop(probe);
    (&answering).read(&mut [0; 1]).unwrap_err();
    drop(answering);
    let stranger = Process::spawn(&netns_path(&lab.node_netns()), &lab.app_cgroup());
    let again = stranger.tcp(to);
    again.set_reuse_address(true).unwrap();
    stranger.bind(&again, own).unwrap();
    stranger.connect(&again, to).unwrap();
    assert_eq!(local(&again), own);
    assert_reaches(&lab, &app, &again, to, "worker");
    // Nor is a socket that kubelet has connected, once somebody else connects it.
    let handed_on = kubelet.process().dial(to).unwrap();
    assert_reaches(&lab, &app, &handed_on, to, "app");
    let unspecified = [0_u8; 16];
    // SAFETY: the address lives on this stack and has this size.
    let status = unsafe { libc::connect(handed_on.as_raw_fd(), unspecified.as_ptr().cast(), 16) };
    assert_eq!(status, 0);
    stranger.connect(&handed_on, to).unwrap();
    assert_reaches(&lab, &app, &handed_on, to, "worker");
}

/// Fills the app's queue with probes, so that the next one stays on its way; returns that one.
fn stuck(kubelet: &Kubelet, app: &App, to: SocketAddr) -> (Socket, Vec<Socket>) {
    app.at(to).listen(0).unwrap();
    let mut queued = Vec::new();
    loop {
        let probe = kubelet.process().tcp(to);
        probe.set_nonblocking(true).unwrap();
        let _: std::io::Result<()> = kubelet.process().connect(&probe, to);
        let connected = (0..20).any(|_| {
            std::thread::sleep(Duration::from_millis(10));
            probe.peer_addr().is_ok()
        });
        if !connected {
            return (probe, queued);
        }
        queued.push(probe);
        assert!(queued.len() < 10, "the queue takes every connection");
    }
}

#[test]
fn a_probe_on_its_way_is_its_own_sockets_and_goes_with_it() {
    let mut lab = Lab::new();
    let kubelet = Kubelet::start(&mut lab);
    let app = App::start(&lab);
    let to = targets(&lab, PORT)[0];
    let (probe, _queued) = stuck(&kubelet, &app, to);
    assert!(on_their_way(&lab) > 0);
    // A SYN of the same addresses and ports by somebody who may forge packets, on the node itself.
    let forger = Process::spawn(&netns_path(&lab.node_netns()), &lab.app_cgroup());
    let SocketAddr::V4(pod) = to else {
        panic!("IPv4")
    };
    let mut segment = frame::tcp(PORT, SYN, &[], &[]);
    segment[..2].copy_from_slice(&local(&probe).port().to_be_bytes());
    let packet = frame::ipv4(NODE_V4.parse().unwrap(), *pod.ip(), TCP, 0, &segment);
    frame::send_packet(&raw_socket(&forger), *pod.ip(), &packet);
    eventually("the forged SYN is refused", || {
        (lab.refused(0, KernelReason::WallProbe) == 1).then_some(())
    });
    drop(probe);
    eventually("the probe that was given up is forgotten", || {
        (on_their_way(&lab) == 0).then_some(())
    });
}

#[test]
fn what_is_said_of_kubelet_and_its_ports_changes_and_outlives_the_agent() {
    let mut lab = Lab::new();
    let kubelet = Kubelet::start(&mut lab);
    let app = App::start(&lab);
    let (to, other) = (targets(&lab, PORT)[0], targets(&lab, OTHER)[0]);
    let dialled = |lab: &Lab, to, whom| {
        let call = kubelet.process().dial(to).unwrap();
        assert_reaches(lab, &app, &call, to, whom);
    };
    // The next agent finds it.
    lab.capture = None;
    dialled(&lab, to, "app");
    lab.capture = Some(Capture::open(&lab.options).unwrap());
    dialled(&lab, to, "app");
    let known = lab.capture().probe_ports(0).unwrap();
    assert_eq!(known, BTreeSet::from([PORT]));
    // Other ports, for one of its addresses.
    let v4 = [lab.pod().v4];
    lab.capture()
        .set_probe_ports(0, &v4, &[OTHER].into())
        .unwrap();
    dialled(&lab, to, "worker");
    dialled(&lab, other, "app");
    dialled(&lab, targets(&lab, OTHER)[1], "worker");
    // Another cgroup is kubelet's, or none.
    let elsewhere = reference(&lab.app_cgroup());
    let node = fs::File::open(netns_path(&lab.node_netns())).unwrap();
    let node = netns_cookie(node.as_fd()).unwrap();
    for cgroup in [Some(elsewhere), None] {
        lab.capture().set_kubelet(node, cgroup).unwrap();
        dialled(&lab, other, "worker");
    }
    kubelet.tell(&mut lab);
    dialled(&lab, other, "app");
    // A pod that leaves takes its ports along.
    let (cookie, ifindex) = (lab.pod().cookie, lab.pod().ifindex);
    let mut capture = lab.capture.take().unwrap();
    lab.in_node(|| capture.withdraw(cookie, 0, &[ifindex]))
        .unwrap();
    assert_eq!(capture.probe_ports(0).unwrap(), BTreeSet::new());
    lab.capture = Some(capture);
}

#[test]
fn without_room_a_probe_is_a_plain_call() {
    let mut lab = Lab::new();
    let kubelet = Kubelet::start(&mut lab);
    let app = App::start(&lab);
    let pins = format!("nodemesh-{}/v{ABI_VERSION}/maps", lab.prefix);
    let pin = lab.options.bpffs.join(pins).join(map_name::PROBES);
    let map = Map::HashMap(MapData::from_pin(pin).unwrap());
    let mut probes: HashMap<MapData, [u32; 9], [u32; 4]> = map.try_into().unwrap();
    for number in 0..PROBES_PER_NODE {
        let mut key = [0; 9];
        key[0] = number;
        probes.insert(key, [0; 4], 0).unwrap();
    }
    let to = targets(&lab, PORT)[0];
    let call = kubelet.process().dial(to).unwrap();
    assert_reaches(&lab, &app, &call, to, "worker");
    assert_eq!(lab.refused(0, KernelReason::ProbeNoRoom), 1);
    assert_eq!(passed(&lab), 0);
}
