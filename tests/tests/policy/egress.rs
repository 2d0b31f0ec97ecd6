//! Plain traffic out of an enrolled pod: only to what policy names by address block or by
//! service.

use std::net::{IpAddr, SocketAddr};

use mesh_lab::{Lab, Plan, PodSpec, ServiceSpec, manifest, programs};

use super::expect::{At, Caller, Checks, Refused, both, refused, serve, served};

#[test]
fn what_is_named_is_reached_in_clear_and_the_rest_is_refused() {
    let spec = "{direction: Outbound, action: Allow, rules: [\
                {peers: [{cidr: 10.201.0.100/32}, {cidr: \"fd00:c9::64/128\"}], ports: [7000]}, \
                {peers: [{service: legacy/server}], ports: [7000]}, \
                {peers: [{namespace: legacy}, {identity: \"spiffe://cluster.local/ns/legacy/sa/other\"}]}]}";
    let plan = Plan::nodes(2)
        .enrolled("shop")
        .namespace("legacy")
        .without_default_policy()
        .pod(PodSpec::new("shop", "client"))
        .pod(PodSpec::new("legacy", "server").node(1))
        .pod(PodSpec::new("legacy", "other").node(1))
        .service(ServiceSpec::new("legacy", "server").port(80, "7000"))
        .manifest("out", &manifest::authorization("shop/out", spec));
    let lab = Lab::with_mesh(plan).unwrap();
    let (server, other) = (lab.pod("legacy/server"), lab.pod("legacy/other"));
    let _servers = [server, other].map(|pod| serve(pod, &[7000, 7001]));
    let outside = lab.outside();
    let app = programs::mesh_binary("mesh-lab-app").unwrap();
    let mut app = outside
        .netns
        .command(app)
        .args(["serve", "7000,7001"])
        .spawn()
        .unwrap();
    let client = Caller::Member(lab.pod("shop/client"));
    let at_outside = |port: u16| {
        let addresses = Caller::Host(outside).addresses().into_iter();
        addresses.map(move |ip| SocketAddr::new(ip, port))
    };
    let by_service = lab
        .service("legacy/server")
        .map(|ip| SocketAddr::new(ip, 80));
    let refusal = |reason: &'static str| Refused {
        at: At::Source,
        reason,
        policy: "",
    };
    let (unknown, unenrolled) = (
        refusal("destination_unknown"),
        refusal("destination_not_enrolled"),
    );

    let capture = lab.capture(lab.node(0)).unwrap();
    let mut checks = Checks::default();
    let named = at_outside(7000).chain(by_service).chain(both(server, 7000));
    for to in named {
        checks.add(&format!("named: {to}"), served(&lab, client, to));
    }
    let recording = capture.stop().unwrap();
    assert!(recording.contains(b"accept="), "it is plain on the wire");
    for to in at_outside(7001) {
        checks.add(
            &format!("another port: {to}"),
            refused(&lab, client, to, &unknown),
        );
    }
    let elsewhere: [IpAddr; 2] = ["198.51.100.7", "2001:db8::7"].map(|ip| ip.parse().unwrap());
    for ip in elsewhere {
        let to = SocketAddr::new(ip, 7000);
        checks.add(
            &format!("unknown: {to}"),
            refused(&lab, client, to, &unknown),
        );
    }
    for to in both(server, 7001) {
        let result = refused(&lab, client, to, &unenrolled);
        checks.add(&format!("another port of the service's pod: {to}"), result);
    }
    // Who it says it is, it does not prove.
    for to in both(other, 7000) {
        let result = refused(&lab, client, to, &unenrolled);
        checks.add(
            &format!("named by namespace and identity only: {to}"),
            result,
        );
    }
    app.kill().unwrap();
    app.wait().unwrap();
    checks.assert(&lab);
}
