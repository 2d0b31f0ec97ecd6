//! `meshctl backup` and `meshctl restore`, against a double of an API server and a folder.

#[path = "../../mesh-control/tests/support/api.rs"]
mod api;
#[path = "support/cluster.rs"]
mod cluster;

use std::fs;
use std::process::Output;

use api::Api;
use cluster::{Cluster, done, failed, meshctl};
use serde_json::{Value, json};

fn on(cluster: &Cluster, line: &str) -> Output {
    cluster.meshctl(&format!("{line} --kubernetes"))
}

fn objects(api: &Api) -> Vec<Value> {
    let named = [
        ("AuthorizationPolicy", "shop", "denies"),
        ("AuthorizationPolicy", "shop", "allows"),
        ("AuthenticationPolicy", "shop", "strict"),
        ("ServicePolicy", "shop", "web"),
        ("WorkerBudget", "shop", "small"),
        ("Revocation", "nodemesh-system", "stolen"),
    ];
    let objects = named.map(|(kind, namespace, name)| api.get(kind, namespace, name));
    objects
        .into_iter()
        .map(|object| object["spec"].clone())
        .collect()
}

fn own(kind: &str, namespace: &str, name: &str, spec: &Value) -> Value {
    json!({
        "apiVersion": "nodemesh.dev/v1alpha1", "kind": kind,
        "metadata": {"namespace": namespace, "name": name, "labels": {"team": "a"},
            "annotations": {"kubectl.kubernetes.io/last-applied-configuration": "{}"},
            "managedFields": [{"manager": "kubectl"}]},
        "spec": spec,
        "status": {"conditions": []},
    })
}

fn mesh() -> Vec<Value> {
    let policy = |name: &str, action: &str| {
        let spec = json!({"direction": "Inbound", "action": action, "rules": [{}]});
        own("AuthorizationPolicy", "shop", name, &spec)
    };
    vec![
        json!({"kind": "Namespace", "metadata": {"name": "shop",
            "labels": {"nodemesh.dev/enroll": "true", "nodemesh.dev/tunnel-port": "original", "other": "label"}}}),
        json!({"kind": "Namespace", "metadata": {"name": "legacy"}}),
        policy("denies", "Deny"),
        policy("allows", "Allow"),
        own(
            "AuthenticationPolicy",
            "shop",
            "strict",
            &json!({"mode": "Strict"}),
        ),
        own("ServicePolicy", "shop", "web", &json!({"service": "web"})),
        own(
            "WorkerBudget",
            "shop",
            "small",
            &json!({"memoryMaxMib": 64}),
        ),
        own(
            "Revocation",
            "nodemesh-system",
            "stolen",
            &json!({"nodes": ["node-z"]}),
        ),
    ]
}

#[test]
fn a_cluster_comes_back_as_it_was() {
    let cluster = Cluster::start();
    mesh()
        .into_iter()
        .for_each(|object| cluster.api.put(object));
    let before = objects(&cluster.api);
    let said = done(&on(&cluster, "backup --to mesh.json"));
    assert!(said.contains("7 saved, sha256:"), "{said}");
    let again = done(&on(&cluster, "backup"));
    assert!(
        !again.contains("managedFields") && !again.contains("last-applied"),
        "{again}"
    );

    // Everything is lost, and something else is there.
    let lost = Cluster::start();
    let file = lost.folder.path().join("mesh.json");
    fs::copy(cluster.folder.path().join("mesh.json"), &file).unwrap();
    let extra = json!({"direction": "Inbound", "action": "Allow", "rules": [{}]});
    lost.api
        .put(own("AuthorizationPolicy", "shop", "extra", &extra));
    lost.api
        .put(own("AuthorizationPolicy", "shop", "denies", &extra));
    lost.api
        .put(json!({"kind": "Namespace", "metadata": {"name": "shop", "labels": {"kept": "so"}}}));
    let enrolled = json!({"nodemesh.dev/enroll": "true"});
    lost.api
        .put(json!({"kind": "Namespace", "metadata": {"name": "late", "labels": enrolled}}));

    let planned = done(&on(&lost, "restore mesh.json --dry-run --prune"));
    for line in [
        "create: AuthorizationPolicy shop/allows",
        "change: AuthorizationPolicy shop/denies",
        "change: label of namespace shop: nodemesh.dev/enroll=true",
        "change: label of namespace shop: nodemesh.dev/tunnel-port=original",
        "delete: AuthorizationPolicy shop/extra",
        "note: namespace late has the label nodemesh.dev/enroll=true now and had not: left as it is",
    ] {
        assert!(planned.contains(line), "{planned}");
    }
    assert_eq!(lost.api.writes("AuthorizationPolicy"), 0, "a dry run");

    done(&on(&lost, "restore mesh.json"));
    assert_eq!(objects(&lost.api), before);
    // What allows came last.
    let written = |kind: &str, namespace: &str, name: &str| {
        let object = lost.api.get(kind, namespace, name);
        let version = object["metadata"]["resourceVersion"].as_str().unwrap();
        version.parse::<u64>().unwrap()
    };
    let allows = written("AuthorizationPolicy", "shop", "allows");
    for (kind, namespace, name) in [
        ("Namespace", "", "shop"),
        ("AuthorizationPolicy", "shop", "denies"),
        ("AuthenticationPolicy", "shop", "strict"),
        ("Revocation", "nodemesh-system", "stolen"),
    ] {
        assert!(written(kind, namespace, name) < allows, "{kind} {name}");
    }
    assert_ne!(
        lost.api.get("AuthorizationPolicy", "shop", "extra"),
        Value::Null
    );
    let labels = &lost.api.get("Namespace", "", "shop")["metadata"]["labels"];
    assert_eq!(labels["nodemesh.dev/enroll"], "true");
    assert_eq!(labels["nodemesh.dev/tunnel-port"], "original");
    assert_eq!(
        lost.api.get("Revocation", "nodemesh-system", "stolen")["metadata"]["labels"]["team"],
        "a"
    );

    done(&on(&lost, "restore mesh.json --prune"));
    assert_eq!(
        lost.api.get("AuthorizationPolicy", "shop", "extra"),
        Value::Null
    );
    let writes = lost.api.writes("AuthorizationPolicy");
    let said = done(&on(&lost, "restore mesh.json --prune"));
    assert!(said.contains("\n8 as in the backup already"), "{said}");
    assert_eq!(lost.api.writes("AuthorizationPolicy"), writes);
}

#[test]
fn what_is_not_whole_or_not_known_changes_nothing() {
    let cluster = Cluster::start();
    mesh()
        .into_iter()
        .for_each(|object| cluster.api.put(object));
    done(&on(&cluster, "backup --to mesh.json"));
    let path = cluster.folder.path().join("mesh.json");
    let text = fs::read_to_string(&path).unwrap();
    cluster.api.delete("AuthorizationPolicy", "shop", "allows");
    for (from, to, expected) in [
        ("\"Deny\"", "\"Allow\"", "was altered or is damaged"),
        (
            "\"version\": 1",
            "\"version\": 2",
            "is a backup in version 2",
        ),
    ] {
        let altered = text.replace(from, to);
        assert_ne!(altered, text);
        fs::write(&path, altered).unwrap();
        let why = failed(&on(&cluster, "restore mesh.json"));
        assert!(why.contains(expected), "{why}");
    }
    fs::write(&path, &text).unwrap();
    let why = failed(&on(&cluster, "restore mesh.json --digest sha256:0123"));
    assert!(why.contains("is another backup"), "{why}");
    let why = failed(&meshctl(
        cluster.folder.path(),
        "restore mesh.json --manifests here",
    ));
    assert!(
        why.contains("a backup of a cluster: give --kubernetes"),
        "{why}"
    );
    // Without the definitions there is no place for it.
    cluster.api.refuse("Revocation", Some(404));
    let why = failed(&on(&cluster, "restore mesh.json"));
    assert!(
        why.contains("are the mesh's definitions installed?"),
        "{why}"
    );
    cluster.api.refuse("Revocation", None);
    assert_eq!(
        cluster.api.get("AuthorizationPolicy", "shop", "allows"),
        Value::Null
    );
    assert_eq!(cluster.api.writes("AuthorizationPolicy"), 0);
}

#[test]
fn a_folder_comes_back_as_it_was() {
    let place = tempfile::tempdir().unwrap();
    let manifests = place.path().join("manifests");
    fs::create_dir(&manifests).unwrap();
    let text = "# why\nkind: Namespace\nmetadata: {name: shop}\n";
    fs::write(manifests.join("a.yaml"), text).unwrap();
    fs::write(manifests.join("b.json"), "{}").unwrap();
    fs::write(manifests.join(".hidden.yaml"), "x").unwrap();
    fs::write(manifests.join("notes.txt"), "x").unwrap();
    let said = done(&meshctl(
        place.path(),
        "backup --manifests manifests --to mesh.json",
    ));
    assert!(said.contains("2 saved, sha256:"), "{said}");

    fs::remove_dir_all(&manifests).unwrap();
    done(&meshctl(
        place.path(),
        "restore mesh.json --manifests manifests",
    ));
    assert_eq!(fs::read_to_string(manifests.join("a.yaml")).unwrap(), text);
    assert_eq!(fs::read_dir(&manifests).unwrap().count(), 2);

    fs::write(manifests.join("a.yaml"), "other").unwrap();
    fs::write(manifests.join("c.yaml"), "more").unwrap();
    let said = done(&meshctl(
        place.path(),
        "restore mesh.json --manifests manifests",
    ));
    assert!(
        said.contains("change: a.yaml\nnot in the backup, left: c.yaml"),
        "{said}"
    );
    assert_eq!(fs::read_to_string(manifests.join("a.yaml")).unwrap(), text);
    done(&meshctl(
        place.path(),
        "restore mesh.json --manifests manifests --prune",
    ));
    assert!(!manifests.join("c.yaml").exists());
}
