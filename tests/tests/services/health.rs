//! Active health checks: an app that accepts and no longer answers is found out by its own
//! node, and everybody leaves it alone.

use std::time::{Duration, Instant};

use mesh_lab::{Lab, wait};
use nix::sys::signal::Signal;

use super::group::{self, Call, ENDPOINTS};

const CHECKED: &str = "{service: api, healthChecks: [{port: 80, http: {path: /}, \
    intervalMs: 200, timeoutMs: 200, unhealthyThreshold: 2, healthyThreshold: 2}]}";
/// So long a caller waits for an answer here.
const GIVEN_UP: Duration = Duration::from_millis(400);
/// Two failed checks, and their way to the caller's worker: the node's report, control,
/// discovery.
const FOUND_WITHIN: Duration = Duration::from_secs(4);

#[test]
fn an_app_that_stops_answering_is_left_alone_until_it_answers() {
    let lab = Lab::with_mesh(group::plan(CHECKED)).unwrap();
    let servers = group::serve(&lab);
    group::wait_all_serve(&lab);
    let app = &servers[1][0];
    app.signal_all(Signal::SIGSTOP).unwrap();
    let stopped = Instant::now();
    let mut calls: Vec<Call> = Vec::new();
    wait::until_true("20 answers in a row", wait::PATIENCE, || {
        calls.push(group::call_for(&lab, GIVEN_UP));
        Ok(calls
            .iter()
            .rev()
            .take_while(|call| call.by.is_ok())
            .count()
            >= 20)
    })
    .unwrap_or_else(|error| panic!("{error:#}\n{}", lab.log_tails()));
    let lost: Vec<&Call> = calls.iter().filter(|call| call.by.is_err()).collect();
    let last = lost.last().map(|call| call.begun - stopped);
    let found = last.unwrap_or_default();
    println!(
        "app stopped: {} calls given up after {GIVEN_UP:?}; the last began {found:?} after the stop",
        lost.len()
    );
    assert!(found < FOUND_WITHIN, "{found:?}");
    // Twenty others may have answered before the second check failed.
    let status = wait::until("control to tell of it", FOUND_WITHIN, || {
        let status = lab.control().status()?;
        Ok(status.contains("unhealthy").then_some(status))
    })
    .unwrap_or_else(|error| panic!("{error:#}\n{}", lab.log_tails()));
    println!("told {:?} after the stop:\n{status}", stopped.elapsed());

    app.signal_all(Signal::SIGCONT).unwrap();
    let started = Instant::now();
    wait::until_true("the endpoint to answer again", wait::PATIENCE, || {
        let by = group::call(&lab).by.map_err(anyhow::Error::msg)?;
        Ok(by == ENDPOINTS[1])
    })
    .unwrap_or_else(|error| panic!("{error:#}\n{}", lab.log_tails()));
    println!(
        "app goes on: it gets calls again after {:?}",
        started.elapsed()
    );
}
