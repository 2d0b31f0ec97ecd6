//! Many policies, put in force and taken away.

use std::time::Duration;

use anyhow::{Context, Result};
use mesh_lab::{Lab, manifest, wait};
use serde_json::Value;

/// Their file.
const MANIFEST: &str = "bench-policies";
/// How long some thousand may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// Policies of a namespace that allow what nobody is.
pub(crate) struct Policies<'a> {
    lab: &'a Lab,
    /// How many others there are.
    others: u64,
}

impl<'a> Policies<'a> {
    /// Writes so many, and waits until they are in force on both nodes.
    pub(crate) fn put(lab: &'a Lab, namespace: &str, count: u32) -> Result<Self> {
        let policy = |number: u32| {
            // Of 172.16.0.0/12, which no lab has.
            let [_, a, b, c] = (number | 0x10_0000).to_be_bytes();
            let rule = format!("{{peers: [{{cidr: 172.{a}.{b}.{c}/32}}]}}");
            let spec = format!("{{direction: Inbound, action: Allow, rules: [{rule}]}}");
            manifest::authorization(&format!("{namespace}/bench-{number}"), &spec)
        };
        let (others, _) = known(lab, 0)?;
        let policies = Self { lab, others };
        if count > 0 {
            let all: Vec<String> = (0..count).map(policy).collect();
            lab.write_manifest(MANIFEST, &all.join("---\n"))?;
            policies.wait(others + u64::from(count))?;
        }
        Ok(policies)
    }

    /// Takes them away, and waits until they are gone.
    pub(crate) fn remove(self) -> Result<()> {
        if known(self.lab, 0)?.0 > self.others {
            self.lab.remove_manifest(MANIFEST)?;
        }
        self.wait(self.others)
    }

    fn wait(&self, count: u64) -> Result<()> {
        let what = format!("{count} policies in force on both nodes");
        wait::until_true(&what, PATIENCE, || {
            let both = [known(self.lab, 0)?, known(self.lab, 1)?];
            Ok(both.iter().all(|end| *end == (count, true)))
        })
    }
}

/// How many policies a node knows, and whether its pods have in force what it knows.
fn known(lab: &Lab, node: usize) -> Result<(u64, bool)> {
    let status = lab.agent(node).status()?;
    let count = status["control"]["policies"].as_u64();
    let version = &status["control"]["discovery_version"];
    let pods = status["pods"].as_array().into_iter().flatten();
    let mut enrolled = pods.filter(|pod| pod["worker_pid"].is_number());
    let current = enrolled.all(|pod: &Value| pod["policy_version"] == *version);
    let count = count.with_context(|| format!("no policies: {status}"))?;
    Ok((count, current))
}
