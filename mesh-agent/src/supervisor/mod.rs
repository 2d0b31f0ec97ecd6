//! The privileged half: it learns of pods, verifies them, makes and heals their workers,
//! tells the kernel and the workers what they need, and speaks to the control component.
//!
//! It is on no connection's path and reads no byte that a pod or a peer sent. Everything
//! runs on one thread; what has to enter a pod's namespace does so on a thread of its own
//! that ends there.
//!
//! - `node` holds the pods that were added, or found running (`kubepods`), and decides by `reconcile`
//!   which are enrolled;
//! - `workers` is a pod's task: it prepares the machine and has one worker after the other, each
//!   served by a `session`, and for a while two side by side (`rolling`) where `roll` replaces those
//!   of another program;
//! - `watch` and `look` keep an eye on the pod's namespace, `tamper` tells of what they find, and
//!   `cut_off` is for pods that can't be served (`unserved`);
//! - `kubelet` finds the node's kubelet, whose connections pass to the ports that pods declare for
//!   `probes`;
//! - `foreign` has processes noticed that use a pod's network and are none of its own;
//! - `install` keeps the CNI plugin where the container runtime finds it;
//! - `confine` gives up what is of no use once it has started;
//! - `control` keeps the node's certificate (`join`) and the ways to the control component and its
//!   `replicas`;
//!   `follow` follows discovery (`xds`) into the one view of it (`discovery`); `csr` has the
//!   workers' certificates signed; `node_report` tells control how the pods are, and whether this agent
//!   can enrol more (`readiness`);
//! - of that view a worker is told its pod's policy (`rules`) and what it asks for (`lookups`,
//!   `answers`), of which control is asked (`asked`), in batches that take effect at once (`packets`); the kernel programs are told what
//!   they can decide (`kernel_rules`).

mod adopt;
mod allotment;
mod answers;
mod asked;
mod backoff;
mod boot;
mod budget;
mod clock;
mod confine;
mod control;
mod counters;
mod csr;
mod cut_off;
mod devices;
mod discovery;
mod events;
mod follow;
mod foreign;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod grandfather;
mod heap;
mod install;
mod integrity;
mod join;
mod kernel_rules;
mod kubelet;
mod kubepods;
mod legacy;
mod live;
mod lock;
mod look;
mod lookups;
mod metrics;
mod netlink;
mod netns;
mod node;
mod node_report;
mod packets;
mod placement;
mod pods;
mod ports;
mod probes;
mod processes;
mod readiness;
mod reconcile;
mod replicas;
mod reporter;
mod roll;
mod rolling;
mod rules;
mod session;
mod settings;
mod shared;
mod signing;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod simulated;
pub(crate) mod sock_diag;
mod standing;
mod sysctls;
mod tamper;
mod trust;
mod unserved;
mod until;
mod watch;
mod workers;
mod xds;

pub mod admin;
pub mod config;
pub mod report;
pub mod unload;

use std::fs;
use std::sync::Arc;

use anyhow::Context as _;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use crate::capture::{Capture, TakeOver};
use crate::features::{Features, Need};
use crate::sandbox::WorkerImage;
use crate::sandbox::cgroup::{MeshCgroup, enter_host_namespace, probe_move};
use config::{Config, LogFormat};
use install::Installer;
use integrity::Integrity;
use kubelet::Kubelet;
use lock::RunLock;
use node::Node;
use pods::Records;
use shared::Shared;

/// Runs the supervisor until SIGTERM or SIGINT. Workers and capture stay.
///
/// # Errors
/// If something it can't do without is missing; the message says what, and what to do.
pub fn run(config: Config) -> anyhow::Result<()> {
    heap::give_large_blocks_back();
    log_to_stderr(config.log_format);
    raise_descriptor_limit()?;
    // Before there is a second thread: only this one, and those that it makes, enter it.
    enter_host_namespace()?;
    sysctls::make_writable().context("making /proc/sys writable for this container")?;
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("starting the runtime")?
        .block_on(supervise(Arc::new(config)))
}

/// A dozen descriptors for each pod: its namespace, its worker, its listeners.
fn raise_descriptor_limit() -> anyhow::Result<()> {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).context("reading RLIMIT_NOFILE")?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most).context("raising RLIMIT_NOFILE")
}

fn log_to_stderr(format: LogFormat) {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    match format {
        LogFormat::Text => builder.with_ansi(false).init(),
        LogFormat::Json => builder.json().flatten_event(true).init(),
    }
}

async fn supervise(config: Arc<Config>) -> anyhow::Result<()> {
    fs::create_dir_all(&config.run_dir)
        .with_context(|| format!("making the run folder {}", config.run_dir.display()))?;
    let _lock = RunLock::take(&config.run_dir)?;
    join::make_state_dir(&config.state_dir)?;
    let handle = metrics::install().map_err(anyhow::Error::msg)?;
    confine::require_capabilities()?;
    require_features()?;
    let mesh_cgroup = MeshCgroup::open(&config.instance)?;
    probe_move(&mesh_cgroup)?;
    let options = unload::capture_options(&config.instance, &config.bpffs, &mesh_cgroup)?;
    let capture = Capture::open(&options).context("loading the capture")?;
    if let Some(take_over) = capture.taken_over() {
        tell_take_over(take_over);
    }
    let events = capture.events().context("reading the capture's events")?;
    let foreign_processes = capture
        .foreign()
        .context("reading what the capture notices")?;
    let image = WorkerImage::seal()?;
    let records = Records::open(&config.run_dir)
        .with_context(|| format!("opening the pods' records in {}", config.run_dir.display()))?;
    // A port below 1024 takes a capability that is given up.
    let metrics_listener = match config.metrics_listen {
        Some(address) => Some(
            metrics::bind(address)
                .await
                .with_context(|| format!("--metrics-listen {address}"))?,
        ),
        None => None,
    };
    let installer = config.cni.as_ref().map(|cni| {
        let installer = Installer::new(cni.folders.clone(), &cni.plugin);
        installer.context("installing the CNI plugin")
    });
    let installer = installer.transpose()?;
    confine::confine(&config)?;
    let shared = Arc::new(Shared::new(
        config.clone(),
        capture,
        mesh_cgroup,
        image,
        records,
    ));
    // Before anything else: of a capture that was taken over nobody is kubelet.
    let kubelet = Kubelet::new(shared.clone());
    let mut kubelet = kubelet.context("asking for the cookie of the node's network namespace")?;
    kubelet.look();
    tokio::spawn(kubelet.keep_looking());
    let mut node = Node::new(shared.clone());
    node.restore().context("reading the pods' records")?;
    let mut integrity = Integrity::new(shared.clone());
    integrity.look();
    tokio::spawn(integrity.keep_looking());
    if let Some(listener) = metrics_listener {
        tokio::spawn(metrics::serve(listener, shared.clone(), handle));
    }
    let (ask, asks) = mpsc::channel(64);
    let socket = admin::listen(&config.run_dir)
        .with_context(|| format!("making the admin socket in {}", config.run_dir.display()))?;
    tokio::spawn(admin::serve(socket, ask));
    if let Some(installer) = installer {
        tokio::spawn(installer.keep(shared.clone()));
    }
    tokio::spawn(clock::follow());
    tokio::spawn(events::follow(shared.clone(), events));
    tokio::spawn(foreign::follow(shared.clone(), foreign_processes));
    let control = shared.control.clone();
    tokio::spawn(control.clone().keep_credential(config.clone()));
    tokio::spawn(follow::follow(
        control,
        config.clone(),
        shared.discovery.clone(),
    ));
    tokio::spawn(trust::follow(shared.control.clone(), shared.trust.clone()));
    tokio::spawn(node_report::keep_reporting(shared.clone()));
    tokio::spawn(kernel_rules::keep(shared.clone()));
    tokio::spawn(roll::keep(shared.clone()));
    let stopped = stop_signal()?;
    tracing::info!(
        node = config.node,
        instance = config.instance,
        "supervisor is up"
    );
    node.run(asks, stopped).await;
    tracing::info!("supervisor ends; workers and capture stay");
    Ok(())
}

fn tell_take_over(take_over: &TakeOver) {
    let TakeOver {
        from,
        shared,
        copied,
        emptied,
        links,
        swapped_in,
        took,
    } = take_over;
    for (outcome, maps) in [("shared", shared), ("copied", copied), ("emptied", emptied)] {
        let count = u32::try_from(maps.len()).unwrap_or(u32::MAX);
        ::metrics::gauge!("nodemesh_capture_takeover_maps", "outcome" => outcome).set(count);
    }
    let (swapped_us, took_ms) = (swapped_in.as_micros(), took.as_millis());
    tracing::info!(
        from,
        to = mesh_common::ABI_VERSION,
        ?shared,
        ?copied,
        ?emptied,
        links,
        swapped_us,
        took_ms,
        "took over the capture of another ABI version"
    );
}

/// Says what is done without, and refuses a kernel without what can't be.
fn require_features() -> anyhow::Result<()> {
    let features = Features::probe();
    for feature in features.missing(Need::Optional) {
        tracing::warn!(
            since = feature.since,
            config = feature.config,
            here = feature.lack,
            "this kernel has no {}: {}",
            feature.name,
            feature.purpose,
        );
    }
    Ok(features.require()?)
}

fn stop_signal() -> anyhow::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate()).context("listening for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listening for SIGINT")?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}
