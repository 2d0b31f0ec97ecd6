//! OCI images, made of files alone (image-spec v1.1).

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use aws_lc_rs::digest::{self, SHA256};
use serde_json::{Value, json};

use super::containerfile::Recipe;
use super::tar::{self, File, Files};
use super::{Release, rfc3339};

const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// An image, packed.
pub(crate) struct Image {
    /// An OCI layout as a tar archive, for `ctr image import`, `skopeo copy oci-archive:…`, `podman load`.
    pub(crate) archive: Vec<u8>,
    /// `sha256:…` of its manifest, which is what a pod names.
    pub(crate) digest: String,
}

/// Fills a container file from a folder of binaries.
///
/// # Errors
/// A binary that can't be read.
pub(crate) fn pack(
    name: &str,
    recipe: &Recipe,
    binaries: &Path,
    release: &Release,
) -> Result<Image> {
    let mut files = Files::new();
    for (sources, folder) in &recipe.copies {
        for source in sources {
            let path = binaries.join(source);
            let content = fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
            let to = format!("{}{source}", folder.trim_start_matches('/'));
            files.insert(to, File::program(content));
        }
    }
    let mut layout = Layout::default();
    let layer = layout.add(LAYER, tar::archive(&files, release.time_s)?);
    let created = rfc3339(release.time_s)?;
    let labels = json!({
        "org.opencontainers.image.title": name,
        "org.opencontainers.image.version": release.version,
        "org.opencontainers.image.revision": release.commit,
        "org.opencontainers.image.source": release.repository,
        "org.opencontainers.image.licenses": release.license,
    });
    let config = json!({
        "created": created,
        "architecture": "amd64",
        "os": "linux",
        "config": {
            "User": recipe.user,
            "Entrypoint": recipe.entrypoint,
            "Cmd": recipe.arguments,
            "WorkingDir": "/",
            "Labels": labels,
        },
        // The layer is not compressed, so both of its digests are one.
        "rootfs": {"type": "layers", "diff_ids": [layer["digest"]]},
        "history": [{"created": created, "created_by": format!("{name}.Containerfile")}],
    });
    let config = layout.add_json(CONFIG, &config)?;
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": config,
        "layers": [layer],
        "annotations": labels,
    });
    let mut manifest = layout.add_json(MANIFEST, &manifest)?;
    let digest = manifest["digest"].as_str().unwrap_or_default().to_owned();
    manifest["platform"] = json!({"architecture": "amd64", "os": "linux"});
    manifest["annotations"] = json!({
        "org.opencontainers.image.ref.name": release.version,
        "io.containerd.image.name": format!("docker.io/nodemesh/{name}:{}", release.version),
    });
    let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [manifest]});
    let mut files = layout.blobs;
    let marker = r#"{"imageLayoutVersion":"1.0.0"}"#;
    files.insert("oci-layout".to_owned(), File::text(marker));
    files.insert(
        "index.json".to_owned(),
        File::text(serde_json::to_vec(&index)?),
    );
    Ok(Image {
        archive: tar::archive(&files, release.time_s)?,
        digest,
    })
}

/// Blobs by their digest.
#[derive(Default)]
struct Layout {
    blobs: Files,
}

impl Layout {
    /// Adds a blob, and gives its descriptor.
    fn add(&mut self, kind: &str, content: Vec<u8>) -> Value {
        let hash = sha256(&content);
        let descriptor = json!({
            "mediaType": kind,
            "digest": format!("sha256:{hash}"),
            "size": content.len(),
        });
        self.blobs
            .insert(format!("blobs/sha256/{hash}"), File::text(content));
        descriptor
    }

    fn add_json(&mut self, kind: &str, content: &Value) -> Result<Value> {
        Ok(self.add(kind, serde_json::to_vec(content)?))
    }
}

/// The SHA-256 of some bytes, in hexadecimal digits.
pub(crate) fn sha256(bytes: &[u8]) -> String {
    let hash = digest::digest(&SHA256, bytes);
    hash.as_ref()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}
