//! `meshctl backup` and `meshctl restore`: all that an operator has told the mesh.

mod cluster;
mod document;
mod folder;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::cluster::ClusterArgs;
use cluster::Saved;
use document::{Backup, Content};

/// Where the mesh's objects are.
#[derive(Args, Debug)]
#[group(required = true, multiple = false)]
struct PlaceArgs {
    /// The folder of manifests that mesh-control reads
    #[arg(long, value_name = "DIR")]
    manifests: Option<PathBuf>,
    /// The cluster
    #[arg(long)]
    kubernetes: bool,
}

/// Options of `backup`.
#[derive(Args, Debug)]
pub(crate) struct BackupArgs {
    #[command(flatten)]
    place: PlaceArgs,
    #[command(flatten)]
    cluster: ClusterArgs,
    /// The file to write; the standard output without it
    #[arg(long, value_name = "FILE")]
    to: Option<PathBuf>,
}

/// Options of `restore`.
#[derive(Args, Debug)]
pub(crate) struct RestoreArgs {
    /// The backup
    file: PathBuf,
    #[command(flatten)]
    place: PlaceArgs,
    #[command(flatten)]
    cluster: ClusterArgs,
    /// Say what would be done, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Also delete what is there and not in the backup. No namespace is taken out of the mesh
    #[arg(long)]
    prune: bool,
    /// The backup must be this one, sha256:…, as `backup` said when it made it
    #[arg(long, value_name = "SHA256")]
    digest: Option<String>,
}

/// What a restore does, each thing by its name.
#[derive(Debug, Default)]
struct Plan {
    create: Vec<String>,
    change: Vec<String>,
    /// There, and not in the backup.
    extra: Vec<String>,
    /// What is told, and not touched.
    left: Vec<String>,
    /// How many are as they should be.
    same: usize,
}

impl Plan {
    /// Line by line.
    fn text(&self, prune: bool) -> String {
        let extra = match prune {
            true => "delete",
            false => "not in the backup, left",
        };
        let sorts = [
            ("create", &self.create),
            ("change", &self.change),
            (extra, &self.extra),
            ("note", &self.left),
        ];
        let mut text = String::new();
        for (what, names) in sorts {
            for name in names {
                text.push_str(&format!("{what}: {name}\n"));
            }
        }
        text.push_str(&format!("{} as in the backup already\n", self.same));
        text
    }
}

/// Makes a backup; returns what there is to say of it.
pub(crate) fn backup(args: &BackupArgs) -> Result<String> {
    let content = match &args.place.manifests {
        Some(folder) => Content::Manifests {
            files: folder::save(folder)?,
        },
        None => {
            let Saved {
                namespaces,
                objects,
            } = args
                .cluster
                .run(async |client| Saved::read(&client).await)?;
            let objects = objects.into_values().collect();
            Content::Kubernetes {
                namespaces,
                objects,
            }
        }
    };
    let number = match &content {
        Content::Kubernetes {
            namespaces,
            objects,
        } => namespaces.len() + objects.len(),
        Content::Manifests { files } => files.len(),
    };
    let made_at = OffsetDateTime::now_utc().format(&Rfc3339)?;
    let (text, sha256) = Backup::new(content, made_at).text()?;
    match &args.to {
        None => print!("{text}"),
        Some(path) => write(path, &text)?,
    }
    Ok(format!("{number} saved, sha256:{sha256}"))
}

/// Writes a file whole or not at all.
fn write(path: &Path, text: &str) -> Result<()> {
    let mut draft = path.as_os_str().to_owned();
    draft.push(".part");
    let written = std::fs::write(&draft, text).and_then(|()| std::fs::rename(&draft, path));
    written.with_context(|| format!("writing {}", path.display()))
}

/// Restores a backup; returns what was done.
pub(crate) fn restore(args: &RestoreArgs) -> Result<String> {
    let backup = Backup::read(&args.file, args.digest.as_deref())?;
    let (by, at) = (&backup.made_by, &backup.made_at);
    let head = format!("{}: made by {by} at {at}\n", args.file.display());
    let plan = match (backup.content, &args.place.manifests) {
        (Content::Manifests { files }, Some(folder)) => {
            let plan = folder::plan(&folder::save(folder).unwrap_or_default(), &files);
            if !args.dry_run {
                folder::restore(folder, &files, &plan, args.prune)?;
                let rest = folder::plan(&folder::save(folder)?, &files);
                ensure_restored(&rest, args.prune)?;
            }
            plan
        }
        (
            Content::Kubernetes {
                namespaces,
                objects,
            },
            None,
        ) => {
            let wanted = Saved::from_backup(namespaces, objects)?;
            args.cluster.run(async |client| {
                let there = Saved::read(&client).await?;
                let plan = wanted.plan(&there);
                if !args.dry_run {
                    wanted.restore(&client, &there, args.prune).await?;
                    let rest = wanted.plan(&Saved::read(&client).await?);
                    ensure_restored(&rest, args.prune)?;
                }
                Ok(plan)
            })?
        }
        (Content::Manifests { .. }, None) => {
            bail!("this is a backup of a folder of manifests: give --manifests")
        }
        (Content::Kubernetes { .. }, Some(_)) => {
            bail!("this is a backup of a cluster: give --kubernetes")
        }
    };
    Ok(head + &plan.text(args.prune))
}

/// What was restored is read again.
fn ensure_restored(rest: &Plan, prune: bool) -> Result<()> {
    let done =
        rest.create.is_empty() && rest.change.is_empty() && (rest.extra.is_empty() || !prune);
    ensure!(
        done,
        "what is there now is not what the backup has; somebody else may be changing it. Run it again:\n{}",
        rest.text(prune)
    );
    Ok(())
}
