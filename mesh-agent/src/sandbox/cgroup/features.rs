//! What the mesh's cgroups need of the machine.

use std::io;
use std::path::Path;

use super::super::features::feature;
use super::mounts::{Controller, Mounts};
use super::{make, remove};
use crate::features::{Feature, Need};

pub(in super::super) fn features() -> Vec<Feature> {
    let mounts = Mounts::find();
    let mut features = vec![feature(
        "cgroup2",
        Need::Required,
        "programs are attached to its root, and the mesh's subtree in it is what they trust",
        "4.10",
        "CONFIG_CGROUPS, CONFIG_CGROUP_BPF",
        mounts.as_ref().err().map(ToString::to_string),
    )];
    let Ok(mounts) = mounts else {
        return features;
    };
    features.push(feature(
        "cgroup.kill",
        Need::Required,
        "ends everything in a pod's cgroup at once",
        "5.14",
        "CONFIG_CGROUPS",
        kill(&mounts.unified).err().map(|e| e.to_string()),
    ));
    for controller in Controller::ALL {
        features.push(budget(&mounts, controller));
    }
    features
}

fn budget(mounts: &Mounts, controller: Controller) -> Feature {
    let (name, purpose, config) = match controller {
        Controller::Cpu => (
            "cpu controller",
            "without it workers have no share of the CPU of their own",
            "CONFIG_FAIR_GROUP_SCHED",
        ),
        Controller::Memory => (
            "memory controller",
            "without it nothing limits a worker's memory but its own budget of buffered bytes",
            "CONFIG_MEMCG",
        ),
        Controller::Pids => (
            "pids controller",
            "without it the system call filter alone keeps a worker to one process",
            "CONFIG_CGROUP_PIDS",
        ),
    };
    let lack = match mounts.unified_has(controller) {
        Ok(true) => None,
        Ok(false) if mounts.v1(controller).is_some() => None,
        Ok(false) => Some("neither in cgroup2 nor mounted as a version 1 hierarchy".to_owned()),
        Err(e) => Some(e.to_string()),
    };
    feature(name, Need::Optional, purpose, "4.15", config, lack)
}

/// The root has no such file, so this makes a cgroup for the question.
fn kill(root: &Path) -> io::Result<()> {
    let name = format!("nodemesh-check-{}", std::process::id());
    let folder = root.join(name);
    make(&folder).map_err(io::Error::other)?;
    let there = folder.join("cgroup.kill").try_exists();
    remove(&folder).map_err(io::Error::other)?;
    if there? {
        return Ok(());
    }
    Err(io::Error::other("cgroups have no such file"))
}
