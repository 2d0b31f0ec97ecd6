//! Who may call whom, by the identity that a service account gives.

use anyhow::{Result, ensure};

use crate::k8s_test::case::{Case, Verdict};
use crate::k8s_test::session::Session;

const GROUP: &str = "policy";
pub(in crate::k8s_test) const CASES: &[Case] = &[
    Case::new(
        GROUP,
        "the identities that are allowed get through, of a Deployment and of a StatefulSet",
        allowed,
    ),
    Case::new(
        GROUP,
        "another service account of the same namespace is refused",
        another_account,
    ),
    Case::new(GROUP, "a caller outside of the mesh is refused", outsider),
    Case::new(
        GROUP,
        "meshctl why names the rule that is missing, and adding it lets the call through",
        edited,
    ),
];

/// Calls the web server: the answer's status, or why there is none.
fn call(session: &Session<'_>, namespace: &str, place: &str) -> Result<String> {
    let url = format!("http://web.{}/hostname", session.shop());
    let said = session.exec(
        namespace,
        place,
        &[
            "sh",
            "-c",
            // curl fails where it is refused, which is an answer here.
            &format!("curl -s -o /dev/null -m 10 -w '%{{http_code}} %{{errormsg}}' {url} || true"),
        ],
    )?;
    Ok(said.trim().to_owned())
}

/// Waits until a call gets through, or does not.
fn becomes(session: &Session<'_>, namespace: &str, place: &str, through: bool) -> Result<()> {
    let what = if through { "through" } else { "refused" };
    session.until(
        &format!("a call from {place} of {namespace} {what}"),
        |session| {
            let said = call(session, namespace, place)?;
            let is_so = said.starts_with("200") == through;
            Ok((!is_so).then_some(said))
        },
    )
}

fn allowed(session: &Session<'_>) -> Result<Verdict> {
    let shop = session.shop();
    for place in ["deployment/client", "statefulset/db"] {
        becomes(session, &shop, place, true)?;
    }
    Ok(Verdict::Passed)
}

fn another_account(session: &Session<'_>) -> Result<Verdict> {
    let shop = session.shop();
    becomes(session, &shop, "deployment/other", false)?;
    // And stays so.
    for _ in 0..5 {
        let said = call(session, &shop, "deployment/other")?;
        ensure!(!said.starts_with("200"), "it got through: {said}");
    }
    Ok(Verdict::Passed)
}

fn outsider(session: &Session<'_>) -> Result<Verdict> {
    let outside = session.outside();
    session.rolled_out(&outside, "deployment/caller")?;
    for _ in 0..5 {
        let said = call(session, &outside, "deployment/caller")?;
        ensure!(!said.starts_with("200"), "it got through: {said}");
    }
    Ok(Verdict::Passed)
}

fn edited(session: &Session<'_>) -> Result<Verdict> {
    let shop = session.shop();
    let pods = session.items(&["-n", &shop, "get", "pods", "-l", "app=other"])?;
    let Some(name) = pods
        .first()
        .and_then(|pod| pod["metadata"]["name"].as_str())
    else {
        anyhow::bail!("no pod of deployment/other");
    };
    // Its exit status says that the call would be refused.
    let why = session.meshctl(&[
        "why",
        &format!("{shop}/{name}"),
        &format!("svc/{shop}/web:80"),
    ]);
    let why = why.unwrap_or_else(|error| format!("{error:#}"));
    ensure!(
        why.contains("kind: AuthorizationPolicy"),
        "meshctl why does not name what is missing: {why}"
    );
    session.apply(include_str!("../objects/other-too.yaml"))?;
    becomes(session, &shop, "deployment/other", true)?;
    session.kubectl(&["-n", &shop, "delete", "nmauthz", "other-too"])?;
    becomes(session, &shop, "deployment/other", false)?;
    Ok(Verdict::Passed)
}
