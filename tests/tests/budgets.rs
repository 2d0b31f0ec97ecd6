//! Budgets of workers: said in a manifest, in force live, reported; and what no budget holds,
//! because the kernel charges it to nobody, has a bound of its own.

use std::fs;
use std::io::{ErrorKind, Write};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use mesh_lab::call::{self, Called, Open};
use mesh_lab::{App, Lab, Plan, Pod, PodSpec, manifest, wait};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use socket2::{Domain, Socket, Type};

const CLIENT: &str = "shop/client";
const WEB: &str = "shop/web";
const OTHER: &str = "pay/other";
const PORT: u16 = 7000;
/// Port of a worker's listener for what its own app dials.
const OUTBOUND: u16 = 15001;

fn lab() -> (Lab, App) {
    let plan = Plan::nodes(1)
        .enrolled("shop")
        .enrolled("pay")
        .pod(PodSpec::new("shop", "client"))
        .pod(PodSpec::new("shop", "web"))
        .pod(PodSpec::new("pay", "other"));
    let lab = Lab::with_mesh(plan).unwrap();
    let web = lab.pod(WEB);
    let serve = web
        .command("mesh-lab-app")
        .args(["serve", &PORT.to_string()]);
    let server = serve.spawn().unwrap();
    web.wait_listening(PORT).unwrap();
    wait::until_true("the first answer", wait::PATIENCE, || {
        Ok(call::tcp(&lab.pod(CLIENT).netns, target(web)).served())
    })
    .unwrap();
    (lab, server)
}

fn target(pod: &Pod) -> SocketAddr {
    (IpAddr::from(pod.v4()), PORT).into()
}

fn worker_budget(lab: &Lab, key: &str, spec: &str) {
    let (namespace, name) = key.split_once('/').unwrap();
    let content = manifest::own("WorkerBudget", namespace, name, spec);
    lab.write_manifest("budget", &content).unwrap();
}

/// A file of a pod's worker's cgroup, in whichever version has the controller.
fn limit(lab: &Lab, key: &str, v2: &str, v1: (&str, &str)) -> String {
    let status = lab.agent(0).pod_status(lab.pod(key)).unwrap();
    let relative = status["cgroup"].as_str().unwrap();
    let unified = mesh_lab::cgroup::mount_point().unwrap();
    let (controller, file) = v1;
    let legacy = PathBuf::from("/sys/fs/cgroup").join(controller);
    let files = [
        unified.join(relative).join(v2),
        legacy.join(relative).join(file),
    ];
    let texts = files
        .iter()
        .filter_map(|file| fs::read_to_string(file).ok());
    texts.map(|text| text.trim().to_owned()).next().unwrap()
}

fn refused(lab: &Lab, key: &str, direction: &str, reason: &str) -> f64 {
    let name = format!("nodemesh_refusals_{direction}_total");
    let labels = [format!("pod=\"{key}\""), format!("reason=\"{reason}\"")];
    let labels = labels.each_ref().map(String::as_str);
    let found = lab.agent(0).metric(lab.node(0), &name, &labels);
    found.unwrap_or(0.0)
}

#[test]
fn a_budget_holds_live_for_its_pods_only_and_is_reported() {
    let (lab, _server) = lab();
    let (client, to) = (&lab.pod(CLIENT).netns, target(lab.pod(WEB)));
    let weight = || limit(&lab, CLIENT, "cpu.weight", ("cpu", "cpu.shares"));
    let memory = || {
        let v1 = ("memory", "memory.limit_in_bytes");
        limit(&lab, CLIENT, "memory.max", v1)
    };
    let (weight_before, memory_before) = (weight(), memory());
    assert_eq!(memory_before, (1u64 << 30).to_string());
    let mut held = Open::dial(client, to).unwrap();

    worker_budget(
        &lab,
        CLIENT,
        "{target: {labels: {app: client}}, connections: 2, cpuWeight: 300, cpuMaxMillicores: 500, memoryMaxMib: 128}",
    );
    wait::until_true("the cgroup's part", wait::PATIENCE, || {
        Ok(weight() != weight_before && memory() == (128u64 << 20).to_string())
    })
    .unwrap();
    assert!(["300", "3072"].contains(&weight().as_str()), "{}", weight());
    let quota = limit(&lab, CLIENT, "cpu.max", ("cpu", "cpu.cfs_quota_us"));
    assert!(
        ["50000", "50000 100000"].contains(&quota.as_str()),
        "{quota}"
    );
    assert_eq!(
        limit(&lab, WEB, "cpu.weight", ("cpu", "cpu.shares")),
        weight_before
    );

    // The worker's part: what was open before counts, and goes on.
    let _second = Open::dial(client, to).unwrap();
    let third = call::tcp(client, to);
    assert!(matches!(third, Called::Reset), "{third}");
    assert_eq!(refused(&lab, CLIENT, "outbound", "connection_limit"), 1.0);
    held.ping().unwrap();
    let others = call::tcp(&lab.pod(OTHER).netns, to);
    assert!(others.served(), "{others}");

    // Whose CPU and memory it was, and by what the budget is in force, is shown.
    let status = lab.agent(0).pod_status(lab.pod(CLIENT)).unwrap();
    assert!(status["cpu_us"].as_u64().unwrap() > 0, "{status}");
    assert!(
        status["memory_bytes"].as_u64().unwrap() > 100 << 10,
        "{status}"
    );
    let by = status["budget"][0].as_str().unwrap();
    assert!(by.starts_with("cpu by cgroup v"), "{by}");
    assert_eq!(status["budget_unenforced"], serde_json::json!([]));
    let listed = lab.agent(0).admin(&["pod", "list"]).output().unwrap();
    let listed = String::from_utf8(listed.stdout).unwrap();
    assert!(listed.contains(by), "{listed}");
    for name in [
        "nodemesh_worker_cpu_seconds_total",
        "nodemesh_worker_memory_bytes",
    ] {
        let label = format!("pod=\"{CLIENT}\"");
        let value = lab.agent(0).metric(lab.node(0), name, &[&label]).unwrap();
        assert!(value > 0.0, "{name} {value}");
    }

    lab.remove_manifest("budget").unwrap();
    wait::until_true("the budget to be gone", wait::PATIENCE, || {
        Ok(weight() == weight_before && memory() == memory_before)
    })
    .unwrap();
    wait::until_true("a third connection", wait::PATIENCE, || {
        Ok(call::tcp(client, to).served())
    })
    .unwrap();
    lab.finish().unwrap();
}

/// Sockets of a listener's port that wait to be accepted: how many, and the most bytes in one.
fn waiting(lab: &Lab, key: &str, port: u16) -> (usize, u64) {
    let table = lab
        .pod(key)
        .netns
        .run(|| fs::read_to_string("/proc/thread-self/net/tcp").unwrap());
    let local = format!(":{port:04X}");
    let rows = table.lines().skip(1).filter_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let (address, state, queues, inode) = (fields[1], fields[3], fields[4], fields[9]);
        let established = state == "01" && address.ends_with(&local) && inode == "0";
        let (_, receive) = queues.split_once(':')?;
        established.then(|| u64::from_str_radix(receive, 16).unwrap())
    });
    rows.fold((0, 0), |(count, most), bytes| (count + 1, most.max(bytes)))
}

/// What waits in the accept queue of a worker is charged to nobody. So it is bounded by the
/// backlog times the receive buffer that a listener gives to what it has not accepted.
#[test]
fn what_waits_for_a_stopped_worker_is_bounded_by_backlog_times_receive_buffer() {
    /// More than the backlog, 4,096.
    const DIALS: usize = 4_200;
    /// So many of them send all they can.
    const SENDERS: usize = 32;
    const MOST_WAITING: usize = 4_097;
    /// The kernel's double of the 32 KiB that a listener asks for.
    const RECEIVE_BUFFER: u64 = 64 * 1024;
    let (lab, _server) = lab();
    let (client, to) = (lab.pod(CLIENT), target(lab.pod(WEB)));
    let worker = lab.agent(0).worker_pid(client).unwrap();
    kill(Pid::from_raw(worker), Signal::SIGSTOP).unwrap();
    let dial = || {
        let socket = Socket::new(Domain::IPV4, Type::STREAM.nonblocking(), None).unwrap();
        match socket.connect(&to.into()) {
            Ok(()) => {}
            Err(error) => assert_eq!(error.raw_os_error(), Some(libc::EINPROGRESS), "{error}"),
        }
        socket
    };
    let mut sockets: Vec<Socket> = client.netns.run(|| (0..DIALS).map(|_| dial()).collect());
    wait::until_true("the queue to be full", wait::PATIENCE, || {
        Ok(waiting(&lab, CLIENT, OUTBOUND).0 >= MOST_WAITING)
    })
    .unwrap();
    let block = [7; 64 * 1024];
    for socket in &mut sockets[..SENDERS] {
        loop {
            match socket.write(&block) {
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => panic!("{error}"),
            }
        }
    }
    wait::until_true("the buffers to be full", wait::PATIENCE, || {
        let before = waiting(&lab, CLIENT, OUTBOUND);
        Ok(before.1 > 0 && before == waiting(&lab, CLIENT, OUTBOUND))
    })
    .unwrap();
    let (count, most) = waiting(&lab, CLIENT, OUTBOUND);
    let bound_mib = (MOST_WAITING as u64 * RECEIVE_BUFFER) >> 20;
    println!(
        "{count} connections wait, {most} bytes in one at most: a listener holds {bound_mib} MiB at most"
    );
    assert_eq!(count, MOST_WAITING);
    assert!((1..=RECEIVE_BUFFER).contains(&most), "{most}");
    // Whoever has another worker notices nothing.
    let others = call::tcp(&lab.pod(OTHER).netns, to);
    assert!(others.served(), "{others}");
    kill(Pid::from_raw(worker), Signal::SIGCONT).unwrap();
    drop(sockets);
    wait::until_true("the queue to be worked off", wait::PATIENCE, || {
        Ok(call::tcp(&client.netns, to).served())
    })
    .unwrap();
    assert_eq!(lab.agent(0).worker_pid(client).unwrap(), worker);
    lab.finish().unwrap();
}

/// The number in the first line of `text` that begins so.
fn number(text: &str, line: &str) -> u64 {
    let rest = text.lines().find_map(|l| l.strip_prefix(line)).unwrap();
    let number = rest.split_ascii_whitespace().next().unwrap();
    number.parse().unwrap()
}

/// Memory of a process's heap, without its program and its libraries.
fn heap_kib(pid: i32) -> u64 {
    let smaps = fs::read_to_string(format!("/proc/{pid}/smaps")).unwrap();
    let (_, heap) = smaps.split_once("[heap]").unwrap();
    number(heap, "Anonymous:")
}

#[test]
fn a_supervisor_gives_back_what_it_read_at_its_start() {
    let (lab, _server) = lab();
    let status = format!("/proc/{}/status", lab.agent(0).daemon.pid().unwrap());
    let private_kib = || number(&fs::read_to_string(&status).unwrap(), "RssAnon:");
    // Of the kernel's types alone it reads as much.
    wait::until_true("a small supervisor", wait::PATIENCE, || {
        Ok(private_kib() < 8 * 1024)
    })
    .unwrap_or_else(|e| panic!("{} KiB: {e}", private_kib()));
    lab.finish().unwrap();
}

#[test]
fn a_worker_without_flows_sleeps_and_gives_back_what_its_start_took() {
    let (lab, _server) = lab();
    let pid = |key: &str| lab.agent(0).worker_pid(lab.pod(key)).unwrap();
    let never_used = pid(OTHER);
    wait::until_true("a small heap", wait::PATIENCE, || {
        Ok(heap_kib(never_used) < 250)
    })
    .unwrap_or_else(|e| panic!("{} KiB: {e}", heap_kib(never_used)));
    println!("the heap at rest: {} KiB", heap_kib(never_used));
    // The other two have had a flow.
    for pid in [CLIENT, WEB, OTHER].map(pid) {
        let status = || fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let woken = || number(&status(), "voluntary_ctxt_switches:");
        let before = woken();
        // Time is what it sleeps for: what wakes it meanwhile is counted.
        std::thread::sleep(Duration::from_secs(1));
        let times = woken() - before;
        assert!(times < 5, "it was woken {times} times in a second");
    }
    lab.finish().unwrap();
}
