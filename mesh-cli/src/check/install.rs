//! What the API server tells of an install.

use kube::Client;
use kube::api::DynamicObject;
use mesh_api::kinds::{GROUP, OWN_KINDS, VERSION};
use serde_json::Value;

use super::{Findings, Verdict};
use crate::cluster::{all, list};

/// Label of all that is installed.
const OURS: &str = "app.kubernetes.io/part-of=nodemesh";
const VERSION_LABEL: &str = "app.kubernetes.io/version";
/// Policies of admission are stable from this minor version on.
const LEAST_MINOR: u32 = 30;

pub(super) async fn look(client: &Client, findings: &mut Findings) {
    server(client, findings).await;
    definitions(client, findings).await;
    encryption(client, findings).await;
    control(client, findings).await;
    agents(client, findings).await;
    objects(client, findings).await;
}

async fn server(client: &Client, findings: &mut Findings) {
    let what = "API server";
    match client.apiserver_version().await {
        Ok(info) => {
            let digits = info.minor.trim_end_matches(|c: char| !c.is_ascii_digit());
            let minor = digits.parse::<u32>().unwrap_or(0);
            let recent = info.major != "1" || minor >= LEAST_MINOR;
            let text = format!("{} (1.{LEAST_MINOR} or later is needed)", info.git_version);
            findings.good_if(recent, what, text);
        }
        Err(error) => findings.add(Verdict::Bad, what, format!("can't be asked: {error}")),
    }
}

async fn definitions(client: &Client, findings: &mut Findings) {
    let api = all(
        client,
        "apiextensions.k8s.io",
        "v1",
        "CustomResourceDefinition",
        "customresourcedefinitions",
    );
    for kind in OWN_KINDS {
        let name = format!("{}.{GROUP}", kind.plural);
        let definition = match api.get_opt(&name).await {
            Ok(Some(definition)) => definition,
            Ok(None) => {
                let text = format!(
                    "{name} is not installed: mesh-control definitions | kubectl apply -f -"
                );
                findings.add(Verdict::Bad, "definitions", text);
                continue;
            }
            Err(error) => {
                findings.add(Verdict::Unknown, "definitions", format!("{name}: {error}"));
                continue;
            }
        };
        let own = env!("CARGO_PKG_VERSION");
        let version = label(&definition, VERSION_LABEL);
        let text = match version == own {
            true => format!("{name} of version {own}"),
            false => format!(
                "{name} is of version {version:?}, and this meshctl of {own}: apply the definitions of the mesh-control that runs"
            ),
        };
        findings.good_if(version == own, "definitions", text);
        let stored = &definition.data["status"]["storedVersions"];
        let older = stored.as_array().into_iter().flatten();
        let older: Vec<_> = older.filter(|stored| *stored != VERSION).collect();
        if !older.is_empty() {
            let text = format!(
                "{name} has objects stored in {older:?} too: write them anew (meshctl backup, meshctl restore)"
            );
            findings.add(Verdict::Bad, "definitions", text);
        }
    }
}

/// The store's encryption is the API server's own affair; what shows of it is how the server was
/// started, where its pods can be read.
async fn encryption(client: &Client, findings: &mut Findings) {
    let what = "encryption at rest";
    let api = all(client, "", "v1", "Pod", "pods");
    let pods = list(&api, "component=kube-apiserver")
        .await
        .unwrap_or_default();
    if pods.is_empty() {
        let text = "no pods of kube-apiserver can be read here; ask whoever runs the control plane";
        return findings.add(Verdict::Unknown, what, text);
    }
    for pod in pods {
        let name = pod.metadata.name.clone().unwrap_or_default();
        let configured = pod.data["spec"]["containers"]
            .as_array()
            .into_iter()
            .flatten()
            .flat_map(|container| [&container["command"], &container["args"]])
            .filter_map(Value::as_array)
            .flatten()
            .filter_map(Value::as_str)
            .any(|argument| argument.starts_with("--encryption-provider-config"));
        match configured {
            true => findings.add(
                Verdict::Unknown,
                what,
                format!("{name} has an --encryption-provider-config; whether that covers *.{GROUP} and secrets can't be seen from here"),
            ),
            false => findings.add(
                Verdict::Bad,
                what,
                format!("{name} runs without --encryption-provider-config: the mesh's objects, and a signer in a Secret, are in its store in clear"),
            ),
        }
    }
}

async fn control(client: &Client, findings: &mut Findings) {
    let what = "mesh-control";
    let api = all(client, "apps", "v1", "Deployment", "deployments");
    let found = match list(&api, OURS).await {
        Ok(found) => found,
        Err(error) => return findings.add(Verdict::Unknown, what, error.to_string()),
    };
    if found.is_empty() {
        let text =
            format!("no Deployment with label {OURS}: it is not installed, or runs elsewhere");
        return findings.add(Verdict::Unknown, what, text);
    }
    for deployment in found {
        let wanted = deployment.data["spec"]["replicas"].as_u64().unwrap_or(1);
        let ready = deployment.data["status"]["readyReplicas"]
            .as_u64()
            .unwrap_or(0);
        let mut text = format!(
            "{}: {ready} of {wanted} replicas are ready",
            named(&deployment)
        );
        if wanted < 2 {
            text.push_str("; with one, nothing new is signed or told while it is away");
        }
        findings.good_if(ready == wanted && wanted >= 2, what, text);
        versions(&deployment, what, findings);
    }
}

async fn agents(client: &Client, findings: &mut Findings) {
    let what = "mesh-agent";
    let api = all(client, "apps", "v1", "DaemonSet", "daemonsets");
    let found = match list(&api, OURS).await {
        Ok(found) => found,
        Err(error) => return findings.add(Verdict::Unknown, what, error.to_string()),
    };
    for agents in found {
        let number = |field: &str| agents.data["status"][field].as_u64().unwrap_or(0);
        let (wanted, ready) = (number("desiredNumberScheduled"), number("numberReady"));
        let updated = number("updatedNumberScheduled");
        let text = format!(
            "{}: ready on {ready} of {wanted} nodes, up to date on {updated}",
            named(&agents)
        );
        findings.good_if(ready == wanted && updated == wanted, what, text);
        versions(&agents, what, findings);
    }
}

fn versions(object: &DynamicObject, what: &'static str, findings: &mut Findings) {
    let (own, version) = (env!("CARGO_PKG_VERSION"), label(object, VERSION_LABEL));
    if version != own {
        let text = format!(
            "{} is of version {version:?}, and this meshctl of {own}",
            named(object)
        );
        findings.add(Verdict::Bad, what, text);
    }
}

/// What the mesh's own objects say of themselves.
async fn objects(client: &Client, findings: &mut Findings) {
    let what = "objects";
    for kind in OWN_KINDS {
        let api = all(client, GROUP, VERSION, kind.name, kind.plural);
        let Ok(found) = list(&api, "").await else {
            let text = format!("{} can't be listed", kind.plural);
            findings.add(Verdict::Unknown, what, text);
            continue;
        };
        let number = found.len();
        let mut bad = 0;
        for object in &found {
            let conditions = object.data["status"]["conditions"].as_array();
            for condition in conditions
                .into_iter()
                .flatten()
                .filter(|c| c["status"] == "False")
            {
                bad += 1;
                let (of, message) = (&condition["type"], &condition["message"]);
                let (of, message) = (of.as_str().unwrap_or(""), message.as_str().unwrap_or(""));
                let text = format!("{} {}: not {of}: {message}", kind.name, named(object));
                findings.add(Verdict::Bad, what, text);
            }
        }
        if bad == 0 {
            findings.add(Verdict::Good, what, format!("{number} {}", kind.plural));
        }
    }
}

fn label(object: &DynamicObject, name: &str) -> String {
    let labels = object.metadata.labels.as_ref();
    labels
        .and_then(|labels| labels.get(name))
        .cloned()
        .unwrap_or_default()
}

fn named(object: &DynamicObject) -> String {
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    let metadata = &object.metadata;
    format!("{}/{}", text(&metadata.namespace), text(&metadata.name))
}
