//! The cluster, by `kubectl` and `helm`: what an operator has, so that what fails here can be typed again.
//! A client library would be compiled into every development command for the sake of this one.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// What is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Program {
    Kubectl,
    Helm,
    /// A command of the operator's, by `sh -c`.
    Shell,
}

/// A cluster that commands are given to.
pub(super) trait Cluster {
    /// Runs a program, and gives what it printed.
    ///
    /// # Errors
    /// If it fails: the command, and what it said.
    fn run(&self, program: Program, arguments: &[&str], input: &str) -> Result<String>;
}

/// A real one.
pub(super) struct Real {
    kubeconfig: PathBuf,
    helm: PathBuf,
}

impl Real {
    /// The cluster of a kubeconfig's current context.
    pub(super) fn new(kubeconfig: &Path, helm: PathBuf) -> Self {
        Self {
            kubeconfig: kubeconfig.to_owned(),
            helm,
        }
    }
}

impl Cluster for Real {
    fn run(&self, program: Program, arguments: &[&str], input: &str) -> Result<String> {
        let mut command = match program {
            Program::Kubectl => Command::new("kubectl"),
            Program::Helm => Command::new(&self.helm),
            Program::Shell => {
                let mut shell = Command::new("sh");
                shell.arg("-c");
                shell
            }
        };
        command.args(arguments).env("KUBECONFIG", &self.kubeconfig);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let shown = || format!("{} {}", name(program), arguments.join(" "));
        let mut child = command
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("starting `{}`: is it installed?", shown()))?;
        if let Some(mut stdin) = child.stdin.take() {
            // Who does not read it says why.
            let _ = stdin.write_all(input.as_bytes());
        }
        let output = child.wait_with_output()?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        if !output.status.success() {
            let words = String::from_utf8_lossy(&output.stderr);
            bail!("`{}`: {}: {words}{said}", shown(), output.status);
        }
        Ok(said)
    }
}

fn name(program: Program) -> &'static str {
    match program {
        Program::Kubectl => "kubectl",
        Program::Helm => "helm",
        Program::Shell => "sh -c",
    }
}
