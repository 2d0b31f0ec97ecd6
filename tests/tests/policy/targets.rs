//! Each target of an authorization policy, in both directions, over both families: it is for
//! the pods it selects, and for none of those next to them.

use mesh_lab::{Lab, Plan, PodSpec, ServiceSpec, manifest};

use super::expect::{At, Caller, Checks, Refused, both, refused, serve, served};
use super::rules::{ALL_IN, ALL_OUT};

const WEB: &str = "shop/web";
const GOLD: &str = "shop/gold";
/// Labelled as the other two are together, behind a service named as `shop`'s, and in
/// another namespace.
const ELSEWHERE: &str = "data/web";
const PODS: [&str; 3] = [WEB, GOLD, ELSEWHERE];
/// Whoever these call, or are called by.
const PEER: &str = "shop/peer";

struct Case {
    /// Of the policies, without what tells ALLOW and DENY apart.
    key: &'static str,
    /// As the spec has it.
    target: &'static str,
    selects: &'static [&'static str],
}

const CASES: [Case; 4] = [
    Case {
        key: "nodemesh-system/mesh",
        target: "target: {mesh: true}, ",
        selects: &PODS,
    },
    Case {
        key: "shop/namespace",
        target: "",
        selects: &[WEB, GOLD],
    },
    Case {
        key: "shop/service",
        target: "target: {service: web}, ",
        selects: &[WEB],
    },
    Case {
        key: "shop/labels",
        target: "target: {labels: {tier: gold}}, ",
        selects: &[GOLD],
    },
];

/// Ports that one target each allows.
const ALLOWED: [u16; 4] = [7000, 7001, 7002, 7003];
/// Ports that every target allows and one target each denies.
const DENIED: [u16; 4] = [7010, 7011, 7012, 7013];

fn policies(direction: &str) -> String {
    let policy = |key: &str, target: &str, action: &str, ports: &[u16]| {
        let spec = format!(
            "{{{target}direction: {direction}, action: {action}, rules: [{{ports: {ports:?}}}]}}"
        );
        manifest::authorization(&format!("{key}-{}", action.to_lowercase()), &spec)
    };
    let of_each = |(case, (allowed, denied)): (&Case, (u16, u16))| {
        let allowed = [&[allowed], &DENIED[..]].concat();
        [
            policy(case.key, case.target, "Allow", &allowed),
            policy(case.key, case.target, "Deny", &[denied]),
        ]
    };
    let ports = ALLOWED.into_iter().zip(DENIED);
    let all: Vec<String> = CASES.iter().zip(ports).flat_map(of_each).collect();
    all.join("---\n")
}

/// The lab with these policies, and whatever goes the other way allowed.
fn lab(direction: &str, the_other_way: &str) -> Lab {
    let plan = Plan::nodes(2)
        .enrolled("shop")
        .enrolled("data")
        .without_default_policy()
        .pod(PodSpec::new("shop", "peer"))
        .pod(PodSpec::new("shop", "web").node(1))
        .pod(PodSpec::new("shop", "gold").label("tier", "gold").node(1))
        .pod(PodSpec::new("data", "web").label("tier", "gold").node(1))
        .service(ServiceSpec::new("shop", "web").port(80, "7000"))
        .service(ServiceSpec::new("data", "web").port(80, "7000"))
        .manifest("targets", &policies(direction))
        .manifest(
            "other-way",
            &manifest::authorization("nodemesh-system/other-way", the_other_way),
        );
    Lab::with_mesh(plan).unwrap()
}

/// Checks all targets for all pods. `ends` are caller and called of a flow that the pod's
/// policies decide; an ALLOW that is missing is found `at` one place, a DENY `denied_at` one.
fn check(
    lab: &Lab,
    (at, denied_at): (At, At),
    ends: impl Fn(&'static str) -> (&'static str, &'static str),
) {
    let no_rule = Refused {
        at,
        reason: "policy_no_rule",
        policy: "",
    };
    let member = |key| Caller::Member(lab.pod(key));
    let mut checks = Checks::default();
    for (case, (allowed, denied)) in CASES.iter().zip(ALLOWED.into_iter().zip(DENIED)) {
        let policy = format!("{}-deny", case.key);
        let by_policy = Refused {
            at: denied_at,
            reason: "policy_denied",
            policy: &policy,
        };
        for pod in PODS {
            let (from, to) = ends(pod);
            let selected = case.selects.contains(&pod);
            let title = |to| format!("{}, selects {pod}: {selected}, {from} to {to}", case.key);
            for to in both(lab.pod(to), allowed) {
                let result = match selected {
                    true => served(lab, member(from), to),
                    false => refused(lab, member(from), to, &no_rule),
                };
                checks.add(&title(to), result);
            }
            for to in both(lab.pod(to), denied) {
                let result = match selected {
                    true => refused(lab, member(from), to, &by_policy),
                    false => served(lab, member(from), to),
                };
                checks.add(&format!("denial: {}", title(to)), result);
            }
        }
    }
    checks.assert(lab);
}

#[test]
fn inbound_each_target_is_for_the_pods_it_selects_and_a_denial_wins() {
    let lab = lab("Inbound", ALL_OUT);
    let _servers = PODS.map(|key| serve(lab.pod(key), &[ALLOWED, DENIED].concat()));
    let at = At::Destination;
    check(&lab, (at, at), |pod| (PEER, pod));
}

#[test]
fn outbound_each_target_is_for_the_pods_it_selects_and_a_denial_wins() {
    let lab = lab("Outbound", ALL_IN);
    let _server = serve(lab.pod(PEER), &[ALLOWED, DENIED].concat());
    // The kernel knows of a port that is denied for everybody.
    check(&lab, (At::Source, At::SourceKernel), |pod| (pod, PEER));
}
