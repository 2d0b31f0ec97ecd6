//! A soak: two nodes under mixed traffic, while pods, policies, workers, supervisors and control
//! come and go in an order that a seed gives. At the end everything holds what it held before.

mod deed;
mod held;
mod load;

use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use fastrand::Rng;

use crate::{Lab, Plan, PodSpec, manifest, wait};
use deed::Deed;
use held::Held;
use load::Load;

/// Called all the time, by a pod that nothing is done to.
const SERVER: &str = "steady/server";
const CLIENT: &str = "steady/client";
/// A policy denies its calls.
const STRANGER: &str = "steady/stranger";
/// Things are done to these.
const TROUBLED: [&str; 3] = ["troubled/a", "troubled/b", "troubled/c"];
const PORT: u16 = 7000;

/// How long all workers may take to be ready again.
const READY_PATIENCE: Duration = Duration::from_secs(30);

/// What to do.
#[derive(Clone, Copy, Debug)]
pub struct Soak {
    /// Gives the order of what is done; the same seed gives the same.
    pub seed: u64,
    /// For how long things are done, after everything was done once.
    pub time: Duration,
}

/// What was done and seen.
#[derive(Debug)]
pub struct Outcome {
    /// How often each thing was done.
    pub deeds: BTreeMap<&'static str, u32>,
    /// What became of the traffic, each kind in a line.
    pub load: String,
    /// What was held before and after.
    pub held: String,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let deeds: Vec<String> = self
            .deeds
            .iter()
            .map(|(what, n)| format!("{what} {n}"))
            .collect();
        write!(f, "done: {}\n{}{}", deeds.join(", "), self.load, self.held)
    }
}

/// Runs a soak; `tell` gets a line for each thing that is done.
///
/// # Errors
/// If traffic between pods that nothing is done to fails, if a denied call is served, if
/// anything does not come back, or if at the end more is held than before.
pub fn run(soak: Soak, tell: &mut dyn FnMut(&str)) -> Result<Outcome> {
    let mut rng = Rng::with_seed(soak.seed);
    let mut lab = Lab::with_mesh(plan())?;
    let servers = [SERVER, TROUBLED[0], TROUBLED[1], TROUBLED[2]];
    let _servers = servers
        .map(|key| serve(&lab, key))
        .into_iter()
        .collect::<Result<Vec<_>>>()?;
    let mut deeds = BTreeMap::new();
    let mut work = |lab: &mut Lab, deed: Deed, rng: &mut Rng| {
        let began = Instant::now();
        let done = deed.perform(lab, rng);
        done.with_context(|| format!("{deed} (seed {})\n{}", soak.seed, lab.log_tails()))?;
        *deeds.entry(deed.name()).or_insert(0) += 1;
        tell(&format!("{deed}: {:.2} s", began.elapsed().as_secs_f64()));
        Ok::<(), anyhow::Error>(())
    };

    // What is kept for good is there once everything has been done.
    let load = Load::start(&lab);
    let mut each = Deed::EACH;
    rng.shuffle(&mut each);
    for deed in each {
        work(&mut lab, deed, &mut rng)?;
    }
    let mut loads = load.finish()?;
    let before = rest(&lab)?;

    let load = Load::start(&lab);
    let ends = Instant::now() + soak.time;
    while Instant::now() < ends {
        work(&mut lab, Deed::any_later(&mut rng), &mut rng)?;
    }
    loads.add(&load.finish()?);
    rest(&lab)?;
    let after = before.compare(&lab)?;
    let held = format!("held before: {before}\nheld after: {after}\n");
    lab.finish()?;
    Ok(Outcome {
        deeds,
        load: loads.to_string(),
        held,
    })
}

fn plan() -> Plan {
    let deny = "{target: {labels: {app: server}}, direction: Inbound, action: Deny, \
                rules: [{peers: [{serviceAccount: stranger, namespace: steady}]}]}";
    let [a, b, c] = TROUBLED.map(|key| key.split_once('/').map_or(key, |(_, name)| name));
    Plan::nodes(2)
        .enrolled("steady")
        .enrolled("troubled")
        .pod(PodSpec::new("steady", "client"))
        .pod(PodSpec::new("steady", "stranger"))
        .pod(PodSpec::new("steady", "server").node(1))
        .pod(PodSpec::new("troubled", a))
        .pod(PodSpec::new("troubled", b).node(1))
        .pod(PodSpec::new("troubled", c))
        .manifest("deny", &manifest::authorization("steady/deny", deny))
}

fn serve(lab: &Lab, key: &str) -> Result<crate::App> {
    let pod = lab.pod(key);
    let app = pod
        .command("mesh-lab-app")
        .args(["serve", &PORT.to_string()]);
    let app = app.spawn()?;
    pod.wait_listening(PORT)?;
    Ok(app)
}

/// Waits until every pod is served and can call, without other traffic; what is held then.
fn rest(lab: &Lab) -> Result<Held> {
    for pod in lab.pods() {
        let what = format!("{} to be ready", pod.key());
        let agent = lab.agent(pod.node());
        wait::until_true(&what, READY_PATIENCE, || {
            let status = agent.pod_status(pod)?;
            Ok(status["state"] == "enrolled" && status["ready"] == true)
        })
        .with_context(|| lab.log_tails())?;
    }
    for key in TROUBLED {
        let (from, to) = (lab.pod(CLIENT), load::target(lab.pod(key)));
        let what = format!("{key} to answer");
        wait::until_true(&what, READY_PATIENCE, || {
            Ok(from.netns.run(|| crate::traffic::call(to)).is_ok())
        })
        .with_context(|| lab.log_tails())?;
    }
    let denied = lab
        .pod(STRANGER)
        .netns
        .run(|| crate::traffic::call(load::target(lab.pod(SERVER))));
    ensure!(denied.is_err(), "a denied call was served");
    Held::measure(lab)
}
