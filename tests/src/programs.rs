//! Programs that labs run: where they are, and which package carries them.

use std::ffi::OsStr;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// A program and the Debian package that carries it.
#[derive(Clone, Copy, Debug)]
pub struct Program {
    /// Its file name.
    pub name: &'static str,
    /// The package.
    pub package: &'static str,
}

macro_rules! programs {
    ($($constant:ident = $name:literal in $package:literal, $what:literal;)*) => {
        $(#[doc = $what] pub const $constant: Program = Program { name: $name, package: $package };)*
    };
}

programs! {
    IP = "ip" in "iproute2", "Namespaces, links, routes.";
    CURL = "curl" in "curl", "An HTTP client.";
    NGINX = "nginx" in "nginx-light", "A web server.";
    REDIS = "redis-server" in "redis-server", "A key-value store.";
    REDIS_CLI = "redis-cli" in "redis-tools", "Its client.";
    REDIS_BENCHMARK = "redis-benchmark" in "redis-tools", "Its load generator.";
    IPERF3 = "iperf3" in "iperf3", "Bulk throughput.";
    WRK = "wrk" in "wrk", "An HTTP load generator.";
    HAPROXY = "haproxy" in "haproxy", "A proxy to compare with.";
    OPENSSL = "openssl" in "openssl", "TLS and certificates by hand.";
    SOFTHSM = "softhsm2-util" in "softhsm2", "A token behind PKCS#11.";
    DNSMASQ = "dnsmasq" in "dnsmasq-base", "A DNS server.";
    DIG = "dig" in "bind9-dnsutils", "A DNS client.";
    NFT = "nft" in "nftables", "A pod's attempt to redirect its worker.";
    IPTABLES = "iptables-restore" in "iptables", "Redirection to a ztunnel.";
    VALGRIND = "valgrind" in "valgrind", "Counts instructions.";
    POSTGRES = "initdb" in "postgresql", "A database.";
    PSQL = "psql" in "postgresql-client", "Its client.";
    MARIADB = "mariadbd" in "mariadb-server", "A database whose server speaks first.";
    MARIADB_CLIENT = "mariadb" in "mariadb-client", "Its client.";
    CONTAINERD = "containerd" in "containerd", "A container runtime.";
    RUNC = "runc" in "runc", "What it starts containers with.";
    CNI_PLUGINS = "host-local" in "containernetworking-plugins", "What joins pods to a node.";
    BUSYBOX = "busybox" in "busybox-static", "All that is in a container.";
}

const FOLDERS: [&str; 7] = [
    "/usr/local/bin",
    "/usr/bin",
    "/bin",
    "/usr/sbin",
    "/sbin",
    "/usr/local/sbin",
    "/usr/lib/cni",
];

/// The path of a program: an absolute path as it is, a binary of this workspace, or one of
/// the system's folders.
///
/// # Errors
/// If it is nowhere.
pub fn find(name: &OsStr) -> Result<PathBuf> {
    let path = Path::new(name);
    if path.is_absolute() {
        return Ok(path.to_owned());
    }
    if let Some(path) = workspace_binary(name) {
        return Ok(path);
    }
    on_system(name).with_context(|| {
        format!(
            "{} is not installed: `cargo xtask setup` installs what is missing",
            path.display()
        )
    })
}

fn on_system(name: &OsStr) -> Option<PathBuf> {
    let versioned = fs::read_dir("/usr/lib/postgresql").into_iter().flatten();
    let versioned = versioned.flatten().map(|entry| entry.path().join("bin"));
    versioned
        .chain(FOLDERS.iter().map(PathBuf::from))
        .map(|folder| folder.join(name))
        .find(|path| path.is_file())
}

/// A binary of this workspace: in `NODEMESH_BIN_DIR`, or next to the running executable.
#[must_use]
pub fn workspace_binary(name: &OsStr) -> Option<PathBuf> {
    if let Some(folder) = std::env::var_os("NODEMESH_BIN_DIR") {
        return Some(Path::new(&folder).join(name)).filter(|path| path.is_file());
    }
    let executable = std::env::current_exe().ok()?;
    // Tests run from target/<profile>/deps.
    let folders = executable.ancestors().skip(1).take(2);
    folders
        .map(|folder| folder.join(name))
        .find(|path| path.is_file())
}

/// A binary of the mesh.
///
/// # Errors
/// If it isn't built.
pub fn mesh_binary(name: &str) -> Result<PathBuf> {
    workspace_binary(name.as_ref()).with_context(|| {
        format!(
            "no {name} next to this executable: run `cargo xtask build`, or name the folder of \
             the binaries in NODEMESH_BIN_DIR"
        )
    })
}

/// Makes sure that an app's uid can reach a program: below a folder that is closed to
/// others (a build folder may be), it is copied into the pod's.
pub(crate) fn stage(program: &Path, folder: &Path) -> Result<PathBuf> {
    if FOLDERS.iter().any(|folder| program.starts_with(folder)) || program.starts_with("/usr") {
        return Ok(program.to_owned());
    }
    let staged = folder.join(program.file_name().context("a program's file name")?);
    if !staged.exists() {
        fs::copy(program, &staged)
            .with_context(|| format!("copying {} to {}", program.display(), staged.display()))?;
        fs::set_permissions(&staged, Permissions::from_mode(0o755))?;
    }
    Ok(staged)
}

/// Those of the programs that are not installed.
#[must_use]
pub fn missing(programs: &[Program]) -> Vec<Program> {
    let absent = |program: &&Program| on_system(program.name.as_ref()).is_none();
    programs.iter().filter(absent).copied().collect()
}

/// Installs the packages of programs that are missing, through apt, telling what it does
/// on standard error. No service is started.
///
/// # Errors
/// If apt is missing or fails, with the end of what it said.
pub fn install(programs: &[Program]) -> Result<()> {
    let missing = missing(programs);
    if missing.is_empty() {
        return Ok(());
    }
    let mut packages: Vec<&str> = missing.iter().map(|program| program.package).collect();
    packages.sort_unstable();
    packages.dedup();
    install_packages(&packages)
}

/// Installs Debian packages; see [`install`].
///
/// # Errors
/// As [`install`].
pub fn install_packages(packages: &[&str]) -> Result<()> {
    let list = packages.join(" ");
    if on_system("apt-get".as_ref()).is_none() {
        bail!("{list}: install these with this system's package manager (apt-get is not here)");
    }
    eprintln!("installing {list} (apt-get)");
    let quiet = NoServices::set()?;
    if apt(&["install", "-y", "--no-install-recommends"], packages).is_err() {
        // The lists may be old or absent.
        apt(&["update", "-qq"], &[])?;
        apt(&["install", "-y", "--no-install-recommends"], packages)?;
    }
    drop(quiet);
    Ok(())
}

fn apt(arguments: &[&str], packages: &[&str]) -> Result<()> {
    let output = Command::new("apt-get")
        .args(arguments)
        .args(packages)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .stdin(Stdio::null())
        .output()
        .context("starting apt-get")?;
    if !output.status.success() {
        let words = String::from_utf8_lossy(&output.stderr);
        bail!("apt-get {} {}: {words}", arguments[0], packages.join(" "));
    }
    Ok(())
}

/// Debian's hook that keeps packages from starting their services, while this lives.
struct NoServices {
    ours: bool,
}

const POLICY: &str = "/usr/sbin/policy-rc.d";

impl NoServices {
    fn set() -> Result<Self> {
        let ours = !Path::new(POLICY).exists();
        if ours {
            fs::write(POLICY, "#!/bin/sh\nexit 101\n").context("writing policy-rc.d")?;
            fs::set_permissions(POLICY, Permissions::from_mode(0o755))?;
        }
        Ok(Self { ours })
    }
}

impl Drop for NoServices {
    fn drop(&mut self) {
        if self.ours {
            let _ = fs::remove_file(POLICY);
        }
    }
}
