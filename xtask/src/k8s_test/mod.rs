//! `cargo xtask k8s-test`: the whole mesh in a real cluster.

mod case;
mod cases;
mod clean_up;
mod cluster;
mod junit;
mod runner;
mod session;
#[cfg(test)]
mod tests;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;

use crate::release::{self, ReleaseArgs};
use crate::{exec, setup};
use case::Case;
use cluster::{Cluster, Program, Real};
use junit::{Done, Outcome};
use runner::{not_run, run_cases};
use session::{AGENTS, CONTROL, Session, Settings};

/// Why cases are not run by `cargo xtask test`.
pub(crate) const NO_CLUSTER: &str = "no cluster is given: cargo xtask k8s-test --kubeconfig FILE";
/// Images that the chart names.
const IMAGES: [&str; 2] = ["mesh-control", "mesh-agent"];
/// Between two looks at the cluster.
const PAUSE: Duration = Duration::from_secs(2);
/// How long load runs before and after what is done under it.
const LOAD: Duration = Duration::from_secs(15);

/// What to run
#[derive(Args)]
#[command(after_help = "\
It installs the chart into the cluster, makes namespaces nodemesh-test-… with Deployments, StatefulSets
and Jobs, does to them what operators do, and takes everything away again. So the cluster must be one
that may be broken, without a mesh, and is named here and nowhere else: KUBECONFIG of the environment
is not looked at. It takes kubectl, and cluster-admin.

Examples:

  cargo xtask k8s-test                       what would be run, each case named as not run
  cargo xtask k8s-test --kubeconfig k.yaml --load 'kind load image-archive \"$ARCHIVE\" --name mesh'
  cargo xtask k8s-test --kubeconfig k.yaml --image-repository registry.example/nodemesh
  cargo xtask k8s-test --kubeconfig k.yaml --load '…' --case rollout --keep
  cargo xtask k8s-test --kubeconfig k.yaml --clean-up    after a run that was killed

Exit status: 0 where no case failed, also where none was run; what was not run is told by name.")]
pub(crate) struct K8sTestArgs {
    /// The cluster, by the current context of this file
    #[arg(long, value_name = "FILE", env = "K8S_TEST_KUBECONFIG")]
    kubeconfig: Option<PathBuf>,
    /// Command that brings an image to all nodes, run once for each: $ARCHIVE is an OCI archive,
    /// $IMAGE the name that pods have it by
    #[arg(long, value_name = "COMMAND")]
    load: Option<String>,
    /// Where nodes pull the images from, in place of --load
    #[arg(long, value_name = "REPOSITORY", conflicts_with = "load")]
    image_repository: Option<String>,
    /// The apps' image: agnhost, of Kubernetes' own tests
    #[arg(
        long,
        value_name = "IMAGE",
        default_value = "registry.k8s.io/e2e-test-images/agnhost:2.53"
    )]
    app_image: String,
    /// Further value of the chart, as helm takes it, repeatable
    #[arg(long = "set", value_name = "NAME=VALUE")]
    values: Vec<String>,
    /// Only cases whose group or name contains this, repeatable, and those that they stand on
    #[arg(long, value_name = "PART")]
    case: Vec<String>,
    /// Command that takes the node $NODE away, such as a power switch
    #[arg(long, value_name = "COMMAND", requires = "restore_node")]
    lose_node: Option<String>,
    /// Command that brings it back
    #[arg(long, value_name = "COMMAND", requires = "lose_node")]
    restore_node: Option<String>,
    /// How long something may take to come about, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    patience: u64,
    /// Where the report is written, in JUnit's XML [default: target/k8s-test/junit.xml]
    #[arg(long, value_name = "FILE")]
    junit: Option<PathBuf>,
    /// Take the static binaries that are there
    #[arg(long)]
    no_build: bool,
    /// Leave everything in the cluster
    #[arg(long)]
    keep: bool,
    /// Only take away what a run has left
    #[arg(long, requires = "kubeconfig")]
    clean_up: bool,
    /// Name the cases, and do nothing
    #[arg(long)]
    list: bool,
}

impl K8sTestArgs {
    /// As `cargo xtask test` has it: a cluster is never taken from the environment there.
    pub(crate) fn without_cluster() -> Self {
        Self {
            kubeconfig: None,
            load: None,
            image_repository: None,
            app_image: String::new(),
            values: Vec::new(),
            case: Vec::new(),
            lose_node: None,
            restore_node: None,
            patience: 0,
            junit: None,
            no_build: true,
            keep: false,
            clean_up: false,
            list: false,
        }
    }

    fn wants(&self, case: &Case) -> bool {
        let stands_on = case.needed && case.group != "uninstall";
        let named = |part: &String| case.group.contains(part) || case.name.contains(part.as_str());
        self.case.is_empty() || stands_on || self.case.iter().any(named)
    }
}

/// All cases by name.
pub(crate) fn names() -> impl Iterator<Item = String> {
    case::all().map(|case| format!("k8s-test {}: {}", case.group, case.name))
}

/// Runs the cases, or tells that they were not.
pub(crate) fn run(workspace: &Path, args: &K8sTestArgs) -> Result<()> {
    if args.list {
        names().for_each(|name| println!("{name}"));
        return Ok(());
    }
    let folder = workspace.join("target/k8s-test");
    let report = args
        .junit
        .clone()
        .unwrap_or_else(|| folder.join("junit.xml"));
    let Some(kubeconfig) = &args.kubeconfig else {
        let done = not_run(NO_CLUSTER);
        write(&report, &done)?;
        println!("k8s-test: {} cases not run: {NO_CLUSTER}", done.len());
        return Ok(());
    };
    // Without it kubectl asks whoever listens on localhost:8080.
    ensure!(
        kubeconfig.is_file(),
        "--kubeconfig {}: there is no such file",
        kubeconfig.display()
    );
    let cluster = Real::new(kubeconfig, setup::helm(workspace)?);
    let settings = settings(workspace, args, &folder)?;
    let session = Session::new(&cluster, settings);
    if args.clean_up {
        return clean_up::run(&session);
    }
    refuse_a_mesh(&session)?;
    prepare(workspace, args, &folder, &cluster)?;
    println!(
        "run {}; should it be killed: the same with --clean-up",
        session.settings.run
    );
    let done = run_cases(&session, case::all(), |case| args.wants(case), args.keep);
    write(&report, &done)?;
    let failed = done
        .iter()
        .filter(|d| matches!(d.outcome, Outcome::Failed(_)))
        .count();
    let left_out = done
        .iter()
        .filter(|d| matches!(d.outcome, Outcome::NotRun(_)))
        .count();
    let passed = done.len() - failed - left_out;
    println!(
        "{passed} passed, {failed} failed, {left_out} not run: {}",
        report.display()
    );
    ensure!(failed == 0, "{failed} cases failed");
    Ok(())
}

fn settings(workspace: &Path, args: &K8sTestArgs, folder: &Path) -> Result<Settings> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?;
    let path = |path: PathBuf| path.display().to_string();
    Ok(Settings {
        run: format!("{:x}-{:x}", now.as_secs(), std::process::id()),
        chart: path(workspace.join("deploy/chart/nodemesh")),
        repository: args
            .image_repository
            .clone()
            .unwrap_or_else(|| "nodemesh".to_owned()),
        app_image: args.app_image.clone(),
        pki: path(folder.join("pki")),
        values: args.values.clone(),
        lose_node: args.lose_node.clone().zip(args.restore_node.clone()),
        patience: Duration::from_secs(args.patience),
        pause: PAUSE,
        load: LOAD,
    })
}

fn write(report: &Path, done: &[Done]) -> Result<()> {
    if let Some(folder) = report.parent() {
        fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
    }
    fs::write(report, junit::xml(done)).with_context(|| format!("writing {}", report.display()))
}

/// A mesh that is there already is somebody's.
fn refuse_a_mesh(session: &Session<'_>) -> Result<()> {
    let namespaces = [
        "get",
        "namespace",
        CONTROL,
        AGENTS,
        "--ignore-not-found",
        "-o",
        "name",
    ];
    let mut there = session.kubectl(&namespaces).context("asking the cluster")?;
    let kinds = session.kubectl(&["get", "crd", "-o", "name"])?;
    for kind in kinds.lines().filter(|kind| kind.ends_with(".nodemesh.dev")) {
        there.push_str(kind);
        there.push('\n');
    }
    if !there.trim().is_empty() {
        let there = there.split_whitespace().collect::<Vec<_>>().join(", ");
        bail!(
            "the cluster has a mesh already ({there}), and this would take it away: name a cluster without one, or, if an earlier run has left it, use --clean-up"
        );
    }
    Ok(())
}

/// Images on the nodes, and a demo's PKI.
fn prepare(
    workspace: &Path,
    args: &K8sTestArgs,
    folder: &Path,
    cluster: &dyn Cluster,
) -> Result<()> {
    let meshctl = match &args.image_repository {
        Some(_) => {
            let built = workspace.join("target/release/meshctl");
            if !(args.no_build && built.is_file()) {
                exec::run(exec::cargo(workspace).args(["build", "--release", "--bin", "meshctl"]))?;
            }
            built
        }
        None => {
            let load = args.load.as_ref().context(
                "how do images come to the nodes? Give --load COMMAND, or --image-repository",
            )?;
            let images = folder.join("images");
            release::images(
                workspace,
                &ReleaseArgs::images_in(images.clone(), args.no_build),
            )?;
            for image in IMAGES {
                let archive = images
                    .join(release::archive_name(image))
                    .display()
                    .to_string();
                let name = format!("docker.io/nodemesh/{image}:{}", env!("CARGO_PKG_VERSION"));
                let load =
                    format!("ARCHIVE='{archive}' IMAGE='{name}'; export ARCHIVE IMAGE; {load}");
                cluster
                    .run(Program::Shell, &[&load], "")
                    .with_context(|| format!("--load of {archive}"))?;
            }
            release::binaries_folder(workspace).join("meshctl")
        }
    };
    let pki = folder.join("pki");
    if pki.exists() {
        fs::remove_dir_all(&pki).with_context(|| format!("removing {}", pki.display()))?;
    }
    let mut init = Command::new(meshctl);
    init.args(["pki", "init", "--trust-domain", "cluster.local", "--dir"]);
    exec::read(init.arg(&pki)).map(drop)
}
