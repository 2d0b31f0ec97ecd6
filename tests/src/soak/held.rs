//! What the mesh holds on to: descriptors, threads, memory, entries of maps, links, cgroups.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::{Lab, Pod, cgroup, pins, wait};

/// How long what is being closed may take to be gone.
const PATIENCE: Duration = Duration::from_secs(60);
/// What a process may have more than before, whatever it has done meanwhile: what the allocator
/// keeps of a peak.
const MEMORY_KIB: u64 = 4 << 10;

/// Tunnels of a worker for each pod, both directions together: a certificate may have been
/// renewed.
const MOST_TUNNELS: u64 = 4;

/// Threads that a process may have more: its runtime keeps some for blocking calls, for seconds.
const THREADS: u64 = 2;

/// What is held at one time.
#[derive(Debug, Default)]
pub(super) struct Held {
    counts: BTreeMap<String, u64>,
    threads: BTreeMap<String, u64>,
    memory_kib: BTreeMap<String, u64>,
}

impl Held {
    pub(super) fn measure(lab: &Lab) -> Result<Self> {
        let mut held = Self::default();
        held.process("control", lab.control().daemon.pid())?;
        for node in 0..2 {
            let agent = lab.agent(node);
            held.process(&format!("supervisor {node}"), agent.daemon.pid())?;
            for (map, entries) in pins::maps(agent)? {
                held.count(format!("node {node}: entries of {map}"), entries);
            }
            held.count(format!("node {node}: links"), pins::links(agent)?.len());
            let folders = cgroup::mount_points()?;
            let below =
                |mount: &PathBuf| folders_in(&mount.join(format!("nodemesh-{}", agent.instance)));
            held.count(
                format!("node {node}: cgroups"),
                folders.iter().map(below).sum(),
            );
        }
        for pod in lab.pods() {
            let worker = lab.agent(pod.node()).worker_pid(pod)?;
            let what = format!("worker of {}", pod.key());
            held.process(&what, u32::try_from(worker).ok())?;
            held.set_tunnels_apart(lab, pod, &what)?;
        }
        Ok(held)
    }

    /// Idle tunnels stay open for a while, to those to whom they were needed last.
    fn set_tunnels_apart(&mut self, lab: &Lab, pod: &Pod, worker: &str) -> Result<()> {
        let metrics = lab.agent(pod.node()).metrics(lab.node(pod.node()))?;
        let (name, label) = ("nodemesh_tunnels_open{", format!("pod=\"{}\"", pod.key()));
        let series = metrics
            .lines()
            .filter(|line| line.starts_with(name) && line.contains(&label));
        let open = series.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok());
        let tunnels: u64 = open.sum();
        let most = MOST_TUNNELS * u64::try_from(lab.pods().count())?;
        ensure!(
            tunnels <= most,
            "{worker} has {tunnels} tunnels, more than {most}"
        );
        if let Some(descriptors) = self.counts.get_mut(&format!("descriptors of {worker}")) {
            *descriptors = descriptors.saturating_sub(tunnels);
        }
        Ok(())
    }

    fn count(&mut self, what: String, count: usize) {
        self.counts
            .insert(what, u64::try_from(count).unwrap_or(u64::MAX));
    }

    fn process(&mut self, what: &str, pid: Option<u32>) -> Result<()> {
        let pid = pid.with_context(|| format!("{what} is not running"))?;
        let folder = PathBuf::from(format!("/proc/{pid}"));
        let status = fs::read_to_string(folder.join("status"))?;
        let value = |name: &str| -> Result<u64> {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            let number = line.and_then(|line| line.split_ascii_whitespace().next());
            let number = number.with_context(|| format!("no {name} in the status of {what}"))?;
            Ok(number.parse()?)
        };
        self.count(
            format!("descriptors of {what}"),
            fs::read_dir(folder.join("fd"))?.count(),
        );
        self.threads
            .insert(format!("threads of {what}"), value("Threads:")?);
        self.memory_kib.insert(what.to_owned(), value("RssAnon:")?);
        Ok(())
    }

    /// What is held now, which must come to be no more than this.
    ///
    /// # Errors
    /// Naming what is more.
    pub(super) fn compare(&self, lab: &Lab) -> Result<Self> {
        wait::until("no more to be held than before", PATIENCE, || {
            let now = Self::measure(lab)?;
            let more = self.less_than(&now);
            ensure!(
                more.is_empty(),
                "more is held than before: {}",
                more.join("; ")
            );
            Ok(Some(now))
        })
    }

    fn less_than(&self, now: &Self) -> Vec<String> {
        let mut all = Vec::new();
        for (before, now, allowed) in [
            (&self.counts, &now.counts, 0),
            (&self.threads, &now.threads, THREADS),
            (&self.memory_kib, &now.memory_kib, MEMORY_KIB),
        ] {
            all.extend(now.iter().filter_map(|(what, &now)| {
                let before = before.get(what).copied().unwrap_or(0);
                (now > before + allowed).then(|| format!("{what}: {before} before, {now} now"))
            }));
        }
        all
    }
}

impl fmt::Display for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sum = |what: &str| -> u64 {
            let these = self.counts.iter().filter(|(name, _)| name.contains(what));
            these.map(|(_, count)| count).sum()
        };
        let threads: u64 = self.threads.values().sum();
        let memory: u64 = self.memory_kib.values().sum();
        write!(
            f,
            "{} descriptors, {threads} threads, {} entries of maps, {} links, {} cgroups, {memory} KiB",
            sum("descriptors"),
            sum("entries"),
            sum("links"),
            sum("cgroups"),
        )
    }
}

/// How many folders there are below, this one included.
fn folders_in(folder: &Path) -> usize {
    let Ok(entries) = fs::read_dir(folder) else {
        return 0;
    };
    let folders = entries.flatten().filter(|entry| entry.path().is_dir());
    1 + folders
        .map(|entry| folders_in(&entry.path()))
        .sum::<usize>()
}
