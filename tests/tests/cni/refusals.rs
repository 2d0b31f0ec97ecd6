//! What is not enrolled does not start, and its event says why and what to do.

use mesh_lab::cni::{Plugin, Sandbox};
use mesh_lab::manifest::Stage;
use mesh_lab::{Lab, PodSpec};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::{NEW, PATIENCE_MS, SHORT_MS, WEB, lab, plan};

fn refused(lab: &Lab, plugin: &Plugin, sandbox: &Sandbox, code: u64, words: &[&str]) {
    let said = plugin.run("ADD", sandbox).unwrap();
    assert!(
        !said.well,
        "it was taken: {}\n{}",
        said.output,
        lab.log_tails()
    );
    assert_eq!(said.code(), code, "{}", said.text());
    println!("{}", said.text());
    for word in words {
        assert!(said.text().contains(word), "{word:?}: {}", said.text());
    }
    // As a runtime does whose ADD has failed.
    assert!(plugin.run("DEL", sandbox).unwrap().well);
}

#[test]
fn a_pod_that_can_not_be_enrolled_does_not_start() {
    let mut lab = lab(plan());
    lab.make_pod(PodSpec::new("plain", "app")).unwrap();
    lab.make_pod(PodSpec::new("kube-system", "dns")).unwrap();
    lab.make_pod(PodSpec::new("shop", "other")).unwrap();
    let hasty = Plugin::of(lab.agent(0), SHORT_MS);
    let patient = Plugin::of(lab.agent(0), PATIENCE_MS);
    let new = Sandbox::of(lab.pod(NEW), "c-1").uid("uid-1");

    refused(
        &lab,
        &hasty,
        &new,
        101,
        &["shop/new", "control knows no such pod", "kubelet"],
    );
    // The wrong network namespaces: the node's own, another pod's, one without its address.
    lab.announce_pod(lab.pod(NEW), Stage::Pending).unwrap();
    let node = new.clone().netns(&lab.node(0).netns.path());
    refused(
        &lab,
        &hasty,
        &node,
        101,
        &["the node's own network namespace"],
    );
    let missing = new.clone().netns("/run/netns/no-such".as_ref());
    refused(
        &lab,
        &hasty,
        &missing,
        101,
        &["opening the network namespace /run/netns/no-such"],
    );
    for wrong in [lab.pod("shop/other"), lab.pod(WEB)] {
        let wrong = new.clone().netns(&wrong.netns.path());
        refused(&lab, &patient, &wrong, 101, &["it is another pod's"]);
    }
    let other = Sandbox::of(lab.pod("shop/other"), "c-2").netns(&lab.pod(NEW).netns.path());
    patient.add(&new).unwrap();
    refused(
        &lab,
        &hasty,
        &other,
        101,
        &["is the network namespace of shop/new"],
    );
    assert_eq!(
        lab.agent(0).pod_status(lab.pod(NEW)).unwrap()["state"],
        "enrolled"
    );
    // A pod of the second node, which this node is not told of.
    lab.announce_pod(lab.pod(WEB), Stage::Running).unwrap();
    let web = Sandbox::of(lab.pod(WEB), "c-3");
    refused(&lab, &hasty, &web, 101, &["control knows no such pod"]);

    // Not in the mesh; and excluded, which nobody is asked about.
    lab.announce_pod(lab.pod("plain/app"), Stage::Pending)
        .unwrap();
    patient
        .add(&Sandbox::of(lab.pod("plain/app"), "c-4"))
        .unwrap();
    patient
        .add(&Sandbox::of(lab.pod("kube-system/dns"), "c-5"))
        .unwrap();
    let known = lab.agent(0).pod_status(lab.pod("kube-system/dns"));
    assert!(known.is_err(), "{known:?}");
    lab.finish().unwrap();
}

#[test]
fn without_an_agent_no_pod_starts_but_excluded_ones() {
    let mut lab = lab(plan());
    lab.make_pod(PodSpec::new("kube-system", "dns")).unwrap();
    lab.announce_pod(lab.pod(NEW), Stage::Pending).unwrap();
    let hasty = Plugin::of(lab.agent(0), SHORT_MS);
    let new = Sandbox::of(lab.pod(NEW), "c-1").uid("uid-1");
    let excluded = Sandbox::of(lab.pod("kube-system/dns"), "c-2");

    let agent = lab.agent(0).daemon.pid().unwrap();
    let agent = Pid::from_raw(agent.try_into().unwrap());
    kill(agent, Signal::SIGSTOP).unwrap();
    let began = std::time::Instant::now();
    let said = hasty.run("ADD", &new).unwrap();
    assert_eq!(said.code(), 11, "{}", said.text());
    assert!(began.elapsed().as_secs() < 60, "it does not wait for ever");
    hasty.add(&excluded).unwrap();
    kill(agent, Signal::SIGCONT).unwrap();

    lab.agent_mut(0).0.daemon.kill9().unwrap();
    refused(
        &lab,
        &hasty,
        &new,
        11,
        &["shop/new", "does not answer", "nodemesh-agent"],
    );
    hasty.add(&excluded).unwrap();
    let (agent, host) = lab.agent_mut(0);
    agent.start(host).unwrap();
    Plugin::of(lab.agent(0), PATIENCE_MS).add(&new).unwrap();
}
