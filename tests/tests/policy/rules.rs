//! Each kind of rule, in both directions, over both families.

use std::fmt::Write as _;
use std::net::SocketAddr;

use mesh_lab::{Lab, Plan, PodSpec, ServiceSpec, manifest};

use super::expect::{At, Caller, Checks, Refused, both, refused, serve, served};

/// A rule for one port, one pod that it is true of and one that it is not true of.
struct Case {
    /// The rule's peers, or a whole policy's tail where `whole`.
    peers: &'static str,
    allowed: &'static str,
    refused: &'static str,
}

const fn case(peers: &'static str, allowed: &'static str, refused: &'static str) -> Case {
    Case {
        peers,
        allowed,
        refused,
    }
}

/// Callers of `shop/web`. `gold` of `shop` and of `data` are labelled `tier: gold`; only a
/// pod of the policy's own namespace counts where none is named.
const INBOUND: &[Case] = &[
    case(
        "{identity: \"spiffe://cluster.local/ns/shop/sa/client\"}",
        "shop/client",
        "shop/gold",
    ),
    case(
        "{namespace: shop, serviceAccount: client}",
        "shop/client",
        "shop/gold",
    ),
    case("{namespace: data}", "data/gold", "shop/client"),
    case("{service: data/db}", "data/db", "data/gold"),
    case("{labels: {tier: gold}}", "shop/gold", "data/gold"),
    case(
        "{labels: {tier: gold}, namespace: data}",
        "data/gold",
        "shop/gold",
    ),
    // All of the first node's pods have addresses in these.
    case(
        "{cidr: 10.202.10.0/24}, {cidr: \"fd00:ca:a::/64\"}",
        "shop/client",
        "data/db",
    ),
    case(
        "{namespace: shop, labels: {tier: gold}, cidr: 10.202.10.0/24}, \
         {namespace: shop, labels: {tier: gold}, cidr: \"fd00:ca:a::/64\"}",
        "shop/gold",
        "shop/client",
    ),
];

/// Destinations of `shop/client`.
const OUTBOUND: &[Case] = &[
    case(
        "{identity: \"spiffe://cluster.local/ns/shop/sa/web\"}",
        "shop/web",
        "data/db",
    ),
    case("{namespace: data}", "data/db", "shop/web"),
    case("{service: data/db}", "data/db", "data/gold"),
    case("{labels: {app: web}}", "shop/web", "shop/gold"),
    case(
        "{labels: {tier: gold}, namespace: data}",
        "data/gold",
        "shop/gold",
    ),
    case(
        "{cidr: 10.202.11.0/24}, {cidr: \"fd00:ca:b::/64\"}",
        "shop/web",
        "shop/gold",
    ),
];

const FIRST_PORT: u16 = 7000;

fn ports(cases: &[Case]) -> Vec<u16> {
    (FIRST_PORT..).take(cases.len()).collect()
}

/// A rule for each case, on a port of its own.
fn rules(cases: &[Case]) -> String {
    let mut rules = String::new();
    for (case, port) in cases.iter().zip(ports(cases)) {
        let _ = write!(rules, "{{peers: [{}], ports: [{port}]}}, ", case.peers);
    }
    rules
}

fn plan() -> Plan {
    Plan::nodes(2)
        .enrolled("shop")
        .enrolled("data")
        .without_default_policy()
        .pod(PodSpec::new("shop", "client"))
        .pod(PodSpec::new("shop", "gold").label("tier", "gold"))
        .pod(PodSpec::new("data", "gold").label("tier", "gold"))
        .pod(PodSpec::new("shop", "web").node(1))
        .pod(PodSpec::new("data", "db").node(1))
        .service(ServiceSpec::new("data", "db").port(80, "7000"))
        .service(ServiceSpec::new("shop", "web").port(80, "7000"))
}

fn member<'a>(lab: &'a Lab, key: &str) -> Caller<'a> {
    Caller::Member(lab.pod(key))
}

pub(crate) const ALL_OUT: &str =
    "{target: {mesh: true}, direction: Outbound, action: Allow, rules: [{}]}";
pub(crate) const ALL_IN: &str =
    "{target: {mesh: true}, direction: Inbound, action: Allow, rules: [{}]}";

#[test]
fn inbound_each_kind_of_peer_opens_its_port_and_no_other() {
    let spec = format!(
        "{{target: {{labels: {{app: web}}}}, direction: Inbound, action: Allow, rules: [{}]}}",
        rules(INBOUND)
    );
    let plan = plan()
        .manifest(
            "out",
            &manifest::authorization("nodemesh-system/out", ALL_OUT),
        )
        .manifest("web", &manifest::authorization("shop/web", &spec));
    let lab = Lab::with_mesh(plan).unwrap();
    let web = lab.pod("shop/web");
    let open = ports(INBOUND);
    let closed = open[open.len() - 1] + 1;
    let _server = serve(web, &[&open[..], &[closed]].concat());
    let no_rule = Refused {
        at: At::Destination,
        reason: "policy_no_rule",
        policy: "",
    };
    let mut checks = Checks::default();
    for (case, port) in INBOUND.iter().zip(open) {
        for to in both(web, port) {
            let title = format!("{} to {to} ({})", case.allowed, case.peers);
            checks.add(&title, served(&lab, member(&lab, case.allowed), to));
            let title = format!("{} to {to} ({})", case.refused, case.peers);
            checks.add(
                &title,
                refused(&lab, member(&lab, case.refused), to, &no_rule),
            );
        }
    }
    for to in both(web, closed) {
        let result = refused(&lab, member(&lab, "shop/client"), to, &no_rule);
        checks.add(&format!("{to}, which no rule names"), result);
    }
    // By the service: its port is not the one that the rule names, its target is.
    for address in lab.service("shop/web") {
        let to = SocketAddr::new(address, 80);
        let title = format!("the service at {to}");
        checks.add(&title, served(&lab, member(&lab, "shop/client"), to));
    }
    checks.assert(&lab);
}

#[test]
fn outbound_each_kind_of_peer_opens_its_port_and_no_other() {
    let spec = format!(
        "{{target: {{labels: {{app: client}}}}, direction: Outbound, action: Allow, rules: [{}]}}",
        rules(OUTBOUND)
    );
    let plan = plan()
        .manifest("in", &manifest::authorization("nodemesh-system/in", ALL_IN))
        .manifest("client", &manifest::authorization("shop/client", &spec));
    let lab = Lab::with_mesh(plan).unwrap();
    let client = member(&lab, "shop/client");
    let open = ports(OUTBOUND);
    let closed = open[open.len() - 1] + 1;
    let all = [&open[..], &[closed]].concat();
    let servers = ["shop/web", "data/db", "shop/gold", "data/gold"];
    let _servers = servers.map(|key| serve(lab.pod(key), &all));
    let no_rule = Refused {
        at: At::Source,
        reason: "policy_no_rule",
        policy: "",
    };
    let mut checks = Checks::default();
    for (case, port) in OUTBOUND.iter().zip(open) {
        for to in both(lab.pod(case.allowed), port) {
            let title = format!("to {} at {to} ({})", case.allowed, case.peers);
            checks.add(&title, served(&lab, client, to));
        }
        for to in both(lab.pod(case.refused), port) {
            let title = format!("to {} at {to} ({})", case.refused, case.peers);
            checks.add(&title, refused(&lab, client, to, &no_rule));
        }
    }
    for to in both(lab.pod("shop/web"), closed) {
        let result = refused(&lab, client, to, &no_rule);
        checks.add(&format!("{to}, which no rule names"), result);
    }
    // By the service, whose target port is the one that a rule names for it.
    let at = |key: &str| SocketAddr::new(lab.service(key)[1], 80);
    checks.add("shop/web by service", served(&lab, client, at("shop/web")));
    checks.add(
        "data/db by service",
        refused(&lab, client, at("data/db"), &no_rule),
    );
    // A pod without any policy for outbound.
    for to in both(lab.pod("shop/web"), FIRST_PORT) {
        let result = refused(&lab, member(&lab, "shop/gold"), to, &no_rule);
        checks.add("from a pod that no policy is for", result);
    }
    checks.assert(&lab);
}

#[test]
fn denials_win_and_an_outright_one_is_an_errno() {
    let deny = |direction: &str, rule: &str| {
        let target = "{labels: {app: web}}";
        let source = "{labels: {app: client}}";
        let target = if direction == "Inbound" {
            target
        } else {
            source
        };
        format!("{{target: {target}, direction: {direction}, action: Deny, rules: [{rule}]}}")
    };
    let plan = plan()
        .manifest(
            "out",
            &manifest::authorization("nodemesh-system/out", ALL_OUT),
        )
        .manifest("in", &manifest::authorization("nodemesh-system/in", ALL_IN))
        .manifest(
            "deny-in",
            &manifest::authorization(
                "shop/not-gold",
                &deny(
                    "Inbound",
                    "{peers: [{labels: {tier: gold}}], ports: [7000]}",
                ),
            ),
        )
        .manifest(
            "deny-all-in",
            &manifest::authorization("shop/nobody", &deny("Inbound", "{ports: [7001]}")),
        )
        .manifest(
            "deny-out",
            &manifest::authorization(
                "shop/not-db",
                &deny(
                    "Outbound",
                    "{peers: [{namespace: data}]}, {peers: [{cidr: 198.51.100.0/24}]}, \
                     {ports: [7002]}",
                ),
            ),
        );
    let lab = Lab::with_mesh(plan).unwrap();
    let (client, gold) = (member(&lab, "shop/client"), member(&lab, "shop/gold"));
    let (web, db) = (lab.pod("shop/web"), lab.pod("data/db"));
    let _servers = [web, db].map(|pod| serve(pod, &[7000, 7001, 7002]));
    let denied = |at: At, policy: &'static str| Refused {
        at,
        reason: "policy_denied",
        policy,
    };
    let mut checks = Checks::default();
    let inbound = denied(At::Destination, "shop/not-gold");
    for to in both(web, 7000) {
        checks.add("not denied", served(&lab, client, to));
        checks.add("denied inbound", refused(&lab, gold, to, &inbound));
    }
    let inbound = denied(At::Destination, "shop/nobody");
    for to in both(web, 7001) {
        checks.add("denied for all", refused(&lab, client, to, &inbound));
    }
    let outbound = denied(At::SourceKernel, "shop/not-db");
    let unknown = ["198.51.100.7:80"].map(|to| to.parse().unwrap());
    let denied_out = both(db, 7000)
        .into_iter()
        .chain(both(web, 7002))
        .chain(unknown);
    for to in denied_out {
        let title = format!("denied outbound, {to}");
        checks.add(&title, refused(&lab, client, to, &outbound));
    }
    for to in both(db, 7000) {
        checks.add("another pod's denial", served(&lab, gold, to));
    }
    checks.assert(&lab);
}
