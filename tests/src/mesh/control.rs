//! The control component.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::daemon::Daemon;
use super::{TRUST_DOMAIN, run};
use crate::cgroup::Cgroup;
use crate::node::Host;
use crate::{pod, programs, wait};

/// Port of its first replica; the others have those after it.
const PORT: u16 = 15012;

/// A running `mesh-control`.
#[derive(Debug)]
pub struct Control {
    /// The process.
    pub daemon: Daemon,
    /// The manifests it watches.
    pub manifests: PathBuf,
    state: PathBuf,
    tokens: PathBuf,
    address: SocketAddr,
}

impl Control {
    /// The replica of this number, from 0.
    pub(crate) fn new(
        replica: u16,
        host: &Host,
        pki: &Path,
        manifests: &Path,
        cgroup: Cgroup,
    ) -> Result<Self> {
        let name = match replica {
            0 => "mesh-control".to_owned(),
            n => format!("mesh-control-{n}"),
        };
        let state = host.folder.join(format!("state-{replica}"));
        let tokens = host.folder.join("tokens");
        fs::create_dir_all(&state)?;
        let address = SocketAddr::from((host.v4(), PORT + replica));
        let file = |name: &str| pki.join(name).display().to_string();
        let mut arguments = vec!["run".to_owned()];
        for (option, value) in [
            ("--manifests", manifests.display().to_string()),
            ("--state-dir", state.display().to_string()),
            ("--token-dir", tokens.display().to_string()),
            ("--trust-domain", TRUST_DOMAIN.to_owned()),
            ("--ca-cert", file("ca-cert.pem")),
            ("--ca-key", file("ca-key.pem")),
            ("--root", file("root.pem")),
            ("--listen", address.to_string()),
        ] {
            arguments.extend([option.to_owned(), value]);
        }
        Ok(Self {
            daemon: Daemon::new(
                &name,
                programs::mesh_binary("mesh-control")?,
                arguments,
                host.folder.join(format!("{name}.log")),
                cgroup,
            ),
            manifests: manifests.to_owned(),
            state,
            tokens,
            address,
        })
    }

    /// Starts it (again) and waits until it listens.
    ///
    /// # Errors
    /// If it ends, or does not listen in time; with the end of its log.
    pub fn start(&mut self, host: &Host) -> Result<()> {
        self.daemon.start(&host.netns)?;
        let port = self.address.port();
        self.daemon
            .wait_until("mesh-control listening", wait::PATIENCE, || {
                Ok(pod::listening_ports(&host.netns)?.contains(&port))
            })
    }

    /// A command of `meshctl` that asks this component.
    ///
    /// # Errors
    /// If it isn't built.
    pub fn meshctl(&self, arguments: &[&str]) -> Result<Command> {
        let mut command = Command::new(programs::mesh_binary("meshctl")?);
        command.args(arguments).arg("--control-socket");
        command.arg(self.state.join("control.sock"));
        Ok(command)
    }

    /// What `meshctl status` says.
    ///
    /// # Errors
    /// With what it said, if it fails.
    pub fn status(&self) -> Result<String> {
        run(&mut self.meshctl(&["status"])?)
    }

    /// What `meshctl why` says of TCP from there to there.
    ///
    /// # Errors
    /// If it can't tell; a flow that would be refused is no error.
    pub fn why(&self, source: &str, to: &str) -> Result<String> {
        self.why_with(&[source, to])
    }

    /// What `meshctl why --protocol udp` says, as [`Self::why`].
    ///
    /// # Errors
    /// As [`Self::why`].
    pub fn why_udp(&self, source: &str, to: &str) -> Result<String> {
        self.why_with(&[source, to, "--protocol", "udp"])
    }

    fn why_with(&self, arguments: &[&str]) -> Result<String> {
        let arguments = [&["why"], arguments].concat();
        let output = self.meshctl(&arguments)?.output()?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let words = String::from_utf8_lossy(&output.stderr);
        ensure!(
            !said.is_empty(),
            "meshctl {}: {}",
            arguments.join(" "),
            words.trim()
        );
        Ok(said)
    }

    /// Where agents find it.
    #[must_use]
    pub fn url(&self) -> String {
        format!("https://{}", self.address)
    }

    /// The same, as agents report it.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// A new join token, single-use.
    ///
    /// # Errors
    /// With what `mesh-control token create` said.
    pub fn token(&self, node: &str) -> Result<String> {
        self.new_token(node, &[])
    }

    /// A new token with which a client calls for a node, as often as it wants to.
    ///
    /// # Errors
    /// As [`Self::token`].
    pub fn reusable_token(&self, node: &str) -> Result<String> {
        self.new_token(node, &["--reusable"])
    }

    fn new_token(&self, node: &str, more: &[&str]) -> Result<String> {
        let mut command = Command::new(self.daemon.program());
        command.args(["token", "create", "--token-dir"]);
        command.arg(&self.tokens).args(["--node", node]).args(more);
        Ok(run(&mut command)
            .with_context(|| format!("creating a token for {node}"))?
            .trim()
            .to_owned())
    }
}
