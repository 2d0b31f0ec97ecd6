//! The lab: the fabric, the hosts on it, the pods on the nodes, and the mesh.

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::{process, thread};

use anyhow::{Context, Result, bail, ensure};
use nix::mount::MsFlags;
use nix::unistd::geteuid;

use crate::cgroup::{self, Cgroup};
use crate::mesh::{self, Agent, Control, Mesh};
use crate::netns::Netns;
use crate::node::{CONTROL_HOST, FIRST_NODE, Host, OUTSIDE_HOST};
use crate::plan::{Plan, PodSpec};
use crate::pod::{Ground, Pod};
use crate::wire::Capture;
use crate::{interrupt, manifest, programs, removal};

/// Workers' uids start here; each agent of each lab has 1,024 of its own.
const FIRST_WORKER_UID: u32 = 3_900_000_000;

/// A laboratory. Dropping it removes all of it.
#[derive(Debug)]
pub struct Lab {
    /// The mesh, once it is started.
    pub mesh: Option<Mesh>,
    pods: BTreeMap<String, Pod>,
    nodes: Vec<Host>,
    control_host: Host,
    outside: Host,
    fabric: Netns,
    plan: Plan,
    scratch: PathBuf,
    cgroup: Cgroup,
    prefix: String,
    _cleanup: Cleanup,
}

/// First made, last dropped: removes whatever carries the prefix, however far the lab got.
#[derive(Debug)]
struct Cleanup {
    prefix: String,
}

impl Drop for Cleanup {
    fn drop(&mut self) {
        removal::remove(&self.prefix);
        interrupt::forget(&self.prefix);
    }
}

impl Lab {
    /// [`Plan::two_nodes`] with the mesh running and every pod added.
    ///
    /// # Errors
    /// As [`Self::build`] and [`Self::start_mesh`].
    pub fn two_nodes() -> Result<Self> {
        Self::with_mesh(Plan::two_nodes())
    }

    /// A lab with the mesh running and every pod added.
    ///
    /// # Errors
    /// As [`Self::build`] and [`Self::start_mesh`].
    pub fn with_mesh(plan: Plan) -> Result<Self> {
        let mut lab = Self::build(plan)?;
        lab.start_mesh()?;
        Ok(lab)
    }

    /// Makes the fabric, the hosts and the pods of a plan, with no mesh.
    ///
    /// # Errors
    /// If this process may not make namespaces and cgroups, or iproute2 is missing.
    pub fn build(plan: Plan) -> Result<Self> {
        ensure!(
            geteuid().is_root(),
            "a lab makes network namespaces, cgroups and loads eBPF: run it as root"
        );
        static LABS: AtomicU32 = AtomicU32::new(0);
        static STALE: std::sync::Once = std::sync::Once::new();
        STALE.call_once(removal::remove_stale);
        let prefix = format!(
            "nm{}x{}",
            process::id(),
            LABS.fetch_add(1, Ordering::Relaxed)
        );
        interrupt::watch(&prefix);
        let cleanup = Cleanup {
            prefix: prefix.clone(),
        };
        mount_bpffs()?;
        let scratch = removal::scratch(&prefix);
        fs::create_dir_all(&scratch)?;
        fs::set_permissions(&scratch, Permissions::from_mode(0o711))?;
        let cgroup = Cgroup::create(cgroup::mount_point()?.join(removal::cgroup_name(&prefix)))?;

        let node_names: Vec<String> = (b'a'..)
            .take(plan.nodes)
            .map(|letter| format!("node-{}", char::from(letter)))
            .collect();
        let mut names = vec!["fabric".to_owned(), "control".into(), "outside".into()];
        names.extend(node_names.iter().cloned());
        names.extend(plan.pods.iter().map(netns_name));
        let names: Vec<String> = names.iter().map(|n| format!("{prefix}-{n}")).collect();
        let mut made = Netns::create_all(&names)?.into_iter();
        let mut next = || made.next().context("a namespace for each name");

        let fabric = next()?;
        let control_host = Host::new("control", CONTROL_HOST, next()?, &scratch)?;
        let outside = Host::new("outside", OUTSIDE_HOST, next()?, &scratch)?;
        let mut nodes = Vec::new();
        for (name, number) in node_names.iter().zip(FIRST_NODE..) {
            nodes.push(Host::new(name, number, next()?, &scratch)?);
        }
        let pods: Result<Vec<Netns>> = plan.pods.iter().map(|_| next()).collect();
        let pods = pods?;
        let mut lab = Self {
            mesh: None,
            pods: BTreeMap::new(),
            nodes,
            control_host,
            outside,
            fabric,
            plan: Plan {
                pods: Vec::new(),
                ..plan.clone()
            },
            scratch,
            cgroup,
            prefix,
            _cleanup: cleanup,
        };
        lab.wire_up().context("wiring up the fabric")?;
        for (spec, netns) in plan.pods.into_iter().zip(pods) {
            lab.place_pod(spec, netns)?;
        }
        Ok(lab)
    }

    fn wire_up(&self) -> Result<()> {
        self.fabric
            .sysctl(&[("ipv6/conf/default/disable_ipv6", "1")])?;
        self.fabric
            .ip("link add br0 type bridge forward_delay 0 mcast_snooping 0\nlink set br0 up\n")?;
        for host in self.nodes.iter().chain([&self.control_host, &self.outside]) {
            host.netns.sysctl(&[
                ("ipv6/conf/all/accept_dad", "0"),
                ("ipv6/conf/default/accept_dad", "0"),
                ("ipv6/conf/all/forwarding", "1"),
                ("ipv4/ip_forward", "1"),
            ])?;
            host.plug_in(&self.fabric)?;
        }
        for host in self.nodes.iter().chain([&self.control_host, &self.outside]) {
            for node in self.nodes.iter().filter(|node| node.name() != host.name()) {
                host.route_pods_of(node)?;
            }
        }
        Ok(())
    }

    fn place_pod(&mut self, spec: PodSpec, netns: Netns) -> Result<()> {
        let key = spec.key();
        let node = self
            .nodes
            .get(spec.node)
            .with_context(|| format!("pod {key}: there is no node {}", spec.node))?;
        let on_node = self.pods.values().filter(|p| p.spec.node == spec.node);
        let index = u8::try_from(on_node.count() + 2).context("too many pods on a node")?;
        let serial = u8::try_from(self.pods.len()).context("too many pods")?;
        let ground = Ground {
            node,
            scratch: &self.scratch,
            cgroup: self.cgroup.path(),
        };
        let pod = Pod::create(spec, netns, serial, index, &ground)?;
        self.pods.insert(key, pod);
        Ok(())
    }

    /// One more pod; where the mesh runs, its manifest is written and the agent told.
    ///
    /// # Errors
    /// If it can't be made or enrolled.
    pub fn add_pod(&mut self, spec: PodSpec) -> Result<&Pod> {
        let key = spec.key();
        let name = format!("{}-{}", self.prefix, netns_name(&spec));
        let netns = Netns::create_all(&[name])?.pop().context("a namespace")?;
        self.place_pod(spec, netns)?;
        if self.mesh.is_some() {
            self.write_pod(self.pod(&key))?;
            self.tell_agent(self.pod(&key))?;
        }
        Ok(self.pod(&key))
    }

    /// Makes a PKI, starts control and an agent on each node, and adds every pod.
    ///
    /// # Errors
    /// If a binary isn't built, or any of them fails; with the end of its log.
    pub fn start_mesh(&mut self) -> Result<()> {
        self.write_manifests()?;
        let pki = self.scratch.join("pki");
        let mut init = process::Command::new(programs::mesh_binary("meshctl")?);
        init.args(["pki", "init", "--dir"]).arg(&pki);
        init.args(["--trust-domain", mesh::TRUST_DOMAIN]);
        mesh::run(&mut init).context("making a demo PKI")?;
        let daemons = |name: &str| Cgroup::create(self.cgroup.path().join(name));
        let group = daemons("control")?;
        let mut control = Control::new(&self.control_host, &pki, &self.manifests(), group)?;
        control.start(&self.control_host)?;
        let mut agents = Vec::new();
        let labs = process::id() % 1_000;
        for (host, index) in self.nodes.iter().zip(0u32..) {
            let place = mesh::Place {
                host,
                instance: format!("{}{}", self.prefix, host.letter()),
                uid_base: FIRST_WORKER_UID + (labs * 8 + index) * 1_024,
            };
            let group = daemons(&format!("agent-{}", host.name()))?;
            agents.push(Agent::new(place, &control, &pki.join("root.pem"), group)?);
        }
        let started: Result<Vec<()>> = thread::scope(|scope| {
            let starts: Vec<_> = agents
                .iter_mut()
                .zip(&self.nodes)
                .map(|(agent, host)| scope.spawn(|| agent.start(host)))
                .collect();
            starts.into_iter().map(join).collect()
        });
        self.mesh = Some(Mesh {
            control,
            agents,
            pki,
        });
        started?;
        let added: Result<Vec<()>> = thread::scope(|scope| {
            let adds: Vec<_> = self
                .pods
                .values()
                .map(|pod| scope.spawn(|| self.tell_agent(pod)))
                .collect();
            adds.into_iter().map(join).collect()
        });
        added.map(drop)
    }

    fn tell_agent(&self, pod: &Pod) -> Result<()> {
        let agent = self.agent(pod.node());
        agent
            .add_pod(pod)
            .with_context(|| format!("adding pod {}", pod.key()))?;
        Ok(())
    }

    fn manifests(&self) -> PathBuf {
        self.scratch.join("manifests")
    }

    fn write_manifests(&self) -> Result<()> {
        let folder = self.manifests();
        fs::create_dir_all(&folder)?;
        for (name, enrolled) in &self.plan.namespaces {
            let content = manifest::namespace(name, *enrolled);
            manifest::write(&folder, &format!("namespace-{name}"), &content)?;
        }
        for (service, index) in self.plan.services.iter().zip(1u16..) {
            let addresses = service_addresses(index);
            let name = format!("service-{}-{}", service.namespace, service.name);
            manifest::write(&folder, &name, &manifest::service(service, &addresses))?;
        }
        self.pods.values().try_for_each(|pod| self.write_pod(pod))
    }

    fn write_pod(&self, pod: &Pod) -> Result<()> {
        let content = manifest::pod(pod, self.nodes[pod.node()].name());
        let name = format!("pod-{}-{}", pod.namespace(), pod.name());
        manifest::write(&self.manifests(), &name, &content)
    }

    /// Enrols a namespace or takes it out; control sees the new manifest by itself.
    ///
    /// # Errors
    /// If the manifest can't be written.
    pub fn set_enrolled(&self, namespace: &str, enrolled: bool) -> Result<()> {
        let content = manifest::namespace(namespace, enrolled);
        manifest::write(
            &self.manifests(),
            &format!("namespace-{namespace}"),
            &content,
        )
    }

    /// A pod by `<namespace>/<name>`.
    ///
    /// # Panics
    /// If the plan has no such pod.
    #[must_use]
    pub fn pod(&self, key: &str) -> &Pod {
        self.pods
            .get(key)
            .unwrap_or_else(|| panic!("this lab has no pod {key}"))
    }

    /// All pods.
    pub fn pods(&self) -> impl Iterator<Item = &Pod> {
        self.pods.values()
    }

    /// The virtual addresses of a service by `<namespace>/<name>`, IPv4 first.
    ///
    /// # Panics
    /// If the plan has no such service.
    #[must_use]
    pub fn service(&self, key: &str) -> [IpAddr; 2] {
        let services = self.plan.services.iter().zip(1u16..);
        services
            .filter(|(service, _)| format!("{}/{}", service.namespace, service.name) == key)
            .map(|(_, index)| service_addresses(index))
            .next()
            .unwrap_or_else(|| panic!("this lab has no service {key}"))
    }

    /// A node by index.
    #[must_use]
    pub fn node(&self, index: usize) -> &Host {
        &self.nodes[index]
    }

    /// A node's agent.
    ///
    /// # Panics
    /// If the mesh isn't running.
    #[must_use]
    pub fn agent(&self, node: usize) -> &Agent {
        &self.mesh.as_ref().expect("the mesh is running").agents[node]
    }

    /// A node's agent, to kill or start it, with the node.
    ///
    /// # Panics
    /// If the mesh isn't running.
    pub fn agent_mut(&mut self, node: usize) -> (&mut Agent, &Host) {
        let mesh = self.mesh.as_mut().expect("the mesh is running");
        (&mut mesh.agents[node], &self.nodes[node])
    }

    /// The control component, to kill or start it, with its host.
    ///
    /// # Panics
    /// If the mesh isn't running.
    pub fn control_mut(&mut self) -> (&mut Control, &Host) {
        let mesh = self.mesh.as_mut().expect("the mesh is running");
        (&mut mesh.control, &self.control_host)
    }

    /// A host on the fabric that is no node of the mesh.
    #[must_use]
    pub fn outside(&self) -> &Host {
        &self.outside
    }

    /// The host that control runs on.
    #[must_use]
    pub fn control_host(&self) -> &Host {
        &self.control_host
    }

    /// Captures all that passes a host's port on the fabric, from now on.
    ///
    /// # Errors
    /// If a packet socket can't be had.
    pub fn capture(&self, host: &Host) -> Result<Capture> {
        Capture::start(&self.fabric, &host.port)
    }

    /// A folder that goes with the lab.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.scratch
    }

    /// What the names of all of the lab's things start with.
    #[must_use]
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// The ends of the logs of control and of every agent.
    #[must_use]
    pub fn log_tails(&self) -> String {
        let Some(mesh) = &self.mesh else {
            return "(the mesh was not started)".to_owned();
        };
        let agents = mesh.agents.iter().map(|agent| agent.daemon.tail());
        let tails: Vec<String> = agents.chain([mesh.control.daemon.tail()]).collect();
        tails.join("\n")
    }

    /// Ends the mesh in the orderly way (agents stopped, then unloaded), removes the lab,
    /// and checks that nothing of either is left.
    ///
    /// # Errors
    /// If unloading fails, or anything is left: first of the agents, then of the lab.
    pub fn finish(mut self) -> Result<()> {
        let mut left = Vec::new();
        if let Some(mut mesh) = self.mesh.take() {
            for agent in &mut mesh.agents {
                if agent.daemon.pid().is_some() {
                    agent.daemon.terminate()?;
                }
                agent.unload()?;
            }
            let instance = removal::instance_name(&self.prefix);
            left = removal::leftovers(&self.prefix);
            left.retain(|path| path.to_string_lossy().contains(&instance));
        }
        let prefix = self.prefix.clone();
        drop(self);
        left.extend(removal::leftovers(&prefix));
        if !left.is_empty() {
            bail!("left behind: {left:?}");
        }
        Ok(())
    }
}

fn join<T>(thread: thread::ScopedJoinHandle<'_, T>) -> T {
    match thread.join() {
        Ok(value) => value,
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

fn netns_name(spec: &PodSpec) -> String {
    format!("p-{}-{}", spec.namespace, spec.name)
}

fn service_addresses(index: u16) -> [IpAddr; 2] {
    let [high, low] = index.to_be_bytes();
    [
        Ipv4Addr::new(10, 203, high, low).into(),
        Ipv6Addr::new(0xfd00, 0xcb, 0, 0, 0, 0, 0, index).into(),
    ]
}

fn mount_bpffs() -> Result<()> {
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    if mounts.lines().any(|line| line.contains(" - bpf ")) {
        return Ok(());
    }
    nix::mount::mount(
        Some("bpf"),
        removal::BPFFS,
        Some("bpf"),
        MsFlags::empty(),
        None::<&str>,
    )
    .with_context(|| format!("mounting bpffs on {}", removal::BPFFS))
}
