//! From a file's text to objects, each with the place it came from.

use std::path::Path;
use std::sync::Arc;

use serde::de::DeserializeOwned;

use super::Mistake;
use super::locate::{self, Step};
use super::schema::budget::WorkerBudget;
use super::schema::policy::{API_VERSION, Authentication, Authorization, Object};
use super::schema::revocation::Revocation;
use super::schema::traffic::ServicePolicy;
use super::schema::{EndpointSlice, Head, Label, Name, Named, Pod, Service};

/// Where an object was read.
#[derive(Clone, Debug)]
pub(super) struct Place {
    file: Arc<Path>,
    /// The document; empty for an object that did not come as a text.
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
            dangling: false,
        }
    }

    /// The same of a field that names what isn't there.
    pub(super) fn dangling(&self, path: &[Step], what: impl Into<String>) -> Mistake {
        Mistake {
            dangling: true,
            ..self.mistake(path, what)
        }
    }

    /// `file:line` of the document's name.
    pub(super) fn shown(&self) -> String {
        let file = self.file.display();
        match self.line(&["metadata".into(), "name".into()]) {
            0 => file.to_string(),
            line => format!("{file}:{line}"),
        }
    }

    /// 0 where there is no text.
    fn line(&self, path: &[Step]) -> usize {
        if self.text.is_empty() {
            return 0;
        }
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
#[derive(Clone, Debug, Default)]
pub(super) struct Found {
    pub(super) namespaces: Vec<Placed<Named<Label>>>,
    pub(super) accounts: Vec<Placed<Named<Name>>>,
    pub(super) pods: Vec<Placed<Pod>>,
    pub(super) services: Vec<Placed<Service>>,
    pub(super) slices: Vec<Placed<EndpointSlice>>,
    pub(super) nodes: Vec<Placed<Named<Name>>>,
    pub(super) authorizations: Vec<Placed<Object<Authorization>>>,
    pub(super) authentications: Vec<Placed<Object<Authentication>>>,
    pub(super) service_policies: Vec<Placed<Object<ServicePolicy>>>,
    pub(super) budgets: Vec<Placed<Object<WorkerBudget>>>,
    pub(super) revocations: Vec<Placed<Object<Revocation>>>,
    pub(super) mistakes: Vec<Mistake>,
    pub(super) warnings: Vec<Mistake>,
}

impl Found {
    /// Takes in what another one has.
    pub(super) fn absorb(&mut self, other: &Self) {
        let Self {
            namespaces,
            accounts,
            pods,
            services,
            slices,
            nodes,
            authorizations,
            authentications,
            service_policies,
            budgets,
            revocations,
            mistakes,
            warnings,
        } = other;
        self.namespaces.extend_from_slice(namespaces);
        self.accounts.extend_from_slice(accounts);
        self.pods.extend_from_slice(pods);
        self.services.extend_from_slice(services);
        self.slices.extend_from_slice(slices);
        self.nodes.extend_from_slice(nodes);
        self.authorizations.extend_from_slice(authorizations);
        self.authentications.extend_from_slice(authentications);
        self.service_policies.extend_from_slice(service_policies);
        self.budgets.extend_from_slice(budgets);
        self.revocations.extend_from_slice(revocations);
        self.mistakes.extend_from_slice(mistakes);
        self.warnings.extend_from_slice(warnings);
    }
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
        read_document(&place, Body::Text, found);
    }
}

/// Takes an object that is no text, as an API server gives it; `file` stands for it in mistakes.
pub(super) fn take(file: &Path, object: &serde_json::Value, found: &mut Found) {
    let place = Place {
        file: file.into(),
        text: "".into(),
        offset: 0,
    };
    read_document(&place, Body::Value(object), found);
}

/// What a document is read from.
#[derive(Clone, Copy)]
enum Body<'a> {
    /// Its place has the text.
    Text,
    Value(&'a serde_json::Value),
}

fn read_document(place: &Place, body: Body<'_>, found: &mut Found) {
    let head: Head = match parse(place, body) {
        Ok(head) => head,
        Err(mistake) => return found.mistakes.push(mistake),
    };
    let put = match head.kind.as_str() {
        "Namespace" => parse(place, body).map(|object| put(&mut found.namespaces, object, place)),
        "ServiceAccount" => {
            parse(place, body).map(|object| put(&mut found.accounts, object, place))
        }
        "Pod" => parse(place, body).map(|object| put(&mut found.pods, object, place)),
        "Service" => parse(place, body).map(|object| put(&mut found.services, object, place)),
        "EndpointSlice" => parse(place, body).map(|object| put(&mut found.slices, object, place)),
        "Node" => parse(place, body).map(|object| put(&mut found.nodes, object, place)),
        "AuthorizationPolicy" => parse_own(&head, place, body)
            .map(|object| put(&mut found.authorizations, object, place)),
        "AuthenticationPolicy" => parse_own(&head, place, body)
            .map(|object| put(&mut found.authentications, object, place)),
        "ServicePolicy" => parse_own(&head, place, body)
            .map(|object| put(&mut found.service_policies, object, place)),
        "WorkerBudget" => {
            parse_own(&head, place, body).map(|object| put(&mut found.budgets, object, place))
        }
        "Revocation" => {
            parse_own(&head, place, body).map(|object| put(&mut found.revocations, object, place))
        }
        other => {
            let what = format!(
                "{other:?} is skipped: Namespace, ServiceAccount, Pod, Service, EndpointSlice, Node, AuthorizationPolicy, AuthenticationPolicy, ServicePolicy, WorkerBudget and Revocation are read here"
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
fn parse_own<T: DeserializeOwned>(
    head: &Head,
    place: &Place,
    body: Body<'_>,
) -> Result<T, Mistake> {
    let kind = &head.kind;
    let what = match head.api_version.as_deref() {
        Some(API_VERSION) => return parse(place, body),
        Some(other) => format!("{kind} is read here in version {API_VERSION}, not {other:?}"),
        None => format!("missing: {kind} needs apiVersion: {API_VERSION}"),
    };
    Err(place.mistake(&["apiVersion".into()], what))
}

fn parse<T: DeserializeOwned>(place: &Place, body: Body<'_>) -> Result<T, Mistake> {
    match body {
        Body::Text => parse_text(place),
        Body::Value(value) => serde_path_to_error::deserialize(value).map_err(|error| Mistake {
            file: place.file.clone(),
            line: 0,
            field: field(error.path()),
            what: error.into_inner().to_string(),
            dangling: false,
        }),
    }
}

/// A parser's path as it is printed; empty for the object as a whole.
fn field(path: &serde_path_to_error::Path) -> String {
    let path = path.to_string();
    if path == "." { String::new() } else { path }
}

fn parse_text<T: DeserializeOwned>(place: &Place) -> Result<T, Mistake> {
    if let Ok(object) = serde_yaml_ng::from_str(&place.text) {
        return Ok(object);
    }
    // Read again to find the field, and after as many empty lines as come before the document in
    // its file: so the parser counts as the operator does.
    let padded = format!("{}{}", "\n".repeat(place.offset), place.text);
    let deserializer = serde_yaml_ng::Deserializer::from_str(&padded);
    serde_path_to_error::deserialize(deserializer).map_err(|error| {
        let field = field(error.path());
        let inner = error.into_inner();
        let mut what = inner.to_string();
        let mut line = 1;
        if let Some(location) = inner.location() {
            line = location.line();
            // Given once, at the front.
            let (line, column) = (location.line(), location.column());
            what = what.replacen(&format!(" at line {line} column {column}"), "", 1);
        }
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
            dangling: false,
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
