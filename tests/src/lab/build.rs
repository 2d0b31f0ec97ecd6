//! The ground that a lab stands on: namespaces, the fabric, hosts, pods.

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::process;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, ensure};
use nix::mount::MsFlags;
use nix::unistd::geteuid;

use super::{Cleanup, Lab};
use crate::cgroup::{self, Cgroup};
use crate::netns::Netns;
use crate::node::{CONTROL_HOST, FIRST_NODE, Host, OUTSIDE_HOST};
use crate::plan::{Plan, PodSpec};
use crate::pod::{Ground, Pod};
use crate::{interrupt, removal};

impl Lab {
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
        let own = || {
            let number = LABS.fetch_add(1, Ordering::Relaxed);
            format!("nm{}x{number}", process::id())
        };
        let prefix = plan.prefix.clone().unwrap_or_else(own);
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
        if self.plan.part.is_some() {
            self.fabric.adopt_device("eth0", "br0")?;
        }
        for node in &self.nodes {
            if !self.hosts_here().any(|host| host.name() == node.name()) {
                node.plug_beside(&self.fabric)?;
            }
        }
        for host in self.hosts_here() {
            host.netns.sysctl(&[
                ("ipv6/conf/all/accept_dad", "0"),
                ("ipv6/conf/default/accept_dad", "0"),
                ("ipv6/conf/all/forwarding", "1"),
                ("ipv4/ip_forward", "1"),
            ])?;
            host.plug_in(&self.fabric)?;
        }
        for host in self.hosts_here() {
            for node in self.nodes.iter().filter(|node| node.name() != host.name()) {
                host.route_pods_of(node)?;
            }
        }
        Ok(())
    }

    /// The hosts that are joined to the fabric.
    fn hosts_here(&self) -> impl Iterator<Item = &Host> {
        let part = self.plan.part;
        let nodes = self.nodes.iter().enumerate();
        let nodes = nodes.filter(move |(index, _)| part.is_none_or(|part| part == *index));
        let others = [&self.control_host, &self.outside];
        let others = others
            .into_iter()
            .filter(move |_| part.is_none_or(|part| part == 0));
        nodes.map(|(_, node)| node).chain(others)
    }

    pub(super) fn place_pod(&mut self, spec: PodSpec, netns: Netns) -> Result<()> {
        let key = spec.key();
        let netns = match spec.own_users {
            true => netns.with_own_users()?,
            false => netns,
        };
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
}

pub(super) fn netns_name(spec: &PodSpec) -> String {
    format!("p-{}-{}", spec.namespace, spec.name)
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
