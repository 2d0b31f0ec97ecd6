//! Which endpoint gets a call.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use mesh_lab::call::{self, Open};
use mesh_lab::{Lab, ServiceSpec, manifest, wait};

use super::group::{self, CLIENT, ENDPOINTS, PLAIN_PORT, SERVICE};

fn start(service_policy: &str) -> (Lab, Vec<[mesh_lab::App; 2]>) {
    let lab = Lab::with_mesh(group::plan(service_policy)).unwrap();
    let servers = group::serve(&lab);
    (lab, servers)
}

#[test]
fn round_robin_takes_turns() {
    let (lab, _servers) = start("{service: api, balancing: RoundRobin}");
    group::wait_all_serve(&lab);
    let calls: Vec<_> = (0..60).map(|_| group::call(&lab)).collect();
    let shares = group::shares(&calls);
    println!("round robin: {shares:?}");
    for key in ENDPOINTS {
        assert!((19..=21).contains(&shares[key]), "{shares:?}");
    }
}

#[test]
fn the_endpoint_with_fewer_connections_is_taken_over_both_families() {
    const OPEN: usize = 60;
    let (lab, _servers) = start("{service: api, balancing: LeastRequests}");
    for address in lab.service(SERVICE) {
        let to = SocketAddr::new(address, PLAIN_PORT);
        let dial = |_| Open::dial(&lab.pod(CLIENT).netns, to);
        let open: Result<Vec<Open>, _> = (0..OPEN).map(dial).collect();
        let open = open.unwrap_or_else(|called| panic!("{called}\n{}", lab.log_tails()));
        let mut shares: BTreeMap<IpAddr, usize> = BTreeMap::new();
        for connection in &open {
            *shares.entry(connection.server.ip()).or_default() += 1;
        }
        println!("open connections by endpoint: {shares:?}");
        let even = OPEN / ENDPOINTS.len();
        assert_eq!(shares.len(), ENDPOINTS.len(), "{shares:?}");
        assert!(
            shares.values().all(|n| n.abs_diff(even) <= even / 4),
            "{shares:?}"
        );
    }
}

#[test]
fn the_nearest_endpoint_comes_first_and_the_rest_when_it_fails() {
    let (lab, mut servers) = start("{service: api, locality: Nearest}");
    let calls: Vec<_> = (0..30).map(|_| group::call(&lab)).collect();
    assert_eq!(group::shares(&calls), BTreeMap::from([(ENDPOINTS[0], 30)]));
    drop(servers.remove(0));
    let calls = group::calls(&lab, 60, Duration::from_millis(10));
    let shares = group::shares(&calls);
    println!("the nearest is gone: {shares:?}");
    assert_eq!(shares.values().sum::<usize>(), 60, "{calls:?}");
    assert!(
        ENDPOINTS[1..].iter().all(|key| shares.contains_key(key)),
        "{shares:?}"
    );
}

#[test]
fn a_headless_service_is_its_pods_and_policy_can_name_it() {
    let spec = "{target: {labels: {app: client}}, direction: Outbound, action: Deny, \
                rules: [{peers: [{service: api-pods}]}]}";
    let plan = group::plan("{service: api}").service(
        ServiceSpec::new("shop", "api-pods")
            .app("api")
            .headless()
            .port(PLAIN_PORT, "7000"),
    );
    let lab = Lab::with_mesh(plan).unwrap();
    let _servers = group::serve(&lab);
    let netns = &lab.pod(CLIENT).netns;
    let all = || {
        ENDPOINTS
            .into_iter()
            .flat_map(|key| lab.pod(key).addresses())
    };
    for address in all() {
        let called = call::tcp(netns, SocketAddr::new(address, PLAIN_PORT));
        assert!(called.served(), "{address}: {called}\n{}", lab.log_tails());
    }
    lab.write_manifest("deny", &manifest::authorization("shop/no-pods", spec))
        .unwrap();
    for address in all() {
        let denied = call::Called::NotConnected(libc::EPERM);
        wait::until_true("the denial", wait::PATIENCE, || {
            Ok(call::tcp(netns, SocketAddr::new(address, PLAIN_PORT)) == denied)
        })
        .unwrap_or_else(|error| panic!("{address}: {error:#}\n{}", lab.log_tails()));
    }
}
