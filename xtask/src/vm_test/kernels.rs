//! Stock kernels: Debian's packages, fetched once, and what QEMU boots of them.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::exec;

/// A kernel of the matrix.
#[derive(Clone, Copy, Debug)]
pub(super) struct Kernel {
    /// The series, as it is asked for.
    pub(super) series: &'static str,
    /// The package that depends on the newest of its series.
    package: &'static str,
    /// Another suite of the archive that has it; tests don't depend on it.
    suite: Option<&'static str>,
    /// The only case that it is for, where it is too old for the others.
    only: Option<&'static str>,
}

impl Kernel {
    /// Part of the matrix that has to pass everywhere.
    pub(super) fn is_required(&self) -> bool {
        self.suite.is_none()
    }

    /// Whether a case is run on it.
    pub(super) fn is_for(&self, case: &str) -> bool {
        self.only.is_none_or(|only| only == case)
    }
}

/// The matrix.
pub(super) const KERNELS: &[Kernel] = &[
    Kernel {
        series: "6.1",
        package: "linux-image-cloud-amd64",
        suite: None,
        only: None,
    },
    Kernel {
        series: "6.12",
        package: "linux-image-6.12-cloud-amd64",
        suite: None,
        only: None,
    },
    Kernel {
        series: "newest",
        package: "linux-image-cloud-amd64",
        suite: Some("sid"),
        only: None,
    },
    Kernel {
        series: "5.10",
        package: "linux-image-cloud-amd64",
        suite: Some("bullseye"),
        only: Some("missing/the-kernel-is-asked"),
    },
];

/// Keys of the archive, by the package debian-archive-keyring.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// A kernel that is here.
#[derive(Clone, Debug)]
pub(super) struct Fetched {
    /// Its release, as `uname -r` says.
    pub(super) release: String,
    /// What QEMU boots.
    pub(super) vmlinux: PathBuf,
    /// The unpacked package: `boot`, `lib/modules`.
    pub(super) root: PathBuf,
}

/// Fetches a kernel below `folder`, unless it is there.
///
/// # Errors
/// If the archive can't be reached or the package is not what it was.
pub(super) fn fetch(folder: &Path, kernel: &Kernel) -> Result<Fetched> {
    let apt = Apt::new(folder, kernel.suite)?;
    let release = apt.newest(kernel.package)?;
    let root = folder.join(&release);
    let fetched = Fetched {
        vmlinux: root.join("vmlinux"),
        root,
        release,
    };
    // Written last.
    if fetched.vmlinux.is_file() {
        return Ok(fetched);
    }
    eprintln!("fetching kernel {}", fetched.release);
    let unpacked = folder.join(format!("{}.unpacking", fetched.release));
    let _ = fs::remove_dir_all(&unpacked);
    fs::create_dir_all(&unpacked)?;
    for package in apt.parts(&fetched.release)? {
        apt.unpack(&package, &unpacked)?;
    }
    // Newer packages have their modules below /usr alone.
    if !unpacked.join("lib").exists() {
        symlink("usr/lib", unpacked.join("lib"))?;
    }
    exec::read(
        Command::new("depmod")
            .arg("-b")
            .arg(&unpacked)
            .arg(&fetched.release),
    )?;
    let release = &fetched.release;
    let compressed = [
        format!("boot/vmlinuz-{release}"),
        format!("lib/modules/{release}/vmlinuz"),
    ];
    let compressed = compressed
        .iter()
        .map(|path| unpacked.join(path))
        .find(|path| path.is_file())
        .with_context(|| format!("the packages of {release} have no vmlinuz"))?;
    let vmlinux = extract(&compressed).with_context(|| compressed.display().to_string())?;
    let _ = fs::remove_dir_all(&fetched.root);
    fs::rename(&unpacked, &fetched.root)?;
    let part = fetched.root.join("vmlinux.part");
    fs::write(&part, vmlinux)?;
    fs::rename(&part, &fetched.vmlinux)?;
    Ok(fetched)
}

/// The package archive.
struct Apt {
    options: Vec<String>,
}

impl Apt {
    fn new(folder: &Path, suite: Option<&str>) -> Result<Self> {
        fs::create_dir_all(folder)?;
        let options = match suite {
            None => Vec::new(),
            Some(suite) => private_sources(folder, suite)?,
        };
        Ok(Self { options })
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.args(&self.options);
        command
    }

    /// Release of the kernel that a package without content depends on.
    fn newest(&self, package: &str) -> Result<String> {
        let ask = || -> Result<Option<String>> {
            let said = exec::read(self.command("apt-cache").args(["depends", package]))?;
            let release = said
                .lines()
                .filter_map(|line| line.trim().strip_prefix("Depends: linux-image-"))
                .find(|release| release.starts_with(|c: char| c.is_ascii_digit()));
            Ok(release.map(|release| release.trim_end_matches("-unsigned").to_owned()))
        };
        if let Ok(Some(release)) = ask() {
            return Ok(release);
        }
        // The lists may be old or absent.
        exec::read(self.command("apt-get").args(["update", "-qq"]))?;
        ask()?.with_context(|| format!("{package} depends on no kernel's package"))
    }

    /// The packages of a kernel: one, or, in newer suites, one for each of its parts.
    fn parts(&self, release: &str) -> Result<Vec<String>> {
        let image = format!("linux-image-{release}");
        let said = exec::read(self.command("apt-cache").args(["depends", &image]))?;
        let depends = said
            .lines()
            .filter_map(|line| line.trim().strip_prefix("Depends: "))
            .filter(|name| name.ends_with(release) && !name.starts_with("linux-base"))
            .map(str::to_owned);
        Ok(depends.chain([image]).collect())
    }

    fn unpack(&self, package: &str, into: &Path) -> Result<()> {
        let download = || {
            exec::read(
                self.command("apt-get")
                    .args(["download", "-q", package])
                    .current_dir(into),
            )
        };
        if download().is_err() {
            exec::read(self.command("apt-get").args(["update", "-qq"]))?;
            download()?;
        }
        let archive = fs::read_dir(into)?
            .filter_map(Result::ok)
            .map(|entry| entry.path())
            .find(|path| path.extension().is_some_and(|e| e == "deb"))
            .with_context(|| format!("apt-get download {package} left no package"))?;
        exec::read(Command::new("dpkg").arg("-x").arg(&archive).arg(into))?;
        fs::remove_file(archive)?;
        Ok(())
    }
}

/// apt's options for another suite of the archive that this system uses, with lists and cache
/// of its own: the system's stay as they are.
fn private_sources(folder: &Path, suite: &str) -> Result<Vec<String>> {
    let apt = folder.join(format!("apt-{suite}"));
    for part in ["lists/partial", "cache/archives/partial"] {
        fs::create_dir_all(apt.join(part))?;
    }
    let sites = exec::read(Command::new("apt-get").args(["indextargets", "--format", "$(SITE)"]))?;
    let site = sites
        .lines()
        .find(|site| site.ends_with("/debian"))
        .or_else(|| sites.lines().next())
        .context("apt has no sources")?;
    let list = apt.join("sources.list");
    let source = format!("deb [signed-by={KEYRING}] {site} {suite} main\n");
    fs::write(&list, source)?;
    let options = [
        format!("Dir::Etc::sourcelist={}", list.display()),
        "Dir::Etc::sourceparts=/dev/null".to_owned(),
        format!("Dir::State::lists={}", apt.join("lists").display()),
        format!("Dir::Cache={}", apt.join("cache").display()),
    ];
    Ok(options
        .into_iter()
        .flat_map(|option| ["-o".to_owned(), option])
        .collect())
}

/// The ELF image in a bzImage, which QEMU boots directly (PVH): the bzImage's own
/// decompressor would take most of the boot's time under emulation. Offsets are the boot
/// protocol's (Documentation/arch/x86/boot.rst).
fn extract(bzimage: &Path) -> Result<Vec<u8>> {
    let image = fs::read(bzimage)?;
    let u32_at = |at: usize| -> Result<usize> {
        let bytes = image.get(at..at + 4).context("too short")?;
        Ok(u32::from_le_bytes(bytes.try_into()?) as usize)
    };
    ensure!(image.get(0x202..0x206).is_some(), "no bzImage: too short");
    let setup_sectors = usize::from(image[0x1f1]);
    let start = (setup_sectors + 1) * 512 + u32_at(0x248)?;
    // The last four bytes are the length of what is packed.
    let length = u32_at(0x24c)?.checked_sub(4);
    let payload = length
        .and_then(|length| image.get(start..start + length))
        .context("no bzImage: its payload is outside")?;
    let tool = match payload {
        [0x02, 0x21, 0x4c, 0x18, ..] => "lz4",
        [0x28, 0xb5, 0x2f, 0xfd, ..] => "zstd",
        [0xfd, b'7', b'z', b'X', b'Z', ..] => "xz",
        _ => bail!("its payload is packed by neither lz4, zstd nor xz"),
    };
    let packed = bzimage.with_extension("payload");
    fs::write(&packed, payload)?;
    let output = Command::new(tool)
        .args(["-d", "-q", "-c"])
        .arg(&packed)
        .output();
    fs::remove_file(&packed)?;
    let output = output.with_context(|| format!("starting {tool}"))?;
    ensure!(
        output.stdout.starts_with(b"\x7fELF"),
        "{tool} made no ELF image of it: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(output.stdout)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_kernel_is_refused_with_the_reason() {
        let file = std::env::temp_dir().join(format!("no-kernel-{}", std::process::id()));
        let refused = |bytes: &[u8]| {
            fs::write(&file, bytes).unwrap();
            let error = extract(&file).unwrap_err();
            fs::remove_file(&file).unwrap();
            format!("{error:#}")
        };
        assert!(refused(b"MZ").contains("too short"));
        let mut image = vec![0; 4096];
        image[0x24c] = 8;
        assert!(refused(&image).contains("packed by neither"));
        image[0x24c..0x250].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(refused(&image).contains("outside"));
        image[0x24c..0x250].copy_from_slice(&[0; 4]);
        assert!(refused(&image).contains("outside"));
    }
}
