//! A pod that changes its network without end costs the supervisor little, and others nothing.

use std::fs;
use std::time::{Duration, Instant};

use mesh_lab::{Lab, call};

use crate::{CLIENT, NEIGHBOUR, PORT, WEB, found, plan, serve, target, wait_found};

const FLOOD: Duration = Duration::from_secs(6);
/// Of one processor, by the supervisor, while the flood goes on. A look is followed by a rest of
/// twenty times what it took; the scrape and the calls of the test cost as well.
const MOST: f64 = 0.25;

/// Processor time of a process, in seconds.
fn cpu_s(pid: u32) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let (_, fields) = stat.rsplit_once(") ").unwrap();
    let fields: Vec<&str> = fields.split(' ').collect();
    let ticks: f64 = fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap();
    ticks / 100.0
}

#[test]
fn a_flood_of_addresses_is_told_of_within_a_budget() {
    let lab = Lab::with_mesh(plan()).unwrap();
    let (client, neighbour) = (lab.pod(CLIENT), lab.pod(NEIGHBOUR));
    let _server = serve(lab.pod(WEB), PORT);
    let agent = lab.agent(0);
    let supervisor = agent.daemon.pid().unwrap();
    let lines = || {
        fs::read_to_string(agent.daemon.log())
            .unwrap()
            .lines()
            .count()
    };
    let (lines_before, cpu_before) = (lines(), cpu_s(supervisor));
    // Some thousand changes a second, of addresses and of the routes that go with them.
    let script = "i=0; while :; do i=$((i+1)); a=$((i/250%250)); b=$((i%250+1)); \
                  echo addr add 10.77.$a.$b/32 dev eth0; \
                  [ $i -gt 2000 ] && echo addr flush dev eth0 to 10.77.0.0/16 && i=0; done \
                  | ip -force -batch - 2>/dev/null";
    let flood = client.command("sh").root().args(["-c", script]);
    let mut flood = flood.spawn().unwrap();
    let began = Instant::now();
    let mut calls = 0;
    while began.elapsed() < FLOOD {
        let called = call::tcp(&neighbour.netns, target(lab.pod(WEB)));
        assert!(called.served(), "{called}");
        calls += 1;
    }
    let spent = (cpu_s(supervisor) - cpu_before) / began.elapsed().as_secs_f64();
    let written = lines() - lines_before;
    flood.signal_all(nix::sys::signal::Signal::SIGKILL).unwrap();
    flood.kill();
    wait_found(&lab, client, "address", "contained", "10.77.");
    println!(
        "{calls} calls beside it, {written} lines, {:.1} % of a processor",
        spent * 100.0
    );
    assert!(spent < MOST, "{spent}");
    // In ten seconds at most: four looks a second, each with a line for addresses and one for
    // routes.
    let most: u32 = 150;
    assert!(u32::try_from(written).unwrap() < most, "{written} lines");
    assert!(found(&lab, client, "address", "contained") < f64::from(most));
}
