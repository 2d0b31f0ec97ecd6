//! UDP: what policy names by address and port passes, DNS to the cluster's resolvers passes,
//! and the rest doesn't.

use std::net::{IpAddr, SocketAddr};
use std::thread;

use anyhow::{Result, ensure};
use mesh_lab::call::{self, Datagram};
use mesh_lab::{Enrolment, Lab, Plan, Pod, PodSpec, ServiceSpec, manifest, servers, wait};

use super::expect::{Caller, Checks, PACE, both, first_line};

const REASON: &str = "udp_not_allowed";

fn exchange(from: Caller<'_>, to: (Caller<'_>, SocketAddr)) -> Result<Datagram> {
    let family = |address: &IpAddr| address.is_ipv4() == to.1.is_ipv4();
    let own = from.addresses().into_iter().find(family).unwrap();
    call::udp(
        (from.netns(), SocketAddr::new(own, 0)),
        (to.0.netns(), to.1),
    )
}

/// What `why` has to say first of a datagram from there to there.
fn why_says(lab: &Lab, from: Caller<'_>, to: SocketAddr, says: &str) -> Result<()> {
    let why = lab.control().why_udp(&from.name(to), &to.to_string())?;
    let said = first_line(&why).contains(&format!(": {says}"));
    ensure!(said, "`why` says no {says:?} but:\n{why}");
    Ok(())
}

/// A datagram that doesn't arrive, for what a pod's node decides on it.
fn refused(lab: &Lab, decider: &Pod, from: Caller<'_>, to: (Caller<'_>, SocketAddr)) -> Result<()> {
    let (agent, host) = (lab.agent(decider.node()), lab.node(decider.node()));
    let (before, mark) = (agent.refused(host, decider, REASON)?, agent.mark());
    let became = exchange(from, to)?;
    ensure!(
        matches!(became, Datagram::Lost | Datagram::NotSent(libc::EPERM)),
        "it is {became:?}"
    );
    let fields = [("reason", REASON), ("by", "kernel"), ("outcome", "refused")];
    agent.wait_refusal(mark, decider, &fields)?;
    wait::until_true("the datagram to be counted", wait::PATIENCE, || {
        Ok(agent.refused(host, decider, REASON)? > before)
    })?;
    why_says(lab, from, to.1, &format!("refused, {REASON}:"))
}

fn answered(lab: &Lab, from: Caller<'_>, to: (Caller<'_>, SocketAddr)) -> Result<()> {
    let became = exchange(from, to)?;
    ensure!(became == Datagram::Answered, "it is {became:?}");
    why_says(lab, from, to.1, "allowed")
}

/// A pod's datagrams that passed for audit only, and those that were refused.
fn kernel_counts(lab: &Lab, pod: &Pod) -> Result<[f64; 2]> {
    let (agent, host) = (lab.agent(pod.node()), lab.node(pod.node()));
    let labels = [
        format!("pod=\"{}\"", pod.key()),
        format!("reason=\"{REASON}\""),
    ];
    let labels = labels.each_ref().map(String::as_str);
    Ok([
        agent.metric(host, "nodemesh_kernel_audited_total", &labels)?,
        agent.metric(host, "nodemesh_kernel_refusals_total", &labels)?,
    ])
}

/// A datagram and its answer that both pass, and are told of as ones that would be refused.
fn audited(lab: &Lab, decider: &Pod, from: Caller<'_>, to: (Caller<'_>, SocketAddr)) -> Result<()> {
    let agent = lab.agent(decider.node());
    let ([audited, refused], mark) = (kernel_counts(lab, decider)?, agent.mark());
    let became = exchange(from, to)?;
    ensure!(became == Datagram::Answered, "it is {became:?}");
    let counts = kernel_counts(lab, decider)?;
    ensure!(
        counts == [audited + 2.0, refused],
        "audited and refused were {audited} and {refused}, are {counts:?}"
    );
    let destination = to.1.to_string();
    let fields = [
        ("reason", REASON),
        ("by", "kernel"),
        ("outcome", "audited"),
        ("destination", &destination),
    ];
    let line = agent.wait_refusal(mark, decider, &fields)?;
    let said = line.line().contains("would be refused");
    ensure!(said, "the log says: {}", line.line());
    why_says(lab, from, to.1, "let through for audit, would be refused")
}

#[test]
fn udp_passes_where_both_ends_name_it() {
    let to_web = "{direction: Outbound, target: {labels: {app: client}}, action: Allow, rules: [\
                  {peers: [{cidr: 10.202.11.0/24}, {cidr: \"fd00:ca:b::/64\"}], \
                  ports: [9000/UDP, 9001/UDP]}, \
                  {peers: [{cidr: 10.201.0.100/32}, {cidr: \"fd00:c9::64/128\"}], \
                  ports: [UDP]}]}";
    let from_client = "{direction: Inbound, target: {labels: {app: web}}, action: Allow, rules: [\
                  {peers: [{cidr: 10.202.10.0/24}, {cidr: \"fd00:ca:a::/64\"}], \
                  ports: [9000/UDP, 9002/UDP]}]}";
    let plan = Plan::two_nodes()
        .pod(PodSpec::new("shop", "other"))
        .manifest("out", &manifest::authorization("shop/to-web", to_web))
        .manifest(
            "in",
            &manifest::authorization("shop/from-client", from_client),
        );
    let lab = Lab::with_mesh(plan).unwrap();
    let pods = ["shop/client", "shop/other", "shop/web", "legacy/caller"];
    let [client, other, web, legacy] = pods.map(|key| lab.pod(key));
    let outside = Caller::Host(lab.outside());
    let member = Caller::Member;
    let mut checks = Checks::default();
    for to in both(web, 9000) {
        let there = (member(web), to);
        checks.add(
            &format!("named at both ends: {to}"),
            answered(&lab, member(client), there),
        );
        let result = refused(&lab, other, member(other), there);
        checks.add(&format!("not named by the source's policy: {to}"), result);
    }
    for to in both(web, 9001) {
        let result = refused(&lab, web, member(client), (member(web), to));
        checks.add(&format!("named outbound only: {to}"), result);
    }
    for to in both(web, 9002) {
        let result = refused(&lab, client, member(client), (member(web), to));
        checks.add(&format!("named inbound only: {to}"), result);
    }
    for address in outside.addresses() {
        let there = (outside, SocketAddr::new(address, 9000));
        checks.add(
            "to the outside, named",
            answered(&lab, member(client), there),
        );
        let result = refused(&lab, other, member(other), there);
        checks.add("to the outside, not named", result);
    }
    for to in both(web, 9002) {
        let result = refused(&lab, web, outside, (member(web), to));
        checks.add(&format!("from the outside to {to}"), result);
    }
    for to in both(legacy, 9000) {
        checks.add(
            "outside the mesh",
            answered(&lab, outside, (Caller::Plain(legacy), to)),
        );
    }
    checks.assert(&lab);
}

#[test]
fn audit_lets_udp_pass_counts_it_and_tells_of_it() {
    let to_outside = "{direction: Outbound, action: Allow, rules: [\
                      {peers: [{cidr: 10.201.0.100/32}, {cidr: \"fd00:c9::64/128\"}], \
                      ports: [9000/UDP]}]}";
    let plan = Plan::nodes(2)
        .audited("trial")
        .namespace("legacy")
        .without_default_policy()
        .pod(PodSpec::new("trial", "client"))
        .pod(PodSpec::new("trial", "web").node(1))
        .pod(PodSpec::new("legacy", "server").node(1))
        .manifest("out", &manifest::authorization("trial/out", to_outside));
    let lab = Lab::with_mesh(plan).unwrap();
    let [client, web, legacy] =
        ["trial/client", "trial/web", "legacy/server"].map(|key| lab.pod(key));
    let (from, outside) = (Caller::Member(client), Caller::Host(lab.outside()));
    let at_outside = |port: u16| {
        let addresses = outside.addresses().into_iter();
        addresses.map(move |ip| (outside, SocketAddr::new(ip, port)))
    };
    let at_legacy = || both(legacy, 9000).into_iter();
    let at_legacy = || at_legacy().map(|to| (Caller::Plain(legacy), to));
    let at_web = || both(web, 9000).into_iter();
    let at_web = || at_web().map(|to| (Caller::Member(web), to));
    let mut checks = Checks::default();
    for there in at_outside(9000) {
        checks.add("named", answered(&lab, from, there));
    }
    let counts = kernel_counts(&lab, client).unwrap();
    assert_eq!(counts, [0.0, 0.0], "what is named is not told of");
    for there in at_outside(9001).chain(at_legacy()) {
        let result = audited(&lab, client, from, there);
        checks.add(&format!("not named, to {}", there.1), result);
    }
    for there in at_web() {
        let result = audited(&lab, web, outside, there);
        checks.add(&format!("not named, from outside to {}", there.1), result);
    }

    // The same pods, enforced.
    lab.set_enrolment("trial", Enrolment::Enforce).unwrap();
    for (caller, there) in [
        (from, at_legacy().next().unwrap()),
        (outside, at_web().next().unwrap()),
    ] {
        wait::until_true("the datagram to be refused", wait::PATIENCE, || {
            thread::sleep(PACE);
            Ok(exchange(caller, there)? != Datagram::Answered)
        })
        .unwrap_or_else(|error| panic!("{error:#}\n{}", lab.log_tails()));
    }
    for there in at_outside(9000) {
        checks.add("enforced, named", answered(&lab, from, there));
    }
    for there in at_outside(9001).chain(at_legacy()) {
        let result = refused(&lab, client, from, there);
        checks.add(&format!("enforced, to {}", there.1), result);
    }
    for there in at_web() {
        let result = refused(&lab, web, outside, there);
        checks.add(&format!("enforced, from outside to {}", there.1), result);
    }
    checks.assert(&lab);
}

/// What `dig` gets, without a second try.
fn dig(pod: &Pod, server: IpAddr, options: &[&str]) -> Result<String> {
    let dig = pod.command("dig").arg(format!("@{server}"));
    let dig = dig.args(["+short", "+tries=1", "+time=2"]).args(options);
    let ran = dig.arg("shop.test").output()?;
    Ok(ran.stdout.trim().to_owned())
}

#[test]
fn dns_to_the_clusters_resolvers_is_open_without_any_policy() {
    let plan = Plan::nodes(2)
        .enrolled("shop")
        .namespace("kube-system")
        .without_default_policy()
        .pod(PodSpec::new("shop", "client"))
        .pod(PodSpec::new("kube-system", "node-dns").node(1))
        .pod(
            PodSpec::new("kube-system", "core-dns")
                .app("kube-dns")
                .node(1),
        )
        .pod(PodSpec::new("kube-system", "rogue-dns").node(1))
        .service(ServiceSpec::new("kube-system", "kube-dns").port(53, "53"))
        .resolver("kube-system/node-dns");
    let lab = Lab::with_mesh(plan).unwrap();
    let client = lab.pod("shop/client");
    let keys = ["node-dns", "core-dns", "rogue-dns"].map(|name| format!("kube-system/{name}"));
    let address: IpAddr = "192.0.2.53".parse().unwrap();
    let _servers = keys
        .each_ref()
        .map(|key| servers::dnsmasq(lab.pod(key), "shop.test", address).unwrap());
    let [node_dns, core_dns, rogue] = keys.each_ref().map(|key| lab.pod(key).addresses());
    let mut checks = Checks::default();
    let mut gets = |what: &str, server: IpAddr, options: &[&str], answered: bool| {
        let result = dig(client, server, options).and_then(|got| {
            ensure!((got == "192.0.2.53") == answered, "got {got:?}");
            Ok(())
        });
        checks.add(&format!("{what}: {server} {options:?}"), result);
    };
    for server in node_dns {
        gets("a resolver by flag", server, &[], true);
        gets("a resolver by flag", server, &["+tcp"], true);
    }
    for server in core_dns {
        gets("kube-dns's endpoint", server, &[], true);
        gets("kube-dns's endpoint", server, &["+tcp"], true);
    }
    // Nothing in the lab does what kube-proxy does for UDP.
    for server in lab.service("kube-system/kube-dns") {
        gets("kube-dns", server, &["+tcp"], true);
    }
    let before = lab.agent(0).refused(lab.node(0), client, REASON).unwrap();
    for server in rogue {
        gets("no resolver of the cluster", server, &[], false);
    }
    let after = lab.agent(0).refused(lab.node(0), client, REASON).unwrap();
    assert!(
        after >= before + 2,
        "{before} refused before, {after} after"
    );
    checks.assert(&lab);
}
