//! Ways past the worker that a privileged app has: none gets a byte in clear to another
//! host, and each is refused for its own reason. The same ways from a pod that is not
//! enrolled arrive, where the kernel takes them at all: they are no straw men.

use std::net::SocketAddrV4;
use std::process::Command;

use mesh_lab::{Lab, Plan, Pod, PodSpec, Ran, cgroup, wait};

const CLIENT: &str = "shop/client";
const PORT: u16 = 9000;

const KERNEL: &str = "nodemesh_kernel_refusals_total";
const WORKER: &str = "nodemesh_refusals_outbound_total";

/// Where the attempt is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// The pod's own cgroup.
    Pod,
    /// The root of all cgroups.
    Root,
    /// The cgroup of another pod's worker.
    OtherWorker,
}

/// A way, the metric and the reason it is refused with, and whether it arrives without a mesh.
struct Way {
    name: &'static str,
    place: Place,
    refused: (&'static str, &'static str),
    arrives_unenrolled: bool,
}

const fn way(name: &'static str, refused: (&'static str, &'static str), arrives: bool) -> Way {
    Way {
        name,
        place: Place::Pod,
        refused,
        arrives_unenrolled: arrives,
    }
}

impl Way {
    const fn at(self, place: Place) -> Self {
        Self { place, ..self }
    }
}

const UNKNOWN: (&str, &str) = (WORKER, "destination_unknown");
const NOT_WORKER: (&str, &str) = (KERNEL, "wall_not_worker");
const PROTOCOL: (&str, &str) = (KERNEL, "wall_protocol");
const UDP: (&str, &str) = (KERNEL, "udp_not_allowed");
const BARE: (&str, &str) = (KERNEL, "wall_bare_segment");

const WAYS: &[Way] = &[
    way("plain", UNKNOWN, true),
    way("mark", UNKNOWN, true),
    way("private-option", UNKNOWN, true),
    way("bind-device", (KERNEL, "connect_bound_device"), true),
    // Without a mesh the kernel has no route from there.
    way("bind-loopback", UNKNOWN, false),
    way("bind-loopback-2", UNKNOWN, false),
    way("dial-worker", (KERNEL, "connect_reserved_port"), false),
    way(
        "dial-worker-from-loopback",
        (KERNEL, "connect_reserved_port"),
        false,
    ),
    way("bind-reserved", (KERNEL, "bind_reserved_port"), true),
    way("plain", UNKNOWN, true).at(Place::Root),
    way("plain", UNKNOWN, true).at(Place::OtherWorker),
    way("udp", UDP, true),
    way("udp", UDP, true).at(Place::Root),
    way("udp", UDP, true).at(Place::OtherWorker),
    way("raw-syn", NOT_WORKER, true),
    way("raw-data", NOT_WORKER, true),
    // The kernel's own answers come from there: what they may not carry is refused.
    way("raw-data", BARE, true).at(Place::Root),
    way("raw-data", NOT_WORKER, true).at(Place::OtherWorker),
    way("packet", NOT_WORKER, true),
    way("packet-bypass", NOT_WORKER, true),
    way("packet-lying", NOT_WORKER, true),
    way("packet", NOT_WORKER, true).at(Place::OtherWorker),
    // The node has no such VLAN.
    way("packet-vlan", PROTOCOL, false),
    way("packet-vlan-bypass", PROTOCOL, false),
    way("xdp", NOT_WORKER, true),
];

fn mac_of_nodes_end(lab: &Lab, pod: &Pod) -> String {
    let netns = lab.node(pod.node()).netns.name();
    let words = ["-n", netns, "-j", "link", "show", "dev", &pod.host_link];
    let shown = Command::new("ip").args(words).output().unwrap();
    let links: serde_json::Value = serde_json::from_slice(&shown.stdout).unwrap();
    links[0]["address"].as_str().unwrap().to_owned()
}

fn cgroup_folder(lab: &Lab, place: Place) -> String {
    let root = cgroup::mount_point().unwrap();
    let folder = match place {
        Place::Pod => return String::new(),
        Place::Root => root,
        Place::OtherWorker => root
            .join(format!("nodemesh-{}", lab.agent(0).instance))
            .join("shop_neighbour"),
    };
    folder.display().to_string()
}

fn attempt(lab: &Lab, pod: &Pod, way: &Way, nonce: &str) -> Ran {
    let to = SocketAddrV4::new(lab.outside().v4(), PORT).to_string();
    let (own, mac) = (pod.v4().to_string(), mac_of_nodes_end(lab, pod));
    let cgroup = cgroup_folder(lab, way.place);
    let app = pod.command("mesh-lab-app").root();
    let app = app.args(["dodge", &cgroup, way.name, &own, &to, &mac, nonce]);
    app.output().unwrap()
}

fn nonce() -> String {
    let random = std::fs::read_to_string("/proc/sys/kernel/random/uuid").unwrap();
    random.trim().to_owned()
}

#[test]
fn no_way_past_the_worker_carries_a_byte_in_clear() {
    let plan = Plan::two_nodes().pod(PodSpec::new("shop", "neighbour"));
    let lab = Lab::with_mesh(plan).unwrap();
    let listener = lab
        .outside()
        .netns
        .run(|| std::net::TcpListener::bind((lab.outside().v4(), PORT)).unwrap());
    // A client that was let through is not kept waiting.
    std::thread::spawn(move || while listener.accept().is_ok() {});
    let (client, caller) = (lab.pod(CLIENT), lab.pod("legacy/caller"));
    let capture = lab.capture(lab.outside()).unwrap();
    let mut tried = Vec::new();
    let mut wrong = Vec::new();
    for way in WAYS {
        let title = format!("{} from {:?}", way.name, way.place);
        let (enrolled, free) = (nonce(), nonce());
        let (metric, reason) = way.refused;
        let label = format!("reason=\"{reason}\"");
        let labels = [format!("pod=\"{CLIENT}\""), label];
        let labels = labels.each_ref().map(String::as_str);
        let count = || lab.agent(0).metric(lab.node(0), metric, &labels);
        let before = count().unwrap();
        let ran = attempt(&lab, client, way, &enrolled);
        let counted = wait::until_true(&title, wait::PATIENCE / 5, || Ok(count()? > before));
        if counted.is_err() {
            let metrics = lab.agent(0).metrics(lab.node(0)).unwrap();
            let refused = metrics
                .lines()
                .filter(|l| l.contains("refusals") && l.contains(CLIENT));
            let refused: Vec<&str> = refused.collect();
            wrong.push(format!(
                "{title}: {reason} was not counted: {ran:?}, {refused:#?}"
            ));
        }
        let unenrolled = attempt(&lab, caller, way, &free);
        println!(
            "{title}: {reason}; enrolled: {}; not enrolled: {}",
            ran.stderr.trim(),
            unenrolled.stderr.trim()
        );
        tried.push((title, enrolled, free, way.arrives_unenrolled));
    }
    let recording = capture.stop().unwrap();
    for (title, enrolled, free, arrives) in tried {
        if recording.contains(enrolled.as_bytes()) {
            wrong.push(format!("{title}: IN CLEAR at the outside host"));
        }
        if recording.contains(free.as_bytes()) != arrives {
            wrong.push(format!(
                "{title}: without a mesh it should arrive: {arrives}"
            ));
        }
    }
    let from_client: Vec<String> = recording
        .streams()
        .directions()
        .filter(|d| client.addresses().contains(&d.from.ip()))
        .map(ToString::to_string)
        .collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(from_client.is_empty(), "TCP of the pod: {from_client:?}");
}

/// NAT in the pod's own namespace, which its administrator may set up: what the worker sends
/// to another worker doesn't go elsewhere.
#[test]
fn what_the_pod_redirects_of_its_worker_goes_nowhere() {
    let lab = Lab::two_nodes().unwrap();
    let (client, web) = (lab.pod(CLIENT), lab.pod("shop/web"));
    let to = SocketAddrV4::new(lab.outside().v4(), PORT);
    let rules = format!(
        "table ip dodge {{ chain out {{ type nat hook output priority -100; \
         ip daddr {} tcp dport 15008 dnat to {to}\n }}\n }}\n",
        web.v4()
    );
    let rules = client.write("rules.nft", rules).unwrap();
    let nft = client.command("nft").root().arg("-f").arg(rules);
    nft.output().unwrap().ok().unwrap();
    let listener = lab
        .outside()
        .netns
        .run(|| std::net::TcpListener::bind(to).unwrap());
    listener.set_nonblocking(true).unwrap();
    let capture = lab.capture(lab.outside()).unwrap();
    let labels = ["pod=\"shop/client\"", "reason=\"wall_tuple_mismatch\""];
    let dial = client.command("mesh-lab-app");
    let _dialling = dial
        .args(["dial", &format!("{}:{PORT}", web.v4())])
        .spawn()
        .unwrap();
    wait::until_true("the wall to count it", wait::PATIENCE, || {
        Ok(lab.agent(0).metric(lab.node(0), KERNEL, &labels)? > 0.0)
    })
    .unwrap_or_else(|e| panic!("{e:#}\n{}", lab.log_tails()));
    assert!(listener.accept().is_err(), "the worker was led elsewhere");
    let recording = capture.stop().unwrap();
    let from_client = recording
        .streams()
        .directions()
        .filter(|d| client.addresses().contains(&d.from.ip()))
        .count();
    assert_eq!(from_client, 0);
}
