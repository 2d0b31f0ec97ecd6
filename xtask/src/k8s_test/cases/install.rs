//! The chart is installed, as docs/OPERATING.md says it.

use anyhow::{Result, ensure};
use serde_json::Value;

use crate::k8s_test::case::{Case, Verdict};
use crate::k8s_test::session::{AGENTS, CONTROL, MARK, Session, TAINT};

const GROUP: &str = "install";
pub(in crate::k8s_test) const CASES: &[Case] = &[
    Case::new(
        GROUP,
        "the chart installs, control and agents roll out",
        rolls_out,
    )
    .needed(),
    Case::new(
        GROUP,
        "every node's agent is ready, and has what control serves",
        agents_are_ready,
    )
    .needed(),
    Case::new(
        GROUP,
        "agents may do nothing at the API server, control no more than is written down",
        rights,
    ),
];

fn rolls_out(session: &Session<'_>) -> Result<Verdict> {
    let settings = &session.settings;
    // Both namespaces are the run's own, marked before anything is in them.
    for (namespace, level) in [(CONTROL, "restricted"), (AGENTS, "privileged")] {
        session.kubectl(&["create", "namespace", namespace])?;
        session.kubectl(&[
            "label",
            "namespace",
            namespace,
            &format!("{MARK}={}", settings.run),
            &format!("pod-security.kubernetes.io/enforce={level}"),
        ])?;
    }
    let pki = &settings.pki;
    session.kubectl(&[
        "-n",
        CONTROL,
        "create",
        "secret",
        "tls",
        "nodemesh-signer",
        &format!("--cert={pki}/ca-cert.pem"),
        &format!("--key={pki}/ca-key.pem"),
    ])?;
    session.helm(&install(session, "install", &[]).as_strs())?;
    session.rolled_out(CONTROL, "deployment/nodemesh-control")?;
    session.rolled_out(AGENTS, "daemonset/nodemesh-agent")?;
    Ok(Verdict::Passed)
}

/// A command line.
pub(in crate::k8s_test) struct Words(Vec<String>);

impl Words {
    pub(in crate::k8s_test) fn as_strs(&self) -> Vec<&str> {
        self.0.iter().map(String::as_str).collect()
    }
}

/// `helm install` or `upgrade` of the chart, with more values.
pub(in crate::k8s_test) fn install(session: &Session<'_>, verb: &str, more: &[&str]) -> Words {
    let settings = &session.settings;
    let mut words = vec![verb, "nodemesh", &settings.chart, "--namespace", CONTROL];
    let repository = format!("image.repository={}", settings.repository);
    let root = format!("trust.rootPem={}/root.pem", settings.pki);
    let taint = format!("startupTaint={TAINT}");
    words.extend(["--set-file", &root]);
    let values = [
        repository.as_str(),
        "signer.secretName=nodemesh-signer",
        "agent.createNamespace=false",
        &taint,
    ];
    let own = settings.values.iter().map(String::as_str);
    for value in values.into_iter().chain(own).chain(more.iter().copied()) {
        words.extend(["--set", value]);
    }
    Words(words.into_iter().map(str::to_owned).collect())
}

fn agents_are_ready(session: &Session<'_>) -> Result<Verdict> {
    let pods = session.items(&["-n", AGENTS, "get", "pods"])?;
    let mut nodes: Vec<String> = pods.iter().map(|p| text(&p["spec"]["nodeName"])).collect();
    nodes.sort();
    ensure!(
        !nodes.is_empty(),
        "no agent is scheduled: the DaemonSet's nodeSelector fits no node"
    );
    session.until("agents ready and in step", |session| {
        let status = session.status()?;
        let told = status["nodes"].as_array().cloned().unwrap_or_default();
        for node in &nodes {
            let Some(told) = told.iter().find(|told| told["name"] == node.as_str()) else {
                return Ok(Some(format!("node {node} has not reported")));
            };
            let report = &told["report"];
            if report.is_null() || report["silent"] == true {
                return Ok(Some(format!("node {node} has not reported, or is silent")));
            }
            if let Some(why) = report["not_ready"].as_str() {
                return Ok(Some(format!("node {node} is not ready: {why}")));
            }
            if report["behind"] == true {
                return Ok(Some(format!("node {node} is behind")));
            }
        }
        Ok(None)
    })?;
    Ok(Verdict::Passed)
}

/// A text of an object, empty where there is none.
pub(in crate::k8s_test) fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn rights(session: &Session<'_>) -> Result<Verdict> {
    let agent = format!("--as=system:serviceaccount:{AGENTS}:nodemesh-agent");
    let control = format!("--as=system:serviceaccount:{CONTROL}:nodemesh-control");
    for (account, verb, resource) in [
        (&agent, "patch", "nodes"),
        (&agent, "list", "pods"),
        (&agent, "get", "secrets"),
        (&control, "get", "secrets"),
        (&control, "get", "configmaps"),
        (&control, "patch", "pods"),
        (&control, "delete", "nodes"),
    ] {
        let ask = ["auth", "can-i", verb, resource, "--all-namespaces", account];
        // A no is a failure of kubectl, with that word in a line of its own.
        match session.kubectl(&ask) {
            Ok(said) => anyhow::bail!("{account} may {verb} {resource}: {said}"),
            Err(error) => {
                let said = format!("{error:#}");
                let last = said.trim_end().rsplit([' ', '\n']).next();
                ensure!(
                    last == Some("no"),
                    "can't tell if {account} may {verb} {resource}: {said}"
                );
            }
        }
    }
    // What a role can't say the policy of admission does.
    let Some(node) = session.items(&["get", "nodes"])?.into_iter().next() else {
        return Ok(Verdict::NotHere("the cluster shows no node".to_owned()));
    };
    let node = text(&node["metadata"]["name"]);
    let label = r#"{"metadata":{"labels":{"nodemesh.dev/k8s-test-forged":"1"}}}"#;
    let patch = [
        "patch",
        "node",
        &node,
        "--type=merge",
        "--dry-run=server",
        "-p",
        label,
        &control,
    ];
    match session.kubectl(&patch) {
        Ok(_) => anyhow::bail!("control may label node {node}"),
        Err(error) => {
            let said = format!("{error:#}");
            ensure!(
                said.contains("mesh-control may"),
                "refused, but not by the policy: {said}"
            );
        }
    }
    Ok(Verdict::Passed)
}
