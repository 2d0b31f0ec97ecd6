//! One node and its pods as network namespaces, with a capture of their own.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use mesh_agent::capture::{self, Capture, CaptureOptions, netns_cookie};
use mesh_common::{
    KernelReason, POD_HAS_LISTENER_V6, POD_HAS_V4, POD_HAS_V6, PORT_OUTBOUND, PORT_PLAINTEXT,
    PodConfig, WallConfig, mapped_v4,
};
use mesh_core::policy::kernel::KernelPolicy;
use socket2::Socket;

use crate::process::Process;

/// Address of the node, which is the pods' outside.
pub(crate) const NODE_V4: &str = "10.88.0.1";
pub(crate) const NODE_V6: &str = "fd88::1";

static LABS: AtomicU32 = AtomicU32::new(0);

/// A node with its capture.
pub(crate) struct Lab {
    pub(crate) prefix: String,
    pub(crate) options: CaptureOptions,
    pub(crate) capture: Option<Capture>,
    pub(crate) pods: Vec<Pod>,
}

/// A pod's namespace.
pub(crate) struct Pod {
    pub(crate) netns: String,
    pub(crate) slot: u32,
    pub(crate) cookie: u64,
    pub(crate) v4: IpAddr,
    pub(crate) v6: IpAddr,
    pub(crate) ifindex: u32,
    pub(crate) config: PodConfig,
    pub(crate) worker: Option<Worker>,
    pub(crate) cgroup: PathBuf,
}

/// A fake worker with the sockets of a real one.
pub(crate) struct Worker {
    pub(crate) process: Process,
    pub(crate) outbound_v4: Socket,
    pub(crate) outbound_v6: Socket,
    pub(crate) plaintext_v4: Socket,
    pub(crate) plaintext_v6: Socket,
}

impl Lab {
    /// A node with one pod that is enrolled.
    pub(crate) fn new() -> Self {
        let mut lab = Self::node();
        lab.add_pod();
        lab.enrol(0);
        lab
    }

    /// A node without pods.
    pub(crate) fn node() -> Self {
        assert!(
            nix::unistd::Uid::effective().is_root(),
            "these tests load eBPF and make network namespaces: run them as root"
        );
        let number = LABS.fetch_add(1, Ordering::Relaxed);
        let prefix = format!("nmcap{}x{number}", std::process::id());
        let cgroup_root = cgroup2_mount();
        let mesh_cgroup = cgroup_root.join(format!("nodemesh-{prefix}"));
        fs::create_dir(&mesh_cgroup).unwrap();
        let options = CaptureOptions {
            instance: prefix.clone(),
            bpffs: "/sys/fs/bpf".into(),
            cgroup_root,
            mesh_cgroup,
        };
        let mut lab = Self {
            prefix,
            options,
            capture: None,
            pods: Vec::new(),
        };
        let node = lab.node_netns();
        ip(&format!("netns add {node}"));
        ip(&format!("-n {node} link set lo up"));
        lab.capture = Some(Capture::open(&lab.options).unwrap_or_else(|e| panic!("{e}")));
        lab
    }

    pub(crate) fn node_netns(&self) -> String {
        format!("{}n", self.prefix)
    }

    /// A pod that is not enrolled.
    pub(crate) fn add_pod(&mut self) {
        let number = self.pods.len();
        let slot = u32::try_from(number).unwrap();
        let (node, netns) = (self.node_netns(), format!("{}p{number}", self.prefix));
        let (v4, v6) = (format!("10.88.{number}.2"), format!("fd88:0:0:{number}::2"));
        let (gw4, gw6) = if number == 0 {
            (NODE_V4.to_owned(), NODE_V6.to_owned())
        } else {
            (format!("10.88.{number}.1"), format!("fd88:0:0:{number}::1"))
        };
        ip(&format!("netns add {netns}"));
        ip(&format!("-n {netns} link set lo up"));
        ip(&format!(
            "-n {node} link add veth{number} type veth peer name eth0 netns {netns}"
        ));
        ip(&format!("-n {node} addr add {gw4}/24 dev veth{number}"));
        ip(&format!(
            "-n {node} addr add {gw6}/64 dev veth{number} nodad"
        ));
        ip(&format!("-n {node} link set veth{number} up"));
        ip(&format!("-n {netns} addr add {v4}/24 dev eth0"));
        ip(&format!("-n {netns} addr add {v6}/64 dev eth0 nodad"));
        ip(&format!("-n {netns} link set eth0 up"));
        ip(&format!("-n {netns} route add default via {gw4}"));
        ip(&format!("-n {netns} -6 route add default via {gw6}"));
        let ifindex = in_netns(&node, || {
            nix::net::if_::if_nametoindex(format!("veth{number}").as_str()).unwrap()
        });
        let cookie = netns_cookie(fs::File::open(netns_path(&netns)).unwrap().as_fd()).unwrap();
        let cgroup = self.options.mesh_cgroup.join(format!("pod{number}"));
        fs::create_dir(&cgroup).unwrap();
        let (v4, v6): (IpAddr, IpAddr) = (v4.parse().unwrap(), v6.parse().unwrap());
        let config = PodConfig {
            worker_cgroup_id: std::os::unix::fs::MetadataExt::ino(&fs::metadata(&cgroup).unwrap()),
            slot,
            flags: POD_HAS_V4 | POD_HAS_V6 | POD_HAS_LISTENER_V6,
            address_v4: bytes(v4),
            address_v6: bytes(v6),
        };
        let worker = Worker::start(&netns, &cgroup);
        self.pods.push(Pod {
            netns,
            slot,
            cookie,
            v4,
            v6,
            ifindex,
            config,
            worker: Some(worker),
            cgroup,
        });
    }

    /// Steers what comes to the first pod to its worker, and does nothing else: no capture, no
    /// wall.
    pub(crate) fn steered() -> Self {
        let mut lab = Self::node();
        lab.add_pod();
        let netns = fs::File::open(netns_path(&lab.pod().netns)).unwrap();
        let (capture, worker) = (lab.capture.as_mut().unwrap(), lab.pods[0].worker.as_ref());
        let worker = worker.unwrap();
        let (v4, v6) = (worker.plaintext_v4.as_fd(), worker.plaintext_v6.as_fd());
        capture.prepare_pod(0).unwrap();
        capture.set_listeners(0, v4, Some(v6)).unwrap();
        capture.steer(0, netns.as_fd()).unwrap();
        lab
    }

    /// Enrols a pod, in the supervisor's order.
    pub(crate) fn enrol(&mut self, number: usize) {
        let node = self.node_netns();
        let pod = &self.pods[number];
        let capture = self.capture.as_mut().unwrap();
        capture.prepare_pod(pod.slot).unwrap();
        let wall = WallConfig {
            worker_cgroup_id: pod.config.worker_cgroup_id,
            slot: pod.slot,
            flags: 0,
            address_v4: pod.config.address_v4,
            address_v6: pod.config.address_v6,
        };
        in_netns(&node, || capture.attach_wall(pod.ifindex, wall)).unwrap();
        let worker = pod.worker.as_ref().unwrap();
        capture
            .set_listeners(
                pod.slot,
                worker.plaintext_v4.as_fd(),
                Some(worker.plaintext_v6.as_fd()),
            )
            .unwrap();
        let netns = fs::File::open(netns_path(&pod.netns)).unwrap();
        capture.steer(pod.slot, netns.as_fd()).unwrap();
        capture.enrol(pod.cookie, pod.config).unwrap();
    }

    pub(crate) fn capture(&mut self) -> &mut Capture {
        self.capture.as_mut().unwrap()
    }

    pub(crate) fn pod(&self) -> &Pod {
        &self.pods[0]
    }

    pub(crate) fn worker(&self) -> &Worker {
        self.pods[0].worker.as_ref().unwrap()
    }

    /// Puts a pod's policy into force.
    pub(crate) fn set_policy(&mut self, number: usize, policy: &KernelPolicy, audit: bool) {
        let slot = self.pods[number].slot;
        self.capture().set_policy(slot, policy, audit).unwrap();
    }

    /// How often something was refused.
    pub(crate) fn refused(&self, number: usize, reason: KernelReason) -> u64 {
        let capture = self.capture.as_ref().unwrap();
        count(capture.refusals(self.pods[number].slot), reason)
    }

    /// How often something was let through in audit.
    pub(crate) fn audited(&self, number: usize, reason: KernelReason) -> u64 {
        let capture = self.capture.as_ref().unwrap();
        count(capture.audited(self.pods[number].slot), reason)
    }

    /// A cgroup outside the mesh for an app's process.
    pub(crate) fn app_cgroup(&self) -> PathBuf {
        let cgroup = self.options.cgroup_root.join(format!("{}app", self.prefix));
        if !cgroup.exists() {
            fs::create_dir(&cgroup).unwrap();
        }
        cgroup
    }

    /// A process of the first pod's app.
    pub(crate) fn app(&self) -> Process {
        Process::spawn(&netns_path(&self.pod().netns), &self.app_cgroup())
    }

    /// Runs in the first pod's namespace, in the test's own cgroup.
    pub(crate) fn in_pod<T: Send>(&self, run: impl FnOnce() -> T + Send) -> T {
        in_netns(&self.pod().netns, run)
    }

    /// Runs in the node's namespace.
    pub(crate) fn in_node<T: Send>(&self, run: impl FnOnce() -> T + Send) -> T {
        in_netns(&self.node_netns(), run)
    }
}

fn count(counts: capture::Result<Vec<(KernelReason, u64)>>, reason: KernelReason) -> u64 {
    let counts = counts.unwrap();
    counts
        .into_iter()
        .find(|&(r, _)| r == reason)
        .map_or(0, |(_, n)| n)
}

impl Worker {
    pub(crate) fn start(netns: &str, cgroup: &Path) -> Self {
        let process = Process::spawn(&netns_path(netns), cgroup);
        let at = |ip: &str, port| SocketAddr::new(ip.parse().unwrap(), port);
        Self {
            outbound_v4: process.listen(at("127.0.0.1", PORT_OUTBOUND)).unwrap(),
            outbound_v6: process.listen(at("::1", PORT_OUTBOUND)).unwrap(),
            plaintext_v4: process.listen(at("0.0.0.0", PORT_PLAINTEXT)).unwrap(),
            plaintext_v6: process.listen(at("::", PORT_PLAINTEXT)).unwrap(),
            process,
        }
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.capture = None;
        let _ = Capture::unload(&self.options);
        for pod in &mut self.pods {
            pod.worker = None;
            let _ = Command::new("ip")
                .args(["netns", "del", &pod.netns])
                .status();
        }
        let _ = Command::new("ip")
            .args(["netns", "del", &self.node_netns()])
            .status();
        for pod in &self.pods {
            remove_cgroup(&pod.cgroup);
        }
        remove_cgroup(&self.options.mesh_cgroup);
        remove_cgroup(&self.options.cgroup_root.join(format!("{}app", self.prefix)));
    }
}

/// A cgroup is busy until its last process is reaped.
fn remove_cgroup(cgroup: &Path) {
    if cgroup.exists() {
        eventually("the cgroup is empty", || {
            fs::remove_dir(cgroup).is_ok().then_some(())
        });
    }
}

/// Waits for a condition; panics with `what` when it doesn't come.
pub(crate) fn eventually<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let patience = mesh_lab::wait::scaled(mesh_lab::wait::PATIENCE);
    let deadline = Instant::now() + patience;
    loop {
        if let Some(value) = condition() {
            return value;
        }
        if Instant::now() > deadline {
            if thread::panicking() {
                eprintln!("not within {patience:?}: {what}");
                std::process::abort();
            }
            panic!("not within {patience:?}: {what}");
        }
        thread::sleep(Duration::from_millis(5));
    }
}

/// Runs on a thread that is in the namespace.
pub(crate) fn in_netns<T: Send>(netns: &str, run: impl FnOnce() -> T + Send) -> T {
    let file = fs::File::open(netns_path(netns)).unwrap();
    let result = thread::scope(|scope| {
        scope
            .spawn(|| {
                nix::sched::setns(&file, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
                run()
            })
            .join()
    });
    result.unwrap_or_else(|e| std::panic::resume_unwind(e))
}

pub(crate) fn netns_path(netns: &str) -> PathBuf {
    Path::new("/var/run/netns").join(netns)
}

pub(crate) fn ip(arguments: &str) {
    let output = Command::new("ip")
        .args(arguments.split(' '))
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "ip {arguments}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

fn bytes(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(v4) => mapped_v4(v4.octets()),
        IpAddr::V6(v6) => v6.octets(),
    }
}

fn cgroup2_mount() -> PathBuf {
    let mount = cgroup2_mount_line();
    mount.split(' ').nth(1).unwrap().into()
}

/// What `/proc/mounts` says of the cgroup2 hierarchy.
pub(crate) fn cgroup2_mount_line() -> String {
    let mounts = fs::read_to_string("/proc/mounts").unwrap();
    let mut lines = mounts.lines();
    lines
        .find(|line| line.split(' ').nth(2) == Some("cgroup2"))
        .expect("no cgroup2 is mounted")
        .to_owned()
}
