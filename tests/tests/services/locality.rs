//! Which endpoint gets a call where they are near and far, and what happens as the nearer ones
//! go and come back.

use std::time::Duration;

use mesh_lab::{App, Lab, Plan, PodSpec, ServiceSpec, manifest, servers, wait};

use super::group::{self, CLIENT, HTTP_PORT, SERVICE};

const SAME_NODE: &str = "shop/same-node";
const SAME_ZONE: &str = "shop/same-zone";
const SAME_REGION: &str = "shop/same-region";
const ELSEWHERE: &str = "shop/elsewhere";
const PORT: u16 = 8080;

const CALLS: usize = 20;
const INTERVAL: Duration = Duration::from_millis(5);

/// An endpoint at every distance from the client, the farthest first. Those that fail are
/// never ejected, so that distance alone decides.
fn plan() -> Plan {
    let policy = "{service: api, locality: Nearest, outlierDetection: {consecutiveFailures: 0}}";
    let endpoint = |key: &str| {
        let (namespace, name) = key.split_once('/').unwrap();
        PodSpec::new(namespace, name).app("api")
    };
    Plan::nodes(4)
        .enrolled("shop")
        .locality("north", "zone-1")
        .locality("north", "zone-1")
        .locality("north", "zone-2")
        // A zone is one within its region only.
        .locality("south", "zone-1")
        .pod(PodSpec::new("shop", "client"))
        .pod(endpoint(ELSEWHERE).node(3))
        .pod(endpoint(SAME_REGION).node(2))
        .pod(endpoint(SAME_ZONE).node(1))
        .pod(endpoint(SAME_NODE))
        .service(ServiceSpec::new("shop", "api").port(HTTP_PORT, &PORT.to_string()))
        .manifest("api", &manifest::service_policy(SERVICE, policy))
}

fn serve(lab: &Lab, key: &str) -> App {
    servers::nginx(lab.pod(key), &[PORT], key).unwrap()
}

/// All calls are answered by this endpoint, over both families.
fn assert_all_by(lab: &Lab, key: &str) {
    for address in lab.service(SERVICE) {
        let calls = group::calls_at(lab, address, CALLS, INTERVAL);
        let by = calls.iter().map(|call| call.by.as_deref());
        let wrong: Vec<_> = by.filter(|by| *by != Ok(key)).collect();
        assert!(
            wrong.is_empty(),
            "{CLIENT} to {address}, not by {key}: {wrong:?}\n{}",
            lab.log_tails()
        );
    }
}

#[test]
fn calls_go_to_the_same_node_then_zone_then_region_then_elsewhere() {
    let lab = Lab::with_mesh(plan()).unwrap();
    let [same_node, _same_zone, same_region, _elsewhere] =
        [SAME_NODE, SAME_ZONE, SAME_REGION, ELSEWHERE].map(|key| serve(&lab, key));
    assert_all_by(&lab, SAME_NODE);
    // Its app fails.
    drop(same_node);
    assert_all_by(&lab, SAME_ZONE);
    // Discovery says that it goes.
    lab.terminate_pod(lab.pod(SAME_ZONE)).unwrap();
    wait::until_true("the endpoint to be left", wait::PATIENCE, || {
        Ok(group::call(&lab).by.as_deref() == Ok(SAME_REGION))
    })
    .unwrap_or_else(|error| panic!("{error:#}\n{}", lab.log_tails()));
    assert_all_by(&lab, SAME_REGION);
    drop(same_region);
    assert_all_by(&lab, ELSEWHERE);
    // What is nearer is back.
    let _same_region = serve(&lab, SAME_REGION);
    assert_all_by(&lab, SAME_REGION);
    let _same_node = serve(&lab, SAME_NODE);
    assert_all_by(&lab, SAME_NODE);
}
