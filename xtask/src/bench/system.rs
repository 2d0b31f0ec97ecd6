//! What the machine and its processes used.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use mesh_lab::App;

/// Ticks a second of `/proc/stat` and `/proc/<pid>/stat` (`USER_HZ`).
const TICKS_PER_S: f64 = 100.0;

/// CPU time of the whole system that was not idle, in seconds.
pub(crate) fn busy_s() -> Result<f64> {
    let text = fs::read_to_string("/proc/stat").context("/proc/stat")?;
    let line = text.lines().next().context("/proc/stat is empty")?;
    let ticks: Vec<f64> = line
        .split_ascii_whitespace()
        .skip(1)
        .filter_map(|field| field.parse().ok())
        .collect();
    // user nice system idle iowait irq softirq steal; guest time is in user.
    let busy = [0, 1, 2, 5, 6].iter().filter_map(|i| ticks.get(*i));
    Ok(busy.sum::<f64>() / TICKS_PER_S)
}

/// The process ids of apps.
pub(crate) fn pids(apps: &[App]) -> Result<Vec<i32>> {
    let pids = apps.iter().map(|app| i32::try_from(app.pid()));
    Ok(pids.collect::<Result<_, _>>()?)
}

/// Memory that a process has written and shares with nobody, in MiB: its anonymous pages.
/// `Private_Dirty` won't do: a worker's program is a memfd, whose pages count as dirty, and as
/// private where one worker runs on a node, though all workers of a node share them.
pub(crate) fn private_mib(pid: i32) -> Result<f64> {
    let path = format!("/proc/{pid}/smaps_rollup");
    let text = fs::read_to_string(Path::new(&path)).with_context(|| path.clone())?;
    let kib = text
        .lines()
        .filter(|line| line.starts_with("Anonymous:"))
        .filter_map(|line| line.split_ascii_whitespace().nth(1)?.parse::<f64>().ok());
    Ok(kib.sum::<f64>() / 1024.0)
}

/// Waits until less than a quarter of the machine is busy, or the time is over.
pub(crate) fn wait_quiet(most_s: u32) {
    let window = Duration::from_millis(500);
    let cpus = thread::available_parallelism().map_or(1.0, |n| n.get() as f64);
    let deadline = Instant::now() + Duration::from_secs(u64::from(most_s));
    while Instant::now() < deadline {
        let Ok(before) = busy_s() else { return };
        thread::sleep(window);
        let Ok(after) = busy_s() else { return };
        if (after - before) / window.as_secs_f64() / cpus < 0.25 {
            return;
        }
    }
}
