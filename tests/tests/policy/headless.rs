//! A headless service: no virtual address, its pods by their own addresses, and policy that
//! names them by it, as those that are called and as those that call.

use std::net::SocketAddr;

use anyhow::{Result, ensure};
use mesh_lab::{Lab, Plan, PodSpec, ServiceSpec, manifest};

use super::expect::{At, Caller, Checks, Refused, both, first_line, refused, serve, served};

const MEMBERS: [&str; 2] = ["shop/db-1", "shop/db-2"];
const PORT: u16 = 7000;
/// Denied for the service's pods, allowed for everybody else.
const DENIED: u16 = 7001;

/// What one end of a flow may do with the service's pods.
fn policies(app: &str, direction: &str) -> String {
    let policy = |action: &str, rules: String| {
        let key = format!("shop/{app}-{}", action.to_lowercase());
        let spec = format!(
            "{{target: {{labels: {{app: {app}}}}}, direction: {direction}, action: {action}, \
             rules: [{rules}]}}"
        );
        manifest::authorization(&key, &spec)
    };
    let allow = format!("{{peers: [{{service: db}}], ports: [{PORT}]}}, {{ports: [{DENIED}]}}");
    let deny = format!("{{peers: [{{service: db}}], ports: [{DENIED}]}}");
    [policy("Allow", allow), policy("Deny", deny)].join("---\n")
}

/// Everything for these pods in a direction, so that the other end decides alone.
fn open(app: &str, direction: &str) -> String {
    let spec = format!(
        "{{target: {{labels: {{app: {app}}}}}, direction: {direction}, action: Allow, rules: [{{}}]}}"
    );
    let key = format!("shop/{app}-{}", direction.to_lowercase());
    manifest::authorization(&key, &spec)
}

fn plan() -> Plan {
    let all = [
        policies("client", "Outbound"),
        policies("web", "Inbound"),
        open("db", "Inbound"),
        open("other", "Inbound"),
        open("db", "Outbound"),
        open("other", "Outbound"),
    ];
    Plan::nodes(2)
        .enrolled("shop")
        .without_default_policy()
        .pod(PodSpec::new("shop", "client"))
        .pod(PodSpec::new("shop", "db-1").app("db"))
        .pod(PodSpec::new("shop", "db-2").app("db").node(1))
        .pod(PodSpec::new("shop", "other").node(1))
        .pod(PodSpec::new("shop", "web").node(1))
        .service(
            ServiceSpec::new("shop", "db")
                .headless()
                .port(PORT, &PORT.to_string()),
        )
        .manifest("policies", &all.join("---\n"))
}

#[test]
fn policy_names_its_pods_as_called_and_as_callers() {
    let lab = Lab::with_mesh(plan()).unwrap();
    let (other, web) = (lab.pod("shop/other"), lab.pod("shop/web"));
    let servers = MEMBERS.map(|key| lab.pod(key)).into_iter();
    let _servers: Vec<_> = servers
        .chain([other, web])
        .map(|pod| serve(pod, &[PORT, DENIED]))
        .collect();
    let client = Caller::Member(lab.pod("shop/client"));
    let refusal = |at, reason, policy| Refused { at, reason, policy };
    let mut checks = Checks::default();

    // As those that are called, at the source.
    let no_rule = refusal(At::Source, "policy_no_rule", "");
    let denied = refusal(At::SourceKernel, "policy_denied", "shop/client-deny");
    for key in MEMBERS {
        for to in both(lab.pod(key), PORT) {
            checks.add(&format!("to {key} at {to}"), served(&lab, client, to));
        }
        for to in both(lab.pod(key), DENIED) {
            let result = refused(&lab, client, to, &denied);
            checks.add(&format!("to {key}, denied, at {to}"), result);
        }
    }
    for to in both(other, PORT) {
        let result = refused(&lab, client, to, &no_rule);
        checks.add(&format!("to another at {to}"), result);
    }
    for to in both(other, DENIED) {
        let result = served(&lab, client, to);
        checks.add(&format!("to another, not denied, at {to}"), result);
    }

    // As those that call, at the destination.
    let no_rule = refusal(At::Destination, "policy_no_rule", "");
    let denied = refusal(At::Destination, "policy_denied", "shop/web-deny");
    for key in MEMBERS {
        let caller = Caller::Member(lab.pod(key));
        for to in both(web, PORT) {
            checks.add(&format!("from {key} to {to}"), served(&lab, caller, to));
        }
        for to in both(web, DENIED) {
            let result = refused(&lab, caller, to, &denied);
            checks.add(&format!("from {key}, denied, to {to}"), result);
        }
    }
    let caller = Caller::Member(other);
    for to in both(web, PORT) {
        let result = refused(&lab, caller, to, &no_rule);
        checks.add(&format!("from another to {to}"), result);
    }
    for to in both(web, DENIED) {
        let result = served(&lab, caller, to);
        checks.add(&format!("from another, not denied, to {to}"), result);
    }

    // The addresses that it would have if it weren't headless are nobody's.
    let unknown = refusal(At::Source, "destination_unknown", "");
    for address in lab.service("shop/db") {
        let to = SocketAddr::new(address, PORT);
        let result = refused(&lab, client, to, &unknown);
        checks.add(&format!("no virtual address {to}"), result);
    }
    checks.add("`why`, by the service's name", why_names_its_pods(&lab));
    checks.assert(&lab);
}

fn why_names_its_pods(lab: &Lab) -> Result<()> {
    let why = lab.control().why("shop/client", "svc/shop/db")?;
    ensure!(first_line(&why).ends_with(": allowed"), "{why}");
    ensure!(why.contains("headless"), "{why}");
    for key in MEMBERS {
        let address = SocketAddr::new(lab.pod(key).v4().into(), PORT).to_string();
        ensure!(why.contains(&address), "no {address}:\n{why}");
    }
    Ok(())
}
