//! Authentication scopes: which ports take plaintext from outside the mesh, and that policy
//! decides on it like on anything else.

use mesh_lab::{Lab, Plan, PodSpec, ServiceSpec, manifest};

use super::expect::{At, Caller, Checks, Refused, both, refused, serve, served};

const PORTS: [u16; 6] = [7000, 7001, 7002, 7003, 7004, 7005];

/// A port, and whether the nearest scope to it takes plaintext.
const SCOPES: &[(&str, u16, bool)] = &[
    // Nothing nearer than the mesh's, permissive.
    ("data/db", 7000, true),
    // The namespace's, strict, but for one port.
    ("shop/gold", 7000, false),
    ("shop/gold", 7003, true),
    // By labels, for single ports; the rest is the namespace's.
    ("shop/web", 7000, false),
    ("shop/web", 7001, true),
    ("shop/web", 7002, false),
    ("shop/web", 7003, true),
    // Two that are equally near: strict wins.
    ("shop/web", 7004, false),
    // By service.
    ("data/api", 7000, false),
];

fn scopes() -> String {
    [
        (
            "nodemesh-system/all",
            "{target: {mesh: true}, mode: Permissive}",
        ),
        ("shop/all", "{mode: Strict, ports: {7003: Permissive}}"),
        (
            "shop/web",
            "{target: {labels: {app: web}}, \
             ports: {7001: Permissive, 7002: Strict, 7004: Permissive, 7005: Permissive}}",
        ),
        (
            "shop/web-too",
            "{target: {labels: {app: web}}, ports: {7004: Strict}}",
        ),
        ("data/api", "{target: {service: api}, mode: Strict}"),
    ]
    .map(|(key, spec)| manifest::authentication(key, spec))
    .join("---\n")
}

#[test]
fn the_nearest_scope_says_whether_plaintext_is_taken() {
    // The whole lab by address, and on port 7005 members only.
    let inbound = "{target: {mesh: true}, direction: Inbound, action: Allow, rules: [{}, \
                   {peers: [{cidr: 10.0.0.0/8}, {cidr: \"fd00::/16\"}], \
                   ports: [7000, 7001, 7002, 7003, 7004]}]}";
    let plan = Plan::nodes(2)
        .enrolled("shop")
        .enrolled("data")
        .namespace("legacy")
        .pod(PodSpec::new("shop", "client"))
        .pod(PodSpec::new("legacy", "caller"))
        .pod(PodSpec::new("shop", "gold").node(1))
        .pod(PodSpec::new("shop", "web").node(1))
        .pod(PodSpec::new("data", "db").node(1))
        .pod(PodSpec::new("data", "api").node(1))
        .service(ServiceSpec::new("data", "api").port(80, "7000"))
        .manifest("scopes", &scopes())
        .manifest(
            "by-address",
            &manifest::authorization("nodemesh-system/by-address", inbound),
        );
    let lab = Lab::with_mesh(plan).unwrap();
    let keys = ["shop/gold", "shop/web", "data/db", "data/api"];
    let _servers = keys.map(|key| serve(lab.pod(key), &PORTS));
    let callers = [
        ("outside", Caller::Host(lab.outside())),
        ("legacy/caller", Caller::Plain(lab.pod("legacy/caller"))),
    ];
    let at = At::Destination;
    let plaintext = Refused {
        at,
        reason: "inbound_plaintext",
        policy: "",
    };
    let no_rule = Refused {
        at,
        reason: "policy_no_rule",
        policy: "",
    };
    let mut checks = Checks::default();
    for (name, caller) in callers {
        for (key, port, taken) in SCOPES {
            for to in both(lab.pod(key), *port) {
                let result = match taken {
                    true => served(&lab, caller, to),
                    false => refused(&lab, caller, to, &plaintext),
                };
                checks.add(&format!("{name} to {key} at {to}"), result);
            }
        }
        for to in both(lab.pod("shop/web"), 7005) {
            let result = refused(&lab, caller, to, &no_rule);
            checks.add(&format!("{name}, whom no rule names, to {to}"), result);
        }
    }
    let client = Caller::Member(lab.pod("shop/client"));
    for (key, port, _) in SCOPES {
        for to in both(lab.pod(key), *port) {
            checks.add(&format!("a member to {to}"), served(&lab, client, to));
        }
    }
    checks.assert(&lab);
}
