//! What a running control component tells of its signer and its nodes.

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use mesh_api::admin::{Request, Status};

use super::{Findings, Verdict};
use crate::control::{AskFault, ask};

/// A signer that ends sooner is to be replaced.
const SOON_S: f64 = 14.0 * 86_400.0;
const SIGNER_SERIES: &str = "nodemesh_control_signer_not_after_seconds";

pub(super) fn look(socket: Option<&Path>, findings: &mut Findings) {
    let Some(socket) = socket else {
        let text = "not asked: give --control-socket, on the host or in the pod of a mesh-control";
        findings.add(Verdict::Unknown, "signer", text);
        return findings.add(Verdict::Unknown, "nodes", text);
    };
    let metrics = ask(socket, &Request::Metrics, |answer| answer.metrics);
    signer(metrics, findings);
    match ask(socket, &Request::Status, |answer| answer.status) {
        Ok(status) => nodes(&status, findings),
        Err(error) => findings.add(Verdict::Unknown, "nodes", error.to_string()),
    }
}

fn signer(metrics: Result<String, AskFault>, findings: &mut Findings) {
    let what = "signer";
    let metrics = match metrics {
        Ok(metrics) => metrics,
        Err(error) => return findings.add(Verdict::Unknown, what, error.to_string()),
    };
    let mut ends = metrics
        .lines()
        .filter(|line| line.starts_with(SIGNER_SERIES));
    let ends = ends.next().and_then(|line| line.rsplit(' ').next());
    let Some(end_s) = ends.and_then(|text| text.parse::<f64>().ok()) else {
        return findings.add(
            Verdict::Unknown,
            what,
            format!("{SIGNER_SERIES} is not told"),
        );
    };
    let now_s = SystemTime::now().duration_since(UNIX_EPOCH);
    let left_s = end_s - now_s.map_or(0.0, |now| now.as_secs_f64());
    let text = format!("its chain ends in {:.1} days", left_s / 86_400.0);
    findings.good_if(left_s > SOON_S, what, text);
}

fn nodes(status: &Status, findings: &mut Findings) {
    let mut bad = 0;
    for node in &status.nodes {
        let name = &node.name;
        let wrong = match &node.report {
            None => format!("{name} has not reported to this mesh-control"),
            Some(report) if report.silent => format!("{name} is silent for {} s", report.age_s),
            Some(report) if report.version != status.version => format!(
                "{name} has mesh-agent {}, and mesh-control is {}",
                report.version, status.version
            ),
            Some(_) => continue,
        };
        bad += 1;
        findings.add(Verdict::Bad, "nodes", wrong);
    }
    if bad == 0 {
        let text = format!(
            "{} report, all in version {}",
            status.nodes.len(),
            status.version
        );
        findings.add(Verdict::Good, "nodes", text);
    }
}
