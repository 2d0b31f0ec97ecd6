//! What was measured, on what: for the file of results.

use std::path::Path;
use std::process::Command;

use anyhow::Result;
use mesh_lab::{Lab, programs};
use serde_json::{Value, json};

use super::ways::{ENVOY, HAPROXY, MESH, Others, PEER};
use super::{BenchArgs, machine};

pub(crate) fn about(
    workspace: &Path,
    lab: &Lab,
    others: &Others,
    args: &BenchArgs,
) -> Result<Value> {
    let mut about = machine::about();
    about["congestion_control"] = lab
        .pod("mesh/client")
        .netns
        .run(|| machine::setting("/proc/sys/net/ipv4/tcp_congestion_control"))
        .into();
    // Processes that wanted to run before anything of this did.
    let load = machine::setting("/proc/loadavg");
    about["load_before"] = load.split(' ').next().unwrap_or("?").into();
    about["reps"] = args.reps.into();
    about["seconds"] = args.seconds.into();
    let mut git = Command::new("git");
    git.current_dir(workspace)
        .args(["describe", "--always", "--dirty"]);
    let mut versions = json!({
        MESH: first_line(&mut git),
        HAPROXY: of("haproxy", "-v")?,
        "nginx": of("nginx", "-v")?,
        "iperf3": of("iperf3", "--version")?,
        "wrk": of("wrk", "-v")?,
    });
    if let Some(envoy) = &others.envoy {
        // It says first where it is.
        let said = first_line(Command::new(envoy).arg("--version"));
        let version = said
            .rsplit_once("version: ")
            .map_or("?", |(_, version)| version);
        versions[ENVOY] = version.into();
    }
    if let Some(ztunnel) = &others.ztunnel {
        versions[PEER] = ztunnel.version()?.into();
    }
    about["versions"] = versions;
    Ok(about)
}

fn of(program: &str, option: &str) -> Result<String> {
    let path = programs::find(program.as_ref())?;
    Ok(first_line(Command::new(path).arg(option)))
}

/// What a program says of itself first, wherever it says it; some call that a failure.
fn first_line(command: &mut Command) -> String {
    let said = command
        .output()
        .map(|output| [output.stdout, output.stderr].concat());
    let said = String::from_utf8_lossy(&said.unwrap_or_default()).into_owned();
    let mut lines = said.lines().map(str::trim);
    lines
        .find(|line| !line.is_empty())
        .unwrap_or("?")
        .to_owned()
}
