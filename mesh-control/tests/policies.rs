//! The mesh's own kinds in manifests: what they become, and every mistake and warning about
//! them.

mod support {
    pub(crate) mod admission;
}

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use mesh_control::sources::manifests::{Loaded, ManifestFault, load};
use mesh_core::model::{Enrolment, ForeignProcesses, Locality, TunnelPort};
use mesh_core::policy::{
    Action, AuthenticationMode, AuthenticationPolicy, AuthorizationPolicy, Direction, PeerTerm,
    PortTerm, Protocol, Rule, Target,
};
use mesh_core::traffic::{
    Balancing, HealthCheck, LocalityPreference, OutlierDetection, Probe, Traffic,
};

/// What the cases build on: two pods, one of them enrolled, and services.
const BASE: &str = r#"
kind: Namespace
metadata: {name: shop, labels: {nodemesh.dev/enroll: "true"}}
---
kind: Namespace
metadata: {name: legacy}
---
kind: ServiceAccount
metadata: {name: web, namespace: shop}
---
kind: Pod
metadata: {name: web-1, namespace: shop, labels: {app: web}}
spec: {nodeName: node-a, serviceAccountName: web}
status: {podIP: 10.1.0.1}
---
kind: Pod
metadata: {name: old-1, namespace: legacy, labels: {app: old}}
spec: {nodeName: node-a}
status: {podIP: 10.1.0.2}
---
kind: Service
metadata: {name: web, namespace: shop}
spec:
  selector: {app: web}
  clusterIP: 10.96.0.1
  ports: [{name: http, port: 80}, {name: dns, port: 53, protocol: UDP}]
---
kind: Service
metadata: {name: alias, namespace: shop}
spec: {type: ExternalName}
"#;

fn loaded(policies: &str) -> (Result<Loaded, ManifestFault>, String) {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("base.yaml"), BASE).unwrap();
    fs::write(folder.path().join("a.yaml"), policies).unwrap();
    let loaded = load(folder.path(), &"cluster.local".parse().unwrap());
    (loaded, format!("{}/", folder.path().display()))
}

/// A policy document; `rest` is the spec, from line 4 on.
fn document(kind: &str, namespace: &str, rest: &str) -> String {
    format!(
        "kind: {kind}\napiVersion: nodemesh.dev/v1alpha1\nmetadata: {{name: p, namespace: {namespace}}}\nspec: {rest}\n"
    )
}

fn authorization(rest: &str) -> String {
    let spec = format!("\n  direction: Inbound\n  action: Allow\n{rest}");
    document("AuthorizationPolicy", "shop", &spec)
}

fn service_policy(rest: &str) -> String {
    document(
        "ServicePolicy",
        "shop",
        &format!("\n  service: web\n{rest}"),
    )
}

fn assert_mistakes(text: &str, expected: &[&str]) {
    let (loaded, prefix) = loaded(text);
    let error = loaded.err().unwrap_or_else(|| panic!("is taken:\n{text}"));
    let shown = error.to_string().replace(&prefix, "");
    let lines: Vec<_> = shown.lines().collect();
    assert_eq!(lines, expected, "\n{text}");
    refused_when_written(text, expected);
}

/// What is wrong about an object in itself an API server refuses as well, by our definitions.
fn refused_when_written(text: &str, expected: &[&str]) {
    // What other objects, or the text itself, must tell.
    let others = [
        "there is no ",
        "there already",
        "already: ",
        "has TCP ports",
        "here twice",
    ];
    if expected
        .iter()
        .all(|mistake| others.iter().any(|other| mistake.contains(other)))
    {
        return;
    }
    // An API server drops a field without a value before anybody can see it.
    if text.contains("peers:\n    ports") {
        return;
    }
    // Not of the definition's making.
    if expected
        .iter()
        .any(|mistake| mistake.contains(": metadata.") || mistake.contains("missing: "))
    {
        return;
    }
    let mistakes = support::admission::mistakes(&support::admission::from_yaml(text));
    assert!(!mistakes.is_empty(), "would be written:\n{text}");
}

/// All that the reader of manifests takes can be written.
fn written(manifests: &str) {
    for document in manifests.split("\n---\n") {
        let object = support::admission::from_yaml(document);
        if object["apiVersion"]
            .as_str()
            .is_some_and(|v| v.starts_with("nodemesh.dev/"))
        {
            let mistakes = support::admission::mistakes(&object);
            assert!(mistakes.is_empty(), "{mistakes:?}:\n{document}");
        }
    }
}

#[test]
fn what_is_read_here_can_be_written_to_an_api_server() {
    written(POLICIES);
}

#[test]
fn another_version_of_the_kinds_is_a_mistake() {
    for kind in [
        "AuthorizationPolicy",
        "AuthenticationPolicy",
        "ServicePolicy",
    ] {
        let text = document(kind, "shop", "{}").replace("nodemesh.dev/v1alpha1", "istio.io/v1");
        let what = format!(
            "a.yaml:2: apiVersion: {kind} is read here in version nodemesh.dev/v1alpha1, not \"istio.io/v1\""
        );
        assert_mistakes(&text, &[&what]);
        let text = text.replace("apiVersion: istio.io/v1\n", "");
        let what = format!(
            "a.yaml:1: apiVersion: missing: {kind} needs apiVersion: nodemesh.dev/v1alpha1"
        );
        assert_mistakes(&text, &[&what]);
    }
}

/// (from line 7 on, the mistakes); the rest is a sound AuthorizationPolicy.
const RULES: &[(&str, &[&str])] = &[
    ("", &["a.yaml:5: spec: missing field `rules`"]),
    (
        "  rules: []",
        &[
            "a.yaml:7: spec.rules: empty: a policy without rules matches nothing; a rule {} matches every member of the mesh (Deny: everybody) on every port",
        ],
    ),
    (
        "  rules: [{peer: []}]",
        &["a.yaml:7: spec.rules[0].peer: unknown field `peer`, expected `peers` or `ports`"],
    ),
    (
        "  rules:\n  - peers:\n    ports: [80]",
        &[
            "a.yaml:8: spec.rules[0].peers: empty: leave it out for every member of the mesh (Deny: everybody)",
        ],
    ),
    (
        "  rules:\n  - ports: []",
        &[
            "a.yaml:8: spec.rules[0].ports: empty: leave it out for every port of TCP (Deny: of UDP as well)",
        ],
    ),
    (
        "  rules:\n  - peers:\n    - {}",
        &[
            "a.yaml:9: spec.rules[0].peers[0]: empty: give at least one of identity, namespace, serviceAccount, service, labels, cidr",
        ],
    ),
    (
        "  rules:\n  - peers:\n    - labels: {}",
        &[
            "a.yaml:9: spec.rules[0].peers[0].labels: empty: leave it out, or give labels that the peer must have",
        ],
    ),
    (
        "  rules:\n  - peers:\n    - labels: {app: a, app: b}",
        &["a.yaml:9: spec.rules[0].peers[0].labels: app is here twice"],
    ),
    (
        "  rules:\n  - peers:\n    - cidr: 10.0.0.0",
        &[
            "a.yaml:9: spec.rules[0].peers[0].cidr: \"10.0.0.0\" is not an address block, such as 10.0.0.0/8 or fd00::/8",
        ],
    ),
    (
        "  rules:\n  - peers:\n    - cidr: 10.1.2.3/8\n    - cidr: ::ffff:10.0.0.0/104",
        &[
            "a.yaml:9: spec.rules[0].peers[0].cidr: \"10.1.2.3/8\" has bits set beyond its length: is 10.0.0.0/8 meant, or 10.1.2.3/32?",
        ],
    ),
    (
        "  rules: [{peers: [{cidr: '::ffff:10.0.0.0/104'}]}]",
        &[
            "a.yaml:7: spec.rules[0].peers[0].cidr: \"::ffff:10.0.0.0/104\" is IPv4 in IPv6's form: write it as IPv4",
        ],
    ),
    (
        "  rules:\n  - peers:\n    - identity: cluster.local/ns/a/sa/b",
        &[
            "a.yaml:9: spec.rules[0].peers[0].identity: \"cluster.local/ns/a/sa/b\" does not begin with spiffe://; a workload's is spiffe://<trust domain>/ns/<namespace>/sa/<account>",
        ],
    ),
    (
        "  rules:\n  - peers:\n    - serviceAccount: web\n    - {identity: \"spiffe://cluster.local/ns/shop/sa/web\", namespace: shop, serviceAccount: web}",
        &[
            "a.yaml:9: spec.rules[0].peers[0].serviceAccount: needs namespace beside it: service accounts of one name are in many",
            "a.yaml:10: spec.rules[0].peers[1].serviceAccount: identity says it already: give one of the two",
        ],
    ),
    (
        "  rules:\n  - peers:\n    - namespace:",
        &[
            "a.yaml:9: spec.rules[0].peers[0].namespace: \"\" is not a DNS label: at most 63 of a-z, 0-9 and '-', beginning and ending with a letter or digit",
        ],
    ),
    (
        "  rules:\n  - ports: [0]",
        &["a.yaml:8: spec.rules[0].ports[0]: 0 is not a port: 1 to 65535"],
    ),
    (
        "  rules:\n  - ports: [http]",
        &[
            "a.yaml:8: spec.rules[0].ports[0]: \"http\" is not a port: 1 to 65535, alone or with /TCP or /UDP, or TCP or UDP for all ports",
        ],
    ),
    (
        "  rules:\n  - ports: [70000/TCP]",
        &[
            "a.yaml:8: spec.rules[0].ports[0]: \"70000/TCP\" is not a port: 1 to 65535, alone or with /TCP or /UDP, or TCP or UDP for all ports",
        ],
    ),
    (
        "  rules:\n  - ports: [53/udp]",
        &[
            "a.yaml:8: spec.rules[0].ports[0]: \"53/udp\" is not a port: 1 to 65535, alone or with /TCP or /UDP, or TCP or UDP for all ports",
        ],
    ),
    (
        "  rules:\n  - ports: [+53/UDP]",
        &[
            "a.yaml:8: spec.rules[0].ports[0]: \"+53/UDP\" is not a port: 1 to 65535, alone or with /TCP or /UDP, or TCP or UDP for all ports",
        ],
    ),
    (
        "  rules:\n  - ports: [/UDP]",
        &[
            "a.yaml:8: spec.rules[0].ports[0]: \"/UDP\" is not a port: 1 to 65535, alone or with /TCP or /UDP, or TCP or UDP for all ports",
        ],
    ),
    (
        "  rules:\n  - ports: [{port: 80}]",
        &[
            "a.yaml:8: spec.rules[0].ports[0]: invalid type: map, expected a port such as 80, \"53/UDP\" or \"UDP\"",
        ],
    ),
    (
        "  rules: [{}]\n  target:\n    mesh: true",
        &[
            "a.yaml:9: spec.target.mesh: the policy is in namespace \"shop\", and only those in \"nodemesh-system\" can be for the whole mesh",
        ],
    ),
    (
        "  rules: [{}]\n  target:\n    mesh: false",
        &["a.yaml:9: spec.target.mesh: leave target out for the whole namespace"],
    ),
    (
        "  rules: [{}]\n  target: {service: web, labels: {app: web}}",
        &[
            "a.yaml:8: spec.target: give exactly one of mesh, service, labels, or leave target out for the whole namespace",
        ],
    ),
    (
        "  rules: [{}]\n  target: {}",
        &[
            "a.yaml:8: spec.target: give exactly one of mesh, service, labels, or leave target out for the whole namespace",
        ],
    ),
    (
        "  rules: [{}]\n  target:\n    labels: {}",
        &["a.yaml:9: spec.target.labels: empty: leave target out for the whole namespace"],
    ),
    (
        "  rules: [{}]\n  target:\n    service: cart",
        &["a.yaml:9: spec.target.service: there is no Service \"cart\" in namespace \"shop\""],
    ),
    (
        "  rules: [{}]\n  target:\n    service: alias",
        &["a.yaml:9: spec.target.service: there is no Service \"alias\" in namespace \"shop\""],
    ),
    (
        "  rules: [{}]\n  tarjet: {}",
        &[
            "a.yaml:8: spec.tarjet: unknown field `tarjet`, expected one of `target`, `direction`, `action`, `rules`",
        ],
    ),
];

#[test]
fn each_mistake_in_an_authorization_policy_names_its_field() {
    for (rest, expected) in RULES {
        assert_mistakes(&authorization(rest), expected);
    }
    let sound = authorization("  rules: [{}]\n");
    for (from, to, expected) in [
        (
            "Inbound",
            "inbound",
            "a.yaml:5: spec.direction: \"inbound\" is none of Inbound, Outbound",
        ),
        (
            "Allow",
            "ALLOW",
            "a.yaml:6: spec.action: \"ALLOW\" is none of Allow, Deny",
        ),
        (
            "spec:",
            "specs:",
            "a.yaml:4: specs: unknown field `specs`, expected one of `kind`, `apiVersion`, `metadata`, `spec`",
        ),
        (
            "namespace: shop",
            "namspace: shop",
            "a.yaml:3: metadata.namspace: unknown field `namspace`, expected one of `name`, `namespace`, `labels`, `annotations`, `creationTimestamp`, `finalizers`, `generation`, `managedFields`, `ownerReferences`, `resourceVersion`, `uid`",
        ),
        (
            "namespace: shop",
            "namespace: nowhere",
            "a.yaml:3: metadata.namespace: there is no Namespace \"nowhere\" in these manifests",
        ),
    ] {
        assert_mistakes(&sound.replace(from, to), &[expected]);
    }
    assert_mistakes(
        &format!("{sound}---\n{sound}"),
        &["a.yaml:12: metadata.name: AuthorizationPolicy \"p\" is there already: a.yaml:3"],
    );
}

#[test]
fn each_mistake_in_an_authentication_policy_names_its_field() {
    for (spec, expected) in [
        (
            "{}",
            "a.yaml:4: spec: says nothing: give mode, ports, or both, with Strict or Permissive",
        ),
        (
            "{mode: strict}",
            "a.yaml:4: spec.mode: \"strict\" is none of Strict, Permissive",
        ),
        (
            "{ports: {http: Strict}}",
            "a.yaml:4: spec.ports.http: http is not a port: 1 to 65535",
        ),
        (
            "{ports: {0: Strict}}",
            "a.yaml:4: spec.ports.0: 0 is not a port: 1 to 65535",
        ),
        (
            "{ports: {80: Strict, 80: Permissive}}",
            "a.yaml:4: spec.ports: 80 is here twice",
        ),
        (
            "{mode: Strict, target: {mesh: true}}",
            "a.yaml:4: spec.target.mesh: the policy is in namespace \"shop\", and only those in \"nodemesh-system\" can be for the whole mesh",
        ),
    ] {
        assert_mistakes(&document("AuthenticationPolicy", "shop", spec), &[expected]);
    }
}

/// (from line 6 on, the mistakes); the rest is a ServicePolicy for shop/web.
const CHECKS: &[(&str, &[&str])] = &[
    (
        "  balancing: Random",
        &["a.yaml:6: spec.balancing: \"Random\" is none of LeastRequests, RoundRobin"],
    ),
    (
        "  locality: Near",
        &["a.yaml:6: spec.locality: \"Near\" is none of Nearest, None"],
    ),
    (
        "  outlierDetection:\n    baseEjectionMs: 70000",
        &[
            "a.yaml:7: spec.outlierDetection.baseEjectionMs: 70000 is not from 1 to maxEjectionMs, 60000",
        ],
    ),
    (
        "  outlierDetection:\n    maxEjectionMs: 0",
        &[
            "a.yaml:7: spec.outlierDetection.baseEjectionMs: 5000 is not from 1 to maxEjectionMs, 0",
            "a.yaml:7: spec.outlierDetection.maxEjectionMs: 0 is not from 1 to 86400000",
        ],
    ),
    (
        "  outlierDetection:\n    maxEjectedPercent: 101",
        &["a.yaml:7: spec.outlierDetection.maxEjectedPercent: 101 is not from 0 to 100"],
    ),
    (
        "  healthChecks:\n  - {port: 81, tcp: {}}\n  - {port: 53, tcp: {}}",
        &[
            "a.yaml:7: spec.healthChecks[0].port: Service \"web\" has TCP ports 80",
            "a.yaml:8: spec.healthChecks[1].port: Service \"web\" has TCP ports 80",
        ],
    ),
    (
        "  healthChecks:\n  - {port: 80}",
        &["a.yaml:7: spec.healthChecks[0]: give one of tcp: {} and http: {path: /}"],
    ),
    (
        "  healthChecks:\n  - {port: 80, tcp: {}, http: {path: /}}",
        &["a.yaml:7: spec.healthChecks[0]: give one of tcp: {} and http: {path: /}"],
    ),
    (
        "  healthChecks:\n  - port: 80\n    tcp: {}\n    intervalMs: 400",
        &["a.yaml:7: spec.healthChecks[0].timeoutMs: 500 is not from 1 to intervalMs, 400"],
    ),
    (
        "  healthChecks:\n  - port: 80\n    tcp: {}\n    intervalMs: 50\n    timeoutMs: 0\n    unhealthyThreshold: 0\n    healthyThreshold: 101",
        &[
            "a.yaml:9: spec.healthChecks[0].intervalMs: 50 is not from 100 to 86400000",
            "a.yaml:10: spec.healthChecks[0].timeoutMs: 0 is not from 1 to intervalMs, 50",
            "a.yaml:11: spec.healthChecks[0].unhealthyThreshold: 0 is not from 1 to 100",
            "a.yaml:12: spec.healthChecks[0].healthyThreshold: 101 is not from 1 to 100",
        ],
    ),
    (
        "  healthChecks:\n  - port: 80\n    http: {path: healthz}",
        &[
            "a.yaml:8: spec.healthChecks[0].http.path: \"healthz\" is not a path: it begins with '/' and has at most 1024 visible ASCII characters",
        ],
    ),
    (
        "  healthChecks:\n  - port: 80\n    http: {path: /, host: \"a b\"}",
        &[
            "a.yaml:8: spec.healthChecks[0].http.host: \"a b\" is not a host name, with or without a port",
        ],
    ),
    (
        "  healthChecks:\n  - {port: 80, tcp: {port: 1}}",
        &["a.yaml:7: spec.healthChecks[0].tcp.port: unknown field `port`, there are no fields"],
    ),
];

#[test]
fn each_mistake_in_a_service_policy_names_its_field() {
    for (rest, expected) in CHECKS {
        assert_mistakes(&service_policy(rest), expected);
    }
    let cart = service_policy("").replace("service: web", "service: cart");
    assert_mistakes(
        &cart,
        &["a.yaml:5: spec.service: there is no Service \"cart\" in namespace \"shop\""],
    );
    let again = service_policy("").replace("name: p", "name: q");
    assert_mistakes(
        &format!("{}---\n{again}", service_policy("")),
        &["a.yaml:12: spec.service: Service \"web\" has a ServicePolicy already: a.yaml:3"],
    );
    let many = "  - {port: 80, tcp: {}}\n".repeat(9);
    assert_mistakes(
        &service_policy(&format!("  healthChecks:\n{many}")),
        &["a.yaml:7: spec.healthChecks: 9 checks; at most 8 are made"],
    );
}

#[test]
fn nodes_are_unique() {
    let node = "kind: Node\nmetadata: {name: n}\n";
    assert_mistakes(
        &format!("{node}---\n{node}"),
        &["a.yaml:5: metadata.name: Node \"n\" is there already: a.yaml:2"],
    );
}

#[test]
fn what_is_likely_not_meant_is_a_warning() {
    for (text, expected) in [
        (
            authorization("  rules: [{}]\n  target: {labels: {app: wbe}}"),
            "a.yaml:8: spec.target: selects no pod",
        ),
        (
            document("AuthenticationPolicy", "legacy", "{mode: Strict}"),
            "a.yaml:3: metadata.name: selects no pod that is enrolled, so it has no effect",
        ),
        (
            document("AuthenticationPolicy", "nodemesh-system", "{mode: Strict}"),
            "a.yaml:3: metadata.name: selects no pod: for the whole mesh, say target: {mesh: true}",
        ),
        (
            authorization(
                "  rules:\n  - peers:\n    - identity: spiffe://cluster.local/ns/shop/sa/wbe",
            ),
            "a.yaml:9: spec.rules[0].peers[0].identity: no pod has this identity",
        ),
        (
            authorization(
                "  rules:\n  - peers:\n    - identity: spiffe://elsewhere/ns/shop/sa/web",
            ),
            "a.yaml:9: spec.rules[0].peers[0].identity: elsewhere is not the mesh's trust domain, cluster.local: no member can have this identity",
        ),
        (
            authorization("  rules:\n  - peers:\n    - {namespace: shop, serviceAccount: wbe}"),
            "a.yaml:9: spec.rules[0].peers[0].serviceAccount: no pod has the identity spiffe://cluster.local/ns/shop/sa/wbe",
        ),
        (
            authorization("  rules:\n  - peers:\n    - namespace: shpo"),
            "a.yaml:9: spec.rules[0].peers[0].namespace: there is no Namespace \"shpo\" in these manifests",
        ),
        (
            authorization("  rules:\n  - peers:\n    - service: cart\n    - service: legacy/web"),
            "a.yaml:9: spec.rules[0].peers[0].service: there is no Service \"cart\" in namespace \"shop\"\na.yaml:10: spec.rules[0].peers[1].service: there is no Service \"web\" in namespace \"legacy\"",
        ),
    ] {
        let (loaded, prefix) = loaded(&text);
        let loaded = loaded.unwrap_or_else(|error| panic!("{error}\n{text}"));
        let shown: Vec<_> = loaded
            .warnings
            .iter()
            .map(|warning| warning.to_string().replace(&prefix, ""))
            .filter(|warning| warning.starts_with("a.yaml"))
            .collect();
        assert_eq!(shown.join("\n"), expected, "\n{text}");
    }
}

const POLICIES: &str = r#"
kind: AuthorizationPolicy
apiVersion: nodemesh.dev/v1alpha1
metadata: {name: everything, namespace: shop, labels: {a: b}, annotations: {c: d}}
spec:
  target: {service: web}
  direction: Inbound
  action: Allow
  rules:
  - peers:
    - {identity: "spiffe://cluster.local/ns/shop/sa/web"}
    - {namespace: shop, serviceAccount: web}
    - {namespace: legacy}
    - {service: web}
    - {service: shop/web}
    - {labels: {app: web}, namespace: shop}
    - {cidr: 10.0.0.0/8}
    - {cidr: "fd00::/8"}
    ports: [80, 53/UDP, UDP, 81/TCP]
  - {}
---
kind: AuthorizationPolicy
apiVersion: nodemesh.dev/v1alpha1
metadata: {name: wall, namespace: nodemesh-system}
spec: {target: {mesh: true}, direction: Outbound, action: Deny, rules: [{peers: [{cidr: 192.0.2.0/24}]}]}
---
kind: AuthenticationPolicy
apiVersion: nodemesh.dev/v1alpha1
metadata: {name: metrics, namespace: shop}
spec: {target: {labels: {app: web}}, mode: Strict, ports: {9090: Permissive}}
---
{"kind": "AuthenticationPolicy", "apiVersion": "nodemesh.dev/v1alpha1",
 "metadata": {"name": "json", "namespace": "shop"}, "spec": {"ports": {"9091": "Permissive"}}}
---
kind: ServicePolicy
apiVersion: nodemesh.dev/v1alpha1
metadata: {name: web, namespace: shop}
spec:
  service: web
  balancing: RoundRobin
  locality: Nearest
  outlierDetection: {consecutiveFailures: 5, maxEjectionMs: 9000}
  healthChecks:
  - {port: 80, http: {path: "/healthz?x=1", host: web}, intervalMs: 2000, timeoutMs: 300, unhealthyThreshold: 3, healthyThreshold: 1}
  - {port: 80, tcp: {}}
---
kind: Node
metadata: {name: node-a, labels: {topology.kubernetes.io/region: r, topology.kubernetes.io/zone: z}}
spec: {podCIDR: 10.1.0.0/16}
"#;

fn tcp(port: u16) -> PortTerm {
    let protocol = Protocol::Tcp;
    PortTerm {
        port: Some(port),
        protocol,
    }
}

fn udp(port: Option<u16>) -> PortTerm {
    let protocol = Protocol::Udp;
    PortTerm { port, protocol }
}

#[test]
fn authorization_policies_mean_what_they_say() {
    let (loaded, _) = loaded(POLICIES);
    let mesh = loaded.unwrap().mesh;
    let peer = PeerTerm::default;
    let block = |text: &str| PeerTerm {
        cidr: Some(text.parse().unwrap()),
        ..peer()
    };
    let web = || PeerTerm {
        service: Some("shop/web.shop.svc.cluster.local".into()),
        ..peer()
    };
    let id = Some("spiffe://cluster.local/ns/shop/sa/web".parse().unwrap());
    let everything = AuthorizationPolicy {
        key: "shop/everything".into(),
        target: Target::Service("shop/web.shop.svc.cluster.local".into()),
        direction: Direction::Inbound,
        action: Action::Allow,
        rules: vec![
            Rule {
                peers: vec![
                    PeerTerm {
                        identity: id.clone(),
                        ..peer()
                    },
                    PeerTerm {
                        identity: id,
                        namespace: Some("shop".into()),
                        ..peer()
                    },
                    PeerTerm {
                        namespace: Some("legacy".into()),
                        ..peer()
                    },
                    web(),
                    web(),
                    PeerTerm {
                        labels: BTreeMap::from([("app".to_owned(), "web".to_owned())]),
                        namespace: Some("shop".into()),
                        ..peer()
                    },
                    block("10.0.0.0/8"),
                    block("fd00::/8"),
                ],
                ports: [tcp(80), udp(Some(53)), udp(None), tcp(81)].into(),
            },
            Rule::default(),
        ],
    };
    let wall = AuthorizationPolicy {
        key: "nodemesh-system/wall".into(),
        target: Target::Mesh,
        direction: Direction::Outbound,
        action: Action::Deny,
        rules: vec![Rule {
            peers: vec![block("192.0.2.0/24")],
            ..Rule::default()
        }],
    };
    let policies: Vec<_> = mesh.authorizations().map(|p| (**p).clone()).collect();
    assert_eq!(policies, [wall, everything]);
}

#[test]
fn authentication_scopes_mean_what_they_say() {
    let (loaded, _) = loaded(POLICIES);
    let mesh = loaded.unwrap().mesh;
    let json = AuthenticationPolicy {
        key: "shop/json".into(),
        target: Target::Namespace,
        mode: None,
        ports: BTreeMap::from([(9091, AuthenticationMode::Permissive)]),
    };
    let metrics = AuthenticationPolicy {
        key: "shop/metrics".into(),
        target: Target::Labels(BTreeMap::from([("app".to_owned(), "web".to_owned())])),
        mode: Some(AuthenticationMode::Strict),
        ports: BTreeMap::from([(9090, AuthenticationMode::Permissive)]),
    };
    let policies: Vec<_> = mesh.authentications().map(|p| (**p).clone()).collect();
    assert_eq!(policies, [json, metrics]);
}

#[test]
fn service_policies_and_nodes_say_how_endpoints_are_chosen() {
    let (loaded, _) = loaded(POLICIES);
    let mesh = loaded.unwrap().mesh;
    let web = mesh.service("shop/web.shop.svc.cluster.local").unwrap();
    let ms = Duration::from_millis;
    let http = HealthCheck {
        port: 80,
        probe: Probe::Http {
            path: "/healthz?x=1".to_owned(),
            host: "web".to_owned(),
        },
        interval: ms(2000),
        timeout: ms(300),
        unhealthy_threshold: 3,
        healthy_threshold: 1,
    };
    let tcp = HealthCheck {
        port: 80,
        probe: Probe::Tcp,
        interval: ms(1000),
        timeout: ms(500),
        unhealthy_threshold: 2,
        healthy_threshold: 2,
    };
    let expected = Traffic {
        balancing: Balancing::RoundRobin,
        locality: LocalityPreference::Nearest,
        outliers: OutlierDetection {
            consecutive_failures: 5,
            max_ejection: ms(9000),
            ..OutlierDetection::default()
        },
        checks: vec![http, tcp],
    };
    assert_eq!(web.traffic, expected);
    let pod = mesh.workload("Kubernetes//v1/Pod/shop/web-1").unwrap();
    let locality = Locality {
        region: "r".to_owned(),
        zone: "z".to_owned(),
    };
    assert_eq!(pod.locality, locality);
    assert_eq!(pod.labels["app"], "web");
}

#[test]
fn a_namespace_says_how_far_its_pods_are_in_the_mesh() {
    for (value, expected) in [
        ("\"true\"", Enrolment::Enforce),
        ("enforce", Enrolment::Enforce),
        ("audit", Enrolment::Audit),
        ("\"false\"", Enrolment::None),
    ] {
        let text = format!(
            "kind: Namespace\nmetadata: {{name: n, labels: {{nodemesh.dev/enroll: {value}}}}}\n---\nkind: Pod\nmetadata: {{name: p, namespace: n}}\nspec: {{nodeName: node-a}}\n"
        );
        let mesh = loaded(&text).0.unwrap().mesh;
        let pod = mesh.workload("Kubernetes//v1/Pod/n/p").unwrap();
        assert_eq!(pod.enrolment, expected, "{value}");
    }
}

#[test]
fn labels_of_a_pod_overrule_those_of_its_namespace() {
    let enroll = "nodemesh.dev/enroll";
    let port = "nodemesh.dev/tunnel-port";
    let (hbone, original) = (TunnelPort::Hbone, TunnelPort::Original);
    for (namespace, pod, expected) in [
        ("{}", "{}", (Enrolment::None, hbone)),
        (
            &*format!("{{{enroll}: enforce, {port}: original}}"),
            "{}",
            (Enrolment::Enforce, original),
        ),
        (
            &format!("{{{enroll}: enforce, {port}: original}}"),
            &format!("{{{enroll}: 'false', {port}: hbone}}"),
            (Enrolment::None, hbone),
        ),
        (
            "{}",
            &format!("{{{enroll}: audit, {port}: original}}"),
            (Enrolment::Audit, original),
        ),
    ] {
        let text = format!(
            "kind: Namespace\nmetadata: {{name: n, labels: {namespace}}}\n---\nkind: Pod\nmetadata: {{name: p, namespace: n, labels: {pod}}}\nspec: {{nodeName: node-a}}\n"
        );
        let mesh = loaded(&text).0.unwrap().mesh;
        let found = mesh.workload("Kubernetes//v1/Pod/n/p").unwrap();
        let found = (found.enrolment, found.tunnel_port);
        assert_eq!(found, expected, "{namespace} {pod}");
    }
}

#[test]
fn labels_say_what_becomes_of_foreign_processes() {
    use ForeignProcesses::{Audit, Refuse, RefuseExec};
    let label = "nodemesh.dev/foreign-processes";
    for (namespace, pod, expected) in [
        ("", "", Audit),
        ("refuse", "", Refuse),
        ("refuse", "audit", Audit),
        ("", "refuse-exec", RefuseExec),
    ] {
        let labels = |value: &str| match value {
            "" => "{}".to_owned(),
            value => format!("{{{label}: {value}}}"),
        };
        let text = format!(
            "kind: Namespace\nmetadata: {{name: n, labels: {}}}\n---\nkind: Pod\nmetadata: {{name: p, namespace: n, labels: {}}}\nspec: {{nodeName: node-a, shareProcessNamespace: true}}\n",
            labels(namespace),
            labels(pod),
        );
        let mesh = loaded(&text).0.unwrap().mesh;
        let found = mesh.workload("Kubernetes//v1/Pod/n/p").unwrap();
        assert_eq!(found.foreign_processes, expected, "{namespace} {pod}");
        assert!(found.shares_processes);
    }
    let mistaken = format!("kind: Namespace\nmetadata: {{name: n, labels: {{{label}: deny}}}}\n");
    assert!(loaded(&mistaken).0.is_err());
}
