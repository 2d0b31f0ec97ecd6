//! Kubelet's probes of enrolled pods, which are kubelet's own connections, or run inside.

use anyhow::{Result, ensure};

use super::install::text;
use crate::k8s_test::case::{Case, Verdict};
use crate::k8s_test::session::Session;

const GROUP: &str = "probes";
pub(in crate::k8s_test) const CASES: &[Case] = &[
    Case::new(
        GROUP,
        "HTTP, TCP, gRPC and exec probes of an enrolled pod succeed",
        probes_succeed,
    ),
    Case::new(
        GROUP,
        "a pod whose probe fails is not ready, and is again when it succeeds",
        probes_fail,
    ),
];

/// The pods of `deployment/web` have each kind of probe: they are ready, and none was restarted.
fn probes_succeed(session: &Session<'_>) -> Result<Verdict> {
    let shop = session.shop();
    session.rolled_out(&shop, "deployment/web")?;
    session.let_load_run();
    for pod in session.items(&["-n", &shop, "get", "pods", "-l", "app=web"])? {
        let name = text(&pod["metadata"]["name"]);
        let statuses = pod["status"]["containerStatuses"].as_array().cloned();
        for container in statuses.unwrap_or_default() {
            let told = || session.told(&shop);
            let of = text(&container["name"]);
            ensure!(
                container["ready"] == true,
                "{name}: {of} is not ready\n{}",
                told()
            );
            ensure!(
                container["restartCount"] == 0,
                "{name}: {of} was restarted\n{}",
                told()
            );
        }
    }
    Ok(Verdict::Passed)
}

/// `statefulset/db` is ready while a file is there.
fn probes_fail(session: &Session<'_>) -> Result<Verdict> {
    let shop = session.shop();
    let ready = |is: &'static str| {
        let shop = shop.clone();
        session.until(&format!("db-0 ready: {is}"), move |session| {
            let pod = session.json(&["-n", &shop, "get", "pod", "db-0"])?;
            let conditions = pod["status"]["conditions"].as_array().cloned();
            let conditions = conditions.unwrap_or_default();
            let found = conditions.iter().find(|c| c["type"] == "Ready");
            let status = found.map_or_else(String::new, |c| text(&c["status"]));
            Ok((status != is).then_some(status))
        })
    };
    ready("True")?;
    session.exec(&shop, "db-0", &["rm", "/tmp/ready"])?;
    ready("False")?;
    session.exec(&shop, "db-0", &["touch", "/tmp/ready"])?;
    ready("True")?;
    Ok(Verdict::Passed)
}
