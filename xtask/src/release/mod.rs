//! `cargo xtask image` and `cargo xtask dist`: what is handed out, made so that the same source makes
//! the same bytes.

mod build;
mod containerfile;
mod image;
mod provenance;
mod sbom;
mod tar;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::Args;
use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::exec;
use image::sha256;
use sbom::Packages;
use tar::{File, Files};

/// The platform that is released.
const TARGET: &str = "x86_64-unknown-linux-gnu";
/// Images, and the packages of the workspace that are in each. The kernel programs are in the agent.
const IMAGES: [(&str, &[&str]); 2] = [
    ("mesh-agent", &["mesh-agent", "mesh-ebpf"]),
    ("mesh-control", &["mesh-control", "mesh-cli"]),
];
const CHART: &str = "deploy/chart/nodemesh";

/// What to make
#[derive(Args)]
pub(crate) struct ReleaseArgs {
    /// Take the static binaries that are there
    #[arg(long)]
    no_build: bool,
    /// Where to leave it [default: target/release-VERSION]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

impl ReleaseArgs {
    /// Images in this folder.
    pub(crate) fn images_in(out: PathBuf, no_build: bool) -> Self {
        Self {
            no_build,
            out: Some(out),
        }
    }
}

/// Name of the archive that [`images`] leaves of an image.
pub(crate) fn archive_name(image: &str) -> String {
    format!("{image}-{}-linux-amd64.oci.tar", env!("CARGO_PKG_VERSION"))
}

/// Where the static binaries are that images are made of.
pub(crate) fn binaries_folder(workspace: &Path) -> PathBuf {
    build::folder(workspace)
}

/// What a release is called, and of when.
struct Release {
    version: String,
    license: String,
    repository: String,
    /// The commit, and whether it is all.
    commit: String,
    /// `SOURCE_DATE_EPOCH`, or the time of the commit: seconds since the epoch.
    time_s: u64,
}

impl Release {
    fn read(workspace: &Path) -> Result<Self> {
        let manifest = fs::read_to_string(workspace.join("Cargo.toml")).context("Cargo.toml")?;
        let (_, package) = manifest
            .split_once("[workspace.package]")
            .context("Cargo.toml has no [workspace.package]")?;
        let field = |name: &str| {
            let line = package.lines().find_map(|line| line.strip_prefix(name));
            let value = line.and_then(|line| line.trim().strip_prefix('='));
            let value = value.with_context(|| format!("[workspace.package] has no {name}"))?;
            anyhow::Ok(value.trim().trim_matches('"').to_owned())
        };
        let git = |arguments: &[&str]| {
            let mut git = Command::new("git");
            let said = exec::read(git.current_dir(workspace).args(arguments))?;
            anyhow::Ok(said.trim().to_owned())
        };
        let changed = match git(&["status", "--porcelain"])?.as_str() {
            "" => "",
            _ => "-dirty",
        };
        let time_s = match std::env::var("SOURCE_DATE_EPOCH") {
            Ok(given) => given,
            Err(_) => git(&["log", "-1", "--format=%ct"])?,
        };
        Ok(Self {
            version: field("version")?,
            license: field("license")?,
            repository: field("repository")?,
            commit: git(&["rev-parse", "HEAD"])? + changed,
            time_s: time_s.parse().context("SOURCE_DATE_EPOCH")?,
        })
    }
}

/// A time as documents have it.
fn rfc3339(time_s: u64) -> Result<String> {
    let time = OffsetDateTime::from_unix_timestamp(time_s.try_into()?)?;
    Ok(time.format(&Rfc3339)?)
}

/// What is made, file by file, each told with its digest as it is written.
struct Shelf {
    folder: PathBuf,
    hashes: BTreeMap<String, String>,
}

impl Shelf {
    fn new(workspace: &Path, args: &ReleaseArgs, release: &Release) -> Result<Self> {
        let usual = || workspace.join(format!("target/release-{}", release.version));
        let folder = args.out.clone().unwrap_or_else(usual);
        fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
        Ok(Self {
            folder,
            hashes: BTreeMap::new(),
        })
    }

    fn put(&mut self, name: impl Into<String>, content: &[u8]) -> Result<()> {
        let name = name.into();
        let path = self.folder.join(&name);
        fs::write(&path, content).with_context(|| format!("writing {}", path.display()))?;
        println!("{}", path.display());
        self.hashes.insert(name, sha256(content));
        Ok(())
    }

    fn put_json(&mut self, name: impl Into<String>, content: &Value) -> Result<()> {
        self.put(name, &serde_json::to_vec_pretty(content)?)
    }
}

/// Makes the images, with what they are made of and where they come from.
pub(crate) fn images(workspace: &Path, args: &ReleaseArgs) -> Result<()> {
    let release = Release::read(workspace)?;
    let mut shelf = Shelf::new(workspace, args, &release)?;
    let binaries = binaries(workspace, args)?;
    put_images(workspace, &binaries, &release, &mut shelf)
}

/// Makes everything that is handed out.
pub(crate) fn dist(workspace: &Path, args: &ReleaseArgs) -> Result<()> {
    let release = Release::read(workspace)?;
    let mut shelf = Shelf::new(workspace, args, &release)?;
    let binaries = binaries(workspace, args)?;
    put_images(workspace, &binaries, &release, &mut shelf)?;
    let version = &release.version;
    let read = |path: PathBuf| {
        let content = fs::read(&path);
        content.with_context(|| format!("reading {}", path.display()))
    };
    let mut files = Files::new();
    let folder = format!("nodemesh-{version}");
    for program in build::PROGRAMS {
        let program_file = File::program(read(binaries.join(program))?);
        files.insert(format!("{folder}/{program}"), program_file);
    }
    for text in ["LICENSE", "README.md", "CHANGELOG.md"] {
        files.insert(
            format!("{folder}/{text}"),
            File::text(read(workspace.join(text))?),
        );
    }
    shelf.put(
        format!("nodemesh-{version}-linux-amd64.tar.gz"),
        &tar::gzipped(&files, release.time_s)?,
    )?;
    let mut chart = Files::new();
    collect(&workspace.join(CHART), "nodemesh", &mut chart)?;
    shelf.put(
        format!("nodemesh-chart-{version}.tgz"),
        &tar::gzipped(&chart, release.time_s)?,
    )?;
    for (name, path) in [
        ("manifests.yaml", "deploy/manifests/nodemesh.yaml"),
        ("definitions.yaml", "deploy/definitions.yaml"),
    ] {
        shelf.put(
            format!("nodemesh-{version}-{name}"),
            &read(workspace.join(path))?,
        )?;
    }
    let statement = provenance::statement(workspace, &shelf.hashes, &release)?;
    shelf.put_json(format!("nodemesh-{version}.provenance.json"), &statement)?;
    let sums = shelf.hashes.iter();
    let sums: String = sums
        .map(|(name, hash)| format!("{hash}  {name}\n"))
        .collect();
    shelf.put("SHA256SUMS", sums.as_bytes())
}

fn binaries(workspace: &Path, args: &ReleaseArgs) -> Result<PathBuf> {
    if !args.no_build {
        return build::static_binaries(workspace);
    }
    let folder = build::folder(workspace);
    match build::PROGRAMS
        .iter()
        .all(|program| folder.join(program).is_file())
    {
        true => Ok(folder),
        false => bail!(
            "no static binaries in {}: leave --no-build out",
            folder.display()
        ),
    }
}

fn put_images(
    workspace: &Path,
    binaries: &Path,
    release: &Release,
    shelf: &mut Shelf,
) -> Result<()> {
    let packages = Packages::read(workspace)?;
    for (name, of) in IMAGES {
        let image = image::pack(name, &recipe(workspace, name)?, binaries, release)?;
        let version = &release.version;
        shelf.put(archive_name(name), &image.archive)?;
        println!("  {}", image.digest);
        let bill = packages.bill(name, of, release)?;
        shelf.put_json(format!("{name}-{version}.cdx.json"), &bill)?;
        let of_image = BTreeMap::from([(
            name.to_owned(),
            image.digest.trim_start_matches("sha256:").to_owned(),
        )]);
        let statement = provenance::statement(workspace, &of_image, release)?;
        shelf.put_json(format!("{name}-{version}.provenance.json"), &statement)?;
    }
    Ok(())
}

fn recipe(workspace: &Path, name: &str) -> Result<containerfile::Recipe> {
    let path = workspace.join(format!("deploy/image/{name}.Containerfile"));
    let text = fs::read_to_string(&path);
    let parsed = text.map_err(anyhow::Error::from);
    let parsed = parsed.and_then(|text| containerfile::parse(&text));
    parsed.with_context(|| path.display().to_string())
}

/// The files of a folder, what links lead to in their place, but for those that tests alone read.
fn collect(folder: &Path, name: &str, files: &mut Files) -> Result<()> {
    let entries = fs::read_dir(folder).with_context(|| format!("reading {}", folder.display()))?;
    for entry in entries {
        let path = entry?.path();
        let of = path.file_name().unwrap_or_default().to_string_lossy();
        let inside = format!("{name}/{of}");
        match path.is_dir() {
            true if of == "ci" => {}
            true => collect(&path, &inside, files)?,
            false => {
                files.insert(inside, File::text(fs::read(&path)?));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
