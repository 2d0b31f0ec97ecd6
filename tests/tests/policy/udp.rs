//! UDP: what policy names by address and port passes, DNS to the cluster's resolvers passes,
//! and the rest doesn't.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Result, ensure};
use mesh_lab::call::{self, Datagram};
use mesh_lab::{Lab, Plan, Pod, PodSpec, ServiceSpec, manifest, servers, wait};

use super::expect::{Caller, Checks, both};

const REASON: &str = "udp_not_allowed";

fn exchange(from: Caller<'_>, to: (Caller<'_>, SocketAddr)) -> Result<Datagram> {
    let family = |address: &IpAddr| address.is_ipv4() == to.1.is_ipv4();
    let own = from.addresses().into_iter().find(family).unwrap();
    call::udp(
        (from.netns(), SocketAddr::new(own, 0)),
        (to.0.netns(), to.1),
    )
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
    let fields = [("reason", REASON), ("by", "kernel")];
    agent.wait_refusal(mark, decider, &fields)?;
    wait::until_true("the datagram to be counted", wait::PATIENCE, || {
        Ok(agent.refused(host, decider, REASON)? > before)
    })
}

fn answered(from: Caller<'_>, to: (Caller<'_>, SocketAddr)) -> Result<()> {
    let became = exchange(from, to)?;
    ensure!(became == Datagram::Answered, "it is {became:?}");
    Ok(())
}

#[test]
fn udp_passes_where_both_ends_name_it() {
    let to_web = "{direction: Outbound, target: {labels: {app: client}}, action: Allow, rules: [\
                  {peers: [{cidr: 10.202.11.0/24}, {cidr: \"fd00:ca:b::/64\"}], \
                  ports: [{port: 9000, protocol: UDP}, {port: 9001, protocol: UDP}]}, \
                  {peers: [{cidr: 10.201.0.100/32}, {cidr: \"fd00:c9::64/128\"}], \
                  ports: [{protocol: UDP}]}]}";
    let from_client = "{direction: Inbound, target: {labels: {app: web}}, action: Allow, rules: [\
                  {peers: [{cidr: 10.202.10.0/24}, {cidr: \"fd00:ca:a::/64\"}], \
                  ports: [{port: 9000, protocol: UDP}, {port: 9002, protocol: UDP}]}]}";
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
            answered(member(client), there),
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
        checks.add("to the outside, named", answered(member(client), there));
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
            answered(outside, (Caller::Plain(legacy), to)),
        );
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
