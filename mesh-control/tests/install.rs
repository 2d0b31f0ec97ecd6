//! What is installed into a cluster: objects that Kubernetes can read, with arguments that the programs
//! take and no more access than they use. The objects are those that the chart makes
//! (`cargo xtask manifests`).

#[path = "support/admission.rs"]
mod admission;
#[path = "support/typed.rs"]
mod typed;

use std::collections::BTreeSet;

use clap::Parser;
use k8s_openapi::api::apps;
use mesh_control::config::RunOptions;
use mesh_control::sources::kubernetes::followed;
use serde_json::{Value, json};
use typed::{objects, said, through_its_type};

/// What the plain manifests are, and what values make others.
const RENDERED: [&str; 3] = [
    "deploy/manifests/nodemesh.yaml",
    "deploy/chart/nodemesh/ci/changed.rendered.yaml",
    "deploy/chart/nodemesh/ci/cert-manager.rendered.yaml",
];

fn object<'a>(objects: &'a [Value], kind: &str, name: &str) -> &'a Value {
    let mut found = objects
        .iter()
        .filter(|object| object["kind"] == kind && object["metadata"]["name"] == name);
    let object = found.next();
    assert!(found.next().is_none(), "two of {kind} {name}");
    object.unwrap_or_else(|| panic!("no {kind} {name}"))
}

#[test]
fn every_object_is_one_that_kubernetes_knows_to_its_last_field() {
    let mut kinds = BTreeSet::new();
    let others = ["deploy/definitions.yaml", "deploy/examples/roles.yaml"];
    for path in RENDERED.into_iter().chain(others) {
        for object in objects(path) {
            let name = format!("{path}: {} {}", object["kind"], object["metadata"]["name"]);
            kinds.insert(object["kind"].to_string());
            if let Some(typed) = through_its_type(&object) {
                assert_eq!(said(&typed), said(&object), "{name}");
            }
        }
    }
    assert!(kinds.len() >= 15, "{kinds:?}");
}

/// What is compared would show a field that nobody knows, and a value of another type.
#[test]
fn a_field_that_kubernetes_does_not_know_would_be_seen() {
    let objects = objects(RENDERED[0]);
    let deployment = object(&objects, "Deployment", "nodemesh-control");
    let mut misspelt = deployment.clone();
    misspelt["spec"]["template"]["spec"]["hostNetwrk"] = true.into();
    let typed = through_its_type(&misspelt).unwrap();
    assert_ne!(said(&typed), said(&misspelt));
    let mut mistyped = deployment.clone();
    mistyped["spec"]["replicas"] = "two".into();
    assert!(serde_json::from_value::<apps::v1::Deployment>(mistyped).is_err());
}

#[derive(Parser)]
struct Control {
    #[command(flatten)]
    options: RunOptions,
}

fn arguments(object: &Value) -> Vec<String> {
    let container = &object["spec"]["template"]["spec"]["containers"][0];
    let arguments = container["args"].as_array().expect("arguments").iter();
    arguments.map(|a| a.as_str().unwrap().to_owned()).collect()
}

#[test]
fn control_takes_its_arguments() {
    for path in RENDERED {
        let objects = objects(path);
        let deployment = object(&objects, "Deployment", "nodemesh-control");
        let parsed = Control::try_parse_from(arguments(deployment));
        let options = parsed.unwrap_or_else(|e| panic!("{path}: {e}")).options;
        assert!(options.cluster, "{path}");
        let listen: std::net::SocketAddr = options.listen.parse().expect(path);
        let health = options.health_listen.expect(path);
        let ports = &deployment["spec"]["template"]["spec"]["containers"][0]["ports"];
        assert_eq!(ports[0]["containerPort"], listen.port(), "{path}");
        assert_eq!(ports[1]["containerPort"], health.port(), "{path}");
        // Who speaks for nodes is who the agents are, and the token is for whom it is shown to.
        let agents = objects.iter().find(|o| o["kind"] == "DaemonSet").unwrap();
        let namespace = agents["metadata"]["namespace"].as_str().unwrap();
        let pod = &agents["spec"]["template"]["spec"];
        let account = pod["serviceAccountName"].as_str().unwrap();
        let expected = format!("{namespace}/{account}");
        assert_eq!(
            options.kubernetes.node_service_account,
            [expected],
            "{path}"
        );
        let volumes = pod["volumes"].as_array().unwrap();
        let token = volumes
            .iter()
            .find(|volume| volume["name"] == "token")
            .unwrap();
        let audience = &token["projected"]["sources"][0]["serviceAccountToken"]["audience"];
        assert_eq!(*audience, *options.kubernetes.token_audience, "{path}");
    }
}

/// Verbs by resource, `group/resource`.
fn access(role: &Value) -> BTreeSet<(String, String)> {
    let texts = |value: &Value| -> Vec<String> {
        let items = value.as_array().expect("a list").iter();
        items
            .map(|item| item.as_str().unwrap().to_owned())
            .collect()
    };
    let mut access = BTreeSet::new();
    for rule in role["rules"].as_array().expect("rules") {
        for group in texts(&rule["apiGroups"]) {
            for resource in texts(&rule["resources"]) {
                for verb in texts(&rule["verbs"]) {
                    access.insert((format!("{group}/{resource}"), verb));
                }
            }
        }
    }
    access
}

#[test]
fn control_may_do_what_it_does_and_nothing_else() {
    let objects = objects(RENDERED[0]);
    let given = access(object(&objects, "ClusterRole", "nodemesh-control"));
    let mut needed = BTreeSet::new();
    let mut need = |resource: String, verb: &str| needed.insert((resource, verb.to_owned()));
    for (group, plural) in followed() {
        need(format!("{group}/{plural}"), "list");
        need(format!("{group}/{plural}"), "watch");
        if group == "nodemesh.dev" {
            need(format!("{group}/{plural}/status"), "patch");
        }
    }
    need("authentication.k8s.io/tokenreviews".to_owned(), "create");
    assert_eq!(given, needed);
    // Which replica writes statuses, in control's own namespace.
    let own = object(&objects, "Role", "nodemesh-control");
    assert_eq!(own["metadata"]["namespace"], "nodemesh-system");
    let leases = ["create", "get", "update"];
    let leases = leases.map(|verb| ("coordination.k8s.io/leases".to_owned(), verb.to_owned()));
    assert_eq!(access(own), BTreeSet::from(leases));
    // And the agents nothing at all.
    let bound = objects
        .iter()
        .filter(|o| o["kind"].as_str().unwrap().ends_with("Binding"));
    let bound = bound.filter(|binding| binding.to_string().contains("nodemesh-agent"));
    assert_eq!(bound.count(), 0);
}

/// The Pod Security Standards' profile "restricted", as of Kubernetes 1.30.
#[test]
fn control_is_restricted() {
    for path in RENDERED {
        let objects = objects(path);
        let deployment = object(&objects, "Deployment", "nodemesh-control");
        let pod = &deployment["spec"]["template"]["spec"];
        assert_eq!(pod["securityContext"]["runAsNonRoot"], true);
        assert_eq!(
            pod["securityContext"]["seccompProfile"]["type"],
            "RuntimeDefault"
        );
        for host in ["hostNetwork", "hostPID", "hostIPC"] {
            assert!(pod[host].is_null(), "{host}");
        }
        for volume in pod["volumes"].as_array().unwrap() {
            assert!(volume["hostPath"].is_null(), "{volume}");
        }
        let containers = pod["containers"].as_array().unwrap();
        for container in containers {
            let context = &container["securityContext"];
            assert_eq!(context["allowPrivilegeEscalation"], false);
            assert_eq!(context["readOnlyRootFilesystem"], true);
            assert_eq!(context["capabilities"]["drop"][0], "ALL");
            assert!(context["capabilities"]["add"].is_null());
            assert!(
                container["ports"]
                    .as_array()
                    .unwrap()
                    .iter()
                    .all(|p| p["hostPort"].is_null())
            );
        }
    }
}

/// Where the key is mounted no other pod of the install has it, and nobody is given access to it.
#[test]
fn the_signers_secret_is_controls_alone() {
    for path in RENDERED {
        for object in objects(path) {
            let (kind, name) = (&object["kind"], &object["metadata"]["name"]);
            let text = object.to_string();
            if *kind != "Deployment" {
                assert!(
                    !text.contains("\"secretName\":") || *kind == "Certificate",
                    "{kind} {name}"
                );
            }
            if kind.as_str().unwrap().ends_with("Role") {
                let resources = access(&object);
                assert!(
                    resources
                        .iter()
                        .all(|(resource, _)| !resource.contains("secrets")
                            && !resource.starts_with("*/")
                            && resource != "/*"),
                    "{name}: {resources:?}"
                );
            }
        }
    }
}

#[test]
fn an_editor_writes_policies_and_neither_budgets_nor_status() {
    let objects = objects(RENDERED[0]);
    let role = |name: &str| object(&objects, "ClusterRole", name);
    let resources = |name: &str| -> BTreeSet<String> {
        access(role(name))
            .into_iter()
            .map(|(resource, _)| resource)
            .collect()
    };
    let policies = [
        "authenticationpolicies",
        "authorizationpolicies",
        "servicepolicies",
    ];
    let policies = policies.map(|plural| format!("nodemesh.dev/{plural}"));
    assert_eq!(
        resources("nodemesh-edit-policies"),
        BTreeSet::from(policies)
    );
    let verbs = access(role("nodemesh-view"))
        .into_iter()
        .map(|(_, verb)| verb);
    let verbs: BTreeSet<_> = verbs.collect();
    assert_eq!(verbs, ["get", "list", "watch"].map(str::to_owned).into());
    // Each role for people gathers what is labelled for it, and something is.
    for role_name in ["viewer", "policy-editor", "mesh-admin"] {
        let gathers = &role(&format!("nodemesh-{role_name}"))["aggregationRule"];
        let label = format!("nodemesh.dev/aggregate-to-{role_name}");
        assert_eq!(
            gathers["clusterRoleSelectors"][0]["matchLabels"][&label],
            "true"
        );
        let labelled = |object: &&Value| object["metadata"]["labels"][&label] == "true";
        assert!(
            objects.iter().any(|object| labelled(&object)),
            "{role_name}"
        );
    }
}

/// The values of `changed.yaml` name a taint.
const TAINT: &str = "nodemesh.dev/agent-not-ready";

#[test]
fn nodes_may_be_patched_where_a_start_up_taint_is_named_and_nowhere_else() {
    let plain = objects(RENDERED[0]);
    let patches_nodes = |objects: &[Value]| -> Vec<String> {
        let roles = objects
            .iter()
            .filter(|o| o["kind"].as_str().unwrap().ends_with("Role"));
        let allows = |role: &&Value| {
            let access = access(role);
            access
                .iter()
                .any(|(resource, verb)| resource.starts_with("/nodes") && verb == "patch")
        };
        let names = roles.filter(allows).map(|role| &role["metadata"]["name"]);
        names
            .map(|name| name.as_str().unwrap().to_owned())
            .collect()
    };
    assert_eq!(patches_nodes(&plain), [""; 0]);
    let changed = objects(RENDERED[1]);
    let name = "nodemesh-control-startup-taint";
    assert_eq!(patches_nodes(&changed), [name]);
    let patch = ("/nodes".to_owned(), "patch".to_owned());
    let role = object(&changed, "ClusterRole", name);
    assert_eq!(access(role), BTreeSet::from([patch]));
    let subjects = &object(&changed, "ClusterRoleBinding", name)["subjects"];
    assert_eq!(subjects.as_array().unwrap().len(), 1);
    assert_eq!(subjects[0]["name"], "nodemesh-control");
    assert_eq!(subjects[0]["namespace"], "nodemesh-system");
    let deployment = object(&changed, "Deployment", "nodemesh-control");
    let options = Control::try_parse_from(arguments(deployment))
        .unwrap()
        .options;
    assert_eq!(options.kubernetes.startup_taint.as_deref(), Some(TAINT));
    // Both come before it goes.
    let agents = object(&changed, "DaemonSet", "nodemesh-agent");
    for pods in [deployment, agents] {
        let tolerations = &pods["spec"]["template"]["spec"]["tolerations"];
        let bears = |t: &Value| t["key"] == TAINT && t["operator"] == "Exists";
        assert!(
            tolerations.as_array().unwrap().iter().any(bears),
            "{tolerations}"
        );
    }
}

/// What the API server would make of a write of control's to a node, by the policy of admission.
fn node_write(before: &Value, after: &Value) -> Vec<String> {
    let changed = objects(RENDERED[1]);
    let policy = object(
        &changed,
        "ValidatingAdmissionPolicy",
        "startup-taint.nodemesh.dev",
    );
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let request = |name: &str| json!({"userInfo": {"username": name}});
    let matches = text(&policy["spec"]["matchConditions"][0]["expression"]);
    let control = request("system:serviceaccount:nodemesh-system:nodemesh-control");
    assert!(admission::holds(&matches, &[("request", &control)]));
    let kubelet = request("system:node:node-a");
    assert!(!admission::holds(&matches, &[("request", &kubelet)]));
    let validations = policy["spec"]["validations"].as_array().unwrap().iter();
    let variables = [("object", after), ("oldObject", before)];
    let refused = validations.filter(|v| !admission::holds(&text(&v["expression"]), &variables));
    refused.map(|v| text(&v["message"])).collect()
}

#[test]
fn control_may_change_nothing_of_a_node_but_the_taint() {
    let node = |taints: Value| {
        json!({
            "metadata": {"name": "node-a", "labels": {"zone": "a"}, "annotations": {"x": "y"}},
            "spec": {"providerID": "cloud://1", "podCIDRs": ["10.0.0.0/24"], "taints": taints},
        })
    };
    let (ours, other) = (
        json!({"key": TAINT, "effect": "NoSchedule"}),
        json!({"key": "example.com/x", "effect": "NoExecute"}),
    );
    let before = node(json!([ours, other]));
    let after = node(json!([other]));
    assert_eq!(node_write(&before, &after), [""; 0]);
    let mut bare = node(json!([]));
    bare["spec"].as_object_mut().unwrap().remove("taints");
    assert_eq!(node_write(&node(json!([ours])), &bare), [""; 0], "the last");
    let refused = |what: &str, before: &Value, after: &Value| {
        assert!(!node_write(before, after).is_empty(), "{what}");
    };
    refused("another taint goes", &before, &node(json!([ours])));
    refused("all go", &before, &bare);
    refused("the taint is put on", &after, &before);
    refused(
        "a taint is changed",
        &before,
        &node(json!([{"key": "example.com/x", "effect": "NoSchedule"}])),
    );
    for (what, path, value) in [
        ("a label", "/metadata/labels", json!({"zone": "b"})),
        ("annotations", "/metadata/annotations", json!({})),
        ("a finalizer", "/metadata/finalizers", json!(["a/b"])),
        ("cordon", "/spec/unschedulable", json!(true)),
        ("its machine", "/spec/providerID", json!("cloud://2")),
        (
            "its pods' addresses",
            "/spec/podCIDRs",
            json!(["10.0.1.0/24"]),
        ),
    ] {
        let mut changed = after.clone();
        let (parent, field) = path.rsplit_once('/').unwrap();
        changed.pointer_mut(parent).unwrap()[field] = value;
        refused(what, &before, &changed);
    }
    refused("it is made", &Value::Null, &after);
}
