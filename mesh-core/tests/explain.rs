//! Explanations: each kind of place and each kind of refusal, and that what is said to be
//! missing is all that is missing.

mod generated;
mod universe;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use mesh_core::explain::{Destination, Explanation, Outcome, Question, Route, Source, explain};
use mesh_core::model::{Enrolment, Mesh, Service, Workload};
use mesh_core::policy::{Action, AuthorizationPolicy, Direction, PeerTerm, Protocol, Rule, Target};
use mesh_core::reason::Reason;
use proptest::prelude::*;
use proptest::sample::select;

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn workload(name: &str, address: &str, enrolment: Enrolment) -> Workload {
    let identity = format!("spiffe://td/ns/shop/sa/{name}").parse().unwrap();
    Workload {
        addresses: vec![ip(address)],
        enrolment,
        labels: BTreeMap::from([("app".to_owned(), name.to_owned())]),
        ..Workload::new(format!("c//v1/Pod/shop/{name}"), name, identity)
    }
}

fn service(name: &str, addresses: &[&str]) -> Service {
    Service {
        key: format!("shop/{name}.shop.svc.cluster.local").into(),
        name: name.to_owned(),
        namespace: "shop".to_owned(),
        addresses: addresses.iter().map(|a| ip(a)).collect(),
        ports: BTreeSet::from([80]),
        traffic: Default::default(),
    }
}

/// `front` calls `web` (10.0.0.2, behind the service 10.96.0.1:80 → 8080); `old` is outside.
fn mesh(front: Enrolment) -> Mesh {
    let mut mesh = Mesh::default();
    let (web, nodes) = (service("web", &["10.96.0.1"]), service("nodes", &[]));
    let mut pod = workload("web", "10.0.0.2", Enrolment::Enforce);
    let ports = BTreeMap::from([(80, 8080)]);
    pod.services.insert(web.key.clone(), ports.clone());
    pod.services.insert(nodes.key.clone(), ports);
    mesh.insert_workload(pod);
    mesh.insert_workload(workload("front", "10.0.0.1", front));
    mesh.insert_workload(workload("old", "10.0.0.3", Enrolment::None));
    mesh.insert_service(web);
    mesh.insert_service(nodes);
    mesh
}

fn ask(mesh: &Mesh, source: &str, destination: &str, port: u16, protocol: Protocol) -> Explanation {
    let question = Question {
        source: Source::Address(ip(source)),
        destination: Destination::Address(ip(destination)),
        port,
        protocol,
    };
    explain(mesh, &question, &[ip("10.96.0.10")])
}

fn refusals(explanation: &Explanation) -> Vec<Option<Reason>> {
    let attempts = explanation.attempts.iter();
    let verdicts = attempts.flat_map(|a| [&a.outbound, &a.inbound]);
    verdicts.flatten().map(|v| v.refused).collect()
}

/// Applies what is said to be missing until nothing is.
fn mend(mesh: &mut Mesh, source: &str, destination: &str, port: u16, protocol: Protocol) {
    for _ in 0..4 {
        let explanation = ask(mesh, source, destination, port, protocol);
        if explanation.outcome == Outcome::Allowed {
            return;
        }
        let verdicts = explanation
            .attempts
            .iter()
            .flat_map(|a| [&a.outbound, &a.inbound]);
        for missing in verdicts.flatten().filter_map(|v| v.missing.as_ref()) {
            assert!(explanation.to_string().contains(&missing.to_string()));
            mesh.insert_authorization(missing.authorization.clone());
            missing
                .authentication
                .clone()
                .map(|p| mesh.insert_authentication(p));
        }
    }
    panic!("{}", ask(mesh, source, destination, port, protocol));
}

#[test]
fn each_refusal_names_the_rule_that_would_allow_the_flow() {
    let (tcp, udp) = (Protocol::Tcp, Protocol::Udp);
    for (source, destination, port, protocol, reason) in [
        ("10.0.0.1", "10.0.0.2", 8080, tcp, Reason::PolicyNoRule),
        ("10.0.0.1", "10.96.0.1", 80, tcp, Reason::PolicyNoRule),
        (
            "10.0.0.1",
            "10.0.0.3",
            80,
            tcp,
            Reason::DestinationNotEnrolled,
        ),
        (
            "10.0.0.1",
            "192.0.2.1",
            443,
            tcp,
            Reason::DestinationUnknown,
        ),
        (
            "10.0.0.1",
            "2001:db8::1",
            443,
            tcp,
            Reason::DestinationUnknown,
        ),
        ("10.0.0.3", "10.0.0.2", 8080, tcp, Reason::InboundPlaintext),
        ("192.0.2.1", "10.96.0.1", 80, tcp, Reason::InboundPlaintext),
        ("10.0.0.1", "192.0.2.1", 123, udp, Reason::UdpNotAllowed),
        ("10.0.0.1", "10.0.0.2", 8080, udp, Reason::UdpNotAllowed),
        ("10.0.0.1", "10.96.0.1", 80, udp, Reason::UdpNotAllowed),
        ("192.0.2.1", "10.0.0.2", 8080, udp, Reason::UdpNotAllowed),
    ] {
        let mut mesh = mesh(Enrolment::Enforce);
        let explanation = ask(&mesh, source, destination, port, protocol);
        assert_eq!(
            explanation.outcome,
            Outcome::Refused(reason),
            "{explanation}"
        );
        mend(&mut mesh, source, destination, port, protocol);
        // And no other port, and no other caller.
        let (next, other) = (port + 1, "10.0.0.9");
        assert_ne!(
            ask(&mesh, source, destination, next, protocol).outcome,
            Outcome::Allowed
        );
        if explanation.attempts[0].inbound.is_some() {
            assert_ne!(
                ask(&mesh, other, destination, port, protocol).outcome,
                Outcome::Allowed
            );
        }
    }
}

#[test]
fn audit_lets_through_and_says_what_would_be_refused() {
    let mesh = mesh(Enrolment::Audit);
    let explanation = ask(&mesh, "10.0.0.1", "192.0.2.1", 443, Protocol::Tcp);
    assert_eq!(explanation.outcome, Outcome::Audited);
    assert_eq!(refusals(&explanation), [Some(Reason::DestinationUnknown)]);
    // The other end enforces.
    let explanation = ask(&mesh, "10.0.0.1", "10.0.0.2", 8080, Protocol::Tcp);
    assert_eq!(explanation.outcome, Outcome::Refused(Reason::PolicyNoRule));
    assert_eq!(refusals(&explanation), [Some(Reason::PolicyNoRule); 2]);
}

#[test]
fn a_denial_names_its_policy() {
    let mut mesh = mesh(Enrolment::Enforce);
    mesh.insert_authorization(AuthorizationPolicy {
        key: "shop/no-web".into(),
        target: Target::Namespace,
        direction: Direction::Outbound,
        action: Action::Deny,
        rules: vec![Rule {
            peers: vec![PeerTerm {
                labels: BTreeMap::from([("app".to_owned(), "web".to_owned())]),
                ..PeerTerm::default()
            }],
            ports: BTreeSet::new(),
        }],
    });
    let explanation = ask(&mesh, "10.0.0.1", "10.96.0.1", 80, Protocol::Tcp);
    assert_eq!(explanation.outcome, Outcome::Refused(Reason::PolicyDenied));
    let verdict = explanation.attempts[0].outbound.as_ref().unwrap();
    assert_eq!(verdict.policy.as_deref(), Some("shop/no-web"));
    assert_eq!(verdict.missing, None);
    assert!(explanation.to_string().contains("shop/no-web"));
}

#[test]
fn places_that_nobody_decides_on_or_that_lead_nowhere() {
    let mesh = mesh(Enrolment::Enforce);
    let outcome = |source, destination, port| {
        let explanation = ask(&mesh, source, destination, port, Protocol::Tcp);
        (explanation.route, explanation.outcome)
    };
    assert_eq!(
        outcome("10.0.0.1", "10.0.0.1", 80),
        (Route::Local, Outcome::Allowed)
    );
    assert_eq!(
        outcome("10.0.0.1", "127.0.0.1", 80),
        (Route::Local, Outcome::Allowed)
    );
    assert_eq!(
        outcome("10.0.0.3", "192.0.2.1", 80),
        (Route::Unknown, Outcome::Allowed)
    );
    assert_eq!(
        outcome("10.0.0.1", "10.96.0.10", 53),
        (Route::Unknown, Outcome::Allowed)
    );
    let web: Arc<str> = "shop/web.shop.svc.cluster.local".into();
    // Its own endpoint.
    let own = (Route::Service(web.clone()), Outcome::Allowed);
    assert_eq!(outcome("10.0.0.2", "10.96.0.1", 80), own);
    let nowhere = (Route::Service(web), Outcome::Refused(Reason::NoEndpoint));
    assert_eq!(outcome("10.0.0.1", "10.96.0.1", 81), nowhere);
}

#[test]
fn a_headless_service_leads_to_its_pods_at_the_dialled_port() {
    let mesh = mesh(Enrolment::Enforce);
    let service = mesh
        .service("shop/nodes.shop.svc.cluster.local")
        .unwrap()
        .clone();
    let question = Question {
        source: Source::Workload(mesh.workload("c//v1/Pod/shop/front").unwrap().clone()),
        destination: Destination::Service(service.clone()),
        port: 80,
        protocol: Protocol::Tcp,
    };
    let explanation = explain(&mesh, &question, &[]);
    assert_eq!(explanation.route, Route::Headless(service.key.clone()));
    let to: Vec<_> = explanation
        .attempts
        .iter()
        .map(|a| (a.address, a.port))
        .collect();
    assert_eq!(to, [(ip("10.0.0.2"), 80)]);
}

#[test]
fn a_port_that_is_declared_for_probes_is_said_to_be_kubelets_too() {
    let mut mesh = mesh(Enrolment::Enforce);
    let web = Workload {
        probe_ports: [8080].into(),
        ..workload("web", "10.0.0.2", Enrolment::Enforce)
    };
    mesh.insert_workload(web);
    let probed = |source, port, protocol| {
        let explanation = ask(&mesh, source, "10.0.0.2", port, protocol);
        let said = explanation
            .to_string()
            .contains("declares the port for probes");
        assert_eq!(explanation.attempts[0].probed, said);
        assert!(matches!(explanation.outcome, Outcome::Refused(_)));
        said
    };
    // A node, whose other processes are refused.
    assert!(probed("192.0.2.1", 8080, Protocol::Tcp));
    assert!(!probed("192.0.2.1", 8081, Protocol::Tcp));
    assert!(!probed("192.0.2.1", 8080, Protocol::Udp));
    assert!(!probed("10.0.0.3", 8080, Protocol::Tcp));
}

proptest! {
    /// Whatever policies there are: the explanation is of one mind with itself, and what is said
    /// to be missing is enough unless something is denied.
    #[test]
    fn what_is_missing_is_all_that_is_missing(
        policies in generated::policies(6),
        front in prop_oneof![Just(Enrolment::Enforce), Just(Enrolment::Audit), Just(Enrolment::None)],
        source in select(vec!["10.0.0.1", "10.0.0.3", "192.0.2.1"]),
        destination in prop_oneof![
            select(vec!["10.0.0.2", "10.96.0.1", "10.0.0.3"]).prop_map(ip),
            generated::address(),
        ],
        port in prop_oneof![Just(80), Just(8080)],
        protocol in generated::protocol(),
    ) {
        let mut mesh = mesh(front);
        for policy in policies {
            mesh.insert_authorization(AuthorizationPolicy {
                key: policy.key.replace("a/", "shop/").into(),
                ..AuthorizationPolicy::clone(&policy)
            });
        }
        let destination = destination.to_string();
        let destination = destination.as_str();
        for _ in 0..5 {
            let explanation = ask(&mesh, source, destination, port, protocol);
            let verdicts = explanation.attempts.iter().flat_map(|a| [&a.outbound, &a.inbound]);
            let verdicts: Vec<_> = verdicts.flatten().collect();
            let refused: Vec<_> = verdicts.iter().filter(|v| v.refused.is_some()).collect();
            match explanation.outcome {
                Outcome::Allowed => prop_assert!(refused.is_empty()),
                Outcome::Audited => prop_assert!(refused.iter().all(|v| v.audited)),
                Outcome::Refused(Reason::NoEndpoint) => prop_assert!(verdicts.is_empty()),
                Outcome::Refused(reason) => {
                    prop_assert!(refused.iter().any(|v| v.refused == Some(reason)));
                }
                Outcome::Partly => prop_assert!(!refused.is_empty()),
            }
            if explanation.kernel.is_some() {
                prop_assert!(refused.iter().all(|v| v.refused == Some(Reason::PolicyDenied)));
            }
            let denied = refused.iter().any(|v| v.refused == Some(Reason::PolicyDenied));
            if refused.is_empty() || denied {
                return Ok(());
            }
            for missing in refused.iter().filter_map(|v| v.missing.as_ref()) {
                mesh.insert_authorization(missing.authorization.clone());
                missing.authentication.clone().map(|p| mesh.insert_authentication(p));
            }
        }
        prop_assert!(false, "{}", ask(&mesh, source, destination, port, protocol));
    }
}
