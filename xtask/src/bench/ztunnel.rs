//! A pair of ztunnels, one on each node, as Istio's ambient mesh runs them: each serves pods
//! of its node from inside the pods' namespaces.

use std::cell::RefCell;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use clap::Args;
use mesh_lab::forger::Forger;
use mesh_lab::zds::{self, Agent};
use mesh_lab::{App, Lab, Pod, call, wait};

use super::system;
use crate::exec;

/// Namespace of the pods that belong to it.
pub(crate) const NAMESPACE: &str = "ztunnel";

/// What the table is followed by where there is none.
pub(crate) const ABSENT: &str = "\
no ztunnel column: it needs ZTUNNEL_BIN (a ztunnel built with `--features testing`) and \
ZTUNNEL_SRC (a checkout of its sources)";

/// The nodes that have one.
const NODES: [usize; 2] = [0, 1];

/// Port of HBONE, in the pods.
const HBONE_PORT: u16 = 15_008;

/// Port of its metrics on the nodes: not its default one, which the mesh's agents use.
const METRICS_PORT: u16 = 15_120;

/// A ztunnel to compare with
#[derive(Args)]
pub(crate) struct ZtunnelArgs {
    /// A ztunnel that was built with its `testing` feature (for certificates without a CA)
    #[arg(long, env = "ZTUNNEL_BIN", requires = "ztunnel_src")]
    ztunnel_bin: Option<PathBuf>,
    /// A checkout of ztunnel, for the script that redirects a pod's traffic to it
    #[arg(long, env = "ZTUNNEL_SRC", requires = "ztunnel_bin")]
    ztunnel_src: Option<PathBuf>,
    /// What it logs: with `info`, its default, a line for each connection; with `warn` none
    #[arg(long, env = "ZTUNNEL_LOG")]
    ztunnel_log: Option<String>,
}

/// What there is to run.
pub(crate) struct Ztunnel {
    binary: PathBuf,
    /// The script that redirects the traffic of the pod that it runs in.
    redirect: PathBuf,
    /// Key and certificate of the test CA that signs in place of Istio's.
    ca: [PathBuf; 2],
    /// Its `RUST_LOG`.
    log: String,
}

impl ZtunnelArgs {
    /// None if none was named. It logs like that if nothing else is asked for.
    pub(crate) fn find(&self, log: &str) -> Result<Option<Ztunnel>> {
        let (Some(binary), Some(sources)) = (&self.ztunnel_bin, &self.ztunnel_src) else {
            return Ok(None);
        };
        let source = |path: &str| absolute(&sources.join(path)).context("ZTUNNEL_SRC");
        Ok(Some(Ztunnel {
            binary: absolute(binary).context("ZTUNNEL_BIN")?,
            redirect: source("scripts/ztunnel-redirect-inpod.sh")?,
            ca: [
                source("src/tls/ca-key.pem")?,
                source("src/tls/root-cert.pem")?,
            ],
            log: self.ztunnel_log.as_deref().unwrap_or(log).to_owned(),
        }))
    }
}

impl Ztunnel {
    /// What it says of itself: the commit and how it was built.
    pub(crate) fn version(&self) -> Result<String> {
        let said = exec::read(Command::new(&self.binary).arg("version"))?;
        Ok(format!("{}, RUST_LOG={}", said.trim(), self.log))
    }

    /// Signs certificates that its peers trust.
    pub(crate) fn signer(&self) -> Result<Forger> {
        let [key, certificate] = &self.ca;
        Forger::from_files(key, certificate).context("the test CA of ZTUNNEL_SRC")
    }
}

fn absolute(path: &Path) -> Result<PathBuf> {
    fs::canonicalize(path).with_context(|| format!("looking for {}", path.display()))
}

/// The running pair.
pub(crate) struct Pair {
    apps: Vec<App>,
    /// A ztunnel lets go of its pods when this is closed.
    _agents: Vec<UnixStream>,
}

impl Pair {
    /// Process ids of both.
    pub(crate) fn pids(&self) -> Result<Vec<i32>> {
        system::pids(&self.apps)
    }
}

/// Starts a pair for the client and the server of [`NAMESPACE`], and makes sure that requests to
/// nginx on this port of the server go by way of it.
pub(crate) fn start_checked(lab: &Lab, ztunnel: &Ztunnel, port: u16) -> Result<Pair> {
    let ends = ["client", "server"].map(|name| lab.pod(&format!("{NAMESPACE}/{name}")));
    let pair = start(lab, ztunnel, &ends)?;
    let [client, server] = ends;
    let nginx = SocketAddr::new(server.v4().into(), port);
    check(lab, ends, || {
        call::http(&client.netns, nginx, "/", wait::PATIENCE).map(drop)
    })?;
    Ok(pair)
}

/// Starts one on each node, for all of these pods that are on it, and redirects the pods'
/// traffic to it.
pub(crate) fn start(lab: &Lab, ztunnel: &Ztunnel, pods: &[&Pod]) -> Result<Pair> {
    let workloads = write_workloads(lab, pods)?;
    let (mut apps, mut agents) = (Vec::new(), Vec::new());
    for node in NODES {
        let own: Vec<&Pod> = pods.iter().copied().filter(|p| p.node() == node).collect();
        let (app, agent) = start_one(lab, ztunnel, &own, &workloads)
            .with_context(|| format!("ztunnel on {}", lab.node(node).name()))?;
        apps.push(app);
        agents.push(agent);
    }
    for pod in pods {
        let redirect = pod.command("bash").root().arg(&ztunnel.redirect);
        redirect
            .output()?
            .ok()
            .with_context(|| format!("redirecting {} to ztunnel", pod.key()))?;
    }
    Ok(Pair {
        apps,
        _agents: agents,
    })
}

/// A ztunnel on one node, and the end of it that hands it pods.
pub(crate) struct Single {
    app: App,
    agent: RefCell<UnixStream>,
}

impl Single {
    /// Starts it with one pod, whose traffic is not redirected to it.
    pub(crate) fn start(lab: &Lab, ztunnel: &Ztunnel, pod: &Pod) -> Result<Self> {
        let workloads = write_workloads(lab, &[pod])?;
        let (app, agent) = start_one(lab, ztunnel, &[pod], &workloads)?;
        let agent = agent.into();
        Ok(Self { app, agent })
    }

    /// Hands it one more pod.
    pub(crate) fn add(&self, pod: &Pod) -> Result<()> {
        zds::add(&mut self.agent.borrow_mut(), pod)
            .with_context(|| format!("handing over {}: {}", pod.key(), self.app.stderr()))
    }

    /// Takes a pod from it.
    pub(crate) fn remove(&self, pod: &Pod) -> Result<()> {
        zds::remove(&mut self.agent.borrow_mut(), pod)
            .with_context(|| format!("taking {} back", pod.key()))
    }

    pub(crate) fn pid(&self) -> Result<i32> {
        Ok(self.app.pid().try_into()?)
    }
}

/// `nsenter` becomes the ztunnel, which is the node's, but goes with the first of its pods.
fn start_one(
    lab: &Lab,
    ztunnel: &Ztunnel,
    pods: &[&Pod],
    workloads: &Path,
) -> Result<(App, UnixStream)> {
    let first = pods.first().context("no pod is on this node")?;
    let node = lab.node(first.node());
    let path = lab.folder().join(format!("zds-{}.sock", node.name()));
    let agent = Agent::listen(&path)?;
    let app = first
        .command("nsenter")
        .root()
        .arg(format!("--net={}", node.netns.path().display()))
        .arg(&ztunnel.binary)
        .args(["proxy", "ztunnel"])
        .env("RUST_LOG", &ztunnel.log)
        .env("PROXY_MODE", "shared")
        .env("NODE_NAME", node.name())
        .env("INPOD_UDS", &path)
        .env("FAKE_CA", "true")
        .env("XDS_ADDRESS", "")
        .env("LOCAL_XDS_PATH", workloads)
        .env(
            "PROXY_CONFIG",
            format!("{{statsPort: {METRICS_PORT}, proxyMetadata: {{}}}}"),
        )
        .spawn()?;
    let ready = agent.hand_over(pods).and_then(|connection| {
        for pod in pods {
            pod.wait_listening(HBONE_PORT)?;
        }
        Ok(connection)
    });
    let connection = ready.with_context(|| format!("it says: {}{}", app.stdout(), app.stderr()))?;
    Ok((app, connection))
}

/// The file that tells ztunnels of pods.
fn write_workloads(lab: &Lab, pods: &[&Pod]) -> Result<PathBuf> {
    let path = lab.folder().join("ztunnel.yaml");
    let listed: String = pods.iter().map(|pod| workload(lab, pod)).collect();
    fs::write(
        &path,
        format!("policies: []\nservices: []\nworkloads:\n{listed}"),
    )?;
    Ok(path)
}

/// A pod as a ztunnel's file of workloads has it.
fn workload(lab: &Lab, pod: &Pod) -> String {
    let (name, namespace) = (pod.name(), pod.namespace());
    format!(
        "- uid: Kubernetes//v1/Pod/{namespace}/{name}\n  name: {name}\n  \
         namespace: {namespace}\n  serviceAccount: {name}\n  trustDomain: cluster.local\n  \
         workloadIps: [\"{}\"]\n  protocol: HBONE\n  node: {}\n  network: \"\"\n  \
         services: {{}}\n",
        pod.v4(),
        lab.node(pod.node()).name()
    )
}

/// Makes sure that a client's traffic to its server takes the way through: both ztunnels must
/// count what `connect` opens as in mutual TLS.
pub(crate) fn check(
    lab: &Lab,
    [client, server]: [&Pod; 2],
    connect: impl FnOnce() -> Result<()>,
) -> Result<()> {
    connect()?;
    let metrics = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), METRICS_PORT);
    let to = format!("destination_workload_namespace=\"{}\"", server.namespace());
    for pod in [client, server] {
        let node = lab.node(pod.node());
        let what = format!(
            "a connection to {} in mutual TLS in the metrics of ztunnel on {}",
            server.key(),
            node.name()
        );
        wait::until_true(&what, wait::PATIENCE, || {
            let text = call::http(&node.netns, metrics, "/metrics", wait::PATIENCE)?;
            Ok(text.lines().any(|line| {
                line.starts_with("istio_tcp_connections_opened_total{")
                    && line.contains("connection_security_policy=\"mutual_tls\"")
                    && line.contains(&to)
            }))
        })?;
    }
    Ok(())
}
