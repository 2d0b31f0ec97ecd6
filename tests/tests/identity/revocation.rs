//! What is revoked takes part no more, on any node, within seconds; all others notice nothing.

use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use mesh_lab::call::{self, Open};
use mesh_lab::mesh::Refusal;
use mesh_lab::{App, Lab, Plan, Pod, PodSpec, manifest, wait};

/// What is revoked is cut everywhere this soon after the manifest was put in place. On a machine
/// that does nothing else it is 2 s; the times are printed.
const CUT_WITHIN: Duration = Duration::from_secs(8);

/// The lab's server in a pod.
pub(crate) fn serve(pod: &Pod) -> App {
    let app = pod.command("mesh-lab-app").args(["serve", "7000"]);
    let app = app.spawn().unwrap();
    pod.wait_listening(7000).unwrap();
    app
}

fn plan() -> Plan {
    Plan::nodes(3)
        .enrolled("shop")
        .pod(PodSpec::new("shop", "thief"))
        .pod(PodSpec::new("shop", "client"))
        .pod(PodSpec::new("shop", "near"))
        .pod(PodSpec::new("shop", "web").node(1))
        .pod(PodSpec::new("shop", "far").node(2))
}

fn at(pod: &Pod) -> SocketAddr {
    SocketAddr::new(pod.addresses()[0], 7000)
}

fn open(lab: &Lab, from: &str, to: &str) -> Open {
    let opened = Open::dial(&lab.pod(from).netns, at(lab.pod(to)));
    opened.unwrap_or_else(|called| panic!("{from} to {to}: {called}\n{}", lab.log_tails()))
}

/// How long after `change` each of these connections was cut.
fn timed_cuts(lab: &Lab, open: Vec<(&str, Open)>, change: impl FnOnce()) {
    let waiting: Vec<_> = open
        .into_iter()
        .map(|(name, mut open)| (name, thread::spawn(move || open.wait_reset())))
        .collect();
    let begun = Instant::now();
    change();
    for (name, cut) in waiting {
        let cut = cut.join().unwrap();
        let cut = cut.unwrap_or_else(|error| panic!("{name}: {error:#}\n{}", lab.log_tails()));
        let after = cut - begun;
        println!("{name}: cut {after:?} after the manifest was in place");
        assert!(after < wait::scaled(CUT_WITHIN), "{name}: {after:?}");
    }
}

fn refused(lab: &Lab, from: &str, to: &str) {
    let called = call::tcp(&lab.pod(from).netns, at(lab.pod(to)));
    assert!(!called.served(), "{from} to {to}: {called}");
}

#[test]
fn a_revoked_identity_is_cut_on_every_node_and_nobody_else_is() {
    let lab = Lab::with_mesh(plan()).unwrap();
    let _servers: Vec<_> = lab.pods().map(serve).collect();
    let to_cut = vec![
        (
            "thief to the same node",
            open(&lab, "shop/thief", "shop/near"),
        ),
        (
            "thief to another node",
            open(&lab, "shop/thief", "shop/web"),
        ),
        (
            "thief to a third node",
            open(&lab, "shop/thief", "shop/far"),
        ),
        (
            "another node to thief",
            open(&lab, "shop/web", "shop/thief"),
        ),
        (
            "the same node to thief",
            open(&lab, "shop/client", "shop/thief"),
        ),
    ];
    let mut kept = [
        open(&lab, "shop/client", "shop/web"),
        open(&lab, "shop/client", "shop/near"),
        open(&lab, "shop/far", "shop/web"),
    ];
    let marks = [0, 1, 2].map(|node| (node, lab.agent(node).mark()));
    let spec = "{identities: [\"spiffe://cluster.local/ns/shop/sa/thief\"]}";
    timed_cuts(&lab, to_cut, || {
        let revocation = manifest::own("Revocation", "nodemesh-system", "thief", spec);
        lab.write_manifest("revocation", &revocation).unwrap();
    });
    // Whoever hears of it first cuts, and tells: the thief's own worker, or a peer's.
    wait::until_true("a cut that is told", wait::PATIENCE, || {
        let told = |line: &Refusal| {
            ["own_revoked", "peer_revoked"].contains(&line.field("reason"))
                && line.field("outcome") == "cut"
        };
        for (node, mark) in marks {
            if lab.agent(node).refusals(mark)?.iter().any(told) {
                return Ok(true);
            }
        }
        Ok(false)
    })
    .unwrap_or_else(|e| panic!("{e:#}\n{}", lab.log_tails()));
    for to in ["shop/near", "shop/web", "shop/far"] {
        refused(&lab, "shop/thief", to);
        refused(&lab, to, "shop/thief");
    }
    for kept in &mut kept {
        kept.ping().unwrap();
    }
    // Taken back, it may again.
    lab.remove_manifest("revocation").unwrap();
    wait::until_true("the identity to be good again", wait::PATIENCE, || {
        let called = call::tcp(&lab.pod("shop/thief").netns, at(lab.pod("shop/web")));
        Ok(called.served())
    })
    .unwrap();
}

#[test]
fn a_revoked_node_is_cut_with_all_its_pods_and_no_other_pod_is() {
    let lab = Lab::with_mesh(plan()).unwrap();
    let _servers: Vec<_> = lab.pods().map(serve).collect();
    let to_cut = vec![
        ("a pod of the node", open(&lab, "shop/client", "shop/web")),
        (
            "another pod of the node",
            open(&lab, "shop/thief", "shop/far"),
        ),
        ("to a pod of the node", open(&lab, "shop/far", "shop/near")),
    ];
    let mut kept = open(&lab, "shop/far", "shop/web");
    timed_cuts(&lab, to_cut, || {
        let node = lab.node(0).name();
        let spec = format!("{{nodes: [{node}]}}");
        let revocation = manifest::own("Revocation", "nodemesh-system", "node", &spec);
        lab.write_manifest("revocation", &revocation).unwrap();
    });
    let control = lab.control().daemon.wait_log("is revoked").unwrap();
    println!("{control}");
    refused(&lab, "shop/client", "shop/web");
    refused(&lab, "shop/far", "shop/client");
    kept.ping().unwrap();
    let _new = open(&lab, "shop/web", "shop/far");
}
