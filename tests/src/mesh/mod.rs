//! The mesh in the lab: a demo PKI, the control component, an agent on each node; each can
//! be killed and started again.

mod agent;
mod control;
mod daemon;
mod refusals;

pub use agent::Agent;
pub(crate) use agent::Place;
pub use control::Control;
pub use daemon::Daemon;
pub use refusals::{Mark, Refusal};

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail};

/// The lab's trust domain.
pub const TRUST_DOMAIN: &str = "cluster.local";

/// The running mesh of a lab.
#[derive(Debug)]
pub struct Mesh {
    /// The control component: its first replica.
    pub control: Control,
    /// Its other replicas.
    pub more: Vec<Control>,
    /// An agent on each node, in the order of the nodes.
    pub agents: Vec<Agent>,
    /// Where root and intermediate are: `root.pem`, `root.key`, `ca-cert.pem`, `ca-key.pem`.
    pub pki: PathBuf,
}

/// Runs one of the mesh's own commands to its end.
///
/// # Errors
/// If it fails, with what it said.
pub(crate) fn run(command: &mut Command) -> Result<String> {
    let output = command
        .output()
        .with_context(|| format!("starting {}", command.get_program().display()))?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        let words = String::from_utf8_lossy(&output.stderr);
        bail!(
            "{}: {}: {}{}",
            shown(command),
            output.status,
            words.trim(),
            said.trim()
        );
    }
    Ok(said)
}

/// A command as a person would type it.
fn shown(command: &Command) -> String {
    let mut words = vec![command.get_program().to_string_lossy().into_owned()];
    words.extend(command.get_args().map(|a| a.to_string_lossy().into_owned()));
    words.join(" ")
}
