//! What somebody gets who has taken over a process of the running mesh: a worker, by its system
//! calls (`worker`) and by its channel to the supervisor (`channel`), or the supervisor itself
//! (`supervisor`, `capabilities`). docs/SECURITY.md says what each of these shows; `document` holds it to that.

mod capabilities;
mod channel;
mod document;
mod forged;
mod packets;
mod supervisor;
mod worker;

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;

use mesh_lab::inject::Surroundings;
use mesh_lab::{App, Lab, Plan, Pod, PodSpec};

pub(crate) const REFUSED: i64 = -(libc::EPERM as i64);
pub(crate) const CLIENT: &str = "shop/client";
/// On the client's node.
pub(crate) const NEIGHBOUR: &str = "shop/neighbour";
pub(crate) const WEB: &str = "shop/web";

/// A lab whose web server is up, and has been called.
pub(crate) fn lab() -> (Lab, App) {
    let plan = Plan::two_nodes().pod(PodSpec::new("shop", "neighbour"));
    let lab = Lab::with_mesh(plan).unwrap();
    let web = lab.pod(WEB);
    let server = web.command("mesh-lab-app").args(["serve", "7000"]);
    let server = server.spawn().unwrap();
    web.wait_listening(7000).unwrap();
    assert_carried(lab.pod(CLIENT), web);
    (lab, server)
}

/// A connection from one pod to the other, through both workers.
pub(crate) fn assert_carried(client: &Pod, web: &Pod) {
    let to = SocketAddr::from((web.v4(), 7000)).to_string();
    let input = client.write("input", "payload").unwrap();
    let dial = client.command("mesh-lab-app").args(["dial", &to]);
    let said = dial.stdin(fs::File::open(input).unwrap()).output().unwrap();
    let said = said.ok().unwrap();
    assert!(said.ends_with("\npayload"), "{said}");
}

pub(crate) fn worker(lab: &Lab, key: &str) -> i32 {
    let pod = lab.pod(key);
    lab.agent(pod.node()).worker_pid(pod).unwrap()
}

/// The supervisor of the node that a pod is on.
pub(crate) fn supervisor(lab: &Lab, key: &str) -> i32 {
    let agent = lab.agent(lab.pod(key).node());
    i32::try_from(agent.daemon.pid().unwrap()).unwrap()
}

/// What there is to attack from the client's node.
pub(crate) struct Scene {
    victim: i32,
    procs: PathBuf,
    socket: PathBuf,
}

impl Scene {
    pub(crate) fn of(lab: &Lab) -> Self {
        let node = lab.node(lab.pod(CLIENT).node());
        let socket = node.folder.join("run/agent.sock");
        assert!(socket.exists(), "no admin socket at {}", socket.display());
        Self {
            victim: worker(lab, WEB),
            procs: root_cgroup_procs(),
            socket,
        }
    }

    pub(crate) fn surroundings(&self) -> Surroundings<'_> {
        Surroundings {
            victim: self.victim,
            victim_address: top_of_stack(self.victim),
            root_cgroup_procs: &self.procs,
            unix_socket: &self.socket,
        }
    }
}

fn top_of_stack(pid: i32) -> u64 {
    let mappings = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let stack = mappings.lines().find(|l| l.ends_with("[stack]")).unwrap();
    let end = stack.split([' ', '-']).nth(1).unwrap();
    u64::from_str_radix(end, 16).unwrap() - 64
}

fn root_cgroup_procs() -> PathBuf {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let mount = mounts.lines().find(|l| l.contains(" - cgroup2 ")).unwrap();
    PathBuf::from(mount.split(' ').nth(4).unwrap()).join("cgroup.procs")
}
