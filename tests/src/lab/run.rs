//! The mesh in a lab: started, told of pods, ended.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::{fs, process, thread};

use anyhow::{Context, Result, bail};

use super::Lab;
use super::build::netns_name;
use crate::cgroup::Cgroup;
use crate::mesh::{self, Agent, Control, Mesh};
use crate::netns::Netns;
use crate::plan::PodSpec;
use crate::pod::Pod;
use crate::{programs, removal};

/// Workers' uids start here; each agent of each lab has 1,024 of its own.
const FIRST_WORKER_UID: u32 = 3_900_000_000;

impl Lab {
    /// One more pod; where the mesh runs, its manifest is written and the agent told.
    ///
    /// # Errors
    /// If it can't be made or enrolled.
    pub fn add_pod(&mut self, spec: PodSpec) -> Result<&Pod> {
        let key = spec.key();
        self.make_pod(spec)?;
        if self.mesh.is_some() {
            self.write_pod(self.pod(&key))?;
            self.tell_agent(self.pod(&key))?;
        }
        Ok(self.pod(&key))
    }

    /// One more pod, of which neither control nor an agent is told.
    ///
    /// # Errors
    /// If it can't be made.
    pub fn make_pod(&mut self, spec: PodSpec) -> Result<&Pod> {
        let key = spec.key();
        let name = format!("{}-{}", self.prefix, netns_name(&spec));
        let netns = Netns::create_all(&[name])?.pop().context("a namespace")?;
        self.place_pod(spec, netns)?;
        Ok(self.pod(&key))
    }

    /// Makes a PKI, starts control and an agent on each node, and adds every pod.
    ///
    /// # Errors
    /// If a binary isn't built, or any of them fails; with the end of its log.
    pub fn start_mesh(&mut self) -> Result<()> {
        let (controls, pki, tokens) = self.start_control()?;
        self.start_agents(controls, pki, &tokens)
    }

    /// [`Self::start_mesh`] for a lab that is a [part](Plan::part) of one: the first part makes
    /// the PKI and starts control, and `exchange` takes what the other parts need to know from
    /// it (a JSON text), or gives it to them.
    ///
    /// # Errors
    /// As [`Self::start_mesh`], and those of `exchange`.
    pub fn start_part(
        &mut self,
        exchange: impl FnOnce(Option<String>) -> Result<String>,
    ) -> Result<()> {
        if self.plan.part == Some(0) {
            let (controls, pki, tokens) = self.start_control()?;
            let root = fs::read_to_string(pki.join("root.pem"))?;
            let told = serde_json::json!({ "root": root, "tokens": tokens });
            exchange(Some(told.to_string()))?;
            return self.start_agents(controls, pki, &tokens);
        }
        let told: serde_json::Value = serde_json::from_str(&exchange(None)?)?;
        let pki = self.scratch.join("pki");
        fs::create_dir_all(&pki)?;
        fs::write(pki.join("root.pem"), told["root"].as_str().unwrap_or(""))?;
        let tokens: Vec<String> = serde_json::from_value(told["tokens"].clone())?;
        let controls = self.new_controls(&pki)?;
        self.start_agents(controls, pki, &tokens)
    }

    /// Makes a PKI, starts control, and has it make a join token for each node.
    fn start_control(&self) -> Result<(Vec<Control>, PathBuf, Vec<String>)> {
        let pki = self.make_pki()?;
        let mut controls = self.new_controls(&pki)?;
        for control in &mut controls {
            control.start(&self.control_host)?;
        }
        let first = controls.first().context("no replica of control")?;
        let tokens = self.nodes.iter().map(|host| first.token(host.name()));
        let tokens = tokens.collect::<Result<_>>()?;
        Ok((controls, pki, tokens))
    }

    fn make_pki(&self) -> Result<PathBuf> {
        let pki = self.scratch.join("pki");
        let mut init = process::Command::new(programs::mesh_binary("meshctl")?);
        init.args(["pki", "init", "--dir"]).arg(&pki);
        init.args(["--trust-domain", mesh::TRUST_DOMAIN]);
        mesh::run(&mut init).context("making a demo PKI")?;
        Ok(pki)
    }

    fn new_controls(&self, pki: &Path) -> Result<Vec<Control>> {
        self.write_manifests()?;
        let new = |replica: u16| {
            let group = self.cgroup.path().join(format!("control-{replica}"));
            let group = Cgroup::create(group)?;
            let mut control =
                Control::new(replica, &self.control_host, pki, &self.manifests(), group)?;
            control.daemon.add_arguments(&self.plan.control_options);
            Ok(control)
        };
        (0..self.plan.replicas).map(new).collect()
    }

    fn start_agents(
        &mut self,
        mut controls: Vec<Control>,
        pki: PathBuf,
        tokens: &[String],
    ) -> Result<()> {
        let resolvers: Vec<IpAddr> = self
            .plan
            .resolvers
            .iter()
            .flat_map(|key| self.pod(key).addresses())
            .collect();
        let mut agents = Vec::new();
        let labs = process::id() % 1_000;
        for ((host, token), index) in self.nodes.iter().zip(tokens).zip(0u32..) {
            let place = mesh::Place {
                host,
                instance: format!("{}{}", self.prefix, host.letter()),
                uid_base: FIRST_WORKER_UID + (labs * 8 + index) * 1_024,
                resolvers: &resolvers,
                options: &self.plan.agent_options,
                cgroup: &format!("/{}", removal::cgroup_name(&self.prefix)),
            };
            let group = Cgroup::create(self.cgroup.path().join(format!("agent-{}", host.name())))?;
            let root = pki.join("root.pem");
            agents.push(Agent::new(place, &controls, token, &root, group)?);
        }
        let part = self.plan.part;
        let here = move |node: usize| part.is_none_or(|part| part == node);
        let started: Result<Vec<()>> = thread::scope(|scope| {
            let starts: Vec<_> = agents
                .iter_mut()
                .zip(&self.nodes)
                .enumerate()
                .filter(|(node, _)| here(*node))
                .map(|(_, (agent, host))| scope.spawn(|| agent.start(host)))
                .collect();
            starts.into_iter().map(join).collect()
        });
        let more = controls.split_off(1);
        let control = controls.pop().context("no replica of control")?;
        self.mesh = Some(Mesh {
            control,
            more,
            agents,
            pki,
        });
        started?;
        let added: Result<Vec<()>> = thread::scope(|scope| {
            let adds: Vec<_> = self
                .pods
                .values()
                .filter(|pod| here(pod.node()))
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

    /// Ends the mesh in the orderly way (agents stopped, then unloaded), removes the lab,
    /// and checks that nothing of either is left.
    ///
    /// # Errors
    /// If unloading fails, or anything is left: first of the agents, then of the lab.
    pub fn finish(mut self) -> Result<()> {
        let mut left = Vec::new();
        if let Some(mut mesh) = self.mesh.take() {
            for (node, agent) in mesh.agents.iter_mut().enumerate() {
                if self.plan.part.is_some_and(|part| part != node) {
                    continue;
                }
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
