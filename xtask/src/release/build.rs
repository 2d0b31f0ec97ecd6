//! The binaries as they are released: static, so that an image needs nothing else, and the same
//! wherever they are built.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::TARGET;
use crate::{build, exec};

/// The profile that is released.
pub(crate) const PROFILE: &str = "dist";
/// What is released: the agent's two, and the others.
pub(crate) const PROGRAMS: [&str; 4] = ["mesh-agent", "nodemesh-cni", "mesh-control", "meshctl"];

/// Where [`static_binaries`] leaves them.
pub(crate) fn folder(workspace: &Path) -> PathBuf {
    workspace.join("target/released").join(TARGET)
}

/// Builds the kernel programs and, with `dist`, the binaries.
///
/// They are linked with glibc, statically: looking names up works without its modules, for files and
/// DNS are in the library itself (2.34 and later). What does not work is loading a PKCS#11 module.
///
/// # Errors
/// If something can't be built.
pub(crate) fn static_binaries(workspace: &Path) -> Result<PathBuf> {
    build::kernel_programs(workspace)?;
    eprintln!("building static binaries");
    let mut agent = cargo(workspace)?;
    exec::run(agent.args(build::AGENT_ALONE).args(bins(&PROGRAMS[..2])))?;
    exec::run(cargo(workspace)?.args(bins(&PROGRAMS[2..])))?;
    let built = workspace.join("target").join(TARGET).join(PROFILE);
    let released = folder(workspace);
    fs::create_dir_all(&released)?;
    for program in PROGRAMS {
        // Names stay, for what a panic says; three quarters of the size go.
        let mut strip = Command::new("strip");
        strip.arg("--strip-debug").arg("-o");
        exec::read(strip.args([released.join(program), built.join(program)]))?;
    }
    Ok(released)
}

fn bins<'a>(programs: &'a [&'a str]) -> impl Iterator<Item = &'a str> {
    programs.iter().flat_map(|program| ["--bin", program])
}

/// The build of something that is released.
fn cargo(workspace: &Path) -> Result<Command> {
    let home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| Some(std::env::home_dir()?.join(".cargo")));
    let home = home.context("no home folder")?;
    // Where it was built is neither in what panics say nor in what C's assertions do.
    let places = [(workspace, "/nodemesh"), (home.as_path(), "/cargo")];
    let places = places.map(|(from, to)| format!("{}={to}", from.display()));
    let mut flags = vec!["-Ctarget-feature=+crt-static".to_owned()];
    flags.extend(
        places
            .iter()
            .map(|place| format!("--remap-path-prefix={place}")),
    );
    let c_flags = places.map(|place| format!("-ffile-prefix-map={place}"));
    let mut cargo = exec::cargo(workspace);
    cargo.env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"));
    cargo.env("CFLAGS", c_flags.join(" "));
    cargo.env("CARGO_PROFILE_DIST_INCREMENTAL", "false");
    // With a target named, flags are not those of build scripts and macros.
    cargo.args(["build", "--locked", "--profile", PROFILE]);
    cargo.args(["--target", TARGET]);
    Ok(cargo)
}
