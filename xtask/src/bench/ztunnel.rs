//! A pair of ztunnels, one on each node, as Istio's ambient mesh runs them: each serves a
//! pod of its node from inside the pod's namespace.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use clap::Args;
use mesh_lab::{App, Lab, Netns, Pod, wait};

use super::zds::Agent;
use super::{HTTP_PORT, system};

/// Namespace of the pods that belong to it.
pub(crate) const NAMESPACE: &str = "ztunnel";

/// What the table is followed by where there is none.
pub(crate) const ABSENT: &str = "\
no ztunnel column: it needs ZTUNNEL_BIN (a ztunnel built with `--features testing`) and \
ZTUNNEL_SRC (a checkout of its sources)";

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
}

/// What there is to run.
pub(crate) struct Ztunnel {
    binary: PathBuf,
    redirect: PathBuf,
}

impl ZtunnelArgs {
    /// None if none was named.
    pub(crate) fn find(&self) -> Result<Option<Ztunnel>> {
        let (Some(binary), Some(sources)) = (&self.ztunnel_bin, &self.ztunnel_src) else {
            return Ok(None);
        };
        Ok(Some(Ztunnel {
            binary: absolute(binary).context("ZTUNNEL_BIN")?,
            redirect: absolute(&sources.join("scripts/ztunnel-redirect-inpod.sh"))
                .context("ZTUNNEL_SRC")?,
        }))
    }
}

fn absolute(path: &Path) -> Result<PathBuf> {
    fs::canonicalize(path).with_context(|| format!("looking for {}", path.display()))
}

/// The running pair.
pub(crate) struct Pair {
    apps: Vec<App>,
    /// A ztunnel lets go of its pod when this is closed.
    _agents: Vec<UnixStream>,
}

impl Pair {
    /// Process ids of both.
    pub(crate) fn pids(&self) -> Result<Vec<i32>> {
        system::pids(&self.apps)
    }
}

/// Starts both, redirects the pods' traffic to them, and makes sure that it takes that way.
pub(crate) fn start(lab: &Lab, ztunnel: &Ztunnel) -> Result<Pair> {
    let (client, server) = (lab.pod("ztunnel/client"), lab.pod("ztunnel/server"));
    let workloads = lab.folder().join("ztunnel.yaml");
    let listed = [client, server].map(|pod| workload(lab, pod)).concat();
    fs::write(
        &workloads,
        format!("policies: []\nservices: []\nworkloads:\n{listed}"),
    )?;
    let (mut apps, mut agents) = (Vec::new(), Vec::new());
    for pod in [client, server] {
        let path = lab.folder().join(format!("zds-{}.sock", pod.name()));
        let agent = Agent::listen(&path)?;
        let node = lab.node(pod.node());
        // `nsenter` becomes the ztunnel, which is the node's, but goes with the pod.
        let app = pod
            .command("nsenter")
            .root()
            .arg(format!("--net={}", node.netns.path().display()))
            .arg(&ztunnel.binary)
            .args(["proxy", "ztunnel"])
            // No line per connection: nginx writes none either.
            .env("RUST_LOG", "warn")
            .env("PROXY_MODE", "shared")
            .env("NODE_NAME", node.name())
            .env("INPOD_UDS", &path)
            .env("FAKE_CA", "true")
            .env("XDS_ADDRESS", "")
            .env("LOCAL_XDS_PATH", &workloads)
            .env(
                "PROXY_CONFIG",
                format!("{{statsPort: {METRICS_PORT}, proxyMetadata: {{}}}}"),
            )
            .spawn()?;
        let ready = agent.hand_over(pod).and_then(|connection| {
            pod.wait_listening(HBONE_PORT)?;
            Ok(connection)
        });
        let connection =
            ready.with_context(|| format!("ztunnel says: {}{}", app.stdout(), app.stderr()))?;
        apps.push(app);
        agents.push(connection);
        let redirect = pod.command("bash").root().arg(&ztunnel.redirect);
        redirect
            .output()?
            .ok()
            .with_context(|| format!("redirecting {} to ztunnel", pod.key()))?;
    }
    check(lab, client, server).context("the traffic does not take the way through ztunnel")?;
    Ok(Pair {
        apps,
        _agents: agents,
    })
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

/// One request, which both ztunnels must count as one in mutual TLS.
fn check(lab: &Lab, client: &Pod, server: &Pod) -> Result<()> {
    let app = SocketAddr::new(server.v4().into(), HTTP_PORT);
    get(&client.netns, app, "/")?;
    let metrics = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), METRICS_PORT);
    for pod in [client, server] {
        let node = lab.node(pod.node());
        let what = format!(
            "a connection in mutual TLS in the metrics of {}",
            node.name()
        );
        wait::until_true(&what, wait::PATIENCE, || {
            let text = get(&node.netns, metrics, "/metrics")?;
            Ok(text.lines().any(|line| {
                line.starts_with("istio_tcp_connections_opened_total{")
                    && line.contains("connection_security_policy=\"mutual_tls\"")
            }))
        })?;
    }
    Ok(())
}

fn get(netns: &Netns, from: SocketAddr, path: &str) -> Result<String> {
    let ask = || {
        let mut stream = TcpStream::connect_timeout(&from, wait::PATIENCE)?;
        stream.set_read_timeout(Some(wait::PATIENCE))?;
        write!(
            stream,
            "GET {path} HTTP/1.1\r\nHost: {from}\r\nConnection: close\r\n\r\n"
        )?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        std::io::Result::Ok(answer)
    };
    let answer = netns
        .run(ask)
        .with_context(|| format!("GET {path} from {from} in {}", netns.name()))?;
    ensure!(answer.starts_with("HTTP/1.1 200"), "{from} said: {answer}");
    Ok(answer)
}
