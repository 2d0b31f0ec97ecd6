//! The guest's only file system: an archive with everything it runs.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::kernels::Fetched;
use crate::exec;

const REGULAR: u32 = 0o100_000;
const FOLDER: u32 = 0o040_000;
const LINK: u32 = 0o120_000;

/// Modules that the cases use beyond what the kernel has built in; what they need comes with
/// them, and the kernel asks for them by itself.
const MODULES: &[&str] = &[
    "virtio_pci",
    "virtio_console",
    "virtio_net",
    "virtio_blk",
    "ext4",
    "crc32c_generic",
    "veth",
    "bridge",
    "macvlan",
    "ipvlan",
    "dummy",
    "tun",
    "vxlan",
    "ipip",
    "ip_gre",
    "8021q",
    "sch_ingress",
    "cls_bpf",
    "nf_tables",
    "nft_chain_nat",
    "nft_nat",
    "nft_redir",
    "nft_masq",
    "nft_ct",
    "nft_compat",
    "inet_diag",
    "tcp_diag",
    "udp_diag",
    "unix_diag",
    "af_packet_diag",
    "overlay",
    "tls",
];

/// Folders that others are mounted on or written to.
const FOLDERS: &[&str] = &[
    "proc", "sys", "dev", "run", "tmp", "var", "root", "etc", "suites",
];
/// As distributions with a merged /usr have them.
const LINKS: &[(&str, &str)] = &[
    ("bin", "usr/bin"),
    ("sbin", "usr/sbin"),
    ("lib", "usr/lib"),
    ("lib64", "usr/lib64"),
    ("usr/sbin/modprobe", "../bin/kmod"),
    ("usr/sbin/lsmod", "../bin/kmod"),
];
/// What busybox is there as: a shell for `--keep`, and what programs of tests call.
const APPLETS: &[&str] = &[
    "sh", "ls", "cat", "ps", "ping", "ping6", "grep", "dmesg", "mount", "umount", "vi", "top",
    "kill", "sleep", "sysctl", "nsenter", "setsid", "free", "df", "head", "tail", "wc", "cp", "mv",
    "rm", "mkdir", "tar", "env", "id", "find", "less", "true", "false", "echo", "awk", "sed",
    "seq", "nc", "hostname", "date",
];

/// An archive being written.
pub(super) struct Archive {
    files: BTreeMap<String, Entry>,
}

enum Entry {
    Folder,
    Link(String),
    File { from: PathBuf, mode: u32 },
    Text(String),
}

impl Archive {
    /// An archive with the folders that every guest has.
    pub(super) fn new() -> Self {
        let mut archive = Self {
            files: BTreeMap::new(),
        };
        for folder in FOLDERS {
            archive.files.insert((*folder).to_owned(), Entry::Folder);
        }
        for (from, to) in LINKS {
            archive.put(from, Entry::Link((*to).to_owned()));
        }
        for applet in APPLETS {
            archive.put(
                &format!("usr/bin/{applet}"),
                Entry::Link("busybox".to_owned()),
            );
        }
        archive.text(
            "etc/passwd",
            "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n",
        );
        archive.text("etc/group", "root:x:0:\nnogroup:x:65534:\n");
        archive.text("etc/hosts", "127.0.0.1 localhost\n::1 localhost\n");
        archive
    }

    fn put(&mut self, path: &str, entry: Entry) {
        for parent in Path::new(path).ancestors().skip(1) {
            let parent = parent.to_string_lossy().into_owned();
            if !parent.is_empty() {
                self.files.entry(parent).or_insert(Entry::Folder);
            }
        }
        self.files.insert(path.to_owned(), entry);
    }

    /// Adds a file of this content.
    pub(super) fn text(&mut self, path: &str, text: &str) {
        self.put(path, Entry::Text(text.to_owned()));
    }

    /// Adds a file.
    pub(super) fn file(&mut self, path: &str, from: &Path, mode: u32) {
        self.put(
            path,
            Entry::File {
                from: from.to_owned(),
                mode,
            },
        );
    }

    /// Adds a program with the libraries that it is linked against, where the loader looks
    /// for them.
    pub(super) fn program(&mut self, path: &str, from: &Path) -> Result<()> {
        self.file(path, from, 0o755);
        for library in libraries(from)? {
            let at = library.strip_prefix("/").unwrap_or(&library);
            let at = at.strip_prefix("usr").unwrap_or(at);
            let real = fs::canonicalize(&library)?;
            self.file(&format!("usr/{}", at.display()), &real, 0o755);
        }
        Ok(())
    }

    /// Adds a program of this machine; one that is only in the applets is replaced.
    pub(super) fn system_program(&mut self, name: &str) -> Result<()> {
        let path = mesh_lab::programs::find(OsStr::new(name))?;
        let at = path.strip_prefix("/").unwrap_or(&path);
        let at = at.to_string_lossy();
        let at = match at.strip_prefix("usr/") {
            Some(_) => at.into_owned(),
            None => format!("usr/{at}"),
        };
        self.program(&at, &path)
    }

    /// Adds the modules of a kernel.
    pub(super) fn modules(&mut self, kernel: &Fetched) -> Result<()> {
        let folder = format!("lib/modules/{}", kernel.release);
        for index in fs::read_dir(kernel.root.join(&folder))? {
            let path = index?.path();
            let name = path
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            if path.is_file() && name.starts_with("modules.") {
                self.file(&format!("usr/{folder}/{name}"), &path, 0o644);
            }
        }
        let mut found = BTreeSet::new();
        for module in MODULES {
            let listed = exec::read(Command::new("modprobe").arg("-d").arg(&kernel.root).args([
                "-S",
                &kernel.release,
                "--show-depends",
                module,
            ]));
            // Built in, or not there: the cases that need it say so.
            let listed = listed.unwrap_or_default();
            // `insmod PATH [parameter...]`, or `builtin NAME`.
            let paths = listed
                .lines()
                .filter_map(|line| line.strip_prefix("insmod ")?.split_whitespace().next());
            found.extend(paths.map(PathBuf::from));
        }
        for path in found {
            let relative = path.strip_prefix(&kernel.root)?;
            self.file(&format!("usr/{}", relative.display()), &path, 0o644);
        }
        Ok(())
    }

    /// Writes the archive (newc, not compressed: unpacking would be emulated).
    pub(super) fn write(self, path: &Path) -> Result<()> {
        let part = path.with_extension("part");
        let mut out = BufWriter::new(File::create(&part)?);
        for (inode, (name, entry)) in (1..).zip(&self.files) {
            let (mode, size) = match entry {
                Entry::Folder => (FOLDER | 0o755, 0),
                Entry::Link(to) => (LINK | 0o777, to.len() as u64),
                Entry::Text(text) => (REGULAR | 0o644, text.len() as u64),
                Entry::File { from, mode } => {
                    let size = fs::metadata(from)
                        .with_context(|| from.display().to_string())?
                        .len();
                    (REGULAR | mode, size)
                }
            };
            let size = u32::try_from(size).with_context(|| format!("{name} is too large"))?;
            let nlink = if mode & FOLDER == FOLDER { 2 } else { 1 };
            let header = cpio::newc::Builder::new(name)
                .ino(inode)
                .nlink(nlink)
                .mode(mode);
            let mut writer = header.write(&mut out, size);
            match entry {
                Entry::Folder => {}
                Entry::Link(text) | Entry::Text(text) => writer.write_all(text.as_bytes())?,
                Entry::File { from, .. } => {
                    io::copy(&mut File::open(from)?, &mut writer)?;
                }
            }
            writer.finish()?;
        }
        cpio::newc::trailer(&mut out)?;
        out.into_inner()
            .map_err(io::IntoInnerError::into_error)?
            .sync_all()?;
        fs::rename(part, path)?;
        Ok(())
    }
}

/// The libraries that the loader would take, by `ldd`.
fn libraries(program: &Path) -> Result<Vec<PathBuf>> {
    let output = Command::new("ldd")
        .arg(program)
        .output()
        .context("starting ldd")?;
    // A static program is "not a dynamic executable", and ldd fails.
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(!text.contains("not found"), "{}: {text}", program.display());
    let mut found = Vec::new();
    for line in text.lines() {
        let path = line.split("=>").last().unwrap_or_default();
        let path = path.split_whitespace().next().unwrap_or_default();
        if path.starts_with('/') {
            found.push(PathBuf::from(path));
        }
    }
    Ok(found)
}
