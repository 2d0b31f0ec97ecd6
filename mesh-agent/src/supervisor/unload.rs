//! Taking an instance, or one pod of it, off the machine.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, bail};

use super::config::{CniFolderArgs, default_run_dir, is_instance};
use super::install;
use super::lock::RunLock;
use super::netns::Netns;
use super::placement::remove_cgroup;
use super::pods::{PodRecord, Records};
use super::ports;
use super::shared::Shared;
use super::sysctls;
use crate::capture::{Capture, CaptureOptions};
use crate::sandbox::cgroup::MeshCgroup;

/// `mesh-agent unload`.
#[derive(clap::Args, Clone, Debug)]
pub struct UnloadArgs {
    /// Name of the installation, as given to `mesh-agent run`
    #[arg(long, default_value = "default")]
    pub instance: String,
    /// The supervisor's --run-dir [default: /run/nodemesh/INSTANCE]
    #[arg(long, value_name = "DIR")]
    pub run_dir: Option<PathBuf>,
    /// Where bpffs is mounted
    #[arg(long, value_name = "DIR", default_value = "/sys/fs/bpf")]
    pub bpffs: PathBuf,
    /// The CNI plugin is taken out of these, as given to `mesh-agent run`.
    #[command(flatten)]
    pub cni: CniFolderArgs,
}

/// Removes workers, capture, cgroups, reserved ports and the run folder of an instance.
/// What can't be removed is reported; the rest is removed all the same.
///
/// # Errors
/// If a supervisor runs, or something could not be removed.
pub fn unload(args: &UnloadArgs) -> anyhow::Result<()> {
    if !is_instance(&args.instance) {
        bail!("--instance {:?} names no instance", args.instance);
    }
    let run_dir = args
        .run_dir
        .clone()
        .unwrap_or_else(|| default_run_dir(&args.instance));
    let lock = run_dir
        .exists()
        .then(|| RunLock::take(&run_dir))
        .transpose();
    let lock = lock.context("unload needs the supervisor to have ended")?;
    let mut wrong = Vec::new();
    let cni = args.cni.clone().validate(&mut wrong);
    if let Some(wrong) = wrong.first() {
        bail!("{wrong}");
    }
    crate::sandbox::cgroup::enter_host_namespace()?;
    sysctls::make_writable().context("making /proc/sys writable for this container")?;
    let mesh = MeshCgroup::open(&args.instance)?;
    let options = capture_options(&args.instance, &args.bpffs, &mesh)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let mut left = Vec::new();
    // First of all: with the entry, and without an agent, no pod would start.
    for fault in cni.iter().flat_map(install::take_out) {
        left.push(format!("CNI plugin: {fault}"));
    }
    // Capture before workers: an app's connection must not be sent to a worker that is gone.
    note(&mut left, "capture", Capture::unload(&options));
    release_ports(&run_dir, &mut left);
    for pod in mesh.pods()? {
        let removed = mesh
            .existing(&pod)
            .map_err(|e| e.to_string())
            .and_then(|cgroup| runtime.block_on(remove_cgroup(cgroup)));
        note(&mut left, "worker's cgroup", removed);
    }
    note(&mut left, "mesh cgroup", mesh.remove());
    if lock.is_some() {
        note(&mut left, "run folder", remove_folder(&run_dir));
    }
    if !left.is_empty() {
        bail!("not everything could be removed:\n  {}", left.join("\n  "));
    }
    println!("instance {} is off this machine", args.instance);
    Ok(())
}

/// The capture of an instance.
///
/// # Errors
/// If the mesh cgroup has no parent, which can't be.
pub(super) fn capture_options(
    instance: &str,
    bpffs: &Path,
    mesh: &MeshCgroup,
) -> io::Result<CaptureOptions> {
    let mesh_cgroup = mesh.folder();
    let root = mesh_cgroup
        .parent()
        .ok_or(io::ErrorKind::NotFound)?
        .to_owned();
    Ok(CaptureOptions {
        instance: instance.to_owned(),
        bpffs: bpffs.to_owned(),
        cgroup_root: root,
        mesh_cgroup,
    })
}

fn note<T, E: std::fmt::Display>(left: &mut Vec<String>, what: &str, outcome: Result<T, E>) {
    if let Err(e) = outcome {
        left.push(format!("{what}: {e}"));
    }
}

fn release_ports(run_dir: &Path, left: &mut Vec<String>) {
    let Ok((records, _)) = Records::open(run_dir).and_then(|records| records.load()) else {
        return;
    };
    for record in records {
        note(left, "reserved ports", release_ports_of(&record));
    }
}

/// A namespace that is gone has taken its settings along.
fn release_ports_of(record: &PodRecord) -> Result<(), String> {
    let Some(placed) = &record.placed else {
        return Ok(());
    };
    match Netns::open(&record.netns) {
        Ok(netns) if netns.id == record.netns_id => {
            ports::release(&netns, &placed.ports_added).map_err(|e| e.to_string())
        }
        _ => Ok(()),
    }
}

fn remove_folder(folder: &Path) -> io::Result<()> {
    match fs::remove_dir_all(folder) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

/// Takes away what was done for a pod whose namespace can't be opened any more.
pub(super) async fn clear_away(shared: Arc<Shared>, mut record: PodRecord) -> PodRecord {
    let Some(placed) = record.placed.take() else {
        return record;
    };
    let cookie = record.netns_id.cookie;
    let withdrawn = shared
        .capture()
        .withdraw(cookie, record.slot, &placed.walls);
    if let Err(e) = withdrawn {
        tracing::error!(pod = %record.key, error = %e, "the pod's capture could not be removed");
    }
    match shared.mesh_cgroup.existing(&record.key.joined()) {
        Ok(cgroup) => {
            if let Err(why) = remove_cgroup(cgroup).await {
                tracing::error!(pod = %record.key, why, "the worker's cgroup stays");
            }
        }
        Err(e) => tracing::error!(pod = %record.key, error = %e, "the worker's cgroup stays"),
    }
    record
}
