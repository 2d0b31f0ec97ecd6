//! A run of the cases against one cluster.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::cluster::{Cluster, Program};

/// Control's namespace, and the agents'.
pub(super) const CONTROL: &str = "nodemesh-system";
pub(super) const AGENTS: &str = "nodemesh-node";
/// On all that a run makes, with the run's name: what clean-up goes by.
pub(super) const MARK: &str = "nodemesh.dev/k8s-test";
/// The taint that control takes off nodes.
pub(super) const TAINT: &str = "nodemesh.dev/agent-not-ready";

/// How a run is done.
#[derive(Clone, Debug)]
pub(super) struct Settings {
    /// The run's name, which nothing else has.
    pub(super) run: String,
    /// The folder or archive of the chart.
    pub(super) chart: String,
    /// Where nodes find the images.
    pub(super) repository: String,
    /// The image of the apps: agnhost, of Kubernetes' own tests.
    pub(super) app_image: String,
    /// A folder with a demo's PKI.
    pub(super) pki: String,
    /// Further values for the chart, as `--set` takes them.
    pub(super) values: Vec<String>,
    /// Take a node away, and bring it back; `$NODE` names it.
    pub(super) lose_node: Option<(String, String)>,
    /// How long things may take to come about.
    pub(super) patience: Duration,
    /// Between two looks.
    pub(super) pause: Duration,
    /// How long load runs before and after what is done under it.
    pub(super) load: Duration,
}

/// A run.
pub(super) struct Session<'a> {
    cluster: &'a dyn Cluster,
    pub(super) settings: Settings,
}

impl<'a> Session<'a> {
    pub(super) fn new(cluster: &'a dyn Cluster, settings: Settings) -> Self {
        Self { cluster, settings }
    }

    /// The namespace of enrolled apps.
    pub(super) fn shop(&self) -> String {
        format!("nodemesh-test-{}", self.settings.run)
    }

    /// The namespace of apps that are not enrolled at first.
    pub(super) fn outside(&self) -> String {
        format!("{}-out", self.shop())
    }

    /// Runs `kubectl`.
    pub(super) fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        self.cluster.run(Program::Kubectl, arguments, "")
    }

    /// Runs `helm`.
    pub(super) fn helm(&self, arguments: &[&str]) -> Result<String> {
        self.cluster.run(Program::Helm, arguments, "")
    }

    /// Runs a command of the operator's.
    pub(super) fn shell(&self, command: &str) -> Result<String> {
        self.cluster.run(Program::Shell, &[command], "")
    }

    /// What `kubectl` prints as JSON.
    pub(super) fn json(&self, arguments: &[&str]) -> Result<Value> {
        let said = self.kubectl(&[arguments, &["-o", "json"]].concat())?;
        serde_json::from_str(&said)
            .with_context(|| format!("kubectl {} printed no JSON", arguments.join(" ")))
    }

    /// Items of a list.
    pub(super) fn items(&self, arguments: &[&str]) -> Result<Vec<Value>> {
        let list = self.json(arguments)?;
        Ok(list["items"].as_array().cloned().unwrap_or_default())
    }

    /// Creates or changes the objects of a manifest of `objects/`.
    pub(super) fn apply(&self, manifest: &str) -> Result<()> {
        let made = self.filled(manifest);
        let apply = ["apply", "--server-side", "-f", "-"];
        self.cluster.run(Program::Kubectl, &apply, &made).map(drop)
    }

    /// A manifest with what is this run's.
    pub(super) fn filled(&self, manifest: &str) -> String {
        manifest
            .replace("OUTSIDE", &self.outside())
            .replace("SHOP", &self.shop())
            .replace("RUN", &self.settings.run)
            .replace("APP-IMAGE", &self.settings.app_image)
    }

    /// Runs a command in a container: of `deployment/NAME`, or of a pod.
    pub(super) fn exec(&self, namespace: &str, place: &str, command: &[&str]) -> Result<String> {
        let exec = ["-n", namespace, "exec", place, "--"];
        self.kubectl(&[&exec, command].concat())
    }

    /// What control says of nodes and pods.
    pub(super) fn status(&self) -> Result<Value> {
        let said = self.meshctl(&["status", "-o", "json"])?;
        serde_json::from_str(&said).context("meshctl status printed no JSON")
    }

    /// Runs `meshctl` where control is.
    pub(super) fn meshctl(&self, arguments: &[&str]) -> Result<String> {
        let socket = ["--control-socket", "/var/lib/nodemesh/control/control.sock"];
        let command = [&["/usr/bin/meshctl"], arguments, &socket].concat();
        self.exec(CONTROL, "deployment/nodemesh-control", &command)
    }

    /// Waits for a Deployment, DaemonSet or StatefulSet to be as it is described.
    pub(super) fn rolled_out(&self, namespace: &str, what: &str) -> Result<()> {
        let timeout = format!("--timeout={}s", self.settings.patience.as_secs());
        let status = ["-n", namespace, "rollout", "status", what, &timeout];
        match self.kubectl(&status) {
            Ok(_) => Ok(()),
            Err(error) => Err(error.context(self.told(namespace))),
        }
    }

    /// What the cluster tells of pods of a namespace, for who looks into a failure.
    pub(super) fn told(&self, namespace: &str) -> String {
        let ask = |arguments: &[&str]| {
            let asked = self.kubectl(&[&["-n", namespace], arguments].concat());
            asked.unwrap_or_else(|error| format!("{error:#}"))
        };
        let pods = ask(&["get", "pods", "-o", "wide"]);
        let events = ask(&["get", "events", "--sort-by=.lastTimestamp"]);
        let events: Vec<&str> = events.lines().rev().take(15).collect();
        let events: Vec<&str> = events.into_iter().rev().collect();
        format!("in {namespace}:\n{pods}\n{}", events.join("\n"))
    }

    /// Looks again and again until nothing lacks.
    ///
    /// # Errors
    /// When the patience is over: what lacked last.
    pub(super) fn until(
        &self,
        what: &str,
        lacks: impl Fn(&Self) -> Result<Option<String>>,
    ) -> Result<()> {
        let began = Instant::now();
        loop {
            let lacking = match lacks(self) {
                Ok(None) => return Ok(()),
                Ok(Some(lacking)) => lacking,
                Err(error) => format!("{error:#}"),
            };
            if began.elapsed() >= self.settings.patience {
                let waited = self.settings.patience.as_secs();
                bail!("{what}: not within {waited} s: {lacking}");
            }
            thread::sleep(self.settings.pause);
        }
    }

    /// Lets time pass that a case is about: load runs meanwhile.
    pub(super) fn let_load_run(&self) {
        thread::sleep(self.settings.load);
    }
}
