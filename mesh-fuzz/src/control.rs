//! What control reads.

use std::cell::RefCell;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use mesh_agent::{supervisor, worker};
use mesh_api::ads::DeltaDiscoveryRequest;
use mesh_api::node::{JoinRequest, NodeReport};
use mesh_api::{ADDRESS_TYPE_URL, POLICY_TYPE_URL};
use mesh_control::admin::Admin;
use mesh_control::audit::{Audit, Event};
use mesh_control::ca::RequestedKey;
use mesh_control::registry::{Directory, Pending, Registry, ResourceType};
use mesh_control::sources::manifests::{ManifestFault, parse};
use mesh_control::tokens::TokenStore;
use mesh_control::xds::session::Session;
use mesh_core::identity::{NodeIdentity, TrustDomain};
use mesh_core::model::Mesh;
use prost::Message as _;
use serde_json::Value;

use crate::input::Input;
use crate::{logs, node};

const MANIFESTS: &str = include_str!("mesh.yaml");

pub(crate) fn trust_domain() -> TrustDomain {
    "cluster.local".parse().expect("a trust domain")
}

fn read(text: &str) -> Result<Mesh, ManifestFault> {
    let file = (PathBuf::from("mesh.yaml"), text.to_owned());
    parse(&[file], &trust_domain()).map(|loaded| loaded.mesh)
}

/// One of some pods.
pub(crate) fn mesh() -> Mesh {
    read(MANIFESTS).unwrap_or_else(|fault| panic!("{fault}"))
}

thread_local! {
    static DIRECTORIES: [Directory; 2] = [
        Directory::new(mesh()),
        Directory::new(Mesh::default()),
    ];
    static REGISTRY: RefCell<Arc<Registry>> = RefCell::new(Arc::new(Registry::new(
        Directory::new(mesh()),
    )));
    static TOKENS: (tempfile::TempDir, TokenStore) = {
        let folder = tempfile::tempdir().expect("a folder");
        let store = TokenStore::open(folder.path()).expect("a store");
        store.create("node-a", i64::MAX).expect("a token");
        (folder, store)
    };
}

/// Manifests: a mistake is named with its place; and what is taken, an agent and its workers
/// understand to the last word.
pub(crate) fn manifests(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    let mesh = match read(text) {
        Ok(mesh) => mesh,
        Err(ManifestFault::Mistakes(mistakes)) => {
            assert!(!mistakes.is_empty());
            // Those of YAML 1.1, which the parser counts.
            let lines = text
                .matches(['\n', '\r', '\u{85}', '\u{2028}', '\u{2029}'])
                .count();
            for mistake in mistakes {
                // Where the text ends too soon, the parser is a line further.
                assert!(mistake.line <= lines + 2, "{mistake}");
            }
            return;
        }
        Err(fault) => panic!("nothing was to be opened: {fault}"),
    };
    let directory = Directory::new(mesh);
    let mut session = Session::default();
    let responses = [ADDRESS_TYPE_URL, POLICY_TYPE_URL].map(|url| {
        let request = DeltaDiscoveryRequest {
            type_url: url.to_owned(),
            ..DeltaDiscoveryRequest::default()
        };
        session.request(&request, &directory).expect("an answer")
    });
    let responses = responses.iter().flatten();
    let encoded: Vec<Vec<u8>> = responses.map(prost::Message::encode_to_vec).collect();
    let faults = supervisor::fuzzing::discovery_responses(
        encoded.iter().map(Vec::as_slice),
        worker::fuzzing::policy_is_taken,
    );
    assert_eq!(faults, Vec::<String>::new());
}

/// A node's requests on a discovery stream; an empty one changes the mesh. Responses are counted
/// up, and of one batch all but the last say that more follows.
pub(crate) fn discovery_requests(bytes: &[u8]) {
    logs::check();
    DIRECTORIES.with(|directories| {
        let (mut session, mut shown, mut nonce) = (Session::new("node-a"), 0, 0u64);
        let audit = Audit::default();
        for piece in Input(bytes).pieces() {
            let responses = if piece.is_empty() {
                shown = 1 - shown;
                session.changed(&everything(directories), &directories[shown])
            } else {
                let Ok(request) = DeltaDiscoveryRequest::decode(piece) else {
                    continue;
                };
                if let Some(error) = &request.error_detail {
                    let nonce = format_args!("response {}", request.response_nonce);
                    audit.record(Event::DiscoveryRefused, "node-a", nonce, &error.message);
                }
                match session.request(&request, &directories[shown]) {
                    Ok(responses) => responses,
                    Err(fault) => {
                        assert!(!fault.to_string().is_empty());
                        continue;
                    }
                }
            };
            for (index, response) in responses.iter().enumerate() {
                nonce += 1;
                assert_eq!(response.nonce, nonce.to_string());
                assert_eq!(response.more, index + 1 < responses.len());
            }
        }
    });
}

/// As if all that is in any of these had changed.
fn everything(directories: &[Directory]) -> Pending {
    let names = directories.iter().flat_map(|directory| {
        let all = ResourceType::ALL.into_iter();
        all.flat_map(|kind| {
            directory
                .resources(kind)
                .map(move |r| (kind, r.name.clone()))
        })
    });
    Pending {
        names: names.collect(),
        plan: true,
        since: None,
    }
}

/// Signing requests: what is taken is a key of a kind that the mesh signs.
pub(crate) fn csr(bytes: &[u8]) {
    let der = pem::encode(&pem::Pem::new("CERTIFICATE REQUEST", bytes));
    let text = std::str::from_utf8(bytes).unwrap_or_default();
    for text in [text, &der] {
        match RequestedKey::from_pem(text, "spiffe://cluster.local/ns/shop/sa/cart") {
            Ok(key) => {
                let len = rcgen::PublicKeyData::der_bytes(&key).len();
                // Uncompressed points of P-256 and P-384.
                assert!([65, 97].contains(&len), "a key of {len} bytes");
            }
            Err(fault) => assert!(!fault.to_string().is_empty()),
        }
    }
}

/// A join: without the token nobody is taken for the node, and no token is used up.
pub(crate) fn join_request(bytes: &[u8]) {
    let Ok(request) = JoinRequest::decode(bytes) else {
        return;
    };
    if let Ok(identity) = NodeIdentity::new(trust_domain(), &request.node) {
        assert_eq!(identity.to_string().parse(), Ok(identity));
    }
    TOKENS.with(|(folder, store)| {
        let taken = store.consume(&request.token, &request.node, 0);
        assert!(taken.is_err(), "{request:?}");
        let used = folder.path().join("tokens/used").read_dir();
        assert_eq!(used.expect("the folder of used tokens").count(), 0);
    });
}

/// A node's report: what is kept of it is short, and can be shown on a terminal.
pub(crate) fn node_report(bytes: &[u8]) {
    let Ok(report) = NodeReport::decode(bytes) else {
        return;
    };
    let registry = Registry::new(Directory::new(mesh()));
    let now = Instant::now();
    registry.report("node-a", &report, now).expect("the first");
    let status = serde_json::to_value(registry.status(now)).expect("a status");
    let len = status.to_string().len();
    assert!(len < 64 * 1024, "{len} bytes");
    assert!(is_plain(&status), "{status}");
}

/// No text in it has a control character.
fn is_plain(value: &Value) -> bool {
    match value {
        Value::String(text) => !text.chars().any(char::is_control),
        Value::Array(values) => values.iter().all(is_plain),
        Value::Object(fields) => {
            let names = fields
                .keys()
                .all(|name| !name.chars().any(char::is_control));
            names && fields.values().all(is_plain)
        }
        _ => true,
    }
}

/// A line on control's admin socket, and on an agent's.
pub(crate) fn admin_requests(bytes: &[u8]) {
    let Ok(line) = std::str::from_utf8(bytes) else {
        return;
    };
    let Some(request) = node::admin_request(line) else {
        return;
    };
    let registry = REGISTRY.with_borrow(Arc::clone);
    let admin = Admin {
        clocks: Arc::default(),
        series: mesh_control::observe::Series::detached(),
        registry,
        resolvers: Vec::new(),
    };
    let answer = admin.answer(&request);
    let answers = [
        answer.error.is_some(),
        answer.why.is_some(),
        answer.status.is_some(),
    ];
    assert_eq!(answers.into_iter().filter(|there| *there).count(), 1);
}
