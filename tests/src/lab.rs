//! The lab: the fabric, the hosts on it, the pods on the nodes, and the mesh.

mod build;
mod manifests;
mod run;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::cgroup::Cgroup;
use crate::mesh::{Agent, Control, Mesh};
use crate::netns::Netns;
use crate::node::Host;
use crate::plan::Plan;
use crate::pod::Pod;
use crate::wire::Capture;
use crate::{interrupt, removal};

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

    /// The control component.
    ///
    /// # Panics
    /// If the mesh isn't running.
    #[must_use]
    pub fn control(&self) -> &Control {
        &self.mesh.as_ref().expect("the mesh is running").control
    }

    /// The control component, to kill or start it, with its host.
    ///
    /// # Panics
    /// If the mesh isn't running.
    pub fn control_mut(&mut self) -> (&mut Control, &Host) {
        let mesh = self.mesh.as_mut().expect("the mesh is running");
        (&mut mesh.control, &self.control_host)
    }

    /// A replica of control by index, to kill or start it, with its host.
    ///
    /// # Panics
    /// If the mesh isn't running, or there is no such replica.
    pub fn replica_mut(&mut self, index: usize) -> (&mut Control, &Host) {
        let mesh = self.mesh.as_mut().expect("the mesh is running");
        let control = match index {
            0 => &mut mesh.control,
            n => &mut mesh.more[n - 1],
        };
        (control, &self.control_host)
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
        let controls = [&mesh.control].into_iter().chain(&mesh.more);
        let controls = controls.map(|control| control.daemon.tail());
        let tails: Vec<String> = agents.chain(controls).collect();
        tails.join("\n")
    }
}

fn service_addresses(index: u16) -> [IpAddr; 2] {
    let [high, low] = index.to_be_bytes();
    [
        Ipv4Addr::new(10, 203, high, low).into(),
        Ipv6Addr::new(0xfd00, 0xcb, 0, 0, 0, 0, 0, index).into(),
    ]
}
