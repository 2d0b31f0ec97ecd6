//! A node's clock is set, far forward and far back: by it no certificate is valid, so nothing new gets
//! through, and that is said; when it is right again, all goes on, with nobody doing anything.

use std::net::SocketAddr;
use std::process::Command;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use mesh_lab::call::{self, Open};
use mesh_lab::{Lab, wait};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::nodes::{self, CLIENT, WEB, meet, serve};
use crate::{Case, Guest};

pub(super) const CASES: &[Case] = &[Case {
    name: "clock/one-that-is-set-closes-and-heals",
    nodes: 2,
    kernel_args: "",
    timeout_s: 420,
    run: set,
}];

const PORT: u16 = 7000;
/// Longer than any certificate of a node or a pod lasts.
const FAR_S: i64 = 3 * 24 * 60 * 60;
/// What is done with the clock of the second machine, and by how much it is off then.
const STEPS: [(&str, i64); 4] = [
    ("forward", FAR_S),
    ("right after forward", 0),
    ("back", -FAR_S),
    ("right after back", 0),
];

fn set(guest: &Guest) -> Result<()> {
    let lab = nodes::lab(guest)?;
    match guest.node() {
        0 => beside(guest, &lab)?,
        _ => with_the_clock(guest, &lab)?,
    }
    meet(guest, "clocks are right")?;
    lab.finish()
}

/// The machine whose clock is set.
fn with_the_clock(guest: &Guest, lab: &Lab) -> Result<()> {
    let _server = serve(lab.pod(WEB), PORT)?;
    meet(guest, "served")?;
    let (begun, wall) = (
        Instant::now(),
        SystemTime::now().duration_since(UNIX_EPOCH)?,
    );
    for ((step, off_s), times) in STEPS.into_iter().zip(1..) {
        guest.wait_for(step)?;
        let right_s = i64::try_from((wall + begun.elapsed()).as_secs())?;
        let date = format!("@{}", right_s + off_s);
        let set = Command::new("date").args(["-u", "-s", &date]).output()?;
        ensure!(set.status.success(), "date -s {date}: {set:?}");
        // It is heard of, and counted.
        wait::until_true("the step to be counted", wait::PATIENCE, || {
            let steps = lab
                .agent(1)
                .metric(lab.node(1), "nodemesh_clock_steps_total", &[])?;
            Ok(steps >= f64::from(times))
        })?;
        guest.tell(format!("{step} done"), "");
    }
    let log = lab.agent(1).daemon.wait_log("the node's clock was set")?;
    guest.step(log);
    guest.wait_for("all is well")?;
    Ok(())
}

fn ask(guest: &Guest, step: &str) -> Result<()> {
    guest.tell(step, "");
    guest.wait_for(&format!("{step} done"))?;
    guest.step(format!("the other machine's clock: {step}"));
    Ok(())
}

/// The machine that calls, with control on it.
fn beside(guest: &Guest, lab: &Lab) -> Result<()> {
    meet(guest, "served")?;
    let (client, web) = (lab.pod(CLIENT), lab.pod(WEB));
    let to = SocketAddr::new(web.v4().into(), PORT);
    let served = || {
        wait::until("a call to be served", wait::PATIENCE * 2, || {
            let called = call::tcp(&client.netns, to);
            ensure!(called.served(), "{called}");
            Ok(Some(()))
        })
        .with_context(|| lab.log_tails())
    };
    served()?;
    let mut open = Open::dial(&client.netns, to).map_err(|called| anyhow::anyhow!("{called}"))?;
    open.ping()?;

    let [(forward, _), (right, _), (back, _), (right_again, _)] = STEPS;
    ask(guest, forward)?;
    // What stands ends with the certificate that ended, and long before anybody would look at a clock.
    let begun = Instant::now();
    wait::until_true("what is open to be cut", wait::PATIENCE / 2, || {
        Ok(open.ping().is_err())
    })?;
    guest.step(format!("what was open is cut after {:?}", begun.elapsed()));
    let called = call::tcp(&client.netns, to);
    ensure!(!called.served(), "served past the end: {called}");
    let told = "clock is";
    wait::until_true("control to tell of the clock", wait::PATIENCE * 6, || {
        let status = lab.control().status()?;
        let line = status.lines().find(|line| line.contains("node-b"));
        Ok(line.is_some_and(|line| line.contains(told)))
    })
    .with_context(|| lab.control().status().unwrap_or_default())?;
    ask(guest, right)?;
    served()?;

    // What stands goes on, and nothing new is trusted: the client's next worker has no tunnel.
    let mut open = Open::dial(&client.netns, to).map_err(|called| anyhow::anyhow!("{called}"))?;
    ask(guest, back)?;
    open.ping().context("what was open")?;
    let worker = lab.agent(0).worker_pid(client)?;
    kill(Pid::from_raw(worker), Signal::SIGKILL)?;
    let patience = Duration::from_secs(30);
    lab.agent(0).wait_new_worker(client, worker, patience)?;
    let called = call::tcp(&client.netns, to);
    ensure!(!called.served(), "served before the begin: {called}");
    ask(guest, right_again)?;
    served()?;
    guest.tell("all is well", "");
    Ok(())
}
