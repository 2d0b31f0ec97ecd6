use super::*;
use crate::supervisor::discovery::{Discovery, Touched};
use mesh_core::identity::Identity;
use mesh_core::model::Health;
use mesh_core::model::Mesh;
use mesh_core::policy::{Action, Direction, Rule, Target};
use mesh_core::traffic::{Probe, Traffic};
use std::time::Duration;

const CART: &str = "Kubernetes//v1/Pod/shop/cart";

fn workload(change: impl FnOnce(&mut Workload)) -> Workload {
    let identity = Identity::new("cluster.local".parse().unwrap(), "shop", "cart").unwrap();
    let mut workload = Workload {
        enrolment: Enrolment::Enforce,
        labels: [("app".to_owned(), "cart".to_owned())].into(),
        services: [("shop/cart".into(), [(80, 8080)].into())].into(),
        ..Workload::new(CART, "cart", identity)
    };
    change(&mut workload);
    workload
}

fn service(checks: Vec<HealthCheck>) -> Service {
    Service {
        key: "shop/cart".into(),
        name: "cart".to_owned(),
        namespace: "shop".to_owned(),
        addresses: Vec::new(),
        ports: [80].into(),
        traffic: Traffic {
            checks,
            ..Traffic::default()
        },
    }
}

fn check(port: u16) -> HealthCheck {
    HealthCheck {
        port,
        probe: Probe::Tcp,
        interval: Duration::from_secs(1),
        timeout: Duration::from_millis(500),
        unhealthy_threshold: 2,
        healthy_threshold: 2,
    }
}

fn policy(key: &str, target: Target) -> AuthorizationPolicy {
    AuthorizationPolicy {
        key: key.into(),
        target,
        direction: Direction::Inbound,
        action: Action::Allow,
        rules: vec![Rule::default()],
    }
}

fn labels(app: &str) -> Target {
    Target::Labels([("app".to_owned(), app.to_owned())].into())
}

fn put(mesh: &mut Mesh, key: &str) -> Touched {
    Touched {
        policies: mesh.insert_authorization(policy(key, Target::Namespace)),
        places: false,
    }
}

/// The mesh goes over to another version.
fn change(discovery: &Discovery, version: &str, change: impl FnOnce(&mut Mesh) -> Touched) {
    discovery.update(version, |view| change(&mut view.mesh));
}

fn start() -> (Discovery, Rules) {
    let discovery = Discovery::new("a", &["10.96.0.10".parse().unwrap()]);
    change(&discovery, "1", |mesh| {
        mesh.insert_workload(workload(|_| {}));
        mesh.insert_service(service(vec![check(80), check(9), check(80)]));
        mesh.insert_authorization(policy("shop/cart", labels("cart")));
        mesh.insert_authorization(policy("shop/pay", labels("pay")));
        mesh.insert_authorization(policy("bank/all", Target::Namespace));
        Touched {
            policies: true,
            places: true,
        }
    });
    let mut rules = Rules::default();
    assert!(rules.refresh(&discovery.view(), CART));
    (discovery, rules)
}

#[test]
fn a_pod_is_told_its_own_policies_and_what_they_may_ask_of_it() {
    let (_, rules) = start();
    let told = rules.message("1").unwrap();
    let keys: Vec<&str> = told.authorizations.iter().map(|p| p.key.as_str()).collect();
    assert_eq!(keys, ["shop/cart"]);
    assert_eq!((told.version.as_str(), told.audit), ("1", false));
    assert_eq!(
        (told.labels["app"].as_str(), told.services.as_slice()),
        ("cart", &["shop/cart".to_owned()][..])
    );
    assert_eq!(told.resolvers, [[10, 96, 0, 10]]);
    // The service's port 80 is the pod's 8080; port 9 is none of the service's.
    let ports: Vec<u32> = told.checks.iter().map(|check| check.port).collect();
    assert_eq!(ports, [8080]);
}

#[test]
fn a_worker_is_told_again_only_when_it_is_something_else() {
    let (discovery, mut rules) = start();
    let other_pod = |mesh: &mut Mesh| {
        mesh.insert_workload(Workload {
            uid: "other".into(),
            ..workload(|w| w.enrolment = Enrolment::None)
        });
        Touched::default()
    };
    change(&discovery, "2", other_pod);
    assert!(!rules.refresh(&discovery.view(), CART));
    change(&discovery, "3", |mesh| put(mesh, "bank/more"));
    assert!(
        !rules.refresh(&discovery.view(), CART),
        "another pod's policy"
    );
    change(&discovery, "4", |mesh| put(mesh, "shop/all"));
    assert!(rules.refresh(&discovery.view(), CART));
    assert!(!rules.refresh(&discovery.view(), CART));
    change(&discovery, "5", |mesh| {
        mesh.insert_service(service(Vec::new()));
        Touched::default()
    });
    assert!(rules.refresh(&discovery.view(), CART));
    assert!(rules.message("5").unwrap().checks.is_empty());
}

#[test]
fn a_level_is_another_policy_and_a_pod_that_is_gone_keeps_what_it_had() {
    let (discovery, mut rules) = start();
    change(&discovery, "2", |mesh| {
        mesh.insert_workload(workload(|w| w.enrolment = Enrolment::Audit));
        Touched::default()
    });
    assert_eq!(rules.audit(), Some(false));
    assert!(rules.refresh(&discovery.view(), CART));
    assert_eq!(rules.audit(), Some(true));
    change(&discovery, "3", |mesh| {
        mesh.remove_workload(CART);
        Touched::default()
    });
    assert!(!rules.refresh(&discovery.view(), CART));
    assert_eq!(rules.message("2").unwrap().authorizations.len(), 1);
}

#[test]
fn the_kernels_policy_is_made_anew_only_where_it_can_be_another() {
    let (discovery, mut rules) = start();
    let (first, _) = rules.for_kernel(&discovery.view()).unwrap();
    assert!(!first.audit);
    assert!(rules.for_kernel(&discovery.view()).is_none());
    // Neither health nor how endpoints are chosen matters to it.
    change(&discovery, "2", |mesh| {
        mesh.insert_workload(workload(|w| w.health = Health::Unhealthy));
        mesh.insert_service(service(Vec::new()));
        Touched::default()
    });
    rules.refresh(&discovery.view(), CART);
    // Its checks are gone, so its own policy is another, but the places are the same.
    assert_eq!(discovery.view().places, 1);
    rules.for_kernel(&discovery.view());
    change(&discovery, "3", |_| Touched {
        places: true,
        ..Touched::default()
    });
    assert!(rules.for_kernel(&discovery.view()).is_some());
    change(&discovery, "4", |mesh| {
        mesh.insert_workload(workload(|w| w.enrolment = Enrolment::Audit));
        Touched::default()
    });
    rules.refresh(&discovery.view(), CART);
    assert!(rules.for_kernel(&discovery.view()).unwrap().0.audit);
    assert!(rules.for_kernel(&discovery.view()).is_none());
    rules.kernel_was_emptied();
    assert!(rules.for_kernel(&discovery.view()).unwrap().0.audit);
}
