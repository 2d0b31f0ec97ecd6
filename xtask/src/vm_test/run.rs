//! Runs cases on machines, and takes down what became of each.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use mesh_vm_tests::wire::{Asked, Outcome, Said};
use nix::sched::{CloneFlags, unshare};

use super::disk;
use super::machine::{Event, Machine, Parts};
use crate::exec;

/// How long a guest may take from power-on to its first word.
const BOOT_PATIENCE: Duration = Duration::from_secs(90);
/// Longer than the case's own time-out in the guest, which says more.
const GRACE: Duration = Duration::from_secs(10);
/// How often a machine is started anew for the cases that one took down with it.
const BOOTS: usize = 4;
const TAPS: [&str; 2] = ["tap0", "tap1"];

/// Cases that share a boot.
pub(super) struct Job<'a> {
    /// Release of the kernel.
    pub(super) release: &'a str,
    pub(super) vmlinux: &'a Path,
    pub(super) initramfs: &'a Path,
    pub(super) nodes: u8,
    pub(super) kernel_args: &'a str,
    /// The machines have disks, which outlive their boots.
    pub(super) disks: bool,
    /// Names and time-outs.
    pub(super) cases: Vec<(String, Duration)>,
    /// For sockets and logs.
    pub(super) folder: PathBuf,
    /// A shell at the end.
    pub(super) keep: bool,
    /// Says nothing of the cases.
    pub(super) quiet: bool,
}

/// What became of a case.
#[derive(Clone, Debug)]
pub(super) struct Ended {
    pub(super) case: String,
    pub(super) outcome: Outcome,
    pub(super) took: Duration,
}

/// What a job gave.
#[derive(Default)]
pub(super) struct Done {
    pub(super) ended: Vec<Ended>,
    /// What guests put into the report.
    pub(super) reported: BTreeMap<String, String>,
}

/// Runs a job. The calling thread is given a network namespace of its own, without a name,
/// which ends with the thread and its machines.
///
/// # Errors
/// If machines can't be started at all.
pub(super) fn run(job: &Job<'_>) -> Result<Done> {
    if job.nodes > 1 {
        network()?;
    }
    let mut left: VecDeque<(String, Duration)> = job.cases.iter().cloned().collect();
    let mut done = Done::default();
    for _ in 0..BOOTS {
        if left.is_empty() {
            break;
        }
        boot(job, &mut left, &mut done)?;
    }
    for (case, _) in left {
        let why = format!("not run: the machine went down {BOOTS} times");
        done.ended.push(Ended {
            case,
            outcome: Outcome::Failed(why),
            took: Duration::ZERO,
        });
    }
    Ok(done)
}

/// A bridge and two taps in a new network namespace.
fn network() -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNET)?;
    let mut batch = "link add br0 type bridge\nlink set br0 up\n".to_owned();
    for tap in TAPS {
        batch.push_str(&format!(
            "tuntap add {tap} mode tap\nlink set {tap} master br0 up\n"
        ));
    }
    for line in batch.lines() {
        exec::read(Command::new("ip").args(line.split(' ')))?;
    }
    Ok(())
}

/// One boot: runs cases until all have ended or a machine has gone down.
fn boot(job: &Job<'_>, left: &mut VecDeque<(String, Duration)>, done: &mut Done) -> Result<()> {
    let (sender, events) = mpsc::channel();
    let mut machines = Vec::new();
    for node in 0..job.nodes {
        if job.disks {
            disk::make(&disk_of(job, node))?;
        }
        machines.push(power_on(job, node, 0, sender.clone())?);
    }
    let mut course = Course {
        job,
        machines,
        events: sender,
        ended: BTreeMap::new(),
        byes: BTreeSet::new(),
        running: None,
        told: BTreeMap::new(),
        boots: vec![0; usize::from(job.nodes)],
        rebooting: BTreeSet::new(),
    };
    let mut deadline = Instant::now() + BOOT_PATIENCE;
    loop {
        let event = events.recv_timeout(deadline.saturating_duration_since(Instant::now()));
        let trouble = match event {
            Ok(Event::Said(node, said)) => match course.hear(node, said, left, done)? {
                Next::Go => None,
                Next::Until(at) => {
                    deadline = at;
                    None
                }
                Next::Over => {
                    if job.keep {
                        course.machines[0].ended();
                    }
                    return Ok(());
                }
            },
            Ok(Event::Gone(node)) if course.byes.contains(&node) => None,
            Ok(Event::Gone(node)) if course.rebooting.remove(&node) => {
                course.power_on_again(node)?;
                None
            }
            Ok(Event::Gone(node)) => {
                let how = course.machines[usize::from(node)].ended();
                Some((node, format!("the machine of node {node} went down: {how}")))
            }
            Err(RecvTimeoutError::Timeout) => Some((0, "no end in time: killed".to_owned())),
            Err(RecvTimeoutError::Disconnected) => Some((0, "every machine is gone".to_owned())),
        };
        if let Some((node, what)) = trouble {
            return course.went_down(node, &what, left, done);
        }
    }
}

fn disk_of(job: &Job<'_>, node: u8) -> PathBuf {
    job.folder.join(format!("disk{node}"))
}

/// Starts a node's machine, whose logs go to a folder of that boot.
fn power_on(job: &Job<'_>, node: u8, boot: u32, events: Sender<Event>) -> Result<Machine> {
    let disk = job.disks.then(|| disk_of(job, node));
    let parts = Parts {
        vmlinux: job.vmlinux,
        initramfs: job.initramfs,
        kernel_args: job.kernel_args,
        tap: (job.nodes > 1).then(|| (TAPS[usize::from(node)], node)),
        disk: disk.as_deref(),
        interactive: job.keep && node == 0,
    };
    let name = match boot {
        0 => format!("node{node}"),
        boot => format!("node{node}-boot{boot}"),
    };
    Machine::start(&job.folder.join(name), node, &parts, events)
}

/// What a node said of a case.
type Word = (u8, Outcome, Duration);

enum Next {
    Go,
    Until(Instant),
    Over,
}

struct Course<'a> {
    job: &'a Job<'a>,
    machines: Vec<Machine>,
    /// What machines tell of themselves; one is there for those that boot again.
    events: Sender<Event>,
    /// By case: what each node said of it.
    ended: BTreeMap<String, Vec<Word>>,
    /// Nodes that have said all they had to.
    byes: BTreeSet<u8>,
    running: Option<String>,
    /// What nodes told each other: one that boots again is told anew.
    told: BTreeMap<String, String>,
    /// How often each has booted again.
    boots: Vec<u32>,
    /// Those whose end is no failure.
    rebooting: BTreeSet<u8>,
}

impl Course<'_> {
    /// The machine of a node that has gone to boot again.
    fn power_on_again(&mut self, node: u8) -> Result<()> {
        let at = usize::from(node);
        self.machines[at].ended();
        self.boots[at] += 1;
        let machine = power_on(self.job, node, self.boots[at], self.events.clone())?;
        self.machines[at] = machine;
        Ok(())
    }

    fn hear(
        &mut self,
        node: u8,
        said: Said,
        left: &mut VecDeque<(String, Duration)>,
        done: &mut Done,
    ) -> Result<Next> {
        let prefix = format!("[{} node {node}]", self.job.release);
        match said {
            Said::Hello { kernel } => {
                if kernel != self.job.release {
                    bail!("kernel {kernel} runs, not {}", self.job.release);
                }
                let cases = left.iter().map(|(case, _)| case.clone()).collect();
                let (at, told) = (usize::from(node), self.told.clone());
                let boot = self.boots[at];
                let machine = &mut self.machines[at];
                machine.ask(&Asked::Run { node, boot, cases })?;
                for (key, value) in told {
                    machine.ask(&Asked::Told { key, value })?;
                }
            }
            Said::Reboots => {
                self.rebooting.insert(node);
                return Ok(Next::Until(Instant::now() + BOOT_PATIENCE));
            }
            Said::Began { case } => {
                let time = left.iter().find(|(name, _)| *name == case);
                let time = time.map_or(GRACE, |(_, time)| *time + GRACE);
                self.running = Some(case);
                return Ok(Next::Until(Instant::now() + time));
            }
            Said::Step { text } => eprintln!("{prefix}   {text}"),
            Said::Tell { key, value } => {
                if let Some(key) = key.strip_prefix("report/") {
                    done.reported.insert(key.to_owned(), value);
                    return Ok(Next::Go);
                }
                self.told.insert(key.clone(), value.clone());
                let told = Asked::Told { key, value };
                let nodes = (0u8..).zip(&mut self.machines);
                // One that is on its way down is told when it is up.
                for (_, machine) in nodes.filter(|(node, _)| !self.rebooting.contains(node)) {
                    machine.ask(&told)?;
                }
            }
            Said::Ended {
                case,
                outcome,
                took,
            } => {
                let said = self.ended.entry(case.clone()).or_default();
                said.push((node, outcome, took));
                if said.len() == usize::from(self.job.nodes) {
                    let said = self.ended.remove(&case).unwrap_or_default();
                    left.retain(|(name, _)| *name != case);
                    self.running = None;
                    let (outcome, took) = together(said);
                    self.note(&prefix, &case, &outcome, took);
                    done.ended.push(Ended {
                        case,
                        outcome,
                        took,
                    });
                } else if said.iter().any(|(_, o, _)| matches!(o, Outcome::Failed(_))) {
                    // The other one waits for what won't come.
                    return Ok(Next::Until(Instant::now() + GRACE));
                }
            }
            Said::Bye => {
                self.byes.insert(node);
                if self.byes.len() == usize::from(self.job.nodes) {
                    return Ok(Next::Over);
                }
            }
        }
        Ok(Next::Go)
    }

    /// The case that ran, or the boot, has failed.
    fn went_down(
        &mut self,
        node: u8,
        what: &str,
        left: &mut VecDeque<(String, Duration)>,
        done: &mut Done,
    ) -> Result<()> {
        for machine in &mut self.machines {
            machine.kill();
        }
        let console = self.machines[usize::from(node)].console();
        let why = format!("{what}\nits console said last:\n{console}");
        let Some(case) = self.running.take() else {
            bail!("kernel {}: before any case, {why}", self.job.release);
        };
        left.retain(|(name, _)| *name != case);
        let mut said = self.ended.remove(&case).unwrap_or_default();
        said.push((node, Outcome::Failed(why), Duration::ZERO));
        let (outcome, _) = together(said);
        self.note(self.job.release, &case, &outcome, Duration::ZERO);
        done.ended.push(Ended {
            case,
            outcome,
            took: Duration::ZERO,
        });
        Ok(())
    }

    fn note(&self, prefix: &str, case: &str, outcome: &Outcome, took: Duration) {
        if self.job.quiet {
            return;
        }
        let seconds = took.as_secs_f64();
        match outcome {
            Outcome::Passed => eprintln!("{prefix} pass {case} ({seconds:.1} s)"),
            Outcome::Skipped(why) => eprintln!("{prefix} skip {case}: {why}"),
            Outcome::Failed(why) => eprintln!("{prefix} FAIL {case} ({seconds:.1} s)\n{why}"),
        }
    }
}

/// What two nodes say of one case.
fn together(said: Vec<Word>) -> (Outcome, Duration) {
    let took = said
        .iter()
        .map(|(_, _, took)| *took)
        .max()
        .unwrap_or_default();
    let mut whole = Outcome::Passed;
    for (node, outcome, _) in said {
        match (&mut whole, outcome) {
            (Outcome::Failed(all), Outcome::Failed(why)) => {
                all.push_str(&format!("\nnode {node}: {why}"));
            }
            (whole, Outcome::Failed(why)) => {
                *whole = Outcome::Failed(format!("node {node}: {why}"));
            }
            (whole @ Outcome::Passed, skipped @ Outcome::Skipped(_)) => *whole = skipped,
            _ => {}
        }
    }
    (whole, took)
}
