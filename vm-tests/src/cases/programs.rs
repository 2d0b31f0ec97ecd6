//! What a kernel makes of the agent's programs.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::{Case, Guest};

pub(super) const CASES: &[Case] = &[Case {
    name: "programs/every-one-is-verified",
    nodes: 1,
    kernel_args: "",
    timeout_s: 60,
    run: every_one_is_verified,
}];

/// `mesh-agent check` finds nothing missing, and each program passes the verifier; its counts
/// go into the host's table.
fn every_one_is_verified(guest: &Guest) -> Result<()> {
    let output = Command::new("mesh-agent")
        .args(["check", "--programs", "--json"])
        .output()?;
    let text = String::from_utf8(output.stdout)?;
    ensure!(
        output.status.success(),
        "mesh-agent check: {}: {}{text}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    let said: Value = serde_json::from_str(&text).with_context(|| text.clone())?;
    let programs = said["programs"]["programs"].as_array();
    let programs = programs.context("check names no programs")?;
    ensure!(!programs.is_empty(), "check names no programs: {text}");
    for program in programs {
        let verified = program["verified_instructions"].as_u64();
        ensure!(
            verified.is_some_and(|count| count > 0),
            "the verifier did not count: {program}"
        );
    }
    guest.report("check", text);
    Ok(())
}
