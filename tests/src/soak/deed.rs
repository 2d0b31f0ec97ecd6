//! What is done to the mesh.

use std::fmt;
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use fastrand::Rng;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use socket2::SockRef;

use super::load::target;
use super::{CLIENT, READY_PATIENCE, SERVER, TROUBLED};
use crate::{Enrolment, Lab, manifest, wait};

/// How long a program in a pod may take.
const PROGRAM_PATIENCE: Duration = Duration::from_secs(60);
/// Policies that a change leaves at most.
const MOST_POLICIES: u32 = 100;
const CONNECTIONS: u32 = 100;
const VOLUME: u64 = 32 << 20;

/// One of the things that are done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Deed {
    /// A worker is killed.
    KillWorker,
    /// A pod is taken out of the mesh and added again.
    Rejoin,
    /// A namespace loses its label and gets it back.
    Relabel,
    /// Policies are added, changed and removed.
    Policies,
    /// A supervisor ends and starts again, or is killed.
    Supervisor,
    /// The first node's, whose memory is compared later on: before that only.
    FirstSupervisor,
    /// Control is killed and started again; as with the first supervisor.
    Control,
    /// Many connections at once.
    Burst,
    /// Much data in both directions at once.
    Volume,
    /// Connections that their app resets.
    Abort,
}

impl Deed {
    /// Every one.
    pub(super) const EACH: [Self; 10] = [
        Self::KillWorker,
        Self::Rejoin,
        Self::Relabel,
        Self::Policies,
        Self::Supervisor,
        Self::FirstSupervisor,
        Self::Control,
        Self::Burst,
        Self::Volume,
        Self::Abort,
    ];
    /// Those that leave alone whose memory is compared.
    const LATER: [Self; 8] = [
        Self::KillWorker,
        Self::Rejoin,
        Self::Relabel,
        Self::Policies,
        Self::Supervisor,
        Self::Burst,
        Self::Volume,
        Self::Abort,
    ];

    pub(super) fn any_later(rng: &mut Rng) -> Self {
        Self::LATER[rng.usize(..Self::LATER.len())]
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::KillWorker => "worker killed",
            Self::Rejoin => "pod removed and added",
            Self::Relabel => "namespace out and in",
            Self::Policies => "policies changed",
            Self::Supervisor => "second supervisor restarted",
            Self::FirstSupervisor => "first supervisor restarted",
            Self::Control => "control killed",
            Self::Burst => "burst of connections",
            Self::Volume => "volume of data",
            Self::Abort => "connections reset",
        }
    }

    /// Does it, and waits until what it should lead to is so.
    pub(super) fn perform(self, lab: &mut Lab, rng: &mut Rng) -> Result<()> {
        match self {
            Self::KillWorker => kill_worker(lab, rng),
            Self::Rejoin => rejoin(lab, rng),
            Self::Relabel => relabel(lab),
            Self::Policies => policies(lab, rng),
            Self::Supervisor => supervisor(lab, rng, 1),
            Self::FirstSupervisor => supervisor(lab, rng, 0),
            Self::Control => control(lab),
            Self::Burst => program(
                lab,
                &format!("burst {} {CONNECTIONS}", target(lab.pod(SERVER))),
            ),
            Self::Volume => volume(lab),
            Self::Abort => abort(lab),
        }
    }
}

impl fmt::Display for Deed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

fn kill_worker(lab: &Lab, rng: &mut Rng) -> Result<()> {
    let pod = lab.pod(TROUBLED[rng.usize(..TROUBLED.len())]);
    let agent = lab.agent(pod.node());
    let old = agent.worker_pid(pod)?;
    kill(Pid::from_raw(old), Signal::SIGKILL)?;
    agent.wait_new_worker(pod, old, READY_PATIENCE).map(drop)
}

fn rejoin(lab: &Lab, rng: &mut Rng) -> Result<()> {
    let pod = lab.pod(TROUBLED[rng.usize(..TROUBLED.len())]);
    let agent = lab.agent(pod.node());
    agent.remove_pod(pod)?;
    agent.add_pod(pod).map(drop)
}

fn relabel(lab: &Lab) -> Result<()> {
    for (enrolment, state) in [
        (Enrolment::None, "not-in-mesh"),
        (Enrolment::Enforce, "enrolled"),
    ] {
        lab.set_enrolment("troubled", enrolment)?;
        for pod in TROUBLED.map(|key| lab.pod(key)) {
            let what = format!("{} to be {state}", pod.key());
            wait::until_true(&what, READY_PATIENCE, || {
                Ok(lab.agent(pod.node()).pod_status(pod)?["state"] == state)
            })?;
        }
    }
    Ok(())
}

/// Policies for nobody, and some for pods in trouble: as many as the dice say, each another than before.
fn policies(lab: &Lab, rng: &mut Rng) -> Result<()> {
    let one = |number: u32, rng: &mut Rng| {
        let spec = format!(
            "{{target: {{labels: {{app: {}}}}}, direction: Inbound, action: Deny, \
             rules: [{{peers: [{{serviceAccount: nobody-{}, namespace: shop}}], ports: [{}]}}]}}",
            ["a", "b", "other"][rng.usize(..3)],
            rng.u32(..1_000),
            rng.u16(1..15_000),
        );
        manifest::authorization(&format!("troubled/noise-{number}"), &spec)
    };
    let count = rng.u32(1..MOST_POLICIES);
    let all: Vec<String> = (0..count).map(|number| one(number, rng)).collect();
    let versions = || -> Result<Vec<_>> {
        let version = |node| Ok(lab.agent(node).status()?["control"]["discovery_version"].clone());
        (0..2).map(version).collect()
    };
    let before = versions()?;
    lab.write_manifest("noise", &all.join("---\n"))?;
    wait::until_true("both nodes to have the change", READY_PATIENCE, || {
        Ok(versions()?
            .iter()
            .zip(&before)
            .all(|(now, before)| now != before))
    })
}

fn supervisor(lab: &mut Lab, rng: &mut Rng, node: usize) -> Result<()> {
    let (agent, host) = lab.agent_mut(node);
    match rng.bool() {
        true => agent.daemon.kill9()?,
        false => {
            let status = agent.daemon.terminate()?;
            ensure!(status.success(), "SIGTERM: {status}");
        }
    }
    agent.start(host)
}

fn control(lab: &mut Lab) -> Result<()> {
    let (control, host) = lab.control_mut();
    control.daemon.kill9()?;
    control.start(host)?;
    for node in 0..2 {
        wait::until_true("the agents to have control again", READY_PATIENCE, || {
            Ok(lab.agent(node).status()?["control"]["connected"] == true)
        })?;
    }
    Ok(())
}

fn program(lab: &Lab, words: &str) -> Result<()> {
    let app = lab
        .pod(CLIENT)
        .command("mesh-lab-app")
        .args(words.split(' '));
    app.timeout(PROGRAM_PATIENCE).output()?.ok().map(drop)
}

fn volume(lab: &Lab) -> Result<()> {
    const VOLUME_PORT: u16 = 7001;
    let server = lab.pod(SERVER);
    let app = server
        .command("mesh-lab-app")
        .args(["volume-serve", "7001"]);
    let _server = app.spawn()?;
    server.wait_listening(VOLUME_PORT)?;
    program(
        lab,
        &format!("volume {}:{VOLUME_PORT} {VOLUME}", server.v4()),
    )
}

fn abort(lab: &Lab) -> Result<()> {
    let to = target(lab.pod(SERVER));
    let aborted = lab.pod(CLIENT).netns.run(|| {
        (0..CONNECTIONS).try_for_each(|_| {
            let stream = TcpStream::connect(to)?;
            SockRef::from(&stream).set_linger(Some(Duration::ZERO))
        })
    });
    aborted.context("connections to be reset")
}
