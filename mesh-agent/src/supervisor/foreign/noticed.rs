//! Foreign processes as log lines. An exec probe that connects does so every few seconds, for ever:
//! the same program with the same port is told of anew only after a while. The counters are exact.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use mesh_common::{EVENT_AUDITED, ForeignEvent};
use tokio::time::Instant;

use crate::capture::{self, Events};
use crate::supervisor::events::{LineBudget, address, word};
use crate::supervisor::shared::Shared;

/// How long the same is not told of again.
const QUIET: Duration = Duration::from_secs(600);
/// Most different ones that are remembered. Beyond it, old ones are told of again.
const MOST: usize = 4_096;

/// What makes one process's deed the same as another's.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Deed {
    pod: String,
    command: [u8; 16],
    reason: u32,
    port: u16,
    protocol: u8,
    flags: u8,
}

/// What was told, and how many of the same were not.
#[derive(Debug, Default)]
struct Told {
    lines: HashMap<Deed, (Instant, u32)>,
    budgets: HashMap<String, LineBudget>,
}

impl Told {
    /// Whether to tell of it: with how many of the same that were not told of since the last time.
    fn take(&mut self, deed: Deed, now: Instant) -> Option<u32> {
        let known = self.lines.get_mut(&deed);
        let mut untold = 0;
        if let Some((at, since)) = known {
            if now < *at + QUIET {
                *since = since.saturating_add(1);
                return None;
            }
            untold = *since;
        }
        self.make_room(now);
        let budget = self.budgets.entry(deed.pod.clone());
        let budget = budget.or_insert_with(|| LineBudget::new(now));
        budget.allow(now).then(|| {
            self.lines.insert(deed, (now, 0));
            untold
        })
    }

    fn make_room(&mut self, now: Instant) {
        if self.lines.len() >= MOST {
            self.lines.retain(|_, (at, _)| now < *at + QUIET);
        }
        if self.lines.len() >= MOST {
            self.lines.clear();
        }
        if self.budgets.len() >= MOST {
            self.budgets.clear();
        }
    }
}

/// Logs what the kernel programs notice, for ever. They budget the events themselves.
pub(in crate::supervisor) async fn follow(shared: Arc<Shared>, mut events: Events<ForeignEvent>) {
    let mut told = Told::default();
    loop {
        match events.next().await {
            Ok(event) => notice(&shared, &event, &mut told),
            Err(e) => {
                tracing::error!(error = %e, "foreign processes in pods can't be told of any more; they are still counted");
                return;
            }
        }
    }
}

fn notice(shared: &Shared, event: &ForeignEvent, told: &mut Told) {
    let pod = shared.pod_in(event.slot);
    let pod = pod.map_or_else(|| format!("slot {}", event.slot), |key| key.to_string());
    let deed = Deed {
        pod: pod.clone(),
        command: event.command,
        reason: event.reason,
        port: event.destination_port,
        protocol: event.protocol,
        flags: event.flags,
    };
    let Some(untold) = told.take(deed, Instant::now()) else {
        return;
    };
    let reason = capture::from_number(event.reason).map(capture::reason);
    let (outcome, verb) = match event.flags & EVENT_AUDITED {
        0 => ("refused", "refused"),
        _ => ("audited", "noticed"),
    };
    tracing::warn!(
        target: "nodemesh::refusal",
        pod = %pod,
        by = %"kernel",
        destination = %address(event.destination, event.destination_port),
        protocol = event.protocol,
        pid = event.pid,
        command = %command(&event.command),
        user = event.uid,
        cgroup = %cgroup_of(shared.mesh_cgroup.root(), event),
        outcome = %outcome,
        reason = %reason.map_or("unknown", mesh_core::reason::Reason::code),
        remedy = reason.map(mesh_core::reason::Reason::remedy),
        untold,
        suppressed = event.suppressed,
        "{verb}: {}",
        reason.map_or("the kernel gives a reason that this supervisor doesn't know", mesh_core::reason::Reason::sentence),
    );
}

/// The process chose it, so it must not forge a line.
fn command(bytes: &[u8; 16]) -> String {
    let name = bytes.split(|byte| *byte == 0).next().unwrap_or_default();
    word(&String::from_utf8_lossy(name))
}

/// The cgroup's path if the process is still in it, else its number.
fn cgroup_of(root: &Path, event: &ForeignEvent) -> String {
    let cgroups = fs::read_to_string(format!("/proc/{}/cgroup", event.pid)).unwrap_or_default();
    let path = cgroups.lines().find_map(|line| line.strip_prefix("0::"));
    let is_its = |path: &&str| {
        let folder = root.join(path.trim_start_matches('/'));
        fs::metadata(folder).is_ok_and(|found| found.ino() == event.cgroup_id)
    };
    path.filter(is_its)
        .map_or_else(|| format!("id-{}", event.cgroup_id), word)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn deed(pod: &str, port: u16) -> Deed {
        Deed {
            pod: pod.to_owned(),
            command: *b"curl\0\0\0\0\0\0\0\0\0\0\0\0",
            reason: 21,
            port,
            protocol: 6,
            flags: EVENT_AUDITED,
        }
    }

    #[test]
    fn a_probe_is_told_of_once_in_a_while_with_how_often() {
        let (mut told, start) = (Told::default(), Instant::now());
        let probes = (0..120).map(|n| start + Duration::from_secs(10 * n));
        let lines: Vec<u32> = probes
            .filter_map(|now| told.take(deed("shop/cart", 80), now))
            .collect();
        assert_eq!(lines, [0, 59]);
        // Another program, pod or port is another matter.
        assert_eq!(told.take(deed("shop/cart", 81), start), Some(0));
        assert_eq!(told.take(deed("shop/web", 80), start), Some(0));
    }

    #[test]
    fn who_always_does_another_thing_fills_neither_log_nor_memory() {
        let (mut told, start) = (Told::default(), Instant::now());
        let lines = (0..u16::MAX).filter_map(|port| told.take(deed("shop/cart", port), start));
        assert_eq!(lines.count(), 50);
        assert!(told.lines.len() <= MOST);
        assert!(told.take(deed("shop/web", 1), start).is_some());
    }

    #[test]
    fn a_name_is_no_place_to_forge_a_line() {
        assert_eq!(command(b"curl\0nothing els"), "curl");
        assert_eq!(command(b"a b\nc=d\0\0\0\0\0\0\0\0\0"), "a?b?c=d");
    }
}
