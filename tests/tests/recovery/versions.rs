//! A supervisor is replaced by one of another ABI version, and back, under live connections.

use std::fs;
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use mesh_lab::{Lab, Pod, removal, wait};

use crate::{CLIENT, DB, NEIGHBOUR, WEB, lab_with, serve, target, worker};
use mesh_lab::traffic::{Traffic, call};

const PODS: [&str; 4] = [CLIENT, NEIGHBOUR, WEB, DB];
const THIS: &str = "mesh-agent";
const NEXT: &str = "mesh-agent-abi-next";
/// Of an app's own server, whose sockets are looked at.
const HELD_PORT: u16 = 7001;
const CLEAR: &[u8] = b"in clear, which no policy allows";
/// Between two datagrams that are refused.
const PACE: Duration = Duration::from_millis(5);

/// A connection whose ends nobody uses while supervisors come and go.
struct Held {
    client: TcpStream,
    server: TcpStream,
    /// What the client and the server are called.
    names: [SocketAddr; 2],
}

impl Held {
    fn open(from: &Pod, to: &Pod) -> Self {
        let at = SocketAddr::new(to.v4().into(), HELD_PORT);
        let listener = to.netns.run(|| TcpListener::bind(at)).unwrap();
        let client = from.netns.run(|| TcpStream::connect(at)).unwrap();
        let (server, accepted_from) = listener.accept().unwrap();
        let held = Self {
            names: [client.local_addr().unwrap(), at],
            client,
            server,
        };
        assert_eq!(accepted_from, held.names[0]);
        assert_eq!(held.names[0].ip(), from.v4());
        held
    }

    fn assert_names(&self) {
        let ends =
            |stream: &TcpStream| [stream.local_addr(), stream.peer_addr()].map(Result::unwrap);
        let [client, server] = self.names;
        assert_eq!(ends(&self.client), [client, server]);
        assert_eq!(ends(&self.server), [server, client]);
    }
}

/// Replaces both supervisors, one after the other, while nobody stops talking.
fn replace_supervisors(lab: &mut Lab, binary: &str, traffic: &[Traffic]) {
    for node in 0..2 {
        let (agent, host) = lab.agent_mut(node);
        let mark = fs::metadata(agent.daemon.log()).unwrap().len();
        let status = agent.daemon.terminate().unwrap();
        assert!(status.success(), "SIGTERM: {status}");
        traffic.iter().for_each(|t| t.wait(10));
        agent.set_binary(binary).unwrap();
        agent.start(host).unwrap();
        traffic.iter().for_each(|t| t.wait(10));
        let log = fs::read_to_string(agent.daemon.log()).unwrap();
        let news = &log[usize::try_from(mark).unwrap()..];
        let told = news
            .lines()
            .find(|line| line.contains("took over the capture"));
        println!("{}", told.unwrap_or_else(|| panic!("no take-over: {news}")));
        let maps = |outcome: &str| {
            let labels = [format!("outcome=\"{outcome}\"")];
            let labels = labels.each_ref().map(String::as_str);
            agent
                .metric(host, "nodemesh_capture_takeover_maps", &labels)
                .unwrap()
        };
        // Pods have grown; policies and events are others; CONFIG says whose the maps are.
        assert_eq!(["shared", "copied", "emptied"].map(maps), [14.0, 1.0, 2.0]);
    }
}

fn assert_adopted(lab: &Lab, workers: [i32; 4], abi: u32) {
    for (key, worker) in PODS.into_iter().zip(workers) {
        let pod = lab.pod(key);
        let agent = lab.agent(pod.node());
        wait::until_true("the worker to be adopted", wait::PATIENCE, || {
            let status = agent.pod_status(pod)?;
            Ok(status["state"] == "enrolled" && status["ready"] == true)
        })
        .unwrap_or_else(|e| panic!("{key}: {e:#}\n{}", lab.log_tails()));
        let status = agent.pod_status(pod).unwrap();
        assert_eq!(status["restarts"], 0, "{key}");
        assert_eq!(status["worker_pid"], worker, "{key}");
        let pins = Path::new(removal::BPFFS).join(format!("nodemesh-{}", agent.instance));
        let names = fs::read_dir(pins).unwrap().map(|e| e.unwrap().file_name());
        assert_eq!(names.collect::<Vec<_>>(), [format!("v{abi}").as_str()]);
    }
}

fn refusals(lab: &Lab, key: &str) -> f64 {
    let node = lab.pod(key).node();
    let labels = [format!("pod=\"{key}\"")];
    let labels = labels.each_ref().map(String::as_str);
    let names = [
        "nodemesh_kernel_refusals_total",
        "nodemesh_refusals_inbound_total",
        "nodemesh_refusals_outbound_total",
    ];
    let counts = names.map(|name| {
        lab.agent(node)
            .metric(lab.node(node), name, &labels)
            .unwrap()
    });
    counts.into_iter().sum()
}

/// Sends what no policy allows until it is told to stop; how often.
fn dodge(to: SocketAddr, stop: &AtomicBool) -> u32 {
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    let mut sent = 0;
    while !stop.load(Ordering::Acquire) {
        socket.send_to(CLEAR, to).unwrap();
        sent += 1;
        thread::sleep(PACE);
    }
    sent
}

#[test]
fn supervisors_of_other_abi_versions_take_over_and_give_back_unnoticed() {
    // What is looked at is the kernel's part: the workers stay the same.
    let mut lab = lab_with(|plan| plan.agent_option("--roll", "manual"));
    let _servers = [serve(lab.pod(WEB)), serve(lab.pod(DB))];
    let (to_web, to_db) = (target(lab.pod(WEB)), target(lab.pod(DB)));
    let held = Held::open(lab.pod(CLIENT), lab.pod(WEB));
    let captures = [0, 1].map(|node| lab.capture(lab.node(node)).unwrap());
    let traffic = [
        Traffic::stream(lab.pod(CLIENT), to_web),
        Traffic::stream(lab.pod(NEIGHBOUR), to_db),
        Traffic::calls(lab.pod(CLIENT), to_web),
        Traffic::calls(lab.pod(NEIGHBOUR), to_db),
    ];
    let workers = PODS.map(|key| worker(&lab, key));
    let outside = SocketAddr::new(lab.outside().v4().into(), 9);
    let stop = AtomicBool::new(false);
    let (netns, dodged) = (
        lab.pod(DB).netns.as_fd().try_clone_to_owned().unwrap(),
        &stop,
    );
    let sent = thread::scope(|scope| {
        let dodger = scope.spawn(move || {
            nix::sched::setns(netns, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            dodge(outside, dodged)
        });
        let switches = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for (binary, abi) in [(NEXT, 6), (THIS, 5), (NEXT, 6)] {
                replace_supervisors(&mut lab, binary, &traffic);
                assert_adopted(&lab, workers, abi);
                held.assert_names();
            }
        }));
        stop.store(true, Ordering::Release);
        let sent = dodger.join().unwrap();
        switches.unwrap_or_else(|e| std::panic::resume_unwind(e));
        sent
    });
    for (traffic, what) in traffic.into_iter().zip([
        "a stream of the client",
        "a stream of its neighbour",
        "new connections of the client",
        "new connections of its neighbour",
    ]) {
        traffic.finish_unharmed(what);
    }
    // Nothing passed in clear, and no count was lost.
    for recording in captures.map(|capture| capture.stop().unwrap()) {
        for words in [CLEAR, b"accept="] {
            assert!(!recording.contains(words), "in clear on the wire");
        }
    }
    for key in [CLIENT, NEIGHBOUR, WEB] {
        assert_eq!(refusals(&lab, key), 0.0, "{key}: {}", lab.log_tails());
    }
    assert_eq!(refusals(&lab, DB), f64::from(sent), "{}", lab.log_tails());
    // A worker of the next version is adopted by this one.
    let old = worker(&lab, NEIGHBOUR);
    let process = nix::unistd::Pid::from_raw(old);
    nix::sys::signal::kill(process, nix::sys::signal::Signal::SIGKILL).unwrap();
    let neighbour = lab.pod(NEIGHBOUR);
    let new = lab
        .agent(0)
        .wait_new_worker(neighbour, old, wait::PATIENCE)
        .unwrap();
    replace_supervisors(&mut lab, THIS, &[]);
    let mut workers = workers;
    workers[1] = new;
    assert_adopted(&lab, workers, 5);
    let called = lab.pod(NEIGHBOUR).netns.run(|| call(to_web));
    called.unwrap_or_else(|e| panic!("{e}: {}", lab.log_tails()));
    held.assert_names();
    drop(held);
    lab.finish().unwrap();
}
