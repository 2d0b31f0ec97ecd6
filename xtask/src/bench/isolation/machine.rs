//! What the numbers depend on: the machine, its kernel's scheduler, and what was compared.

use std::path::Path;
use std::process::Command;

use anyhow::Result;
use mesh_lab::aggressor::stage::VICTIM;
use mesh_lab::place;
use serde_json::{Value, json};

use super::super::machine;
use super::columns::Stage;
use super::schedule::Schedule;
use crate::exec;

/// Build-time choices of the kernel by which one program has to wait for another: the tick, at
/// whose pace slices end, and who may be interrupted.
const CHOICES: [&str; 7] = [
    "CONFIG_HZ=",
    "CONFIG_PREEMPT=",
    "CONFIG_PREEMPT_LAZY=",
    "CONFIG_PREEMPT_NONE=",
    "CONFIG_PREEMPT_RT=",
    "CONFIG_PREEMPT_VOLUNTARY=",
    "CONFIG_SCHED_HRTICK=",
];

pub(super) fn about(stage: &Stage, schedule: &Schedule, reps: usize) -> Result<Value> {
    let [loads, sweep] = &schedule.loads;
    let server = stage.lab.pod(&format!("{VICTIM}/server"));
    let worker = stage.lab.agent(server.node()).worker_pid(server)?;
    let release = machine::setting("/proc/sys/kernel/osrelease");
    let beside = json!({
        "cpu_controller": controller("cpu"),
        "memory_controller": controller("memory"),
        "scheduler": {
            "slice_us": place::slice(0)?.as_micros(),
            "worker_slice_us": place::slice(worker)?.as_micros(),
            "autogroup": machine::setting("/proc/sys/kernel/sched_autogroup_enabled") == "1",
            "built_with": built_with(&release),
        },
        "loads": loads,
        "sweep": sweep,
        "reps": reps,
        "seconds": schedule.times.measured.as_secs_f64(),
        "recovery_seconds": schedule.times.after.as_secs_f64(),
        "haproxy": stage.shared.configurations.each_ref().map(|text| {
            text.replace(&stage.lab.folder().display().to_string(), "/lab")
        }),
        "ztunnel": stage.ztunnels.as_ref().map(|z| &z.version),
        "most_requests_per_second": {},
    });
    let mut all = machine::about();
    if let (Value::Object(all), Value::Object(beside)) = (&mut all, beside) {
        all.extend(beside);
    }
    Ok(all)
}

/// Of which kind of cgroup a controller is.
fn controller(name: &str) -> &'static str {
    let ours = machine::setting("/proc/self/cgroup");
    let v1 = ours.lines().any(|line| {
        let names = line.split(':').nth(1).unwrap_or_default();
        names.split(',').any(|n| n == name)
    });
    if v1 { "cgroup v1" } else { "cgroup v2" }
}

/// Empty where the kernel's configuration is not at hand.
fn built_with(release: &str) -> Vec<String> {
    let packed = Path::new("/proc/config.gz");
    let all = if packed.exists() {
        exec::read(Command::new("zcat").arg(packed)).unwrap_or_default()
    } else {
        machine::setting(&format!("/boot/config-{release}"))
    };
    let chosen = all
        .lines()
        .filter(|line| CHOICES.iter().any(|choice| line.starts_with(choice)));
    chosen.map(str::to_owned).collect()
}
