//! A ztunnel as one node's data plane, in place of an agent: it gets its certificates, its
//! workloads and its policies from control, with a token.

use std::fs;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};

use crate::app::App;
use crate::lab::Lab;
use crate::pod::Pod;
use crate::zds;

/// Port of HBONE, in the pods.
const HBONE_PORT: u16 = 15_008;
/// Its name in control's certificate.
const CONTROL_NAME: &str = "nodemesh-control";

/// A ztunnel to run, and the script that redirects a pod's traffic to it.
#[derive(Debug)]
pub struct Program {
    binary: PathBuf,
    redirect: PathBuf,
}

impl Program {
    /// The one that `ZTUNNEL_BIN` and `ZTUNNEL_SRC` (a checkout of its sources) name.
    ///
    /// # Errors
    /// If one of them is not set, or names nothing.
    pub fn from_env() -> Result<Self> {
        let path = |name: &str| {
            let given = std::env::var_os(name).with_context(|| format!("{name} is not set"))?;
            fs::canonicalize(&given).with_context(|| format!("{name}: {}", given.display()))
        };
        let redirect = path("ZTUNNEL_SRC")?.join("scripts/ztunnel-redirect-inpod.sh");
        ensure!(redirect.is_file(), "ZTUNNEL_SRC: no {}", redirect.display());
        Ok(Self {
            binary: path("ZTUNNEL_BIN")?,
            redirect,
        })
    }
}

/// A running one. It lets go of its pods when it is dropped.
#[derive(Debug)]
pub struct Ztunnel {
    app: App,
    _agent: UnixStream,
}

impl Ztunnel {
    /// Starts it on the node of these pods, which no agent serves, and hands it the pods.
    ///
    /// # Errors
    /// With what it said, if it does not come to serve them.
    pub fn start(lab: &Lab, program: &Program, pods: &[&Pod]) -> Result<Self> {
        let first = pods.first().context("a ztunnel without pods")?;
        let node = lab.node(first.node());
        let mesh = lab.mesh.as_ref().context("the mesh is not running")?;
        let token = lab.folder().join(format!("{}.token", node.name()));
        fs::write(&token, lab.control().reusable_token(node.name())?)?;
        let path = lab.folder().join(format!("zds-{}.sock", node.name()));
        let agent = zds::Agent::listen(&path)?;
        let root = mesh.pki.join("root.pem");
        let control = lab.control().url();
        // `nsenter` becomes the ztunnel, which is the node's, but goes with the first of its pods.
        let mut command = first
            .command("nsenter")
            .root()
            .arg(format!("--net={}", node.netns.path().display()))
            .arg(&program.binary)
            .args(["proxy", "ztunnel"])
            .env("PROXY_MODE", "shared")
            .env("NODE_NAME", node.name())
            // The node's agent has ztunnel's own port.
            .env(
                "PROXY_CONFIG",
                r#"{"statsPort": 15090, "proxyMetadata": {}}"#,
            )
            .env("CLUSTER_ID", "Kubernetes")
            .env("INPOD_UDS", &path)
            .env("AUTH_TOKEN", &token);
        for service in ["XDS", "CA"] {
            command = command
                .env(&format!("{service}_ADDRESS"), &control)
                .env(&format!("{service}_ROOT_CA"), &root)
                .env(&format!("ALT_{service}_HOSTNAME"), CONTROL_NAME);
        }
        let app = command.spawn()?;
        let ready = agent.hand_over(pods).and_then(|connection| {
            for pod in pods {
                pod.wait_listening(HBONE_PORT)?;
            }
            Ok(connection)
        });
        let connection =
            ready.with_context(|| format!("ztunnel says: {}{}", app.stdout(), app.stderr()))?;
        for pod in pods {
            let redirect = pod.command("bash").root().arg(&program.redirect);
            let redirected = redirect.output()?.ok();
            redirected.with_context(|| format!("redirecting {} to ztunnel", pod.key()))?;
        }
        Ok(Self {
            app,
            _agent: connection,
        })
    }

    /// What it has logged.
    #[must_use]
    pub fn log(&self) -> String {
        format!("{}{}", self.app.stdout(), self.app.stderr())
    }
}
