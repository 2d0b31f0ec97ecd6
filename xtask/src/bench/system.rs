//! What the machine and its processes used.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use mesh_lab::{App, Netns, PodCommand};

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

/// Runs a client to its end. Returns what it said, and the CPU seconds of the whole system in
/// that time less those of the client and of these servers.
pub(crate) fn run(
    client: PodCommand<'_>,
    patience: Duration,
    servers: &[&App],
) -> Result<(String, f64)> {
    let of_servers = || -> Result<Duration> { servers.iter().map(|app| app.cpu()).sum() };
    let (busy, before) = (busy_s()?, of_servers()?);
    let mut client = client.spawn()?;
    let status = client.wait(patience)?;
    let busy = busy_s()? - busy;
    let apps = of_servers()? - before + client.cpu()?;
    ensure!(
        status.success(),
        "{status}: {}{}",
        client.stdout(),
        client.stderr()
    );
    Ok((client.stdout(), busy - apps.as_secs_f64()))
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

/// CPU time that a process has used, in seconds.
pub(crate) fn cpu_s(pid: i32) -> Result<f64> {
    let path = format!("/proc/{pid}/stat");
    let text = fs::read_to_string(&path).with_context(|| path.clone())?;
    // The program's name, in parentheses, may have spaces; user and system time are the 12th and
    // 13th field after it.
    let fields = text.rsplit_once(')').map_or("", |(_, fields)| fields);
    let ticks = fields.split_ascii_whitespace().skip(11).take(2);
    let ticks: Vec<f64> = ticks.filter_map(|field| field.parse().ok()).collect();
    ensure!(ticks.len() == 2, "{path}: {text:?}");
    Ok(ticks.iter().sum::<f64>() / TICKS_PER_S)
}

/// Memory as [`private_mib`] counts it of several processes, in KiB.
pub(crate) fn private_kib(pids: &[i32]) -> Result<f64> {
    let sizes = pids.iter().map(|pid| private_mib(*pid));
    Ok(sizes.sum::<Result<f64>>()? * 1024.0)
}

/// What the open TCP sockets of a namespace take of the kernel while nothing waits in them, in
/// KiB: their own memory, and what stands for each as a file that is waited for. By the sizes
/// that the kernel tells: what its allocators hold at a moment is too noisy.
pub(crate) fn sockets_kib(netns: &Netns) -> Result<f64> {
    const FILE: [&str; 5] = [
        "sock_inode_cache",
        "filp",
        "dentry",
        "eventpoll_epi",
        "eventpoll_pwq",
    ];
    let slabs = fs::read_to_string("/proc/slabinfo").context("/proc/slabinfo")?;
    // name, objects in use, objects there are, bytes of each.
    let size = |name: &str| {
        let mut lines = slabs.lines();
        let fields = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        let bytes = fields.and_then(|f| f.split_ascii_whitespace().nth(2)?.parse::<f64>().ok());
        // Absent where it shares the slab of another.
        bytes.unwrap_or_default()
    };
    let file: f64 = FILE.into_iter().map(size).sum();
    let mut bytes = 0.0;
    for (table, line, slab) in [("sockstat", "TCP:", "TCP"), ("sockstat6", "TCP6:", "TCPv6")] {
        let path = format!("/proc/thread-self/net/{table}");
        let text = netns.run(|| fs::read_to_string(&path)).context(path)?;
        let inuse = text
            .lines()
            .find_map(|l| l.strip_prefix(line)?.strip_prefix(" inuse "));
        let inuse = inuse.and_then(|rest| rest.split(' ').next()?.parse::<f64>().ok());
        let inuse = inuse.with_context(|| format!("no {line} in: {text}"))?;
        ensure!(size(slab) > 0.0, "/proc/slabinfo has no {slab}");
        bytes += inuse * (size(slab) + file);
    }
    Ok(bytes / 1024.0)
}

/// How often a full accept queue turned a connection away in a namespace, since it exists.
pub(crate) fn listen_overflows(netns: &Netns) -> Result<f64> {
    let text = netns
        .run(|| fs::read_to_string("/proc/thread-self/net/netstat"))
        .context("/proc/net/netstat")?;
    let mut lines = text.lines().filter(|line| line.starts_with("TcpExt:"));
    let mut fields = || lines.next().map(str::split_ascii_whitespace);
    let (Some(mut names), Some(mut values)) = (fields(), fields()) else {
        bail!("/proc/net/netstat has no TcpExt");
    };
    let index = names.position(|name| name == "ListenOverflows");
    let value = index.and_then(|index| values.nth(index));
    let value = value.context("/proc/net/netstat has no ListenOverflows")?;
    Ok(value.parse()?)
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
