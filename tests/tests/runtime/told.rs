//! Pods of a runtime that the agent is told of by hand.

use mesh_lab::manifest::authorization;
use mesh_lab::runtime::Runtime;
use mesh_lab::{Lab, PodSpec};

use crate::{CALLS, assert_tunnels_only, end_told_pod, plan, say, serve, told_pod};

const NONCE: &str = "in-clear-over-the-fabric";

#[test]
fn pods_of_two_nodes_talk_in_mutual_tls_by_their_own_identities() {
    let only_client = "{target: {labels: {app: web}}, direction: Inbound, action: Allow, \
                       rules: [{peers: [{namespace: shop, serviceAccount: client}]}]}";
    let all_out = "{target: {mesh: true}, direction: Outbound, action: Allow, rules: [{}]}";
    let plan = plan()
        .without_default_policy()
        .manifest("web", &authorization("shop/web", only_client))
        .manifest("out", &authorization("nodemesh-system/out", all_out));
    let lab = Lab::with_mesh(plan).unwrap();
    let runtimes = [0, 1].map(|node| Runtime::start(&lab, node, 8).unwrap());
    let [near, far] = &runtimes;
    println!("{:?}", near.cri.version().unwrap());
    let fabric = lab.capture(lab.node(0)).unwrap();
    let bridge = Runtime::capture(lab.node(1)).unwrap();

    let web = told_pod(&lab, far, &PodSpec::new("shop", "web").node(1)).unwrap();
    let server = serve(far, &web);
    let client = told_pod(&lab, near, &PodSpec::new("shop", "client")).unwrap();
    let stranger = told_pod(&lab, near, &PodSpec::new("shop", "stranger")).unwrap();
    let neighbour = PodSpec::new("shop", "neighbour")
        .service_account("client")
        .node(1);
    let neighbour = told_pod(&lab, far, &neighbour).unwrap();
    let call = say(NONCE, &web);

    let calls = near
        .start_container(&client, "app", &["sh", "-c", &call])
        .unwrap();
    near.wait_exit(&calls, CALLS).unwrap();
    let beside = far
        .start_container(&neighbour, "app", &["sh", "-c", &call])
        .unwrap();
    far.wait_exit(&beside, CALLS).unwrap();
    let strange = near
        .start_container(&stranger, "app", &["sh", "-c", &call])
        .unwrap();
    let refused = near.wait_exit(&strange, CALLS).unwrap_err();
    println!("the stranger: {refused:#}");
    let seen = server.log();
    for pod in [&client, &neighbour] {
        let own = format!("accept={}:", pod.address());
        assert!(seen.contains(&own), "{own} is not in {seen}");
    }
    assert_eq!(seen.lines().count(), 2, "the stranger got through: {seen}");

    // The client's service account goes with it.
    let ends = [
        (far, &web, &server),
        (far, &neighbour, &beside),
        (near, &client, &calls),
    ];
    for (runtime, sandbox, container) in ends {
        end_told_pod(&lab, runtime, sandbox, &[container]).unwrap();
    }
    end_told_pod(&lab, near, &stranger, &[&strange]).unwrap();
    for (place, capture) in [("fabric", fabric), ("bridge", bridge)] {
        assert_tunnels_only(place, &capture.stop().unwrap(), NONCE);
    }
    runtimes
        .iter()
        .for_each(|runtime| runtime.check_empty().unwrap());
    drop(runtimes);
    lab.finish().unwrap();
}
