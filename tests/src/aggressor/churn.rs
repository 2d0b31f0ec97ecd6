//! Work that a tenant makes for control and supervisors.

use std::time::Instant;

use anyhow::Result;

use crate::lab::Lab;
use crate::manifest;
use crate::pod::Pod;

/// Rules of the large policy.
const RULES: u16 = 2_000;

/// Writes a large policy of a tenant's namespace again and again, each time another one. It
/// allows what nobody is. Returns how often.
///
/// # Errors
/// If a manifest can't be written.
pub fn policies(lab: &Lab, tenant: &str, end: Instant) -> Result<u64> {
    let mut times = 0;
    while Instant::now() < end {
        let rule = |number: u16| {
            let [high, low] = number.to_be_bytes();
            format!("{{peers: [{{cidr: 10.{high}.{low}.{}/32}}]}}", times % 256)
        };
        let rules: Vec<String> = (0..RULES).map(rule).collect();
        let spec = format!(
            "{{direction: Inbound, action: Allow, rules: [{}]}}",
            rules.join(", ")
        );
        let policy = manifest::authorization(&format!("{tenant}/churn"), &spec);
        lab.write_manifest("churn", &policy)?;
        times += 1;
    }
    lab.remove_manifest("churn")?;
    Ok(times)
}

/// Takes a pod out of the mesh and puts it in again, each time with a new key and
/// certificate. Returns how often.
///
/// # Errors
/// With the agent's reason.
pub fn enrolments(lab: &Lab, pod: &Pod, end: Instant) -> Result<u64> {
    let agent = lab.agent(pod.node());
    let mut times = 0;
    while Instant::now() < end {
        agent.remove_pod(pod)?;
        agent.add_pod(pod)?;
        times += 1;
    }
    Ok(times)
}
