//! A backup as a file: what is in it, and how it is known to be whole.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use aws_lc_rs::digest;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// What the file says that it is.
const FORMAT: &str = "nodemesh-backup";
/// The version of the format that is written, and the newest that is read.
const VERSION: u64 = 1;

/// Where a backup is from, and what it holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "source", rename_all = "camelCase", deny_unknown_fields)]
pub(crate) enum Content {
    /// A cluster.
    Kubernetes {
        /// Labels of the mesh's, by namespace.
        namespaces: BTreeMap<String, BTreeMap<String, String>>,
        /// Objects of the mesh's own kinds, without what the API server adds.
        objects: Vec<Value>,
    },
    /// A folder of manifests.
    Manifests {
        /// Texts, by file name.
        files: BTreeMap<String, String>,
    },
}

/// A backup.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Backup {
    format: String,
    version: u64,
    /// Which program made it.
    pub(crate) made_by: String,
    /// When, RFC 3339.
    pub(crate) made_at: String,
    /// What it holds.
    pub(crate) content: Content,
}

/// Why a file is no backup that can be restored.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DocumentFault {
    #[error("can't read {0}: {1}")]
    Read(PathBuf, std::io::Error),
    #[error("{0} is no backup of Nodemesh's: {1}")]
    Other(PathBuf, String),
    #[error(
        "{0} is a backup in version {1}, and this meshctl reads versions up to {VERSION}: use the meshctl that made it, or a newer one"
    )]
    Newer(PathBuf, u64),
    #[error(
        "{path} was altered or is damaged: it says sha256:{said}, and what it holds is sha256:{found}. Use another copy"
    )]
    Altered {
        path: PathBuf,
        said: String,
        found: String,
    },
    #[error("{path} is another backup than the one asked for: it is sha256:{found}, not {asked}")]
    Another {
        path: PathBuf,
        found: String,
        asked: String,
    },
}

impl Backup {
    /// A backup that is made now.
    pub(crate) fn new(content: Content, made_at: String) -> Self {
        Self {
            format: FORMAT.to_owned(),
            version: VERSION,
            made_by: format!("meshctl {}", env!("CARGO_PKG_VERSION")),
            made_at,
            content,
        }
    }

    /// The file's text, and its hash.
    pub(crate) fn text(&self) -> Result<(String, String), serde_json::Error> {
        let mut document = serde_json::to_value(self)?;
        let sha256 = hash(&document);
        document["sha256"] = sha256.clone().into();
        Ok((format!("{document:#}\n"), sha256))
    }

    /// Reads a file and holds it against its hash, and against `digest` (`sha256:…`), if one is given.
    pub(crate) fn read(path: &Path, digest: Option<&str>) -> Result<Self, DocumentFault> {
        let text = std::fs::read_to_string(path);
        let text = text.map_err(|error| DocumentFault::Read(path.to_owned(), error))?;
        Self::parse(path, &text, digest)
    }

    fn parse(path: &Path, text: &str, digest: Option<&str>) -> Result<Self, DocumentFault> {
        let other =
            |why: &dyn std::fmt::Display| DocumentFault::Other(path.into(), why.to_string());
        let mut document: Value = serde_json::from_str(text).map_err(|e| other(&e))?;
        if document["format"] != FORMAT {
            return Err(other(&format_args!("format is not {FORMAT:?}")));
        }
        let version = document["version"].as_u64();
        let version = version.ok_or_else(|| other(&"version is no number"))?;
        if version > VERSION {
            return Err(DocumentFault::Newer(path.to_owned(), version));
        }
        let said = document
            .as_object_mut()
            .and_then(|all| all.remove("sha256"));
        let said = said.as_ref().and_then(Value::as_str).unwrap_or("nothing");
        let found = hash(&document);
        if said != found {
            return Err(DocumentFault::Altered {
                path: path.to_owned(),
                said: said.to_owned(),
                found,
            });
        }
        if let Some(asked) = digest.filter(|asked| asked.trim_start_matches("sha256:") != found) {
            return Err(DocumentFault::Another {
                path: path.to_owned(),
                found,
                asked: asked.to_owned(),
            });
        }
        serde_json::from_value(document).map_err(|e| other(&e))
    }
}

/// SHA-256, hex, of a value's canonical form.
fn hash(value: &Value) -> String {
    let mut text = String::new();
    canonical(value, &mut text);
    let hash = digest::digest(&digest::SHA256, text.as_bytes());
    hash.as_ref()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// JSON without space, and with the keys of each object in order: however a file was written, what it
/// holds has one hash.
fn canonical(value: &Value, text: &mut String) {
    match value {
        Value::Object(fields) => {
            let sorted: BTreeMap<_, _> = fields.iter().collect();
            text.push('{');
            for (index, (name, field)) in sorted.into_iter().enumerate() {
                if index > 0 {
                    text.push(',');
                }
                text.push_str(&Value::from(name.as_str()).to_string());
                text.push(':');
                canonical(field, text);
            }
            text.push('}');
        }
        Value::Array(items) => {
            text.push('[');
            for (index, item) in items.iter().enumerate() {
                if index > 0 {
                    text.push(',');
                }
                canonical(item, text);
            }
            text.push(']');
        }
        plain => text.push_str(&plain.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn backup() -> Backup {
        let files = BTreeMap::from([("a.yaml".to_owned(), "kind: Namespace\n".to_owned())]);
        Backup::new(
            Content::Manifests { files },
            "2026-01-01T00:00:00Z".to_owned(),
        )
    }

    fn parse(text: &str, digest: Option<&str>) -> Result<Backup, String> {
        Backup::parse(Path::new("b.json"), text, digest).map_err(|error| error.to_string())
    }

    #[test]
    fn what_is_written_is_read_and_nothing_else() {
        let (text, sha256) = backup().text().unwrap();
        assert_eq!(parse(&text, None).unwrap().content, backup().content);
        assert!(parse(&text, Some(&format!("sha256:{sha256}"))).is_ok());
        // Another form of the same.
        let value: Value = serde_json::from_str(&text).unwrap();
        assert!(parse(&value.to_string(), None).is_ok());
        for (from, to, expected) in [
            ("Namespace", "Namespaces", "was altered or is damaged"),
            ("a.yaml", "b.yaml", "was altered or is damaged"),
            (
                "\"version\": 1",
                "\"version\": 2",
                "is a backup in version 2",
            ),
            ("nodemesh-backup", "other", "is no backup of Nodemesh's"),
            ("sha256", "sha1", "was altered or is damaged"),
            ("{", "", "is no backup of Nodemesh's"),
        ] {
            let altered = text.replacen(from, to, 1);
            assert_ne!(altered, text);
            let error = parse(&altered, None).unwrap_err();
            assert!(error.contains(expected), "{from}: {error}");
        }
        let error = parse(&text, Some("sha256:00")).unwrap_err();
        assert!(error.contains("is another backup"), "{error}");
    }
}
