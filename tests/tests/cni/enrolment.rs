//! A pod that the plugin has added is in the mesh, for itself and for others, before anybody has
//! told the API its addresses.

use mesh_lab::cni::{Plugin, Sandbox};
use mesh_lab::manifest::{self, Stage};
use mesh_lab::{call, wait};
use serde_json::{Value, json};

use crate::{NEW, PATIENCE_MS, WEB, lab, plan, serve, target};

#[test]
fn a_pod_is_in_the_mesh_before_the_api_knows_its_addresses() {
    // Who calls whom is decided by labels, which are found by address.
    let policies = ["new", "web"].map(|app| {
        ["Inbound", "Outbound"].map(|direction| {
            let peer = if app == "new" { "web" } else { "new" };
            let spec = format!("{{target: {{labels: {{app: {app}}}}}, direction: {direction}, action: Allow, rules: [{{peers: [{{labels: {{app: {peer}}}}}]}}]}}");
            let key = format!("shop/{app}-{}", direction.to_lowercase());
            manifest::authorization(&key, &spec)
        })
    });
    let plan = plan().without_default_policy();
    let lab = lab(plan.manifest("by-label", &policies.concat().join("---\n")));
    lab.announce_pod(lab.pod(NEW), Stage::Pending).unwrap();
    let plugin = Plugin::of(lab.agent(0), PATIENCE_MS);
    let sandbox = Sandbox::of(lab.pod(NEW), "c-1").uid("uid-1");
    plugin
        .add(&sandbox)
        .unwrap_or_else(|e| panic!("{e:#}\n{}", lab.log_tails()));
    let (new, web) = (lab.pod(NEW), lab.pod(WEB));
    let status = lab.agent(0).pod_status(new).unwrap();
    assert_eq!(status["state"], "enrolled", "{status}");
    assert_eq!(status["container"], "c-1");
    let worker = lab.agent(0).worker_pid(new).unwrap();
    assert!(plugin.run("CHECK", &sandbox).unwrap().well);

    let _servers = [serve(web), serve(new)];
    for (from, to) in [(new, web), (web, new)] {
        wait::until_true("calls by labels", wait::PATIENCE, || {
            Ok(call::tcp(&from.netns, target(to)).served())
        })
        .unwrap_or_else(|e| panic!("{e:#}\n{}", lab.log_tails()));
    }
    // Whoever is no member is refused: the pod is captured.
    assert!(!call::tcp(&lab.outside().netns, target(new)).served());

    // Kubelet tells the addresses at last: it is the same enrolment.
    let version = |lab: &mesh_lab::Lab| {
        let status = lab.agent(0).status().unwrap();
        status["control"]["discovery_version"].clone()
    };
    let before = version(&lab);
    lab.announce_pod(new, Stage::Running).unwrap();
    lab.relabel_pod(new, &[("seen", "yes")]).unwrap();
    wait::until_true("another version of the mesh", wait::PATIENCE, || {
        Ok(version(&lab) != before)
    })
    .unwrap();
    assert!(call::tcp(&new.netns, target(web)).served());
    assert_eq!(lab.agent(0).worker_pid(new).unwrap(), worker);

    // The same once more changes nothing.
    plugin.add(&sandbox).unwrap();
    assert_eq!(lab.agent(0).worker_pid(new).unwrap(), worker);
    lab.finish().unwrap();
}

#[test]
fn the_agent_knows_a_pod_by_its_uid_and_its_sandbox() {
    let mut lab = lab(plan());
    let plugin = Plugin::of(lab.agent(0), PATIENCE_MS);
    let hasty = Plugin::of(lab.agent(0), crate::SHORT_MS);
    // Control still knows the pod's predecessor.
    lab.announce_namesake(lab.pod(NEW), "uid-0", Stage::Running)
        .unwrap();
    let first = Sandbox::of(lab.pod(NEW), "c-1").uid("uid-1");
    let said = hasty.run("ADD", &first).unwrap();
    assert_eq!(said.code(), 101, "{}", said.text());
    assert!(
        said.text().contains("another pod of that name"),
        "{}",
        said.text()
    );
    assert!(plugin.run("DEL", &first).unwrap().well);
    lab.announce_pod(lab.pod(NEW), Stage::Pending).unwrap();
    plugin.add(&first).unwrap();

    // The pod gets another sandbox, in a network namespace of its own; the DEL of the first one
    // comes late.
    lab.make_pod(mesh_lab::PodSpec::new("shop", "again"))
        .unwrap();
    let (old, new) = (lab.pod(NEW), lab.pod("shop/again"));
    let mut second = Sandbox::of(new, "c-2").uid("uid-1").name("new");
    plugin
        .add(&second)
        .unwrap_or_else(|e| panic!("{e:#}\n{}", lab.log_tails()));
    let status = |lab: &mesh_lab::Lab| lab.agent(0).pod_status(lab.pod(NEW)).unwrap();
    let netns = json!(new.netns.path());
    assert_eq!(
        (&status(&lab)["container"], &status(&lab)["netns"]),
        (&json!("c-2"), &netns)
    );
    assert!(plugin.run("DEL", &first).unwrap().well);
    assert_eq!(status(&lab)["state"], "enrolled");
    assert_eq!(plugin.run("CHECK", &first).unwrap().code(), 102);
    assert!(plugin.run("CHECK", &second).unwrap().well);

    // Garbage is what has no sandbox any more.
    let gc = |valid: Value| {
        let plugin = plugin.clone().with("cni.dev/valid-attachments", valid);
        let plugin = plugin.with("cniVersion", json!("1.1.0"));
        assert!(plugin.run("GC", &first).unwrap().well);
    };
    gc(json!([{"containerID": "c-2", "ifname": "eth0"}]));
    assert_eq!(status(&lab)["state"], "enrolled");
    gc(json!([{"containerID": "c-1", "ifname": "eth0"}]));
    assert!(lab.agent(0).pod_status(old).is_err());
    second = second.uid("uid-1");
    assert_eq!(plugin.run("CHECK", &second).unwrap().code(), 102);
}

#[test]
fn the_plugin_answers_without_an_agent_what_needs_none() {
    let lab = lab(plan());
    let sandbox = Sandbox::of(lab.pod(NEW), "c-1");
    let plugin = Plugin::of(lab.agent(0), PATIENCE_MS);
    let said = plugin.run("VERSION", &sandbox).unwrap();
    assert_eq!(
        said.output["supportedVersions"],
        json!(["0.3.1", "0.4.0", "1.0.0", "1.1.0"])
    );
    assert_eq!(said.output["cniVersion"], "1.0.0");
    assert!(plugin.run("STATUS", &sandbox).unwrap().well);
    let alien = plugin.clone().with("cniVersion", json!("0.2.0"));
    assert_eq!(alien.run("ADD", &sandbox).unwrap().code(), 1);
    assert_eq!(plugin.run("SUB", &sandbox).unwrap().code(), 4);
}
