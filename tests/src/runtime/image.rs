//! One small image, made on this machine, for sandboxes and apps: a static shell with its tools,
//! and the lab's own app with the libraries that it needs.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::json;

use crate::mesh::run;
use crate::programs;

/// Name of the image as the sandbox's.
pub(super) const PAUSE: &str = "nodemesh.test/pause:1";
/// Name of the image as an app's.
pub(super) const APP: &str = "nodemesh.test/app:1";

/// Makes the archive in `folder`, as `docker save` does, and returns its path.
pub(super) fn make(folder: &Path) -> Result<PathBuf> {
    let root = folder.join("rootfs");
    for place in ["bin", "tmp", "etc", "proc", "sys", "dev"] {
        fs::create_dir_all(root.join(place))?;
    }
    let shell = programs::find("busybox".as_ref())?;
    copy(&shell, &root.join("bin/busybox"))?;
    for tool in ["sh", "sleep", "cat", "grep", "seq", "true"] {
        symlink("busybox", root.join("bin").join(tool))?;
    }
    let app = programs::mesh_binary("mesh-lab-app")?;
    copy(&app, &root.join("bin/mesh-lab-app"))?;
    for library in libraries(&app)? {
        let inside = library.strip_prefix("/")?;
        copy(&library, &root.join(inside))?;
    }
    let layer = folder.join("layer.tar");
    tar(&root, &layer, &["."])?;
    let digest = run(Command::new("sha256sum").arg(&layer))?;
    let digest = digest.split(' ').next().context("what sha256sum says")?;
    let config = json!({
        "architecture": architecture(),
        "os": "linux",
        "config": {
            "Env": ["PATH=/bin"],
            "Entrypoint": ["/bin/sleep", "1000000000"],
        },
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{digest}")]},
    });
    let manifest = json!([{
        "Config": "config.json",
        "RepoTags": [PAUSE, APP],
        "Layers": ["layer.tar"],
    }]);
    fs::write(folder.join("config.json"), config.to_string())?;
    fs::write(folder.join("manifest.json"), manifest.to_string())?;
    let archive = folder.join("image.tar");
    tar(
        folder,
        &archive,
        &["manifest.json", "config.json", "layer.tar"],
    )?;
    Ok(archive)
}

/// In the words of Go.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    let folder = to.parent().context("a file in a folder")?;
    fs::create_dir_all(folder)?;
    fs::copy(from, to).with_context(|| format!("{} to {}", from.display(), to.display()))?;
    fs::set_permissions(to, Permissions::from_mode(0o755))?;
    Ok(())
}

fn tar(folder: &Path, to: &Path, what: &[&str]) -> Result<()> {
    let mut command = Command::new("tar");
    command.args(["--numeric-owner", "-C"]).arg(folder);
    command.arg("-cf").arg(to).args(what);
    run(&mut command).map(drop)
}

/// The dynamic loader and the libraries of a program.
fn libraries(program: &Path) -> Result<Vec<PathBuf>> {
    // As `ldd` does, which is a script that not every machine has.
    let told = run(Command::new(program).env("LD_TRACE_LOADED_OBJECTS", "1"))?;
    let paths = told.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        words.find(|word| word.starts_with('/')).map(PathBuf::from)
    });
    Ok(paths.collect())
}
