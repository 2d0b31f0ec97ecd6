//! `cargo xtask ebpf`: builds the kernel programs into `target/bpf/mesh-ebpf.o`, from where
//! mesh-agent embeds them.
//!
//! Two toolchains can do it: Debian's (`rustc-web` with a prebuilt `core` for BPF), and
//! rustup's nightly with `rust-src`. Both link with bpf-linker.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

const TARGET: &str = "bpfel-unknown-none";
const LLVM_MAJOR: &str = "22";
/// Release of bpf-linker that links against that LLVM.
const BPF_LINKER: &str = "0.13.0";
const DEBIAN_RUSTC: &str = "/usr/bin/rustc";
/// Separates flags in `CARGO_ENCODED_RUSTFLAGS`.
const FLAG_SEPARATOR: &str = "\u{1f}";

/// A compiler that can build for BPF.
enum Toolchain {
    /// Debian's compiler with Debian's prebuilt `core`.
    Debian,
    /// rustup's nightly, which builds `core` from `rust-src`.
    Nightly,
}

/// Builds the kernel programs and returns the object's path. The object is left alone when
/// nothing changed, so that what embeds it isn't rebuilt. Installs what is missing where it
/// can (root on Debian).
///
/// # Errors
/// With what is missing and how to install it, or the compiler's failure.
pub(crate) fn build(workspace_root: &Path) -> Result<PathBuf> {
    build_object(workspace_root, "mesh-ebpf.o", &[])
}

/// As [`build`], with the ABI of what might be the next version, for tests.
///
/// # Errors
/// As [`build`].
pub(crate) fn build_next(workspace_root: &Path) -> Result<PathBuf> {
    let features = ["--features", "abi-next"];
    build_object(workspace_root, "mesh-ebpf-abi-next.o", &features)
}

fn build_object(workspace_root: &Path, name: &str, features: &[&str]) -> Result<PathBuf> {
    let toolchain = find_or_install_toolchain()?;
    let linker_folder = find_or_install_linker()?;
    let target_dir = workspace_root.join("target/bpf/build");
    let mut cargo = compiler(&toolchain, &linker_folder, workspace_root)?;
    cargo.arg("--target-dir").arg(&target_dir).args(features);
    run(&mut cargo, "building the kernel programs")?;
    let built = target_dir.join(TARGET).join("release/mesh-ebpf");
    let object = workspace_root.join("target/bpf").join(name);
    let bytes = fs::read(&built).with_context(|| format!("reading {}", built.display()))?;
    if fs::read(&object).ok().as_ref() != Some(&bytes) {
        fs::write(&object, bytes).with_context(|| format!("writing {}", object.display()))?;
    }
    Ok(object)
}

fn compiler(toolchain: &Toolchain, linker_folder: &Path, workspace_root: &Path) -> Result<Command> {
    let flags = [
        format!("--cfg=bpf_target_arch=\"{}\"", std::env::consts::ARCH),
        "-Cdebuginfo=2".into(),
        "-Clink-arg=--btf".into(),
        // The same object wherever it is built.
        format!("--remap-path-prefix={}=nodemesh", workspace_root.display()),
        format!("--remap-path-prefix={}=cargo", cargo_home().display()),
    ]
    .join(FLAG_SEPARATOR);
    let mut cargo = match toolchain {
        Toolchain::Debian => {
            let mut cargo = Command::new(cargo());
            cargo
                .arg("build")
                .env("RUSTC", DEBIAN_RUSTC)
                .env("RUSTC_BOOTSTRAP", "1");
            cargo
        }
        Toolchain::Nightly => {
            let mut cargo = Command::new("rustup");
            cargo.args(["run", "nightly", "cargo", "build", "-Zbuild-std=core"]);
            cargo.env_remove("RUSTC");
            cargo
        }
    };
    cargo
        .current_dir(workspace_root)
        .args(["--release", "--package", "mesh-ebpf", "--target", TARGET])
        .env("CARGO_ENCODED_RUSTFLAGS", flags)
        // Incremental builds are other code: what was tested is what is shipped.
        .env("CARGO_INCREMENTAL", "0")
        .env("PATH", path_with(linker_folder)?)
        .env_remove("RUSTFLAGS")
        .env_remove("RUSTC_WRAPPER")
        .env_remove("RUSTC_WORKSPACE_WRAPPER");
    Ok(cargo)
}

/// Where cargo keeps the sources of crates.
fn cargo_home() -> PathBuf {
    let home = || PathBuf::from(std::env::var_os("HOME").unwrap_or_default()).join(".cargo");
    std::env::var_os("CARGO_HOME").map_or_else(home, PathBuf::from)
}

fn find_or_install_toolchain() -> Result<Toolchain> {
    if debian_toolchain() {
        return Ok(Toolchain::Debian);
    }
    if nightly_toolchain() {
        return Ok(Toolchain::Nightly);
    }
    ensure!(
        can_install(),
        "no compiler for BPF. Either `rustup toolchain install nightly --component rust-src`, \
         or on Debian, as root: apt-get install rustc-web libstd-rust-web-dev-bpf"
    );
    install(&["rustc-web", "libstd-rust-web-dev-bpf"])?;
    ensure!(
        debian_toolchain(),
        "{DEBIAN_RUSTC} has no `core` for {TARGET} although its packages are installed"
    );
    Ok(Toolchain::Debian)
}

fn debian_toolchain() -> bool {
    let target = format!("/usr/lib/rustlib/{TARGET}/lib");
    Path::new(DEBIAN_RUSTC).exists() && Path::new(&target).exists()
}

fn nightly_toolchain() -> bool {
    let sysroot = Command::new("rustup")
        .args(["run", "nightly", "rustc", "--print", "sysroot"])
        .stderr(Stdio::null())
        .output();
    sysroot.is_ok_and(|output| {
        let sysroot = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        output.status.success()
            && Path::new(&sysroot)
                .join("lib/rustlib/src/rust/library/core")
                .exists()
    })
}

/// The folder that holds bpf-linker.
fn find_or_install_linker() -> Result<PathBuf> {
    if let Some(folder) = linker_folder() {
        return Ok(folder);
    }
    let llvm = format!("/usr/lib/llvm-{LLVM_MAJOR}");
    if !Path::new(&llvm).join("bin/llvm-config").exists() {
        ensure!(
            can_install(),
            "no bpf-linker. `cargo install bpf-linker` installs it (it needs LLVM's development \
             files; the release page of bpf-linker has static binaries as well)"
        );
        install(&[
            &format!("llvm-{LLVM_MAJOR}-dev"),
            &format!("libclang-{LLVM_MAJOR}-dev"),
            &format!("libpolly-{LLVM_MAJOR}-dev"),
            &format!("clang-{LLVM_MAJOR}"),
            "libzstd-dev",
            "zlib1g-dev",
        ])?;
    }
    let feature = format!("llvm-{LLVM_MAJOR}");
    let mut cargo = Command::new(cargo());
    cargo
        .args([
            "install",
            "bpf-linker",
            "--version",
            BPF_LINKER,
            "--locked",
            "--no-default-features",
            "--features",
        ])
        .arg(feature)
        .env("LLVM_PREFIX", llvm);
    run(&mut cargo, "installing bpf-linker (takes some minutes)")?;
    linker_folder().context(
        "bpf-linker was installed but is neither in PATH nor in cargo's bin folder; add cargo's bin folder to PATH",
    )
}

fn linker_folder() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let cargo_bin = std::env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cargo")))
        .map(|home| home.join("bin"));
    std::env::split_paths(&path)
        .chain(cargo_bin)
        .find(|folder| folder.join("bpf-linker").exists())
}

fn path_with(folder: &Path) -> Result<OsString> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::iter::once(folder.to_owned()).chain(std::env::split_paths(&path));
    Ok(std::env::join_paths(folders)?)
}

fn can_install() -> bool {
    nix::unistd::Uid::effective().is_root()
        && Path::new("/etc/debian_version").exists()
        && Path::new("/usr/bin/apt-get").exists()
}

fn install(packages: &[&str]) -> Result<()> {
    let mut update = Command::new("apt-get");
    run(update.args(["update", "-qq"]), "apt-get update")?;
    let mut install = Command::new("apt-get");
    install
        .args(["install", "-y", "-qq", "--no-install-recommends"])
        .args(packages)
        .env("DEBIAN_FRONTEND", "noninteractive");
    run(
        &mut install,
        &format!("apt-get install {}", packages.join(" ")),
    )
}

fn cargo() -> OsString {
    std::env::var_os("CARGO").unwrap_or_else(|| OsStr::new("cargo").to_owned())
}

fn run(command: &mut Command, what: &str) -> Result<()> {
    let status = command
        .status()
        .with_context(|| format!("{what}: starting {:?}", command.get_program()))?;
    if !status.success() {
        bail!("{what}: {status}");
    }
    Ok(())
}
