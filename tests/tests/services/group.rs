//! The service that all tests call.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::thread;
use std::time::{Duration, Instant};

use mesh_lab::call;
use mesh_lab::{App, Lab, Plan, PodSpec, ServiceSpec, manifest, servers, wait};

pub(crate) const CLIENT: &str = "shop/client";
pub(crate) const SERVICE: &str = "shop/api";
/// The first is on the client's node, the others on the other node.
pub(crate) const ENDPOINTS: [&str; 3] = ["shop/api-1", "shop/api-2", "shop/api-3"];
/// Of nginx, as the service has it; the lab's own server is behind [`PLAIN_PORT`].
pub(crate) const HTTP_PORT: u16 = 80;
pub(crate) const PLAIN_PORT: u16 = 7000;

/// Longest that a call may hang before it counts as lost.
const PATIENCE: Duration = Duration::from_secs(8);

/// The client and the endpoints, with this `spec` of a service policy. The third endpoint
/// has the named port elsewhere than the others.
pub(crate) fn plan(service_policy: &str) -> Plan {
    let endpoint = |name: &str, http: u16| PodSpec::new("shop", name).app("api").port("http", http);
    Plan::nodes(2)
        .enrolled("shop")
        .locality("north", "north-1")
        .locality("north", "north-2")
        .pod(PodSpec::new("shop", "client"))
        .pod(endpoint("api-1", 8080))
        .pod(endpoint("api-2", 8080).node(1))
        .pod(endpoint("api-3", 8081).node(1))
        .service(
            ServiceSpec::new("shop", "api")
                .port(HTTP_PORT, "http")
                .port(PLAIN_PORT, "7000"),
        )
        .manifest("api", &manifest::service_policy(SERVICE, service_policy))
}

/// Both servers of each endpoint.
pub(crate) fn serve(lab: &Lab) -> Vec<[App; 2]> {
    let of_each = |(key, port)| {
        let pod = lab.pod(key);
        let nginx = servers::nginx(pod, &[port], key).unwrap();
        let plain = pod.command("mesh-lab-app").args(["serve", "7000"]);
        let plain = plain.spawn().unwrap();
        pod.wait_listening(PLAIN_PORT).unwrap();
        [nginx, plain]
    };
    ENDPOINTS
        .into_iter()
        .zip([8080, 8080, 8081])
        .map(of_each)
        .collect()
}

/// One call and what came of it.
#[derive(Debug)]
pub(crate) struct Call {
    pub(crate) begun: Instant,
    pub(crate) took: Duration,
    /// The endpoint that answered, or the error.
    pub(crate) by: Result<String, String>,
}

/// Calls the service's HTTP port once, by its IPv4 address.
pub(crate) fn call(lab: &Lab) -> Call {
    call_for(lab, PATIENCE)
}

/// As [`call`], given up after `timeout`.
pub(crate) fn call_for(lab: &Lab, timeout: Duration) -> Call {
    call_at(lab, lab.service(SERVICE)[0], timeout)
}

fn call_at(lab: &Lab, address: IpAddr, timeout: Duration) -> Call {
    let to = SocketAddr::new(address, HTTP_PORT);
    let begun = Instant::now();
    let answer = call::http(&lab.pod(CLIENT).netns, to, "/", timeout);
    Call {
        begun,
        took: begun.elapsed(),
        by: answer.map_err(|error| format!("{error:#}")),
    }
}

/// So many calls, one begun every `interval` whatever becomes of those before.
pub(crate) fn calls(lab: &Lab, count: usize, interval: Duration) -> Vec<Call> {
    calls_at(lab, lab.service(SERVICE)[0], count, interval)
}

/// As [`calls`], by this address of the service.
pub(crate) fn calls_at(lab: &Lab, address: IpAddr, count: usize, interval: Duration) -> Vec<Call> {
    let started = Instant::now();
    thread::scope(|scope| {
        let begin = |number: u32| {
            let at = started + interval * number;
            thread::sleep(at.saturating_duration_since(Instant::now()));
            scope.spawn(|| call_at(lab, address, PATIENCE))
        };
        let begun: Vec<_> = (0..).take(count).map(begin).collect();
        begun.into_iter().map(|call| call.join().unwrap()).collect()
    })
}

/// How many calls each endpoint answered.
pub(crate) fn shares(calls: &[Call]) -> BTreeMap<&str, usize> {
    let mut shares = BTreeMap::new();
    for by in calls.iter().filter_map(|call| call.by.as_deref().ok()) {
        *shares.entry(by).or_default() += 1;
    }
    shares
}

/// Waits until each endpoint has answered.
pub(crate) fn wait_all_serve(lab: &Lab) {
    wait_all_serve_at(lab, lab.service(SERVICE)[0]);
}

/// As [`wait_all_serve`], by this address of the service.
pub(crate) fn wait_all_serve_at(lab: &Lab, address: IpAddr) {
    let mut seen = Vec::new();
    wait::until_true("each endpoint to answer", wait::PATIENCE, || {
        seen.push(call_at(lab, address, PATIENCE));
        Ok(shares(&seen).len() == ENDPOINTS.len())
    })
    .unwrap_or_else(|error| panic!("{error:#}: {seen:?}\n{}", lab.log_tails()));
}
