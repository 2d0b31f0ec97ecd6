//! Development commands: `cargo xtask <command>`, one file per command.

mod bench;
mod build;
mod demo;
mod ebpf;
mod exec;
mod fuzz;
mod k8s_test;
mod manifests;
mod release;
mod setup;
mod soak;
mod test;
mod vm_test;

use std::path::Path;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Development commands of Nodemesh
#[derive(Parser)]
#[command(bin_name = "cargo xtask", max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Install what the other commands need and this machine lacks (root; apt, pip, cargo)
    Setup,
    /// Build the kernel programs alone, into target/bpf/mesh-ebpf.o
    Ebpf,
    /// Build the kernel programs, then every binary (release)
    Build,
    /// Run fmt, clippy, deny, unit, property and integration tests (root)
    ///
    /// Ends with the list of what was skipped, and why. A missing privilege is a failure,
    /// not a reason to skip.
    Test(test::TestArgs),
    /// Test on stock kernels in virtual machines, emulated (root)
    ///
    /// Fetches the kernels, makes machines without a disk, and runs in them what hooks, walls,
    /// nodes and budgets have to do on each. At most two machines at once.
    VmTest(vm_test::VmTestArgs),
    /// Fuzz every parser of what others worded; minimise and keep the corpora
    ///
    /// Needs nothing but a C++ compiler; coverage needs LLVM's tools.
    Fuzz(fuzz::FuzzArgs),
    /// Test in a real Kubernetes cluster, from the chart's install to its uninstall
    K8sTest(Box<k8s_test::K8sTestArgs>),
    /// Show the mesh at work on two nodes made of network namespaces (root)
    Demo(demo::DemoArgs),
    /// Do everything to the mesh, time and again, under load, and see that nothing grows (root)
    Soak(soak::SoakArgs),
    /// Make what is derived of the Helm chart: plain manifests, its README; check it all
    Manifests(manifests::ManifestsArgs),
    /// Make the images from static binaries, with their bills of materials and provenance
    ///
    /// From nothing but this source: no container engine, no base image. The same source makes
    /// the same digests.
    Image(release::ReleaseArgs),
    /// Make all that is handed out: images, binaries, chart, manifests, checksums
    Dist(release::ReleaseArgs),
    /// Measure the mesh against plain TCP and a haproxy pair, on the demo's topology (root)
    Bench(Box<bench::BenchArgs>),
}

fn main() -> ExitCode {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("a workspace");
    let done = match Cli::parse().command {
        Command::Setup => setup::run(workspace),
        Command::Ebpf => ebpf::build(workspace).map(|object| println!("{}", object.display())),
        Command::Build => build::run(workspace),
        Command::Test(args) => test::run(workspace, &args),
        Command::VmTest(args) => vm_test::run(workspace, &args),
        Command::Fuzz(args) => fuzz::run(workspace, &args),
        Command::K8sTest(args) => k8s_test::run(workspace, &args),
        Command::Demo(args) => demo::run(workspace, &args),
        Command::Soak(args) => soak::run(workspace, &args),
        Command::Manifests(args) => manifests::run(workspace, &args),
        Command::Image(args) => release::images(workspace, &args),
        Command::Dist(args) => release::dist(workspace, &args),
        Command::Bench(args) => bench::run(workspace, &args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("\nfailed: {error}");
            for cause in error.chain().skip(1) {
                eprintln!("because: {cause}");
            }
            ExitCode::FAILURE
        }
    }
}
