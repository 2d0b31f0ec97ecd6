//! From a file's text to objects, each with the place it came from.

use std::path::Path;
use std::sync::Arc;

use serde::de::DeserializeOwned;

use super::Mistake;
use super::locate::{self, Step};
use super::schema::budget::WorkerBudget;
use super::schema::policy::{API_VERSION, Authentication, Authorization, Object};
use super::schema::traffic::ServicePolicy;
use super::schema::{Head, Label, Name, Named, Pod, Service};

/// Where an object was read.
#[derive(Clone, Debug)]
pub(super) struct Place {
    file: Arc<Path>,
    /// The document.
    text: Arc<str>,
    /// Lines before it in the file.
    offset: usize,
}

impl Place {
    /// A mistake at the field with this path.
    pub(super) fn mistake(&self, path: &[Step], what: impl Into<String>) -> Mistake {
        Mistake {
            file: self.file.clone(),
            line: self.line(path),
            field: locate::printed(path),
            what: what.into(),
        }
    }

    /// `file:line` of the document's name.
    pub(super) fn shown(&self) -> String {
        let line = self.line(&["metadata".into(), "name".into()]);
        format!("{}:{line}", self.file.display())
    }

    fn line(&self, path: &[Step]) -> usize {
        self.offset + locate::line(&self.text, path)
    }
}

/// An object and its place.
#[derive(Clone, Debug)]
pub(super) struct Placed<T> {
    pub(super) object: T,
    pub(super) place: Place,
}

/// Everything that was read.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) namespaces: Vec<Placed<Named<Label>>>,
    pub(super) accounts: Vec<Placed<Named<Name>>>,
    pub(super) pods: Vec<Placed<Pod>>,
    pub(super) services: Vec<Placed<Service>>,
    pub(super) nodes: Vec<Placed<Named<Name>>>,
    pub(super) authorizations: Vec<Placed<Object<Authorization>>>,
    pub(super) authentications: Vec<Placed<Object<Authentication>>>,
    pub(super) service_policies: Vec<Placed<Object<ServicePolicy>>>,
    pub(super) budgets: Vec<Placed<Object<WorkerBudget>>>,
    pub(super) mistakes: Vec<Mistake>,
    pub(super) warnings: Vec<Mistake>,
}

/// Reads all documents of a file.
pub(super) fn read(path: &Path, text: &str, found: &mut Found) {
    let file: Arc<Path> = path.into();
    for (offset, text) in split(text) {
        let place = Place {
            file: file.clone(),
            text: text.into(),
            offset,
        };
        read_document(&place, found);
    }
}

fn read_document(place: &Place, found: &mut Found) {
    let head: Head = match parse(place) {
        Ok(head) => head,
        Err(mistake) => return found.mistakes.push(mistake),
    };
    let put = match head.kind.as_str() {
        "Namespace" => parse(place).map(|object| put(&mut found.namespaces, object, place)),
        "ServiceAccount" => parse(place).map(|object| put(&mut found.accounts, object, place)),
        "Pod" => parse(place).map(|object| put(&mut found.pods, object, place)),
        "Service" => parse(place).map(|object| put(&mut found.services, object, place)),
        "Node" => parse(place).map(|object| put(&mut found.nodes, object, place)),
        "AuthorizationPolicy" => {
            parse_own(&head, place).map(|object| put(&mut found.authorizations, object, place))
        }
        "AuthenticationPolicy" => {
            parse_own(&head, place).map(|object| put(&mut found.authentications, object, place))
        }
        "ServicePolicy" => {
            parse_own(&head, place).map(|object| put(&mut found.service_policies, object, place))
        }
        "WorkerBudget" => {
            parse_own(&head, place).map(|object| put(&mut found.budgets, object, place))
        }
        other => {
            let what = format!(
                "{other:?} is skipped: Namespace, ServiceAccount, Pod, Service, Node, AuthorizationPolicy, AuthenticationPolicy, ServicePolicy and WorkerBudget are read here"
            );
            let warning = place.mistake(&["kind".into()], what);
            return found.warnings.push(warning);
        }
    };
    if let Err(mistake) = put {
        found.mistakes.push(mistake);
    }
}

fn put<T>(objects: &mut Vec<Placed<T>>, object: T, place: &Place) {
    let place = place.clone();
    objects.push(Placed { object, place });
}

/// Parses an object of one of the mesh's own kinds.
fn parse_own<T: DeserializeOwned>(head: &Head, place: &Place) -> Result<T, Mistake> {
    let kind = &head.kind;
    let what = match head.api_version.as_deref() {
        Some(API_VERSION) => return parse(place),
        Some(other) => format!("{kind} is read here in version {API_VERSION}, not {other:?}"),
        None => format!("missing: {kind} needs apiVersion: {API_VERSION}"),
    };
    Err(place.mistake(&["apiVersion".into()], what))
}

fn parse<T: DeserializeOwned>(place: &Place) -> Result<T, Mistake> {
    if let Ok(object) = serde_yaml_ng::from_str(&place.text) {
        return Ok(object);
    }
    // Read again to find the field, and after as many empty lines as come before the document in
    // its file: so the parser counts as the operator does.
    let padded = format!("{}{}", "\n".repeat(place.offset), place.text);
    let deserializer = serde_yaml_ng::Deserializer::from_str(&padded);
    serde_path_to_error::deserialize(deserializer).map_err(|error| {
        let path = error.path().to_string();
        let inner = error.into_inner();
        let mut what = inner.to_string();
        let mut line = 1;
        if let Some(location) = inner.location() {
            line = location.line();
            // Given once, at the front.
            let (line, column) = (location.line(), location.column());
            what = what.replacen(&format!(" at line {line} column {column}"), "", 1);
        }
        let field = if path == "." { String::new() } else { path };
        // So is the path, which the parser may know less far.
        if let Some((prefix, rest)) = what.split_once(": ")
            && field.starts_with(prefix)
        {
            what = rest.to_owned();
        }
        Mistake {
            file: place.file.clone(),
            line,
            field,
            what,
        }
    })
}

/// The documents of a stream, each with the number of lines before it. A line that begins
/// with `---` is a document's start wherever it stands (YAML 1.2, §9.1.2).
fn split(text: &str) -> Vec<(usize, String)> {
    let mut documents = vec![(0, String::new())];
    for (number, line) in text.lines().enumerate() {
        let marker = line == "---" || line.starts_with("--- ") || line.starts_with("---\t");
        if marker {
            documents.push((number, String::new()));
        }
        if let Some((_, document)) = documents.last_mut() {
            document.push_str(line);
            document.push('\n');
        }
    }
    documents.retain(|(_, document)| {
        document.lines().any(|line| {
            let line = line.strip_prefix("---").unwrap_or(line).trim();
            !line.is_empty() && !line.starts_with('#')
        })
    });
    documents
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_keep_their_lines() {
        let text = "# head\n---\na: 1\n---\n\n--- # more\nb: |\n  x\n  ---\n--- {c: 1}\n";
        let split = split(text);
        let starts: Vec<_> = split.iter().map(|(offset, _)| *offset).collect();
        assert_eq!(starts, [1, 5, 9]);
        assert!(split[1].1.contains("  ---\n"));
    }
}
