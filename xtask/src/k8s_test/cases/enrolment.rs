//! Pods are in the mesh by a label of their namespace, whatever made them.

use anyhow::{Result, ensure};
use serde_json::Value;

use super::install::text;
use super::{OUTSIDE, SHOP};
use crate::k8s_test::case::{Case, Verdict};
use crate::k8s_test::session::Session;

const GROUP: &str = "enrolment";
pub(in crate::k8s_test) const CASES: &[Case] = &[
    Case::new(
        GROUP,
        "pods of Deployments and StatefulSets are enrolled from their start on",
        from_the_start,
    )
    .needed(),
    Case::new(
        GROUP,
        "a Job's pod calls through the mesh, and ends",
        job_ends,
    ),
    Case::new(
        GROUP,
        "a running pod is enrolled without a restart, and taken out again",
        running_pods,
    ),
];

/// Pods of a namespace by name, as control tells of them: their state and why.
pub(in crate::k8s_test) fn told(
    session: &Session<'_>,
    namespace: &str,
) -> Result<Vec<(String, Value)>> {
    let status = session.status()?;
    let nodes = status["nodes"].as_array().cloned().unwrap_or_default();
    let pods = nodes.iter().flat_map(|node| {
        let pods = node["pods"].as_array().cloned().unwrap_or_default();
        pods.into_iter()
    });
    let of = pods.filter(|pod| pod["namespace"] == namespace);
    Ok(of
        .map(|pod| (text(&pod["name"]), pod["report"].clone()))
        .collect())
}

/// Waits until each pod of a namespace that runs is enrolled.
pub(in crate::k8s_test) fn all_enrolled(session: &Session<'_>, namespace: &str) -> Result<()> {
    session.until(&format!("pods of {namespace} enrolled"), |session| {
        let told = told(session, namespace)?;
        for name in running(session, namespace)? {
            let report = told.iter().find(|(known, _)| *known == name);
            let state = report.map_or_else(String::new, |(_, r)| text(&r["state"]));
            if state != "enrolled" {
                let why = report.map_or_else(String::new, |(_, r)| text(&r["reason"]));
                return Ok(Some(format!("{name} is {state:?}: {why}")));
            }
        }
        Ok(None)
    })
}

/// Names of the pods of a namespace that run.
fn running(session: &Session<'_>, namespace: &str) -> Result<Vec<String>> {
    let pods = session.items(&["-n", namespace, "get", "pods"])?;
    let running = pods.iter().filter(|pod| {
        pod["status"]["phase"] == "Running" && pod["metadata"]["deletionTimestamp"].is_null()
    });
    Ok(running.map(|pod| text(&pod["metadata"]["name"])).collect())
}

fn from_the_start(session: &Session<'_>) -> Result<Verdict> {
    session.apply(SHOP)?;
    let shop = session.shop();
    for what in [
        "deployment/web",
        "deployment/client",
        "deployment/other",
        "statefulset/db",
    ] {
        session.rolled_out(&shop, what)?;
    }
    all_enrolled(session, &shop)?;
    let pods = running(session, &shop)?.len();
    ensure!(pods >= 6, "{pods} pods run, and 6 were asked for");
    Ok(Verdict::Passed)
}

fn job_ends(session: &Session<'_>) -> Result<Verdict> {
    let shop = session.shop();
    let timeout = format!("--timeout={}s", session.settings.patience.as_secs());
    let wait = [
        "-n",
        &shop,
        "wait",
        "--for=condition=complete",
        "job/batch",
        &timeout,
    ];
    match session.kubectl(&wait) {
        Ok(_) => Ok(Verdict::Passed),
        Err(error) => {
            let log = session.kubectl(&["-n", &shop, "logs", "job/batch", "--tail=20"]);
            let log = log.unwrap_or_else(|error| format!("{error:#}"));
            Err(error
                .context(format!("its log:\n{log}"))
                .context(session.told(&shop)))
        }
    }
}

fn running_pods(session: &Session<'_>) -> Result<Verdict> {
    session.apply(OUTSIDE)?;
    let outside = session.outside();
    session.rolled_out(&outside, "deployment/quiet")?;
    let lives = |session: &Session<'_>| -> Result<Vec<(String, i64)>> {
        let selected = ["-n", &outside, "get", "pods", "-l", "app=quiet"];
        let pods = session.items(&selected)?;
        let life = |pod: &Value| {
            let restarts = &pod["status"]["containerStatuses"][0]["restartCount"];
            (
                text(&pod["metadata"]["uid"]),
                restarts.as_i64().unwrap_or(0),
            )
        };
        Ok(pods.iter().map(life).collect())
    };
    let before = lives(session)?;
    session.kubectl(&["label", "namespace", &outside, "nodemesh.dev/enroll=true"])?;
    all_enrolled(session, &outside)?;
    ensure!(
        lives(session)? == before,
        "pods were restarted to be enrolled"
    );
    session.kubectl(&["label", "namespace", &outside, "nodemesh.dev/enroll-"])?;
    session.until("pods taken out", |session| {
        let told = told(session, &outside)?;
        let left = told
            .into_iter()
            .find(|(_, report)| report["state"] == "enrolled");
        Ok(left.map(|(name, _)| format!("{name} is enrolled")))
    })?;
    ensure!(
        lives(session)? == before,
        "pods were restarted to be taken out"
    );
    Ok(Verdict::Passed)
}
