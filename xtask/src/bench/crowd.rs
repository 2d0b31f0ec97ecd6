//! A node with ever more pods that do nothing: what they cost in memory, and how long one more
//! takes to be enrolled.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use mesh_lab::{Lab, Plan, Pod, PodSpec, map_bytes, wait};

use super::results::Results;
use super::system;
use super::ways::{MESH, PEER};
use super::ztunnel::{self, Ztunnel};

/// Of the pods.
const NAMESPACE: &str = "crowd";

/// At how many pods it is weighed. No lab has more than 254 on a node.
const STAGES: [usize; 6] = [1, 20, 50, 100, 200, 250];
const SHORT: [usize; 2] = [1, 3];

/// Those that have rows in the table; the others are on curves only.
const ROWS: [usize; 3] = [1, 20, 100];

/// How often one more is enrolled at each stage, and at the one that has a goal.
const ENROLMENTS: usize = 5;
const MANY_ENROLMENTS: usize = 100;
const GOAL_AT: usize = 200;

/// How to go about it.
#[derive(Clone, Copy)]
pub(crate) struct Crowd {
    stages: &'static [usize],
}

impl Crowd {
    pub(crate) fn new(short: bool) -> Self {
        let stages = if short { &SHORT[..] } else { &STAGES };
        Self { stages }
    }

    /// About how long both labs take.
    pub(crate) fn expected(self) -> Duration {
        let pods = self.stages.last().copied().unwrap_or_default();
        Duration::from_millis(5_000 + 700 * pods as u64)
    }

    /// By each of the ways whose name contains that, if it puts something on a node.
    pub(crate) fn measure(
        self,
        way: &str,
        ztunnel: Option<&Ztunnel>,
        results: &mut Results,
    ) -> Result<()> {
        if MESH.contains(way) {
            self.mesh(results)?;
        }
        match ztunnel {
            Some(ztunnel) if PEER.contains(way) => self.ztunnel(ztunnel, results),
            _ => Ok(()),
        }
    }

    /// With the mesh.
    fn mesh(self, results: &mut Results) -> Result<()> {
        let maps_before = map_bytes().context("the size of eBPF maps")?;
        let mut lab = Lab::with_mesh(Plan::nodes(1).enrolled(NAMESPACE))?;
        let measured = self.grow(&mut lab, maps_before, results);
        measured.with_context(|| lab.log_tails())?;
        lab.finish()
    }

    fn grow(self, lab: &mut Lab, maps_before: u64, results: &mut Results) -> Result<()> {
        let mut pods = 0;
        for stage in self.stages.iter().copied() {
            eprintln!("a node with {stage} pods, {MESH}");
            while pods < stage {
                lab.add_pod(pod(pods))?;
                pods += 1;
            }
            weigh(lab, stage, maps_before, results)?;
            let last = lab.pod(&key(stage - 1));
            let agent = lab.agent(0);
            let remove = || agent.remove_pod(last).map(drop);
            enrol(results, MESH, stage, remove, || {
                agent.add_pod(last).map(drop)
            })?;
        }
        Ok(())
    }

    /// With a ztunnel. It is handed its pods, but nobody redirects their traffic to it: Istio's
    /// agent would have to do that by iptables as well, before it is enrolled.
    fn ztunnel(self, ztunnel: &Ztunnel, results: &mut Results) -> Result<()> {
        let most = self.stages.last().copied().unwrap_or_default();
        let plan = (0..most).fold(Plan::nodes(1).namespace(NAMESPACE), |plan, index| {
            plan.pod(pod(index))
        });
        let lab = Lab::build(plan)?;
        let all: Vec<&Pod> = (0..most).map(|index| lab.pod(&key(index))).collect();
        let running = ztunnel::Single::start(&lab, ztunnel, all[0])?;
        let mut pods = 1;
        for stage in self.stages.iter().copied() {
            eprintln!("a node with {stage} pods, {PEER}");
            while pods < stage {
                running.add(all[pods])?;
                pods += 1;
            }
            let kib = settled(|| system::private_kib(&[running.pid()?]))?;
            whole(results, PEER, stage, kib / 1024.0);
            let last = all[stage - 1];
            enrol(
                results,
                PEER,
                stage,
                || running.remove(last),
                || running.add(last),
            )?;
        }
        drop(running);
        lab.finish()
    }
}

fn pod(index: usize) -> PodSpec {
    PodSpec::new(NAMESPACE, &format!("idle-{index}"))
}

fn key(index: usize) -> String {
    format!("{NAMESPACE}/idle-{index}")
}

fn often(stage: usize) -> usize {
    if stage == GOAL_AT {
        MANY_ENROLMENTS
    } else {
        ENROLMENTS
    }
}

/// Supervisor, workers and maps.
fn weigh(lab: &Lab, pods: usize, maps_before: u64, results: &mut Results) -> Result<()> {
    let status = lab.agent(0).status()?;
    let workers = status["pods"].as_array().into_iter().flatten();
    let workers = workers.filter_map(|pod| i32::try_from(pod["worker_pid"].as_i64()?).ok());
    let workers: Vec<i32> = workers.collect();
    anyhow::ensure!(workers.len() == pods, "not {pods} workers: {status}");
    let supervisor = lab.agent(0).daemon.pid().context("no supervisor")?;
    let supervisor = i32::try_from(supervisor)?;
    let supervisor = settled(|| system::private_mib(supervisor))?;
    let all = settled(|| system::private_kib(&workers))? / 1024.0;
    let maps = map_bytes()?.saturating_sub(maps_before) as f64 / 1_048_576.0;
    if ROWS.contains(&pods) {
        let which = idle_pods(pods);
        results.add(&format!("MiB, supervisor, {which}"), MESH, supervisor);
        results.add(&format!("MiB, a worker, {which}"), MESH, all / pods as f64);
        results.add(&format!("MiB, eBPF maps, {which}"), MESH, maps);
    }
    whole(results, MESH, pods, supervisor + all + maps);
    Ok(())
}

fn whole(results: &mut Results, way: &str, pods: usize, mib: f64) {
    if ROWS.contains(&pods) {
        results.add(&format!("MiB in all, {}", idle_pods(pods)), way, mib);
    }
    results.point("MiB a node by idle pods", way, pods as f64, mib);
}

/// Takes a pod out and puts it in again, several times; how long the latter takes counts.
fn enrol(
    results: &mut Results,
    way: &str,
    pods: usize,
    remove: impl Fn() -> Result<()>,
    add: impl Fn() -> Result<()>,
) -> Result<()> {
    let mut times = Vec::new();
    for _ in 0..often(pods) {
        remove()?;
        let begun = Instant::now();
        add()?;
        times.push(begun.elapsed().as_secs_f64() * 1e3);
    }
    times.sort_by(f64::total_cmp);
    let of_100 = |share: usize| times[(times.len() * share).div_ceil(100) - 1];
    results.point("ms to enrol one more by pods", way, pods as f64, of_100(50));
    if pods == GOAL_AT {
        for (name, share) in [("p50", 50), ("p99", 99)] {
            let row = format!("{name} ms, enrol one more, {pods} pods");
            results.add(&row, way, of_100(share));
        }
    }
    Ok(())
}

fn idle_pods(pods: usize) -> String {
    match pods {
        1 => "1 idle pod".to_owned(),
        _ => format!("{pods} idle pods"),
    }
}

/// What is weighed once it no longer changes, such as what a start leaves for the allocator to
/// give back.
fn settled(weigh: impl Fn() -> Result<f64>) -> Result<f64> {
    let mut last = weigh()?;
    wait::until("memory that stays as it is", wait::PATIENCE, || {
        std::thread::sleep(Duration::from_millis(100));
        let now = weigh()?;
        let same = (now - last).abs() <= last * 0.001;
        last = now;
        Ok(same.then_some(now))
    })
}
