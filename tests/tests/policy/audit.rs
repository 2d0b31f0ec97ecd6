//! The level `audit`: everything is captured, encrypted between members and decided on;
//! what would be refused passes, counted and logged.

use std::net::SocketAddr;

use mesh_lab::call::{self, Called};
use mesh_lab::{Enrolment, Lab, Plan, PodSpec, manifest};

use super::expect::{At, Caller, Checks, Refused, audited, both, refused, serve, wait_served};

const fn expect(at: At, reason: &'static str, policy: &'static str) -> Refused<'static> {
    Refused { at, reason, policy }
}

fn plan() -> Plan {
    let shop = |direction: &str| {
        let spec = format!("{{direction: {direction}, action: Allow, rules: [{{}}]}}");
        manifest::authorization(&format!("shop/{}", direction.to_lowercase()), &spec)
    };
    Plan::nodes(2)
        .audited("trial")
        .enrolled("shop")
        .namespace("legacy")
        .without_default_policy()
        .pod(PodSpec::new("trial", "client"))
        .pod(PodSpec::new("shop", "client"))
        .pod(PodSpec::new("trial", "web").node(1))
        .pod(PodSpec::new("shop", "web").node(1))
        .pod(PodSpec::new("legacy", "server").node(1))
        .manifest("in", &shop("Inbound"))
        .manifest("out", &shop("Outbound"))
        .manifest(
            "deny",
            &manifest::authorization(
                "trial/not-there",
                "{direction: Outbound, action: Deny, rules: [{ports: [7001]}]}",
            ),
        )
}

#[test]
fn what_would_be_refused_passes_and_is_told_of() {
    let lab = Lab::with_mesh(plan()).unwrap();
    let (web, trial_web) = (lab.pod("shop/web"), lab.pod("trial/web"));
    let servers = [web, trial_web, lab.pod("legacy/server")];
    let _servers = servers.map(|pod| serve(pod, &[7000, 7001]));
    let outside = lab.outside();
    let outside_server = outside
        .netns
        .command(mesh_lab::programs::mesh_binary("mesh-lab-app").unwrap())
        .args(["serve", "7000"])
        .spawn();
    let mut outside_server = outside_server.unwrap();
    let client = Caller::Member(lab.pod("trial/client"));
    let member = Caller::Member(lab.pod("shop/client"));
    let mut checks = Checks::default();

    // Between members, and so in mutual TLS: no greeting of a server is on the wire.
    let capture = lab.capture(lab.node(0)).unwrap();
    let out = expect(At::Source, "policy_no_rule", "");
    let denied = expect(At::Source, "policy_denied", "trial/not-there");
    let inbound = expect(At::Destination, "policy_no_rule", "");
    for to in both(web, 7000) {
        checks.add("outbound, no rule", audited(&lab, client, to, &out));
    }
    for to in both(web, 7001) {
        checks.add("outbound, denied", audited(&lab, client, to, &denied));
    }
    for to in both(trial_web, 7000) {
        checks.add("inbound, no rule", audited(&lab, member, to, &inbound));
    }
    let recording = capture.stop().unwrap();
    assert!(!recording.contains(b"accept="), "members talked in clear");

    // With those outside, in clear.
    let plaintext = expect(At::Destination, "inbound_plaintext", "");
    for to in both(trial_web, 7000) {
        let caller = Caller::Host(outside);
        checks.add("inbound, plain", audited(&lab, caller, to, &plaintext));
    }
    let unenrolled = expect(At::Source, "destination_not_enrolled", "");
    for to in both(lab.pod("legacy/server"), 7000) {
        let result = audited(&lab, client, to, &unenrolled);
        checks.add("outbound, to a pod that is not enrolled", result);
    }
    let unknown = expect(At::Source, "destination_unknown", "");
    for address in Caller::Host(outside).addresses() {
        let to = SocketAddr::new(address, 7000);
        checks.add("outbound, unknown", audited(&lab, client, to, &unknown));
    }
    outside_server.kill().unwrap();
    outside_server.wait().unwrap();

    // What fails without policy fails.
    for to in both(web, 7999) {
        assert_eq!(
            call::tcp(client.netns(), to),
            Called::Reset,
            "nobody listens there"
        );
    }

    // The same pods, enforced.
    lab.set_enrolment("trial", Enrolment::Enforce).unwrap();
    wait_served(&lab, client, &both(web, 7000), false);
    for to in both(web, 7000) {
        checks.add("enforced", refused(&lab, client, to, &out));
    }
    let denied = expect(At::SourceKernel, "policy_denied", "trial/not-there");
    for to in both(web, 7001) {
        checks.add("enforced, denied", refused(&lab, client, to, &denied));
    }
    wait_served(&lab, member, &both(trial_web, 7000), false);
    for to in both(trial_web, 7000) {
        checks.add("enforced inbound", refused(&lab, member, to, &inbound));
    }
    checks.assert(&lab);
}
