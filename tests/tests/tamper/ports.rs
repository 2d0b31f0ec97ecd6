//! The mesh's ports: taken before enrolment, or given back to the kernel's automatic choice.

use std::fs;
use std::net::SocketAddr;

use mesh_lab::call::{self, Called};
use mesh_lab::{Enrolment, Lab, Pod, PodSpec};

use crate::{
    CLIENT, PORT, as_root, found, plan, serve, target, wait_found, wait_served, wait_state,
};

const TAKER: &str = "late/taker";
const RESERVED: &str = "ipv4/ip_local_reserved_ports";

/// With a pod that is not enrolled yet.
fn lab(port: u16) -> (Lab, mesh_lab::App) {
    let plan = plan().namespace("late").pod(PodSpec::new("late", "taker"));
    let lab = Lab::with_mesh(plan).unwrap();
    let app = serve(lab.pod(TAKER), port);
    (lab, app)
}

fn cut_off_calls(lab: &Lab, pod: &Pod) -> u64 {
    lab.agent(pod.node())
        .refused(lab.node(pod.node()), pod, "cut_off")
        .unwrap()
}

#[test]
fn a_pod_whose_app_holds_a_port_of_the_mesh_is_cut_off_until_the_app_lets_go() {
    let (lab, mut app) = lab(15008);
    let taker = lab.pod(TAKER);
    let _servers = [serve(taker, PORT), serve(lab.pod(CLIENT), PORT)];
    let (out, into) = (target(lab.pod(CLIENT)), target(taker));
    let outside = &lab.outside().netns;
    assert!(call::tcp(outside, into).served(), "nothing is in its way");

    lab.set_enrolment("late", Enrolment::Enforce).unwrap();
    let why = wait_state(&lab, taker, "cut-off");
    assert!(why.contains("15008"), "{why}");
    wait_found(&lab, taker, "port_taken", "cut_off", "15008");
    assert_eq!(
        call::tcp(&taker.netns, out),
        Called::NotConnected(libc::EPERM)
    );
    let before = cut_off_calls(&lab, taker);
    let callers = [&lab.pod(CLIENT).netns, outside];
    for from in callers {
        assert!(!call::tcp(from, into).served(), "it is cut off");
    }
    assert!(cut_off_calls(&lab, taker) > before, "the wall counts");
    let status = lab.control().status().unwrap();
    assert!(status.to_string().contains("cut-off"), "{status}");
    let why = lab
        .control()
        .why(TAKER, &format!("{CLIENT}:{PORT}"))
        .unwrap();
    assert!(why.contains("cut off") && why.contains("15008"), "{why}");

    // It stays so with another supervisor.
    let (mut lab, taker) = (lab, TAKER);
    let (agent, host) = lab.agent_mut(0);
    agent.restart(host).unwrap();
    let taker = lab.pod(taker);
    wait_state(&lab, taker, "cut-off");
    assert_eq!(
        call::tcp(&taker.netns, out),
        Called::NotConnected(libc::EPERM)
    );

    app.kill();
    wait_state(&lab, taker, "enrolled");
    wait_served(&lab, &taker.netns, out);
    wait_served(&lab, &lab.pod(CLIENT).netns, into);
}

#[test]
fn in_audit_it_is_left_alone_and_told_of() {
    let (lab, _app) = lab(15001);
    let taker = lab.pod(TAKER);
    let _server = serve(lab.pod("legacy/server"), PORT);
    let out = target(lab.pod("legacy/server"));
    lab.set_enrolment("late", Enrolment::Audit).unwrap();
    let why = wait_state(&lab, taker, "refused");
    assert!(why.contains("15001"), "{why}");
    wait_found(&lab, taker, "port_taken", "standing", "15001");
    assert!(call::tcp(&taker.netns, out).served());

    // Audited no more, and audited again.
    lab.set_enrolment("late", Enrolment::Enforce).unwrap();
    wait_state(&lab, taker, "cut-off");
    assert_eq!(
        call::tcp(&taker.netns, out),
        Called::NotConnected(libc::EPERM)
    );
    lab.set_enrolment("late", Enrolment::Audit).unwrap();
    wait_state(&lab, taker, "refused");
    wait_served(&lab, &taker.netns, out);
}

#[test]
fn ports_that_are_not_kept_any_more_are_kept_again() {
    let lab = Lab::with_mesh(plan()).unwrap();
    let client = lab.pod(CLIENT);
    let kept = || {
        client
            .netns
            .run(|| fs::read_to_string(format!("/proc/sys/net/{RESERVED}")).unwrap())
    };
    assert!(kept().contains("15008"), "{}", kept());
    // The range that apps' ports are chosen from is the app's own business, so that is told of.
    as_root(
        client,
        "sysctl -w net.ipv4.ip_local_port_range=15000\t15010",
    )
    .unwrap();
    as_root(client, "sysctl -w net.ipv4.ip_local_reserved_ports=9999").unwrap();
    assert!(!kept().contains("15008"), "the pod can change it");
    wait_found(&lab, client, "ports", "repaired", "15008");
    assert_eq!(kept().trim(), "9999,15001,15006,15008,15053");
    wait_found(&lab, client, "setting", "contained", "15000-15010");
    assert_eq!(
        found(&lab, lab.pod(crate::NEIGHBOUR), "ports", "repaired"),
        0.0
    );
    // An app that takes what it is given gets none of them, and the worker goes on.
    let _server = serve(lab.pod(crate::WEB), PORT);
    for _ in 0..5 {
        let to: SocketAddr = target(lab.pod(crate::WEB));
        assert!(call::tcp(&client.netns, to).served());
    }
}
