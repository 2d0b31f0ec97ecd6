//! What is older than the enrolment ends: by policy, in time, and with nobody watching.

use mesh_lab::call::Open;
use mesh_lab::{Enrolment, Lab, manifest};

use crate::{
    CLIENT, OTHER_PORT, PORT, WEB, enrol, older, plan, serve, target, wait_older, wait_state,
};

const CUT: &str = "nodemesh_supervisor_grandfathered_cut_total";
const AUDITED: &str = "nodemesh_supervisor_grandfathered_audited_total";

fn open(lab: &Lab, port: u16) -> Open {
    let mut to = target(lab.pod(WEB));
    to.set_port(port);
    Open::dial(&lab.pod(CLIENT).netns, to).unwrap()
}

fn counted(lab: &Lab, key: &str, metric: &str, reason: &str) -> f64 {
    let node = lab.pod(key).node();
    let labels = [format!("pod=\"{key}\""), format!("reason=\"{reason}\"")];
    let labels = labels.each_ref().map(String::as_str);
    lab.agent(node)
        .metric(lab.node(node), metric, &labels)
        .unwrap()
}

#[test]
fn policy_ends_it_by_the_engine_that_decides_on_new_ones() {
    let mut lab = Lab::with_mesh(plan()).unwrap();
    let _server = serve(lab.pod(WEB));
    let (mut cut, mut kept) = (open(&lab, PORT), open(&lab, OTHER_PORT));
    // In audit the caller, who is not in the mesh, is told of.
    let mark = lab.agent(1).mark();
    enrol(&lab, WEB, Enrolment::Audit);
    let audited = [
        ("by", "supervisor"),
        ("outcome", "audited"),
        ("reason", "inbound_plaintext"),
        ("direction", "inbound"),
    ];
    lab.agent(1)
        .wait_refusal(mark, lab.pod(WEB), &audited)
        .unwrap();
    assert_eq!(counted(&lab, WEB, AUDITED, "inbound_plaintext"), 2.0);
    enrol(&lab, CLIENT, Enrolment::Enforce);
    lab.set_enrolment("shop", Enrolment::Enforce).unwrap();
    wait_state(&lab, WEB, "enrolled");
    assert_eq!([CLIENT, WEB].map(|key| older(&lab, key)), [2, 2]);

    // Nobody watches for a while, and the next supervisor knows of them.
    let (agent, host) = lab.agent_mut(0);
    agent.daemon.kill9().unwrap();
    cut.ping().unwrap();
    agent.start(host).unwrap();
    wait_state(&lab, CLIENT, "enrolled");
    assert_eq!(older(&lab, CLIENT), 2);
    cut.ping().unwrap();

    let mark = lab.agent(0).mark();
    let deny = format!(
        "{{target: {{labels: {{app: client}}}}, direction: Outbound, action: Deny, \
         rules: [{{ports: [{PORT}]}}]}}"
    );
    lab.write_manifest("deny", &manifest::authorization("front/deny", &deny))
        .unwrap();
    cut.wait_cut()
        .unwrap_or_else(|e| panic!("{e:#}\n{}", lab.log_tails()));
    let fields = [
        ("by", "supervisor"),
        ("outcome", "cut"),
        ("reason", "policy_denied"),
        ("direction", "outbound"),
        ("policy", "front/deny"),
    ];
    lab.agent(0)
        .wait_refusal(mark, lab.pod(CLIENT), &fields)
        .unwrap();
    assert_eq!(counted(&lab, CLIENT, CUT, "policy_denied"), 1.0);
    kept.ping().unwrap();
    // The other end has heard of it, too.
    wait_older(&lab, WEB, 1);
    lab.finish().unwrap();
}

#[test]
fn enrolment_into_enforce_ends_what_policy_refuses() {
    let lab = Lab::with_mesh(plan()).unwrap();
    let _server = serve(lab.pod(WEB));
    let mut open = open(&lab, PORT);
    let mark = lab.agent(1).mark();
    enrol(&lab, WEB, Enrolment::Enforce);
    open.wait_reset()
        .unwrap_or_else(|e| panic!("{e:#}\n{}", lab.log_tails()));
    let fields = [("outcome", "cut"), ("reason", "inbound_plaintext")];
    lab.agent(1)
        .wait_refusal(mark, lab.pod(WEB), &fields)
        .unwrap();
}

#[test]
fn its_time_ends_it() {
    for (seconds, survives) in [("3", true), ("0", false)] {
        let plan = plan().agent_option("--grandfather-for", seconds);
        let lab = Lab::with_mesh(plan).unwrap();
        let _server = serve(lab.pod(WEB));
        let mut open = open(&lab, PORT);
        let mark = lab.agent(1).mark();
        enrol(&lab, WEB, Enrolment::Audit);
        if survives {
            open.ping().unwrap();
            assert_eq!(older(&lab, WEB), 1);
        }
        open.wait_reset()
            .unwrap_or_else(|e| panic!("{seconds} s: {e:#}\n{}", lab.log_tails()));
        let fields = [("outcome", "cut"), ("reason", "grandfather_ended")];
        lab.agent(1)
            .wait_refusal(mark, lab.pod(WEB), &fields)
            .unwrap();
        wait_older(&lab, WEB, 0);
    }
}
