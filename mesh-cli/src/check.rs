//! `meshctl check`: whether a cluster has what the mesh needs, as far as it can be seen from here.

mod control;
mod install;

use std::fmt::Write as _;
use std::path::PathBuf;

use anyhow::Result;
use clap::Args;

use crate::cluster::ClusterArgs;

/// Options of `check`.
#[derive(Args, Debug)]
pub(crate) struct CheckArgs {
    #[command(flatten)]
    cluster: ClusterArgs,
    /// Also ask this mesh-control, by its admin socket: control.sock in its --state-dir
    #[arg(long, value_name = "PATH")]
    control_socket: Option<PathBuf>,
}

/// What was found out about one thing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Good,
    /// It can't be seen from here.
    Unknown,
    Bad,
}

/// All that was found out.
#[derive(Debug, Default)]
struct Findings(Vec<(Verdict, &'static str, String)>);

impl Findings {
    fn add(&mut self, verdict: Verdict, what: &'static str, text: impl Into<String>) {
        self.0.push((verdict, what, text.into()));
    }

    fn good_if(&mut self, good: bool, what: &'static str, text: impl Into<String>) {
        let verdict = if good { Verdict::Good } else { Verdict::Bad };
        self.add(verdict, what, text);
    }

    fn text(&self) -> String {
        let mut text = String::new();
        for (verdict, what, why) in &self.0 {
            let shown = match verdict {
                Verdict::Good => "good",
                Verdict::Unknown => "unknown",
                Verdict::Bad => "BAD",
            };
            // Writing to a text does not fail.
            let _ = writeln!(text, "{shown:8} {what}: {why}");
        }
        text
    }
}

/// Looks; returns what there is to say, and whether nothing is bad.
pub(crate) fn check(args: &CheckArgs) -> Result<(String, bool)> {
    let mut findings = args.cluster.run(async |client| {
        let mut findings = Findings::default();
        install::look(&client, &mut findings).await;
        Ok(findings)
    })?;
    control::look(args.control_socket.as_deref(), &mut findings);
    let good = findings
        .0
        .iter()
        .all(|(verdict, ..)| *verdict != Verdict::Bad);
    Ok((findings.text(), good))
}
