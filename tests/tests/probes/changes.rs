//! What changes while kubelet probes: its cgroup, the agent, the pod's enrolment, the pod's ports.

use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use mesh_lab::kubelet::Kubelet;
use mesh_lab::{Enrolment, Lab, Netns, Pod, PodSpec, call, servers, wait};

use crate::{OTHER, PORT, WEB, get, get_with, lab_with_kubelet, passed, plan, targets, wait_found};

fn wait_passes(kubelet: &Kubelet, from: &Netns, to: SocketAddr) {
    wait::until_true("a probe to pass", wait::PATIENCE, || {
        Ok(get(kubelet, from, to).is_ok())
    })
    .unwrap();
}

fn wait_refused(kubelet: &Kubelet, from: &Netns, to: SocketAddr) {
    wait::until_true("kubelet to be refused", wait::PATIENCE, || {
        Ok(get(kubelet, from, to).is_err())
    })
    .unwrap();
}

fn is_refused(lab: &Lab, to: SocketAddr) -> bool {
    call::http(&lab.node(0).netns, to, "/", call::PATIENCE).is_err()
}

fn wait_status(lab: &Lab, pod: &Pod, field: &str, value: &str) {
    let what = format!("{} to have {field} {value}", pod.key());
    wait::until_true(&what, wait::PATIENCE, || {
        Ok(lab.agent(0).pod_status(pod)?[field] == value)
    })
    .unwrap_or_else(|e| panic!("{e:#}\n{}", lab.log_tails()));
}

#[test]
fn kubelets_cgroup_is_found_whenever_it_is_made() {
    let lab = Lab::with_mesh(plan()).unwrap();
    let (web, node) = (lab.pod(WEB), &lab.node(0).netns);
    let _nginx = servers::nginx(web, &[PORT], "alive").unwrap();
    let to = targets(web, PORT)[0];
    // There is none yet, which is said, once.
    let log = lab.agent(0).daemon.log().to_owned();
    let none = "no cgroup of kubelet's is there";
    wait::line_in_file(&log, none, wait::PATIENCE).unwrap();
    let kubelet = lab.kubelet().unwrap();
    let first = kubelet.id().unwrap();
    wait_found(&lab, &kubelet);
    get(&kubelet, node, to).unwrap();
    // Its service is started again.
    drop(kubelet);
    let kubelet = lab.kubelet().unwrap();
    assert_ne!(kubelet.id().unwrap(), first);
    wait_found(&lab, &kubelet);
    get(&kubelet, node, to).unwrap();
    assert!(is_refused(&lab, to));
    let said = std::fs::read_to_string(&log).unwrap();
    let said = said.matches(none).count();
    assert!(said <= 2, "it was said {said} times that there is none");
    lab.finish().unwrap();
}

#[test]
fn agents_come_and_go_under_live_probes() {
    let (mut lab, kubelet) = lab_with_kubelet(plan());
    let _nginx = servers::nginx(lab.pod(WEB), &[PORT], "alive").unwrap();
    let to = targets(lab.pod(WEB), PORT)[0];
    let node = lab.node(0).netns.as_fd().try_clone_to_owned().unwrap();
    let (stop, count, failed) = (AtomicBool::new(false), Mutex::new(0), Mutex::new(None));
    let probed = || *count.lock().unwrap();
    let wait_more = || {
        let wanted = probed() + 20;
        let more = || Ok(probed() >= wanted || failed.lock().unwrap().is_some());
        wait::until_true("20 more probes", wait::PATIENCE, more).unwrap();
    };
    thread::scope(|scope| {
        let (stop, count, failed, kubelet) = (&stop, &count, &failed, &kubelet);
        scope.spawn(move || {
            while !stop.load(Ordering::Acquire) {
                match get_with(kubelet, node.as_fd(), to, &[]) {
                    Ok(()) => *count.lock().unwrap() += 1,
                    Err(why) => {
                        failed.lock().unwrap().get_or_insert(why);
                    }
                }
            }
        });
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            wait_more();
            let (agent, host) = lab.agent_mut(0);
            agent.restart(host).unwrap();
            wait_more();
            agent.daemon.kill9().unwrap();
            wait_more();
            agent.start(host).unwrap();
            wait_more();
        }));
        stop.store(true, Ordering::Release);
        done.unwrap_or_else(|e| std::panic::resume_unwind(e));
    });
    let failed = failed.into_inner().unwrap();
    assert_eq!(failed, None, "{}", lab.log_tails());
    assert!(is_refused(&lab, to));
    // The counter goes on where it was.
    let count = f64::from(*count.lock().unwrap());
    assert!(passed(&lab, WEB) >= count);
    lab.finish().unwrap();
}

#[test]
fn pods_that_are_enrolled_while_they_run_are_probed_at_every_level() {
    let late = PodSpec::new("late", "app").probe("readinessProbe: {httpGet: {port: 8080}}");
    let plan = plan().namespace("late").pod(late);
    let (lab, kubelet) = lab_with_kubelet(plan);
    let (app, node) = (lab.pod("late/app"), &lab.node(0).netns);
    let _nginx = servers::nginx(app, &[PORT, OTHER], "alive").unwrap();
    let at = |port| targets(app, port)[0];
    get(&kubelet, node, at(PORT)).unwrap();
    for (level, state, name) in [
        (Enrolment::Enforce, "enrolled", "enforce"),
        (Enrolment::Audit, "enrolled", "audit"),
        (Enrolment::Enforce, "enrolled", "enforce"),
        (Enrolment::None, "not-in-mesh", ""),
        (Enrolment::Enforce, "enrolled", "enforce"),
    ] {
        lab.set_enrolment("late", level).unwrap();
        wait_status(&lab, app, "state", state);
        if !name.is_empty() {
            wait_status(&lab, app, "level", name);
        }
        let (before, probed) = (passed(&lab, "late/app"), state == "enrolled");
        get(&kubelet, node, at(PORT)).unwrap_or_else(|e| panic!("{name}: {e}"));
        let after = before + f64::from(u8::from(probed));
        assert_eq!(passed(&lab, "late/app"), after, "{name}");
    }
    assert!(is_refused(&lab, at(PORT)));
    get(&kubelet, node, at(OTHER)).unwrap_err();
    lab.finish().unwrap();
}

#[test]
fn a_pods_ports_are_followed() {
    let (lab, kubelet) = lab_with_kubelet(plan());
    let (web, node) = (lab.pod(WEB), &lab.node(0).netns);
    let _nginx = servers::nginx(web, &[PORT, OTHER], "alive").unwrap();
    let at = |port| targets(web, port)[1];
    get(&kubelet, node, at(PORT)).unwrap();
    lab.set_probes(web, &["livenessProbe: {httpGet: {port: 8081}}"])
        .unwrap();
    wait_passes(&kubelet, node, at(OTHER));
    wait_refused(&kubelet, node, at(PORT));
    lab.set_probes(web, &[]).unwrap();
    wait_refused(&kubelet, node, at(OTHER));
    lab.finish().unwrap();
}
