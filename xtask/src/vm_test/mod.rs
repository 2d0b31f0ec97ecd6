//! `cargo xtask vm-test`: cases on stock kernels, in virtual machines.

mod checked;
mod disk;
mod initramfs;
mod kernels;
mod machine;
mod payload;
mod run;
mod selfcheck;
mod table;

use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use mesh_lab::programs::{self, Program};
use mesh_vm_tests::suite::SUITES;
use mesh_vm_tests::{Case, cases};

use initramfs::Archive;
use kernels::{Fetched, KERNELS, Kernel};
use payload::Payload;
use run::{Done, Job};

/// What machines are made with, and what of this machine runs in them.
pub(crate) const PROGRAMS: &[Program] = &[
    Program {
        name: "qemu-system-x86_64",
        package: "qemu-system-x86",
    },
    Program {
        name: "depmod",
        package: "kmod",
    },
    Program {
        name: "busybox",
        package: "busybox-static",
    },
    Program {
        name: "lz4",
        package: "lz4",
    },
    Program {
        name: "zstd",
        package: "zstd",
    },
    Program {
        name: "xz",
        package: "xz-utils",
    },
    Program {
        name: "mke2fs",
        package: "e2fsprogs",
    },
    programs::CONTAINERD,
    programs::RUNC,
    programs::CNI_PLUGINS,
    programs::IP,
    programs::CURL,
    programs::NGINX,
    programs::NFT,
    programs::OPENSSL,
];
/// Emulated machines at once, whatever the number of processors.
const AT_ONCE: usize = 2;

/// What to run
#[derive(Args)]
pub(crate) struct VmTestArgs {
    /// Only this kernel series (6.1, 6.12, newest), repeatable
    ///
    /// Without it: 6.1 and 6.12, which Debian 12 carries. `newest` is of another suite of the
    /// archive, which not every machine reaches.
    #[arg(long)]
    kernel: Vec<String>,
    /// Only cases whose name contains this, repeatable
    #[arg(long)]
    case: Vec<String>,
    /// Name the cases and kernels, and do nothing
    #[arg(long)]
    list: bool,
    /// Leave the guest running at the end, with a shell in it (one kernel, one group of cases)
    #[arg(long)]
    keep: bool,
    /// Use the binaries as they are
    #[arg(long)]
    no_build: bool,
    /// Write the table of kernels and cases to this file, in Markdown
    #[arg(long, value_name = "FILE")]
    table: Option<PathBuf>,
}

impl VmTestArgs {
    /// Everything, with binaries that were just built.
    pub(crate) fn all() -> Self {
        Self {
            kernel: Vec::new(),
            case: Vec::new(),
            list: false,
            keep: false,
            no_build: true,
            table: None,
        }
    }

    fn kernels(&self) -> Result<Vec<&'static Kernel>> {
        if self.kernel.is_empty() {
            return Ok(KERNELS.iter().filter(|k| k.is_required()).collect());
        }
        let one = |series: &String| {
            KERNELS
                .iter()
                .find(|k| k.series == series)
                .with_context(|| {
                    let known: Vec<&str> = KERNELS.iter().map(|k| k.series).collect();
                    format!("--kernel {series}: known are {}", known.join(", "))
                })
        };
        self.kernel.iter().map(one).collect()
    }

    fn wants(&self, case: &str) -> bool {
        self.case.is_empty() || self.case.iter().any(|part| case.contains(part.as_str()))
    }
}

/// Cases that share a boot.
struct Group {
    nodes: u8,
    kernel_args: &'static str,
    /// With disks, and the programs of a container runtime.
    runtime: bool,
    cases: Vec<(String, Duration)>,
}

impl Group {
    /// What of it is for a kernel, of which one is the `last`.
    fn on(&self, kernel: &Kernel, last: bool) -> Self {
        let on_one = |name: &str| cases::find(name).is_some_and(Case::on_one_kernel);
        let is_for = |name: &str| kernel.is_for(name) && (last || !on_one(name));
        let cases = self.cases.iter().filter(|(name, _)| is_for(name));
        Self {
            nodes: self.nodes,
            kernel_args: self.kernel_args,
            runtime: self.runtime,
            cases: cases.cloned().collect(),
        }
    }
}

/// Runs it, prints the table, fails if a case did.
pub(crate) fn run(workspace: &Path, args: &VmTestArgs) -> Result<()> {
    let started = Instant::now();
    let kernels = args.kernels()?;
    if args.list {
        return list(&kernels);
    }
    ensure!(
        nix::unistd::geteuid().is_root(),
        "machines are joined by a bridge in a network namespace: run this as root"
    );
    programs::install(PROGRAMS)?;
    let payload = Payload::build(workspace, args.no_build)?;
    let groups = groups(&payload, args)?;
    ensure!(
        !groups.is_empty(),
        "no case is called so: `cargo xtask vm-test --list`"
    );
    ensure!(
        !args.keep || (kernels.len() == 1 && groups.len() == 1),
        "--keep is for one kernel and one group of cases: name them with --kernel and --case"
    );
    let folder = workspace.join("target/vm");
    let mut booted = Vec::new();
    let last = kernels.len() - 1;
    for (n, kernel) in kernels.into_iter().enumerate() {
        let fetched = kernels::fetch(&folder.join("kernels"), kernel)
            .with_context(|| format!("fetching kernel {}", kernel.series))?;
        let on_it: Vec<Group> = groups
            .iter()
            .map(|group| group.on(kernel, n == last))
            .collect();
        let write = |name: String, runtime: bool| -> Result<PathBuf> {
            let initramfs = folder.join(name);
            let mut archive = Archive::new();
            payload.add_to(&mut archive)?;
            if runtime {
                payload::add_runtime(&mut archive)?;
            }
            archive.modules(&fetched)?;
            archive.write(&initramfs)?;
            Ok(initramfs)
        };
        let initramfs = write(format!("{}.cpio", fetched.release), false)?;
        let wanted = |group: &Group| group.runtime && !group.cases.is_empty();
        let with_runtime = match on_it.iter().any(wanted) {
            true => write(format!("{}-runtime.cpio", fetched.release), true)?,
            false => initramfs.clone(),
        };
        booted.push((on_it, fetched, [initramfs, with_runtime]));
    }
    let jobs: Vec<Job<'_>> = booted
        .iter()
        .flat_map(|(groups, fetched, initramfs)| {
            groups
                .iter()
                .map(move |group| (group, fetched, &initramfs[usize::from(group.runtime)]))
        })
        .filter(|(group, ..)| !group.cases.is_empty())
        .enumerate()
        .map(|(n, (group, kernel, initramfs))| job(&folder, n, group, kernel, initramfs, args.keep))
        .collect();
    if args.case.is_empty() {
        selfcheck::run(&jobs[0])?;
    }
    let results = run_all(&jobs)?;
    let releases: Vec<&str> = booted
        .iter()
        .map(|(_, kernel, _)| kernel.release.as_str())
        .collect();
    let table = table::Table::new(&releases, &results);
    println!("{}", table.summary());
    if let Some(path) = &args.table {
        std::fs::write(path, table.markdown()).with_context(|| path.display().to_string())?;
    }
    println!("{} s", started.elapsed().as_secs());
    if table.failures() > 0 {
        bail!("{} failed", table.failures());
    }
    Ok(())
}

fn job<'a>(
    folder: &Path,
    number: usize,
    group: &'a Group,
    kernel: &'a Fetched,
    initramfs: &'a Path,
    keep: bool,
) -> Job<'a> {
    Job {
        release: &kernel.release,
        vmlinux: &kernel.vmlinux,
        initramfs,
        nodes: group.nodes,
        kernel_args: group.kernel_args,
        disks: group.runtime,
        cases: group.cases.clone(),
        folder: folder.join(format!("job{number}")),
        keep,
        quiet: false,
    }
}

/// Single machines side by side, then pairs one after the other: two at a time at most.
fn run_all(jobs: &[Job<'_>]) -> Result<Vec<(String, Done)>> {
    let done = Mutex::new(Vec::new());
    let (singles, pairs): (Vec<_>, Vec<_>) = jobs.iter().partition(|job| job.nodes == 1);
    for (jobs, at_once) in [(singles, AT_ONCE), (pairs, 1)] {
        let queue = Mutex::new(jobs.into_iter());
        let work = || -> Result<()> {
            loop {
                let Some(job) = queue.lock().ok().and_then(|mut queue| queue.next()) else {
                    return Ok(());
                };
                // A thread each: a pair's network namespace ends with it.
                let result = thread::scope(|scope| scope.spawn(|| run::run(job)).join());
                let result = result.unwrap_or_else(|_| bail!("the machine's thread panicked"))?;
                if let Ok(mut done) = done.lock() {
                    done.push((job.release.to_owned(), result));
                }
            }
        };
        thread::scope(|scope| {
            let threads: Vec<_> = (0..at_once).map(|_| scope.spawn(work)).collect();
            threads.into_iter().try_for_each(|thread| {
                thread
                    .join()
                    .unwrap_or_else(|_| bail!("a thread of the queue panicked"))
            })
        })?;
    }
    Ok(done.into_inner().unwrap_or_default())
}

/// The cases that are wanted, by what boot they need.
fn groups(payload: &Payload, args: &VmTestArgs) -> Result<Vec<Group>> {
    let mut groups: Vec<Group> = Vec::new();
    let mut add = |like: Group| {
        let wanted = like.cases.iter().all(|(name, _)| args.wants(name));
        if !wanted {
            return;
        }
        let boot = |group: &Group| (group.nodes, group.kernel_args, group.runtime);
        match groups.iter_mut().find(|group| boot(group) == boot(&like)) {
            Some(group) => group.cases.extend(like.cases),
            None => groups.push(like),
        }
    };
    for case in cases::all() {
        add(Group {
            nodes: case.nodes,
            kernel_args: case.kernel_args,
            runtime: case.has_runtime(),
            cases: vec![(case.name.to_owned(), Duration::from_secs(case.timeout_s))],
        });
    }
    for suite in SUITES {
        for test in payload.tests_of(suite)? {
            let name = format!("{}::{test}", suite.name);
            add(Group {
                nodes: 1,
                kernel_args: "",
                runtime: false,
                cases: vec![(name, Duration::from_secs(suite.timeout_s))],
            });
        }
    }
    Ok(groups)
}

fn list(kernels: &[&Kernel]) -> Result<()> {
    let series: Vec<&str> = kernels.iter().map(|kernel| kernel.series).collect();
    println!("kernels: {}", series.join(", "));
    for case in cases::all() {
        println!(
            "{} ({} node(s)) {}",
            case.name, case.nodes, case.kernel_args
        );
    }
    for suite in SUITES {
        println!(
            "{}::<each test of {}'s {}>",
            suite.name, suite.package, suite.target
        );
    }
    Ok(())
}
