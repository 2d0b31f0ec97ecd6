//! A node's agent.

use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::control::Control;
use super::daemon::Daemon;
use super::run;
use crate::cgroup::{self, Cgroup};
use crate::node::Host;
use crate::plan::PodSpec;
use crate::pod::Pod;
use crate::{programs, removal, wait};

/// Port of its metrics, on the node's loopback.
pub(super) const METRICS_PORT: u16 = 15020;

/// How long it may take to load its programs, on a machine that does other things too.
const START_PATIENCE: Duration = Duration::from_secs(30);

/// A running `mesh-agent run`.
#[derive(Debug)]
pub struct Agent {
    /// The supervisor's process.
    pub daemon: Daemon,
    /// Its instance name: the mesh's cgroup is `nodemesh-<instance>`, so are the pins.
    pub instance: String,
    run_dir: PathBuf,
}

/// Which agent this is among those that share the kernel.
pub(crate) struct Place<'a> {
    pub(crate) host: &'a Host,
    pub(crate) instance: String,
    pub(crate) uid_base: u32,
    pub(crate) resolvers: &'a [IpAddr],
    pub(crate) options: &'a [String],
    /// The lab's cgroup, from the hierarchy's root.
    pub(crate) cgroup: &'a str,
}

impl Agent {
    pub(crate) fn new(
        place: Place<'_>,
        control: &[Control],
        join_token: &str,
        trust_bundle: &Path,
        cgroup: Cgroup,
    ) -> Result<Self> {
        let host = place.host;
        let token = host.folder.join("token");
        fs::write(&token, join_token)?;
        let run_dir = host.folder.join("run");
        let metrics = SocketAddr::from((Ipv4Addr::LOCALHOST, METRICS_PORT));
        let mut arguments = vec!["run".to_owned()];
        for (option, value) in [
            ("--node", host.name().to_owned()),
            ("--instance", place.instance.clone()),
            ("--trust-bundle", trust_bundle.display().to_string()),
            ("--join-token-file", token.display().to_string()),
            (
                "--state-dir",
                host.folder.join("state").display().to_string(),
            ),
            ("--run-dir", run_dir.display().to_string()),
            ("--uid-base", place.uid_base.to_string()),
            ("--metrics-listen", metrics.to_string()),
        ] {
            arguments.extend([option.to_owned(), value]);
        }
        for replica in control {
            arguments.extend(["--control".to_owned(), replica.url()]);
        }
        for resolver in place.resolvers {
            arguments.extend(["--resolver".to_owned(), resolver.to_string()]);
        }
        let folder = host.folder.display().to_string();
        let options = place.options.iter();
        let filled = |word: &String| {
            let word = word.replace("{folder}", &folder);
            word.replace("{cgroup}", place.cgroup)
        };
        arguments.extend(options.map(filled));
        Ok(Self {
            daemon: Daemon::new(
                &format!("mesh-agent on {}", host.name()),
                programs::mesh_binary("mesh-agent")?,
                arguments,
                host.folder.join("mesh-agent.log"),
                cgroup,
            ),
            instance: place.instance,
            run_dir,
        })
    }

    /// Where its socket is.
    #[must_use]
    pub fn run_dir(&self) -> &Path {
        &self.run_dir
    }

    /// Starts it (again) and waits until it answers on its admin socket.
    ///
    /// # Errors
    /// If it ends, or does not answer in time; with the end of its log.
    pub fn start(&mut self, host: &Host) -> Result<()> {
        self.daemon.start(&host.netns)?;
        let mut status = self.admin(&["status"]);
        self.daemon
            .wait_until("mesh-agent answering `status`", START_PATIENCE, || {
                Ok(status.output()?.status.success())
            })
    }

    /// Runs another binary of the mesh from the next start on, such as `mesh-agent-abi-next`.
    ///
    /// # Errors
    /// If it isn't built.
    pub fn set_binary(&mut self, name: &str) -> Result<()> {
        self.daemon.set_program(programs::mesh_binary(name)?);
        Ok(())
    }

    /// Runs another program from the next start on.
    pub fn set_program(&mut self, program: PathBuf) {
        self.daemon.set_program(program);
    }

    /// Ends it by SIGTERM and starts it again.
    ///
    /// # Errors
    /// As [`Daemon::terminate`] and [`Self::start`].
    pub fn restart(&mut self, host: &Host) -> Result<()> {
        self.daemon.terminate()?;
        self.start(host)
    }

    /// A subcommand of `mesh-agent` against this agent.
    #[must_use]
    pub fn admin(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(self.daemon.program());
        command.args(arguments).arg("--run-dir").arg(&self.run_dir);
        command
    }

    /// Tells it of a pod, as a CNI plugin does, and waits until the pod is enrolled or known
    /// not to be. Returns what the command said.
    ///
    /// # Errors
    /// With the agent's reason, and the end of its log.
    pub fn add_pod(&self, pod: &Pod) -> Result<String> {
        self.add(&pod.spec, &pod.netns.path())
    }

    /// [`Self::add_pod`] for any pod, with its network namespace.
    ///
    /// # Errors
    /// With the agent's reason, and the end of its log.
    pub fn add(&self, pod: &PodSpec, netns: &Path) -> Result<String> {
        let timeout = format!("{}s", wait::scaled(wait::PATIENCE).as_secs());
        let mut command = self.admin(&["pod", "add", "--timeout", &timeout]);
        command
            .args(["--namespace", &pod.namespace, "--name", &pod.name])
            .arg("--netns")
            .arg(netns);
        run(&mut command).with_context(|| self.daemon.tail())
    }

    /// Takes a pod out of the mesh.
    ///
    /// # Errors
    /// With the agent's reason.
    pub fn remove_pod(&self, pod: &Pod) -> Result<String> {
        self.remove(&pod.spec)
    }

    /// [`Self::remove_pod`] for any pod.
    ///
    /// # Errors
    /// With the agent's reason.
    pub fn remove(&self, pod: &PodSpec) -> Result<String> {
        let mut command = self.admin(&["pod", "remove"]);
        command.args(["--namespace", &pod.namespace, "--name", &pod.name]);
        run(&mut command)
    }

    /// `mesh-agent status`.
    ///
    /// # Errors
    /// If it fails or is no JSON.
    pub fn status(&self) -> Result<Value> {
        let text = run(&mut self.admin(&["status"]))?;
        serde_json::from_str(&text).with_context(|| format!("status is no JSON: {text}"))
    }

    /// A pod's part of the status.
    ///
    /// # Errors
    /// If the agent knows no such pod.
    pub fn pod_status(&self, pod: &Pod) -> Result<Value> {
        let status = self.status()?;
        let pods = status["pods"]
            .as_array()
            .context("status has no list of pods")?;
        pods.iter()
            .find(|p| p["namespace"] == pod.namespace() && p["name"] == pod.name())
            .cloned()
            .with_context(|| format!("status does not list {}: {status}", pod.key()))
    }

    /// Process id of a pod's worker.
    ///
    /// # Errors
    /// If the pod has none.
    pub fn worker_pid(&self, pod: &Pod) -> Result<i32> {
        let status = self.pod_status(pod)?;
        let pid = status["worker_pid"]
            .as_i64()
            .with_context(|| format!("{} has no worker: {status}", pod.key()))?;
        Ok(i32::try_from(pid)?)
    }

    /// Waits until the pod has a ready worker that isn't `old`, and returns its process id.
    ///
    /// # Errors
    /// When `timeout` passes first, with the end of the agent's log.
    pub fn wait_new_worker(&self, pod: &Pod, old: i32, timeout: Duration) -> Result<i32> {
        let what = format!("a new worker of {}", pod.key());
        wait::until(&what, timeout, || {
            let status = self.pod_status(pod)?;
            let pid = status["worker_pid"]
                .as_i64()
                .filter(|p| *p != i64::from(old));
            let ready = status["ready"] == true;
            Ok(pid.filter(|_| ready).map(i32::try_from).transpose()?)
        })
        .with_context(|| self.daemon.tail())
    }

    /// How many pods have a cgroup for their worker, in all hierarchies together.
    ///
    /// # Errors
    /// If mounts can't be read.
    pub fn pod_cgroups(&self) -> Result<usize> {
        let name = format!("nodemesh-{}", self.instance);
        let folders = |mount: &PathBuf| {
            let groups = fs::read_dir(mount.join(&name))
                .into_iter()
                .flatten()
                .flatten();
            groups
                .filter(|group| group.file_type().is_ok_and(|kind| kind.is_dir()))
                .count()
        };
        Ok(cgroup::mount_points()?.iter().map(folders).sum())
    }

    /// All its metrics, in the Prometheus text format.
    ///
    /// # Errors
    /// If they can't be had.
    pub fn metrics(&self, host: &Host) -> Result<String> {
        match Self::get(host, "/metrics")? {
            (200, body) => Ok(body),
            (status, body) => bail!("/metrics answered {status}: {body}"),
        }
    }

    /// Why it is not ready; `None` if it is.
    ///
    /// # Errors
    /// If it doesn't say.
    pub fn unready(&self, host: &Host) -> Result<Option<String>> {
        let (status, body) = Self::get(host, "/readyz")?;
        Ok((status != 200).then_some(body))
    }

    fn get(host: &Host, path: &str) -> Result<(u16, String)> {
        host.netns.run(|| {
            let address = SocketAddr::from((Ipv4Addr::LOCALHOST, METRICS_PORT));
            let mut stream =
                TcpStream::connect(address).with_context(|| format!("connecting to {path}"))?;
            stream.set_read_timeout(Some(wait::PATIENCE))?;
            stream
                .write_all(format!("GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n").as_bytes())?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            let parts = answer.split_once("\r\n\r\n");
            let (head, body) = parts.with_context(|| format!("{path} answered: {answer}"))?;
            let status = head.split(' ').nth(1).context("no status")?;
            Ok((status.parse()?, body.to_owned()))
        })
    }

    /// The sum of all series of a metric whose labels contain each of `labels`, such as
    /// `reason="wall_not_worker"`. A metric that isn't there counts 0.
    ///
    /// # Errors
    /// If the metrics can't be had.
    pub fn metric(&self, host: &Host, name: &str, labels: &[&str]) -> Result<f64> {
        let text = self.metrics(host)?;
        let series = text.lines().filter(|line| {
            line.strip_prefix(name)
                .is_some_and(|rest| rest.starts_with(['{', ' ']))
                && labels.iter().all(|label| line.contains(label))
        });
        let values = series.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
        Ok(values.sum())
    }

    /// Takes away what does not survive the machine's end: its processes, what it has in the kernel,
    /// and its run folder.
    ///
    /// # Errors
    /// If it does not run, or something can't be removed.
    pub fn power_off(&mut self) -> Result<()> {
        self.daemon.kill9()?;
        removal::power_off(&self.instance)?;
        fs::remove_dir_all(&self.run_dir).context("removing the run folder")
    }

    /// Takes everything of the agent off this kernel; it must have ended.
    ///
    /// # Errors
    /// With what `mesh-agent unload` said.
    pub fn unload(&self) -> Result<()> {
        let mut command = self.admin(&["unload", "--instance", &self.instance]);
        // `run` comes first, and then options with their values.
        let given = self.daemon.arguments()[1..].chunks(2);
        let folders = ["--cni-bin-dir", "--cni-conf-dir"];
        command.args(
            given
                .filter(|pair| folders.contains(&pair[0].as_str()))
                .flatten(),
        );
        run(&mut command).map(drop)
    }
}
