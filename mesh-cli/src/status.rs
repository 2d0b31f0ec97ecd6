//! `meshctl status`: the mesh's nodes, and the pods on them.

use std::time::{SystemTime, UNIX_EPOCH};

use clap::Args;
use mesh_api::admin::{NodeStatus, PodStatus, Request, Status};

use crate::control::{AskFault, ControlArgs, Output, ask};

/// Options of `status`.
#[derive(Args, Debug)]
pub(crate) struct StatusArgs {
    #[command(flatten)]
    control: ControlArgs,
}

/// Asks and prints.
pub(crate) fn status(args: &StatusArgs) -> Result<(), AskFault> {
    let request = Request::Status;
    let status = ask(&args.control.control_socket, &request, |answer| {
        answer.status
    })?;
    match args.control.output {
        Output::Text => crate::print(&text(&status, now_s())),
        Output::Json => crate::print(&crate::json(&status)),
    }
    Ok(())
}

fn now_s() -> i64 {
    let elapsed = SystemTime::now().duration_since(UNIX_EPOCH);
    elapsed.map_or(0, |d| i64::try_from(d.as_secs()).unwrap_or(i64::MAX))
}

fn text(status: &Status, now_s: i64) -> String {
    let mut text = format!(
        "mesh-control {}, state {}: {} workloads, {} services, {} policies\n",
        status.version,
        status.discovery_version,
        status.workloads,
        status.services,
        status.policies
    );
    for namespace in &status.namespaces_on_default {
        text.push_str(&format!(
            "namespace {namespace}: all enrolled pods run as the service account default; \
             give each service its own\n"
        ));
    }
    for node in &status.nodes {
        text.push_str(&format!("\n{}\n", shown_node(node)));
        let head = [
            "POD",
            "LEVEL",
            "STATE",
            "PID",
            "VERSION",
            "RESTARTS",
            "CPU",
            "MEMORY",
            "CERTIFICATE",
            "POLICY",
            "HEALTH",
        ];
        let rows: Vec<_> = node.pods.iter().map(|pod| row(pod, now_s)).collect();
        if !rows.is_empty() {
            text.push_str(&table(&head.map(str::to_owned), &rows));
        }
    }
    text
}

fn shown_node(node: &NodeStatus) -> String {
    let name = &node.name;
    let Some(report) = &node.report else {
        return format!("{name}: has not reported since mesh-control started");
    };
    let seen = match report.silent {
        true => format!(
            "silent for {} s, its last word on health stays",
            report.age_s
        ),
        false => format!("seen {} s ago", report.age_s),
    };
    let state = match (report.behind, report.discovery_version.as_str()) {
        (false, _) => "in step".to_owned(),
        (true, "") => "without discovery".to_owned(),
        (true, version) => format!("behind, at {version}"),
    };
    let clock = match report.clock_ahead_s {
        Some(ahead_s @ 0..) => format!(", its clock is {ahead_s} s ahead of control's"),
        Some(ahead_s) => format!(", its clock is {} s behind control's", -ahead_s),
        None => String::new(),
    };
    let unready = report.not_ready.as_ref();
    let unready = unready.map_or_else(String::new, |why| format!(", not ready: {why}"));
    let version = &report.version;
    format!("{name}: mesh-agent {version}, {seen}, {state}{unready}{clock}")
}

fn row(pod: &PodStatus, now_s: i64) -> [String; 11] {
    let name = format!("{}/{}", pod.namespace, pod.name);
    let level = pod.enrolment.clone();
    let none = || "-".to_owned();
    let Some(report) = &pod.report else {
        let state = "not reported".to_owned();
        return [
            name,
            level,
            state,
            none(),
            none(),
            none(),
            none(),
            none(),
            none(),
            none(),
            none(),
        ];
    };
    let or_none = |text: &str| match text {
        "" => none(),
        text => text.to_owned(),
    };
    let with = |state: &str, why: &str| match why {
        "" => state.to_owned(),
        why => format!("{state}: {why}"),
    };
    [
        name,
        level,
        with(&report.state, &report.reason),
        report.worker_pid.map_or_else(none, |pid| pid.to_string()),
        or_none(&report.worker_version),
        report.worker_restarts.to_string(),
        format!("{} s", report.worker_cpu_us / 1_000_000),
        format!("{} MiB", report.worker_memory_bytes >> 20),
        report
            .certificate_not_after_s
            .map_or_else(none, |end_s| lasting(end_s - now_s)),
        or_none(&report.policy_version),
        match report.unhealthy {
            true => with("unhealthy", &report.health_detail),
            false => "healthy".to_owned(),
        },
    ]
}

/// How long a certificate still lasts.
fn lasting(seconds: i64) -> String {
    match seconds {
        ..=0 => "expired".to_owned(),
        1..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86_400),
    }
}

/// Columns as wide as their widest cell, two spaces in front of each.
fn table<const N: usize>(head: &[String; N], rows: &[[String; N]]) -> String {
    let all = || std::iter::once(head).chain(rows);
    let width = |column: usize| all().map(|row| row[column].chars().count()).max();
    let widths: [usize; N] = std::array::from_fn(|column| width(column).unwrap_or(0));
    let mut text = String::new();
    for row in all() {
        let cells = row.iter().zip(widths);
        let line: String = cells
            .map(|(cell, width)| format!("  {cell:width$}"))
            .collect();
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn certificates_last_as_long_as_they_last() {
        for (seconds, expected) in [
            (-1, "expired"),
            (0, "expired"),
            (119, "119 s"),
            (120, "2 min"),
            (7200, "2 h"),
            (172_800, "2 d"),
        ] {
            assert_eq!(lasting(seconds), expected);
        }
    }
}
