//! What workers hear that drain: policy that changes, and revocations. Of what they still have open
//! nobody else decides.

use mesh_lab::call::Open;
use mesh_lab::mesh::Refusal;
use mesh_lab::{Lab, manifest, servers, wait};

use crate::{CLIENT, NEIGHBOUR, WEB, draining, is_rolled, lab, to, wait_status};

const SERVE: [u16; 2] = [7001, 7002];

fn open(lab: &Lab, from: &str, port: u16) -> Open {
    let opened = Open::dial(&lab.pod(from).netns, to(lab.pod(WEB), port));
    opened.unwrap_or_else(|called| panic!("{from}: {called}\n{}", lab.log_tails()))
}

/// Has every worker of a node replaced; those before have at least so many connections left.
fn roll(lab: &Lab, node: usize, connections: u64) {
    let roll = lab.agent(node).admin(&["roll", "--all"]).output().unwrap();
    assert!(roll.status.success(), "{roll:?}");
    wait_status(lab, node, "every worker to be replaced", is_rolled);
    wait_status(lab, node, "the old connections to be listed", |status| {
        draining(status).1 >= connections
    });
}

#[test]
fn policy_that_changes_cuts_what_a_draining_worker_still_has() {
    let lab = lab(|plan| plan);
    let _servers = SERVE.map(|port| servers::echo(lab.pod(WEB), port).unwrap());
    // The one end decides on what goes out, the other on what comes in.
    for (node, pod, direction) in [(0, CLIENT, "Outbound"), (1, WEB, "Inbound")] {
        let mut denied = open(&lab, CLIENT, SERVE[0]);
        let mut kept = open(&lab, CLIENT, SERVE[1]);
        roll(&lab, node, 2);
        let mark = lab.agent(node).mark();
        let app = lab.pod(pod).name();
        let spec = format!(
            "{{target: {{labels: {{app: {app}}}}}, direction: {direction}, action: Deny, \
             rules: [{{ports: [{}]}}]}}",
            SERVE[0]
        );
        denied.ping().unwrap();
        lab.write_manifest("deny", &manifest::authorization("shop/deny", &spec))
            .unwrap();
        let cut = denied.wait_reset();
        cut.unwrap_or_else(|e| panic!("{direction}: {e:#}\n{}", lab.log_tails()));
        let fields = [("outcome", "cut"), ("reason", "policy_denied")];
        lab.agent(node)
            .wait_refusal(mark, lab.pod(pod), &fields)
            .unwrap();
        kept.ping().unwrap();
        wait_status(&lab, node, "the worker to drain on", |status| {
            draining(status).1 >= 1
        });
        lab.remove_manifest("deny").unwrap();
        wait::until_true("the port to be open again", wait::PATIENCE, || {
            let to = to(lab.pod(WEB), SERVE[0]);
            Ok(Open::dial(&lab.pod(CLIENT).netns, to).is_ok())
        })
        .unwrap();
    }
    lab.finish().unwrap();
}

#[test]
fn a_revocation_cuts_what_draining_workers_still_have() {
    let lab = lab(|plan| plan);
    let _server = servers::echo(lab.pod(WEB), SERVE[0]).unwrap();
    let mut revoked = open(&lab, CLIENT, SERVE[0]);
    let mut kept = open(&lab, NEIGHBOUR, SERVE[0]);
    // Both ends, so that no other worker has a part in these connections.
    for node in 0..2 {
        roll(&lab, node, 2);
    }
    let marks = [0, 1].map(|node| lab.agent(node).mark());
    revoked.ping().unwrap();
    let identity = lab.pod(CLIENT).identity();
    let spec = format!("{{identities: [\"{identity}\"]}}");
    let revocation = manifest::own("Revocation", "nodemesh-system", "client", &spec);
    lab.write_manifest("revocation", &revocation).unwrap();
    let cut = revoked.wait_reset();
    cut.unwrap_or_else(|e| panic!("{e:#}\n{}", lab.log_tails()));
    wait::until_true("a cut that is told", wait::PATIENCE, || {
        let told = |line: &Refusal| {
            ["own_revoked", "peer_revoked"].contains(&line.field("reason"))
                && line.field("outcome") == "cut"
        };
        let lines = [0, 1].map(|node| lab.agent(node).refusals(marks[node]));
        let [near, far] = lines;
        Ok(near?.iter().chain(&far?).any(told))
    })
    .unwrap_or_else(|e| panic!("{e:#}\n{}", lab.log_tails()));
    kept.ping().unwrap();
    for node in 0..2 {
        wait_status(&lab, node, "the neighbour's to drain on", |status| {
            draining(status).1 >= 1
        });
    }
    lab.finish().unwrap();
}
