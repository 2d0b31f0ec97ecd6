//! What manifests say, and what is wrong with them: file, line, field.

use std::collections::BTreeMap;
use std::fs;
use std::net::IpAddr;

use mesh_control::sources::manifests::{Loaded, ManifestFault, load};
use mesh_core::model::{Endpoint, Resolution};
use tempfile::TempDir;

fn folder(files: &[(&str, &str)]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in files {
        fs::write(folder.path().join(name), text).unwrap();
    }
    folder
}

fn loaded(files: &[(&str, &str)]) -> Result<Loaded, ManifestFault> {
    load(folder(files).path(), &"cluster.local".parse().unwrap())
}

/// All mistakes, without the temporary folder's name.
fn mistakes(files: &[(&str, &str)]) -> Vec<String> {
    let folder = folder(files);
    let error = load(folder.path(), &"cluster.local".parse().unwrap()).unwrap_err();
    let prefix = format!("{}/", folder.path().display());
    let text = error.to_string().replace(&prefix, "");
    text.lines().map(str::to_owned).collect()
}

const SHOP: &str = "kind: Namespace\nmetadata: {name: shop}\n";

/// (manifest, the mistakes in it); lines count from 1.
const TABLE: &[(&str, &[&str])] = &[
    ("metadata: {name: x}\n", &["a.yaml:1: missing field `kind`"]),
    ("kind: Pod\n", &["a.yaml:1: missing field `metadata`"]),
    (
        "kind: Pod\nmetadata: {}\n",
        &["a.yaml:2: metadata: missing field `name`"],
    ),
    (
        "kind: Namespace\nmetadata:\n  name: Shop\n",
        &[
            "a.yaml:3: metadata.name: \"Shop\" is not a DNS label: at most 63 of a-z, 0-9 and '-', beginning and ending with a letter or digit",
        ],
    ),
    (
        "# one\n\n---\nkind: Pod\nmetadata:\n  name: p\n  namespace: nowhere\n",
        &["a.yaml:7: metadata.namespace: there is no Namespace \"nowhere\" in these manifests"],
    ),
    (
        "kind: Pod\nmetadata: {name: p}\nspec:\n  nodeName: n\n  serviceAccountName: web\n",
        &[
            "a.yaml:5: spec.serviceAccountName: there is no ServiceAccount \"web\" in namespace \"default\"",
        ],
    ),
    (
        "kind: ServiceAccount\nmetadata: {name: web, namespace: shop}\n---\nkind: Pod\nmetadata: {name: p}\nspec: {serviceAccountName: web}\n",
        &[
            "a.yaml:2: metadata.namespace: there is no Namespace \"shop\" in these manifests",
            "a.yaml:6: spec.serviceAccountName: there is no ServiceAccount \"web\" in namespace \"default\"",
        ],
    ),
    (
        "kind: Pod\nmetadata: {name: p}\nstatus:\n  podIPs:\n  - ip: 10.0.0.256\n",
        &["a.yaml:5: status.podIPs[0].ip: \"10.0.0.256\" is not an IP address"],
    ),
    (
        "kind: Pod\nmetadata: {name: p}\nstatus:\n  podIP: 127.0.0.1\n",
        &[
            "a.yaml:4: status.podIP: \"127.0.0.1\" is unspecified, loopback or multicast, which no pod or service can have",
        ],
    ),
    (
        "kind: Pod\nmetadata: {name: p}\nstatus:\n  podIPs: [10.0.0.1]\n",
        &[
            "a.yaml:4: status.podIPs[0]: invalid type: string \"10.0.0.1\", expected a mapping such as {ip: 10.0.0.1}",
        ],
    ),
    (
        "kind: Pod\nmetadata: {name: p}\nspec: {nodeName: n}\nstatus: {podIPs: [{ip: 10.0.0.1}]}\n---\nkind: Pod\nmetadata: {name: q}\nspec: {nodeName: n}\nstatus:\n  podIPs:\n  - ip: 10.0.0.2\n  - ip: \"::ffff:10.0.0.1\"\n",
        &[
            "a.yaml:12: status.podIPs[1].ip: 10.0.0.1 is the address of Pod default/p already: a.yaml:2",
        ],
    ),
    (
        "kind: Pod\nmetadata: {name: p}\nstatus: {podIP: 10.0.0.1}\n---\nkind: Service\nmetadata: {name: s}\nspec:\n  clusterIP: 10.0.0.1\n",
        &["a.yaml:8: spec.clusterIP: 10.0.0.1 is the address of Pod default/p already: a.yaml:2"],
    ),
    (
        "kind: Pod\nmetadata: {name: p}\n---\nkind: Pod\nmetadata:\n  namespace: default\n  name: p\n",
        &["a.yaml:7: metadata.name: Pod \"p\" is there already: a.yaml:2"],
    ),
    (
        "kind: Pod\nmetadata: {name: p}\nspec:\n  containers:\n  - ports:\n    - containerPort: 0\n",
        &["a.yaml:6: spec.containers[0].ports[0].containerPort: 0 is not a port: 1 to 65535"],
    ),
    (
        "kind: Pod\nmetadata: {name: p}\nspec:\n  containers:\n  - ports:\n    - containerPort: http\n",
        &[
            "a.yaml:6: spec.containers[0].ports[0].containerPort: invalid type: string \"http\", expected a port from 1 to 65535",
        ],
    ),
    (
        "kind: Pod\nmetadata: {name: p}\nspec:\n  containers:\n  - ports:\n    - {containerPort: 1, name: http}\n  - ports:\n    - containerPort: 2\n      name: http\n",
        &["a.yaml:9: spec.containers[1].ports[0].name: the pod has a port named \"http\" already"],
    ),
    (
        "kind: Pod\nmetadata: {name: p}\nspec:\n  containers:\n  - ports:\n    - {containerPort: 1, name: an-endless-port-name}\n",
        &[
            "a.yaml:6: spec.containers[0].ports[0].name: \"an-endless-port-name\" is not a port name: at most 15 of a-z, 0-9 and '-', with at least one letter",
        ],
    ),
    (
        "kind: Service\nmetadata: {name: s}\nspec:\n  ports:\n  - port: 80\n    targetPort: 70000\n",
        &["a.yaml:6: spec.ports[0].targetPort: 70000 is not a port: 1 to 65535"],
    ),
    (
        "kind: Service\nmetadata: {name: s}\nspec:\n  ports:\n  - port: 80\n    name: a\n  - port: 80\n    name: a\n  - port: 81\n",
        &[
            "a.yaml:7: spec.ports[1].port: the service has port 80 already",
            "a.yaml:8: spec.ports[1].name: the service has a port named \"a\" already",
            "a.yaml:9: spec.ports[2].name: missing: with several ports each needs a name",
        ],
    ),
    (
        "kind: Service\nmetadata: {name: s}\nspec:\n  ports: [{port: 53, protocol: DNS}]\n",
        &["a.yaml:4: spec.ports[0].protocol: \"DNS\" is not a protocol: TCP, UDP or SCTP"],
    ),
    (
        "kind: Namespace\nmetadata:\n  name: shop\n  labels:\n    nodemesh.dev/enroll: \"yes\"\n",
        &[
            "a.yaml:5: metadata.labels[\"nodemesh.dev/enroll\"]: \"yes\" is none of \"true\", \"enforce\", \"audit\", \"false\"",
        ],
    ),
    (
        "kind: Pod\nmetadata:\n  name: p\n  labels:\n    nodemesh.dev/tunnel-port: http\n    nodemesh.dev/enroll: maybe\n",
        &[
            "a.yaml:5: metadata.labels[\"nodemesh.dev/tunnel-port\"]: \"http\" is none of \"original\", \"hbone\"",
            "a.yaml:6: metadata.labels[\"nodemesh.dev/enroll\"]: \"maybe\" is none of \"true\", \"enforce\", \"audit\", \"false\"",
        ],
    ),
    (
        "---\nkind: Pod\nmetadata: {name: p}\nspec: [1\n---\nkind: Pod\nmetadata: {name: Q}\n",
        &[
            "a.yaml:5: spec: did not find expected ',' or ']', while parsing a flow sequence at line 4 column 7",
            "a.yaml:7: metadata.name: \"Q\" is not a DNS name: at most 253 of a-z, 0-9, '-' and '.', each part beginning and ending with a letter or digit",
        ],
    ),
];

#[test]
fn each_mistake_names_file_line_and_field() {
    for (text, expected) in TABLE {
        assert_eq!(mistakes(&[("a.yaml", text)]), *expected, "\n{text}");
    }
}

#[test]
fn mistakes_of_all_files_are_reported_at_once() {
    let twice = "kind: Pod\nmetadata: {name: p, namespace: shop}\n";
    let found = mistakes(&[
        ("1.yaml", SHOP),
        ("2.yaml", twice),
        ("3.yml", twice),
        (
            "4.json",
            r#"{"kind": "Pod", "metadata": {"name": "x", "namespace": "y"}}"#,
        ),
        ("ignored.txt", "kind: ["),
        (".hidden.yaml", "kind: ["),
    ]);
    assert_eq!(
        found,
        [
            "3.yml:2: metadata.name: Pod \"p\" is there already: 2.yaml:2",
            "4.json:1: metadata.namespace: there is no Namespace \"y\" in these manifests",
        ]
    );
}

#[test]
fn what_is_skipped_or_suspicious_is_a_warning() {
    let text = "\
kind: Deployment
metadata: {name: d}
---
kind: Service
metadata: {name: ext}
spec: {type: ExternalName}
---
kind: Pod
metadata: {name: a, labels: {app: a}}
spec: {nodeName: n}
---
kind: Pod
metadata: {name: b, labels: {app: b}}
spec: {nodeName: n}
---
kind: Service
metadata: {name: a}
spec:
  selector: {app: a}
  ports:
  - port: 80
    targetPort: http
---
kind: Service
metadata: {name: b}
spec: {selector: {app: b}}
";
    let loaded = loaded(&[("a.yaml", text)]).unwrap();
    let shown: Vec<_> = loaded.warnings.iter().map(ToString::to_string).collect();
    for (warning, part) in shown.iter().zip([
        "a.yaml:1: kind: \"Deployment\" is skipped",
        "a.yaml:6: spec.type: ExternalName is skipped",
        "a.yaml:22: spec.ports[0].targetPort: no pod of the service has a container port named \"http\"",
        "a.yaml:17: metadata.name: services default/a.default.svc.cluster.local, default/b.default.svc.cluster.local run as one identity, spiffe://cluster.local/ns/default/sa/default",
    ]) {
        assert!(warning.contains(part), "{warning} should say {part}");
    }
    assert_eq!(shown.len(), 4, "{shown:#?}");
}

const WHOLE: &str = r#"
kind: Namespace
metadata: {name: shop, labels: {nodemesh.dev/enroll: enforce}}
---
kind: Namespace
metadata: {name: off, labels: {nodemesh.dev/enroll: "false"}}
---
kind: Pod
metadata: {name: one, namespace: shop, labels: {app: web, extra: x}}
spec:
  nodeName: n1
  containers:
  - {}
  - ports: [{containerPort: 53, name: http, protocol: UDP}, {containerPort: 8080, name: web}]
status: {podIP: 10.0.0.1, podIPs: [{ip: 10.0.0.1}, {ip: "fd00::1"}]}
---
kind: Pod
metadata: {name: two, namespace: shop, labels: {app: web}}
spec: {nodeName: n2, containers: [{ports: [{containerPort: 9090, name: web}]}]}
status: {podIPs: [{ip: 10.0.0.2}]}
---
kind: Pod
metadata: {name: leaving, namespace: shop, labels: {app: web}, deletionTimestamp: "2026-01-01T00:00:00Z"}
spec: {nodeName: n2}
status: {podIPs: [{ip: 10.0.0.3}]}
---
kind: Pod
metadata: {name: done, namespace: shop, labels: {app: web}}
spec: {nodeName: n2}
status: {phase: Succeeded, podIPs: [{ip: 10.0.0.1}]}
---
kind: Pod
metadata: {name: pending, namespace: shop, labels: {app: web}}
---
kind: Pod
metadata: {name: host, namespace: shop, labels: {app: web}}
spec: {nodeName: n1, hostNetwork: true}
status: {podIPs: [{ip: 10.0.0.1}]}
---
kind: Pod
metadata: {name: plain, namespace: off, labels: {app: web}}
spec: {nodeName: n1}
status: {podIPs: [{ip: 10.0.0.9}]}
---
kind: Service
metadata: {name: web, namespace: shop}
spec:
  selector: {app: web}
  clusterIPs: [10.96.0.1, "fd00:96::1"]
  ports:
  - {port: 80, targetPort: web, name: http}
  - {port: 81, targetPort: 8181, name: admin}
  - {port: 82, name: same}
  - {port: 53, name: dns, protocol: UDP}
---
kind: Service
metadata: {name: headless, namespace: shop}
spec: {selector: {app: web}, clusterIP: None, ports: [{port: 80, targetPort: web}]}
---
kind: Service
metadata: {name: without, namespace: shop}
spec: {clusterIP: 10.96.0.9, ports: [{port: 80}]}
"#;

#[test]
fn the_mesh_is_what_the_manifests_describe() {
    let loaded = loaded(&[("mesh.yaml", WHOLE)]).unwrap();
    assert_eq!(loaded.warnings, []);
    let mesh = loaded.mesh;
    let shown: Vec<_> = mesh
        .workloads()
        .map(|w| format!("{} {} {} {}", w.uid, w.identity, w.node, w.enrolled()))
        .collect();
    assert_eq!(
        shown,
        [
            "Kubernetes//v1/Pod/off/plain spiffe://cluster.local/ns/off/sa/default n1 false",
            "Kubernetes//v1/Pod/shop/leaving spiffe://cluster.local/ns/shop/sa/default n2 true",
            "Kubernetes//v1/Pod/shop/one spiffe://cluster.local/ns/shop/sa/default n1 true",
            "Kubernetes//v1/Pod/shop/two spiffe://cluster.local/ns/shop/sa/default n2 true",
        ]
    );
    let resolve = |address: &str, port| match mesh.resolve(address.parse().unwrap(), port) {
        Resolution::Service(_, endpoints) => endpoints
            .iter()
            .map(|Endpoint { address, port, .. }| (*address, *port))
            .collect::<Vec<(IpAddr, u16)>>(),
        other => panic!("{other:?}"),
    };
    let at = |address: &str, port| (address.parse::<IpAddr>().unwrap(), port);
    assert_eq!(
        resolve("10.96.0.1", 80),
        [at("10.0.0.1", 8080), at("10.0.0.2", 9090)]
    );
    assert_eq!(
        resolve("10.96.0.1", 81),
        [at("10.0.0.1", 8181), at("10.0.0.2", 8181)]
    );
    assert_eq!(
        resolve("10.96.0.1", 82),
        [at("10.0.0.1", 82), at("10.0.0.2", 82)]
    );
    assert_eq!(resolve("10.96.0.1", 53), [], "UDP is not the mesh's");
    assert_eq!(
        resolve("fd00:96::1", 80),
        [at("fd00::1", 8080), at("10.0.0.2", 9090)]
    );
    assert_eq!(resolve("10.96.0.9", 80), [], "without a selector");
    let headless = mesh
        .service("shop/headless.shop.svc.cluster.local")
        .unwrap();
    assert_eq!(headless.addresses, Vec::<IpAddr>::new());
    assert!(
        matches!(mesh.resolve("10.0.0.1".parse().unwrap(), 1), Resolution::Workload(e) if e.workload.name == "one")
    );
    let leaving = mesh.workload("Kubernetes//v1/Pod/shop/leaving").unwrap();
    assert!(
        leaving.services.values().all(BTreeMap::is_empty),
        "no new connections to a pod that leaves"
    );
    let of = |uid: &str| mesh.workload(uid).unwrap().services.keys().cloned();
    assert!(
        of("Kubernetes//v1/Pod/shop/leaving").eq(of("Kubernetes//v1/Pod/shop/one")),
        "what policy says of its services holds for it until it is gone"
    );
}

#[test]
fn a_folder_that_is_not_there_is_named() {
    let error = load("/nonexistent/folder".as_ref(), &"td".parse().unwrap()).unwrap_err();
    assert!(
        error.to_string().contains("can't read /nonexistent/folder"),
        "{error}"
    );
}
