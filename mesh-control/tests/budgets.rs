//! Budgets of workers in manifests: what they become, and every mistake about them.

use std::fs;

use mesh_control::sources::manifests::{Loaded, ManifestFault, load};
use mesh_core::budget::{FIELDS, Fields};

const BASE: &str = r#"
kind: Namespace
metadata: {name: shop, labels: {nodemesh.dev/enroll: "true"}}
---
kind: Namespace
metadata: {name: pay, labels: {nodemesh.dev/enroll: "true"}}
---
kind: Pod
metadata: {name: web-1, namespace: shop, labels: {app: web}}
spec: {nodeName: node-a}
---
kind: Pod
metadata: {name: cart-1, namespace: shop, labels: {app: cart}}
spec: {nodeName: node-a}
---
kind: Pod
metadata: {name: pay-1, namespace: pay}
spec: {nodeName: node-a}
---
kind: Service
metadata: {name: web, namespace: shop}
spec: {selector: {app: web}, ports: [{port: 80}]}
"#;

fn loaded(budgets: &str) -> (Result<Loaded, ManifestFault>, String) {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("base.yaml"), BASE).unwrap();
    fs::write(folder.path().join("a.yaml"), budgets).unwrap();
    let loaded = load(folder.path(), &"cluster.local".parse().unwrap());
    (loaded, format!("{}/", folder.path().display()))
}

/// `rest` is the spec, from line 4 on.
fn budget(namespace: &str, name: &str, rest: &str) -> String {
    format!(
        "kind: WorkerBudget\napiVersion: nodemesh.dev/v1alpha1\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {rest}\n---\n"
    )
}

#[test]
fn a_workload_has_what_the_nearest_scopes_say_of_its_worker() {
    let budgets = [
        budget(
            "nodemesh-system",
            "all",
            "{target: {mesh: true}, cpuWeight: 10, connections: 11, tunnels: 12, cpuMaxMillicores: 0}",
        ),
        budget("shop", "all", "{cpuWeight: 20, memoryMaxMib: 128}"),
        budget(
            "shop",
            "web",
            "{target: {service: web}, cpuWeight: 30, handshakesPerSecond: 31}",
        ),
        budget(
            "shop",
            "cart",
            "{target: {labels: {app: cart}}, connections: 41, bufferedMib: 42}",
        ),
    ];
    let (loaded, _) = loaded(&budgets.concat());
    let Loaded { mesh, warnings, .. } = loaded.unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(warnings, []);
    let of = |name: &str| {
        let uid = format!("Kubernetes//v1/Pod/{name}");
        mesh.workload(&uid).unwrap().budget
    };
    let all = Fields {
        cpu_weight: Some(10),
        cpu_max_millicores: Some(0),
        connections: Some(11),
        tunnels: Some(12),
        ..Fields::default()
    };
    assert_eq!(of("pay/pay-1"), all);
    let shop = Fields {
        cpu_weight: Some(20),
        memory_max_mib: Some(128),
        ..all
    };
    let web = Fields {
        cpu_weight: Some(30),
        handshakes_per_second: Some(31),
        ..shop
    };
    assert_eq!(of("shop/web-1"), web);
    let cart = Fields {
        connections: Some(41),
        buffered_mib: Some(42),
        ..shop
    };
    assert_eq!(of("shop/cart-1"), cart);
}

#[test]
fn each_mistake_in_a_budget_names_its_field() {
    let names: Vec<_> = FIELDS.iter().map(|field| field.name).collect();
    let nothing = format!(
        "a.yaml:4: spec: says nothing: give at least one of {}; defaults hold for the rest",
        names.join(", ")
    );
    for (rest, expected) in [
        ("{}", nothing.as_str()),
        (
            "{cpuWeight: 0}",
            "a.yaml:4: spec.cpuWeight: 0 is not from 1 to 10000",
        ),
        (
            "\n  cpuWeight: 1\n  cpuMaxMillicores: 9",
            "a.yaml:6: spec.cpuMaxMillicores: 9 is not from 10 to 1024000, or 0 for no limit",
        ),
        (
            "{streamsPerTunnel: 2048}",
            "a.yaml:4: spec.streamsPerTunnel: 2048 is not from 1 to 2047",
        ),
        (
            "\n  memory: 64",
            "a.yaml:5: spec.memory: unknown field `memory`, expected one of `target`,",
        ),
        (
            "{connections: many}",
            "a.yaml:4: spec.connections: invalid type: string \"many\", expected u32",
        ),
        (
            "{connections: }",
            "a.yaml:4: spec.connections: invalid type: unit value, expected u32",
        ),
        (
            "{connections: 5, target: {service: db}}",
            "a.yaml:4: spec.target.service: there is no Service \"db\" in namespace \"shop\"",
        ),
        (
            "{connections: 5, target: {mesh: true}}",
            "a.yaml:4: spec.target.mesh: the policy is in namespace \"shop\", and only those in \"nodemesh-system\" can be for the whole mesh",
        ),
    ] {
        let (loaded, prefix) = loaded(&budget("shop", "p", rest));
        let error = loaded.err().unwrap_or_else(|| panic!("is taken: {rest}"));
        let shown = error.to_string().replace(&prefix, "");
        assert!(shown.starts_with(expected), "{rest}:\n{shown}");
        assert_eq!(shown.lines().count(), 1, "{shown}");
    }
}

#[test]
fn a_budget_for_nobody_is_a_warning_and_two_of_a_name_a_mistake() {
    let nobody = budget("shop", "p", "{target: {labels: {app: wbe}}, tunnels: 5}");
    let (for_nobody, _) = loaded(&nobody);
    let warnings = for_nobody
        .unwrap_or_else(|error| panic!("{error}"))
        .warnings;
    assert_eq!(warnings.len(), 1);
    assert_eq!(warnings[0].what, "selects no pod");
    let twice = budget("shop", "p", "{tunnels: 5}").repeat(2);
    let (twice, _) = loaded(&twice);
    let error = twice.expect_err("a mistake").to_string();
    assert!(
        error.contains("WorkerBudget \"p\" is there already"),
        "{error}"
    );
}
