//! The demo's topology and what is kept from step to step.

use std::ffi::OsStr;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use mesh_lab::wire::Capture;
use mesh_lab::{App, Lab, Plan, PodSpec, ServiceSpec, servers};

use super::narrator::Narrator;
use super::policy;

pub(crate) const FRONTEND: &str = "shop/frontend";
pub(crate) const WEB: &str = "shop/web";
pub(crate) const CACHE: &str = "data/cache";
/// The endpoints of the service `shop/prices`, one on each node.
pub(crate) const PRICES: [&str; 2] = ["shop/prices-a", "shop/prices-b"];
pub(crate) const BATCH: &str = "legacy/batch";
pub(crate) const REPORTS: &str = "legacy/reports";

/// Everything that runs.
pub(crate) struct Stage {
    pub(crate) apps: Vec<App>,
    /// nginx in each endpoint of `shop/prices`.
    pub(crate) prices: Vec<App>,
    /// Of node-a's port on the fabric, from before the mesh started.
    pub(crate) capture: Option<Capture>,
    /// Random strings that apps have sent to other nodes.
    pub(crate) nonces: Vec<String>,
    pub(crate) lab: Lab,
}

fn plan() -> Plan {
    let price = |name: &str, node| PodSpec::new("shop", name).app("prices").node(node);
    let plan = Plan::nodes(2)
        .enrolled("shop")
        .enrolled("data")
        .namespace("legacy")
        .pod(PodSpec::new("shop", "frontend"))
        .pod(PodSpec::new("legacy", "batch"))
        .pod(PodSpec::new("shop", "web").node(1).port("http", 8080))
        .pod(PodSpec::new("data", "cache").node(1).port("redis", 6379))
        .pod(PodSpec::new("legacy", "reports").node(1).port("http", 80))
        .pod(price("prices-a", 0))
        .pod(price("prices-b", 1))
        .service(ServiceSpec::new("shop", "web").port(80, "http"))
        .service(ServiceSpec::new("shop", "prices").port(80, "8080"))
        .without_default_policy();
    let policies = policy::manifests().into_iter();
    policies.fold(plan, |plan, (name, content)| plan.manifest(name, &content))
}

impl Stage {
    /// Nodes, pods and their apps, without a mesh.
    pub(crate) fn set(tell: &Narrator) -> Result<Self> {
        let lab = Lab::build(plan())?;
        for node in [lab.node(0), lab.node(1)] {
            tell.say(&format!("{}  {}  {}", node.name(), node.v4(), node.v6()));
            for pod in lab.pods() {
                if lab.node(pod.node()).name() != node.name() {
                    continue;
                }
                let label = if pod.namespace() == "legacy" {
                    "not enrolled"
                } else {
                    "enrolled"
                };
                let key = pod.key();
                tell.say(&format!("  {key:<15} {:<12} {label}", pod.v4()));
            }
        }
        let web = servers::nginx(lab.pod(WEB), &[8080], "hello from web\\n")?;
        let cache = servers::redis(lab.pod(CACHE))?;
        let reports = servers::nginx(lab.pod(REPORTS), &[80], "hello from reports\\n")?;
        let mut prices = Vec::new();
        for key in PRICES {
            prices.push(servers::nginx(lab.pod(key), &[8080], key)?);
        }
        tell.say("nginx in shop/web, shop/prices-* and legacy/reports, redis in data/cache:");
        tell.say(
            "from the distribution's packages, each as an unprivileged uid in its pod's namespace",
        );
        let capture = lab.capture(lab.node(0))?;
        Ok(Self {
            apps: vec![web, cache, reports],
            prices,
            capture: Some(capture),
            nonces: Vec::new(),
            lab,
        })
    }

    /// A new random string that an app is about to send.
    pub(crate) fn nonce(&mut self) -> Result<String> {
        let random = std::fs::read("/proc/sys/kernel/random/uuid")?;
        let nonce = String::from_utf8(random)?.trim().to_owned();
        self.nonces.push(nonce.clone());
        Ok(nonce)
    }

    /// Commands for a person to try.
    pub(crate) fn things_to_try(&self, tell: &Narrator) {
        let lab = &self.lab;
        let inside = |pod: &str| format!("ip netns exec {}", lab.pod(pod).netns.name());
        let service = lab.service(WEB)[0];
        let fabric = format!("ip netns exec {}-fabric", lab.prefix());
        let status = words(&lab.agent(0).admin(&["status"]));
        let why = ["why", PRICES[0], "data/cache:6379"];
        let meshctl = [&why[..], &["status"]].map(|arguments| lab.control().meshctl(arguments));
        println!("\nIt is left running. In another terminal, as root:");
        tell.say(&format!("{} curl http://{service}/", inside(FRONTEND)));
        tell.say(&format!(
            "{} redis-cli -h {} INFO server",
            inside(FRONTEND),
            lab.pod(CACHE).v4()
        ));
        tell.say(&format!(
            "{} curl http://{}:8080/   # refused",
            inside(BATCH),
            lab.pod(WEB).v4()
        ));
        tell.say(&format!("{fabric} tcpdump -ni f-node-a -A tcp port 15008"));
        for command in meshctl.into_iter().flatten() {
            tell.say(&words(&command));
        }
        tell.say(&format!(
            "$EDITOR {}/allow-cache.yaml",
            lab.manifests().display()
        ));
        tell.say(&status);
        tell.say(&format!("tail -f {}", lab.agent(1).daemon.log().display()));
        println!("\nCtrl-C ends it and removes all of it.");
    }

    /// Ends the mesh and the lab, and checks that nothing of them is left.
    pub(crate) fn clear(mut self, tell: &Narrator) -> Result<()> {
        self.apps.clear();
        self.prices.clear();
        self.capture = None;
        self.lab.finish()?;
        tell.holds("no process, namespace, link, cgroup, eBPF program, map or file of it is left");
        Ok(())
    }
}

/// A command as a person would type it.
fn words(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let words: Vec<_> = words.map(OsStr::to_string_lossy).collect();
    words.join(" ")
}

/// Control and agents start, pods are added.
pub(crate) fn start_mesh(stage: &mut Stage, tell: &Narrator) -> Result<()> {
    stage.lab.start_mesh()?;
    let lab = &stage.lab;
    let mut uids = Vec::new();
    for pod in lab.pods() {
        let status = lab.agent(pod.node()).pod_status(pod)?;
        let state = status["state"].as_str().context("no state")?.to_owned();
        if pod.namespace() == "legacy" {
            ensure!(state == "not-in-mesh", "{}: {status}", pod.key());
            tell.say(&format!(
                "{:<15} {state}: nothing of it is touched",
                pod.key()
            ));
            continue;
        }
        ensure!(state == "enrolled", "{}: {status}", pod.key());
        let pid = lab.agent(pod.node()).worker_pid(pod)?;
        let uid = status["uid"].as_u64().context("no uid")?;
        uids.push(uid);
        let identity = pod.identity();
        tell.say(&format!(
            "{:<15} {state}, worker {pid}, uid {uid}",
            pod.key()
        ));
        tell.say(&format!("{:<15} {identity}", ""));
    }
    uids.sort_unstable();
    uids.dedup();
    let enrolled = lab.pods().filter(|pod| pod.namespace() != "legacy").count();
    ensure!(uids.len() == enrolled, "workers share uids: {uids:?}");
    tell.holds("one worker process for each enrolled pod, each with a uid and a key of its own");
    Ok(())
}
