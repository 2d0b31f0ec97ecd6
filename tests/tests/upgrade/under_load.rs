//! 200 counted connections and 500 short requests a second, while everything is replaced.

use std::collections::BTreeMap;

use mesh_lab::servers::quiet_nginx;
use mesh_lab::{Lab, programs, wait};

use crate::counted::Counted;
use crate::{
    CLIENT, COUNTED, End, HTTP, WEB, another_agent, answered, assert_nothing_refused, draining,
    is_rolled, lab, replace_supervisor, short_requests, to, wait_status, workers,
};

const CONNECTIONS: usize = 200;

/// What the client's worker, or its successors, have counted.
fn counts(lab: &Lab) -> BTreeMap<String, f64> {
    let text = lab.agent(0).metrics(lab.node(0)).unwrap();
    let of_client = text
        .lines()
        .filter(|line| line.contains("pod=\"shop/client\"") && line.contains("_total{"));
    let parsed = of_client.filter_map(|line| {
        let (series, value) = line.rsplit_once(' ')?;
        // Counted anew by each supervisor, which its adopted workers' own counts are not.
        let own = series.contains("supervisor") || series.contains("restarts");
        (!own).then_some((series.to_owned(), value.parse().ok()?))
    });
    parsed.collect()
}

fn upgrade_under_load(end: End) {
    let mut lab = lab(|plan| plan);
    let (client, web) = (lab.pod(CLIENT), lab.pod(WEB));
    let _nginx = quiet_nginx(web, &[HTTP], "hello").unwrap();
    let counted = Counted::open(client, web, COUNTED, CONNECTIONS);
    let short = short_requests(client, to(web, HTTP));
    let this = programs::mesh_binary("mesh-agent").unwrap();
    let next = another_agent(&lab, "next-agent");
    let mut before = workers(&lab);
    // Up, and down again.
    for (round, program) in [next, this].into_iter().enumerate() {
        for node in 0..2 {
            replace_supervisor(&mut lab, node, program.clone(), end);
            counted.wait(200);
            let asked = answered(&short);
            wait_status(&lab, node, "every worker to be replaced", is_rolled);
            let early = counts(&lab);
            wait::until_true("short requests to go on", wait::PATIENCE, || {
                Ok(answered(&short) >= asked + 500)
            })
            .unwrap();
            for (series, now) in counts(&lab) {
                let was = early.get(&series).copied().unwrap_or_default();
                assert!(now >= was, "{series} went back from {was} to {now}");
            }
            let status = lab.agent(node).status().unwrap();
            assert_eq!(status["roll"]["done"], 2, "{status:#}");
            assert_eq!(status["roll"]["failed"], 0, "{status:#}");
        }
        let now = workers(&lab);
        let same = before.iter().zip(now).filter(|(old, new)| **old == *new);
        assert_eq!(same.count(), 0, "round {round}: {before:?}, {now:?}");
        before = now;
        // The counted connections are those of the first workers, which drain.
        for node in 0..2 {
            wait_status(
                &lab,
                node,
                "the old workers to hold the old connections",
                |status| draining(status).1 >= CONNECTIONS as u64,
            );
        }
    }
    println!("{} short requests were answered", answered(&short));
    assert_nothing_refused(&lab);
    drop(short);
    println!("{} pieces went there and back", counted.finish_unharmed());
    for node in 0..2 {
        wait_status(&lab, node, "the old workers to have ended", |status| {
            draining(status) == (0, 0)
        });
    }
    assert_nothing_refused(&lab);
    lab.finish().unwrap();
}

#[test]
fn an_agent_that_is_stopped_is_upgraded_and_downgraded_without_a_lost_byte() {
    upgrade_under_load(End::Stopped);
}

#[test]
fn an_agent_that_is_killed_is_upgraded_and_downgraded_without_a_lost_byte() {
    upgrade_under_load(End::Killed);
}
