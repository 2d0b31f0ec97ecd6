//! An endpoint fails while calls come in: what callers see, and how long a call takes that
//! meets it.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use mesh_lab::call::Open;
use mesh_lab::{Lab, Pod, wait};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::group::{self, Call, ENDPOINTS, PLAIN_PORT, SERVICE};

/// One every 20 ms.
const CALLS: usize = 150;
const INTERVAL: Duration = Duration::from_millis(20);
/// A call that takes so long has met the failed endpoint and waited for it.
const SLOW: Duration = Duration::from_millis(500);
/// An attempt is given up after a second; a call may meet the failed endpoint twice, by its
/// tunnel and by a new one.
const SLOWEST: Duration = Duration::from_millis(3_500);

/// The second endpoint and its node.
fn victim(lab: &Lab) -> &Pod {
    lab.pod(ENDPOINTS[1])
}

/// A lab with the service at work.
fn start() -> (Lab, Vec<[mesh_lab::App; 2]>) {
    let lab = Lab::with_mesh(group::plan("{service: api}")).unwrap();
    let servers = group::serve(&lab);
    group::wait_all_serve(&lab);
    (lab, servers)
}

/// No call is lost; returns how long the slowest took.
fn assert_all_served(lab: &Lab, what: &str, calls: &[Call]) -> Duration {
    let lost: Vec<&Call> = calls.iter().filter(|call| call.by.is_err()).collect();
    let mut took: Vec<Duration> = calls.iter().map(|call| call.took).collect();
    took.sort();
    let slowest = took[took.len() - 1];
    let slow = took.iter().filter(|took| **took > SLOW).count();
    println!(
        "{what}: {} calls, {} lost, {slow} slower than {SLOW:?}, median {:?}, slowest {slowest:?}, {:?}",
        calls.len(),
        lost.len(),
        took[took.len() / 2],
        group::shares(calls),
    );
    assert!(lost.is_empty(), "{what}: {lost:?}\n{}", lab.log_tails());
    slowest
}

fn assert_left_alone(what: &str, calls: &[Call]) {
    let shares = group::shares(calls);
    assert!(!shares.contains_key(ENDPOINTS[1]), "{what}: {shares:?}");
}

#[test]
fn an_app_that_is_killed() {
    let (lab, mut servers) = start();
    let [nginx, plain] = servers.remove(1);
    drop((nginx, plain));
    let calls = group::calls(&lab, CALLS, INTERVAL);
    let slowest = assert_all_served(&lab, "app killed", &calls);
    assert_left_alone("app killed", &calls);
    assert!(slowest < SLOW, "nobody waits for a refusal: {slowest:?}");
}

#[test]
fn a_worker_that_is_stopped() {
    let (lab, _servers) = start();
    let worker = Pid::from_raw(lab.agent(1).worker_pid(victim(&lab)).unwrap());
    kill(worker, Signal::SIGSTOP).unwrap();
    let calls = group::calls(&lab, CALLS, INTERVAL);
    kill(worker, Signal::SIGCONT).unwrap();
    let slowest = assert_all_served(&lab, "worker stopped", &calls);
    assert!(slowest < SLOWEST, "{slowest:?}");
}

#[test]
fn a_pod_that_is_behind_a_black_hole() {
    let (lab, _servers) = start();
    victim(&lab).black_hole(lab.node(1)).unwrap();
    let calls = group::calls(&lab, CALLS, INTERVAL);
    let slowest = assert_all_served(&lab, "black-holed", &calls);
    assert!(slowest < SLOWEST, "{slowest:?}");
    // It is left alone after some failures: the last calls don't wait for it.
    let late = &calls[CALLS * 2 / 3..];
    let slow = late.iter().filter(|call| call.took > SLOW).count();
    assert!(slow <= 3, "{slow} of the last {} calls waited", late.len());
    assert_left_alone("black-holed", late);
    victim(&lab).reach(lab.node(1)).unwrap();
    wait::until_true("the endpoint to be tried again", wait::PATIENCE, || {
        Ok(group::call(&lab).by.as_deref() == Ok(ENDPOINTS[1]))
    })
    .unwrap_or_else(|error| panic!("{error:#}\n{}", lab.log_tails()));
}

#[test]
fn a_worker_that_cannot_be_reached() {
    let (lab, _servers) = start();
    unreachable_at(&lab, lab.service(SERVICE)[0], "ip");
}

#[test]
fn a_worker_that_cannot_be_reached_over_ipv6() {
    let (lab, _servers) = start();
    unreachable_at(&lab, lab.service(SERVICE)[1], "ip6");
}

/// The victim's node refuses tunnels to it over one family, that of the address called.
fn unreachable_at(lab: &Lab, address: IpAddr, family: &str) {
    group::wait_all_serve_at(lab, address);
    let mut own = victim(lab).addresses().into_iter();
    let own = own
        .find(|own| own.is_ipv4() == address.is_ipv4())
        .expect("an address of each family");
    let rules = format!(
        "table {family} refusing {{ chain forward {{ type filter hook forward priority 0; \
         {family} daddr {own} tcp dport 15008 counter reject with tcp reset\n }}\n }}\n",
    );
    let path = lab.folder().join("refusing.nft");
    std::fs::write(&path, rules).unwrap();
    let nft = || lab.node(1).netns.command("nft");
    let loaded = nft().arg("-f").arg(path).status().unwrap();
    assert!(loaded.success());
    let calls = group::calls_at(lab, address, CALLS, INTERVAL);
    let slowest = assert_all_served(lab, &format!("refusing, {family}"), &calls);
    assert_left_alone("refusing", &calls);
    assert!(slowest < SLOW, "nobody waits for a refusal: {slowest:?}");
    // It was tried over that family, and refused.
    let listed = nft().args(["list", "table", family, "refusing"]).output();
    let listed = String::from_utf8(listed.unwrap().stdout).unwrap();
    assert!(listed.contains("counter packets"), "{listed}");
    assert!(!listed.contains("counter packets 0 "), "{listed}");
}

#[test]
fn a_pod_that_is_terminating_finishes_what_it_has() {
    let (lab, _servers) = start();
    let to = SocketAddr::new(lab.service(SERVICE)[0], PLAIN_PORT);
    let netns = &lab.pod(group::CLIENT).netns;
    let own = victim(&lab).v4();
    let mut open = wait::until("a connection to the victim", wait::PATIENCE, || {
        let open = Open::dial(netns, to).map_err(|called| anyhow::anyhow!("{called}"))?;
        Ok((open.server.ip() == own).then_some(open))
    })
    .unwrap();
    lab.terminate_pod(victim(&lab)).unwrap();
    let mut row = 0;
    wait::until_true("20 calls in a row without it", wait::PATIENCE, || {
        let call = group::call(&lab);
        let by = call.by.map_err(anyhow::Error::msg)?;
        row = if by == ENDPOINTS[1] { 0 } else { row + 1 };
        Ok(row == 20)
    })
    .unwrap();
    let calls = group::calls(&lab, CALLS / 3, INTERVAL);
    let slowest = assert_all_served(&lab, "terminating", &calls);
    assert_left_alone("terminating", &calls);
    assert!(slowest < SLOW, "{slowest:?}");
    open.ping().unwrap();
}
