//! A double of a Kubernetes API server: lists in pages, watches with bookmarks, and what goes wrong
//! with a real one, on demand.

use std::collections::{BTreeMap, HashMap};
use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;

type Body = BoxBody<Bytes, Infallible>;

/// Plural of each kind that the double knows.
const PLURALS: [(&str, &str); 10] = [
    ("Namespace", "namespaces"),
    ("ServiceAccount", "serviceaccounts"),
    ("Pod", "pods"),
    ("Service", "services"),
    ("Node", "nodes"),
    ("EndpointSlice", "endpointslices"),
    ("AuthorizationPolicy", "authorizationpolicies"),
    ("AuthenticationPolicy", "authenticationpolicies"),
    ("ServicePolicy", "servicepolicies"),
    ("WorkerBudget", "workerbudgets"),
];

/// What happened to an object.
#[derive(Clone)]
struct Change {
    version: u64,
    plural: &'static str,
    what: &'static str,
    object: Value,
}

#[derive(Default)]
struct State {
    version: u64,
    objects: BTreeMap<(&'static str, String, String), Value>,
    changes: Vec<Change>,
    /// Changes up to this version are forgotten: who asks from there gets 410.
    compacted: u64,
    /// Kinds that are answered with this status, by plural.
    refused: HashMap<&'static str, StatusCode>,
    /// Requests so far: lists and watches, by plural.
    asked: HashMap<(&'static str, bool), usize>,
}

/// The double. Its server ends with it.
pub(crate) struct Api {
    state: Arc<Mutex<State>>,
    changed: watch::Sender<u64>,
    /// Counts up when all connections are to be cut.
    cut: watch::Sender<u64>,
    pub(crate) url: String,
    server: tokio::task::JoinHandle<()>,
}

impl Drop for Api {
    fn drop(&mut self) {
        self.server.abort();
        self.cut();
    }
}

impl Api {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let state = Arc::new(Mutex::new(State::default()));
        let (changed, cut) = (watch::Sender::new(0), watch::Sender::new(0));
        let server = tokio::spawn(serve(listener, state.clone(), changed.clone(), cut.clone()));
        Self {
            state,
            changed,
            cut,
            url,
            server,
        }
    }

    pub(crate) fn client(&self) -> kube::Client {
        let config = kube::Config::new(self.url.parse().unwrap());
        kube::Client::try_from(config).unwrap()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Creates or replaces the objects of a manifest.
    pub(crate) fn apply(&self, manifests: &str) {
        for document in manifests.split("\n---\n") {
            let object: Value = serde_yaml_ng::from_str(document).unwrap();
            self.put(object);
        }
    }

    /// Creates or replaces an object.
    pub(crate) fn put(&self, mut object: Value) {
        let plural = plural(object["kind"].as_str().unwrap());
        if !matches!(plural, "namespaces" | "nodes") && object["metadata"]["namespace"].is_null() {
            object["metadata"]["namespace"] = "default".into();
        }
        if object["apiVersion"].is_null() {
            object["apiVersion"] = "v1".into();
        }
        let key = key(plural, &object);
        let mut state = self.state();
        state.version += 1;
        let version = state.version;
        object["metadata"]["resourceVersion"] = version.to_string().into();
        let old = state.objects.get(&key);
        let generation = old.map_or(1, |old| {
            let before = old["metadata"]["generation"].as_i64().unwrap_or(0);
            before + i64::from(old["spec"] != object["spec"])
        });
        object["metadata"]["generation"] = generation.into();
        let what = if old.is_some() { "MODIFIED" } else { "ADDED" };
        if object["metadata"]["uid"].is_null() {
            let born = old.map(|old| old["metadata"]["uid"].clone());
            object["metadata"]["uid"] = born.unwrap_or_else(|| format!("uid-{version}").into());
        }
        state.objects.insert(key, object.clone());
        state.changes.push(Change {
            version,
            plural,
            what,
            object,
        });
        drop(state);
        self.changed.send_replace(version);
    }

    pub(crate) fn delete(&self, kind: &str, namespace: &str, name: &str) {
        let plural = plural(kind);
        let mut state = self.state();
        state.version += 1;
        let version = state.version;
        let key = (plural, namespace.to_owned(), name.to_owned());
        let mut object = state.objects.remove(&key).expect("there is such an object");
        object["metadata"]["resourceVersion"] = version.to_string().into();
        state.changes.push(Change {
            version,
            plural,
            what: "DELETED",
            object,
        });
        drop(state);
        self.changed.send_replace(version);
    }

    /// Answers requests for a kind with this status, or as usual again.
    pub(crate) fn refuse(&self, kind: &str, status: Option<u16>) {
        let plural = plural(kind);
        let mut state = self.state();
        match status {
            Some(status) => {
                let status = StatusCode::from_u16(status).unwrap();
                state.refused.insert(plural, status);
            }
            None => {
                state.refused.remove(plural);
            }
        }
    }

    /// Cuts all connections.
    pub(crate) fn cut(&self) {
        self.cut.send_modify(|cut| *cut += 1);
    }

    /// Forgets all changes: watches that go on from before must list anew.
    pub(crate) fn compact(&self) {
        let mut state = self.state();
        state.version += 1;
        state.compacted = state.version;
        state.changes.clear();
    }

    /// The status of an object; null if it has none.
    pub(crate) fn status(&self, kind: &str, namespace: &str, name: &str) -> Value {
        let key = (plural(kind), namespace.to_owned(), name.to_owned());
        let state = self.state();
        state.objects.get(&key).expect("there is such an object")["status"].clone()
    }

    /// How often a kind has been listed (each page counts) or watched.
    pub(crate) fn asked(&self, kind: &str, watch: bool) -> usize {
        let asked = self.state().asked.get(&(plural(kind), watch)).copied();
        asked.unwrap_or(0)
    }
}

fn plural(kind: &str) -> &'static str {
    let found = PLURALS.iter().find(|(name, _)| *name == kind);
    found.unwrap_or_else(|| panic!("kind {kind}")).1
}

fn key(plural: &'static str, object: &Value) -> (&'static str, String, String) {
    let field = |name: &str| {
        let text = object["metadata"][name].as_str();
        text.unwrap_or_default().to_owned()
    };
    (plural, field("namespace"), field("name"))
}

async fn serve(
    listener: TcpListener,
    state: Arc<Mutex<State>>,
    changed: watch::Sender<u64>,
    cut: watch::Sender<u64>,
) {
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let (state, changed, mut cut) = (state.clone(), changed.clone(), cut.subscribe());
        tokio::spawn(async move {
            let service = service_fn(move |request: Request<Incoming>| {
                let (state, changed) = (state.clone(), changed.clone());
                async move {
                    let answer = match *request.method() {
                        Method::PATCH => patch_status(request, &state, &changed).await,
                        _ => answer(&request, &state, &changed),
                    };
                    Ok::<_, Infallible>(answer)
                }
            });
            let http = hyper::server::conn::http1::Builder::new();
            tokio::select! {
                // How a connection ends is the client's affair.
                _ = http.serve_connection(TokioIo::new(stream), service) => {}
                _ = cut.changed() => {}
            }
        });
    }
}

fn answer(
    request: &Request<Incoming>,
    state: &Arc<Mutex<State>>,
    changed: &watch::Sender<u64>,
) -> Response<Body> {
    let query: HashMap<&str, String> = request
        .uri()
        .query()
        .unwrap_or_default()
        .split('&')
        .filter_map(|pair| pair.split_once('='))
        .map(|(name, value)| (name, value.replace("%3D", "=")))
        .collect();
    let last = request.uri().path().rsplit('/').next().unwrap();
    let Some((kind, plural)) = PLURALS.iter().find(|(_, plural)| *plural == last) else {
        return status(
            StatusCode::NOT_FOUND,
            "the server could not find the resource",
        );
    };
    let is_watch = query.get("watch").is_some_and(|watch| watch == "true");
    let mut locked = state.lock().unwrap();
    *locked.asked.entry((plural, is_watch)).or_default() += 1;
    if let Some(code) = locked.refused.get(plural) {
        return status(*code, "refused by the double");
    }
    if !is_watch {
        return list(&locked, kind, plural, &query);
    }
    let from = query.get("resourceVersion").and_then(|v| v.parse().ok());
    let from: u64 = from.unwrap_or(0);
    if from < locked.compacted {
        let gone = failure(StatusCode::GONE, "too old resource version");
        // Both are seen: an answer with that status, and a watch whose only event says it.
        return match *plural {
            "pods" => json_response(StatusCode::GONE, &gone),
            _ => json_response(StatusCode::OK, &json!({"type": "ERROR", "object": gone})),
        };
    }
    drop(locked);
    let (sender, lines) = mpsc::channel(16);
    tokio::spawn(watch_from(
        from,
        plural,
        state.clone(),
        changed.subscribe(),
        sender,
    ));
    let frames = ReceiverStream::new(lines).map(|line| Ok(Frame::data(line)));
    Response::new(BodyExt::boxed(StreamBody::new(frames)))
}

/// Server-side apply of a status, by its only owner.
async fn patch_status(
    request: Request<Incoming>,
    state: &Arc<Mutex<State>>,
    changed: &watch::Sender<u64>,
) -> Response<Body> {
    let path = request.uri().path().to_owned();
    let parts: Vec<&str> = path.split('/').collect();
    let [.., "namespaces", namespace, plural, name, "status"] = parts[..] else {
        return status(StatusCode::NOT_FOUND, "only statuses are patched here");
    };
    let known = PLURALS.iter().find(|(_, known)| *known == plural);
    let key = (known.unwrap().1, namespace.to_owned(), name.to_owned());
    let body = request.into_body().collect().await.unwrap().to_bytes();
    let patch: Value = serde_json::from_slice(&body).unwrap();
    let mut state = state.lock().unwrap();
    state.version += 1;
    let version = state.version;
    let Some(object) = state.objects.get_mut(&key) else {
        return status(StatusCode::NOT_FOUND, "no such object");
    };
    object["status"] = patch["status"].clone();
    object["metadata"]["resourceVersion"] = version.to_string().into();
    let object = object.clone();
    let answer = json_response(StatusCode::OK, &object);
    state.changes.push(Change {
        version,
        plural: key.0,
        what: "MODIFIED",
        object,
    });
    changed.send_replace(version);
    answer
}

fn list(
    state: &State,
    kind: &str,
    plural: &'static str,
    query: &HashMap<&str, String>,
) -> Response<Body> {
    let limit = query.get("limit").and_then(|v| v.parse().ok());
    let skip = query.get("continue").and_then(|v| v.parse().ok());
    let (limit, skip) = (limit.unwrap_or(usize::MAX), skip.unwrap_or(0));
    let all: Vec<&Value> = state
        .objects
        .iter()
        .filter(|((of, _, _), _)| *of == plural)
        .map(|(_, object)| object)
        .collect();
    let page: Vec<&Value> = all.iter().skip(skip).take(limit).copied().collect();
    let more = skip + page.len() < all.len();
    let token = if more {
        (skip + limit).to_string()
    } else {
        String::new()
    };
    let api_version = all.first().map_or(json!("v1"), |o| o["apiVersion"].clone());
    let body = json!({
        "kind": format!("{kind}List"),
        "apiVersion": api_version,
        "metadata": {"resourceVersion": state.version.to_string(), "continue": token},
        "items": page,
    });
    json_response(StatusCode::OK, &body)
}

/// Sends what changed since a version, and a bookmark at least every 100 ms.
async fn watch_from(
    mut from: u64,
    plural: &'static str,
    state: Arc<Mutex<State>>,
    mut changed: watch::Receiver<u64>,
    lines: mpsc::Sender<Bytes>,
) {
    loop {
        changed.mark_unchanged();
        let (news, version) = {
            let state = state.lock().unwrap();
            let news = state.changes.iter();
            let news = news.filter(|change| change.version > from && change.plural == plural);
            (news.cloned().collect::<Vec<_>>(), state.version)
        };
        for change in news {
            let event = json!({"type": change.what, "object": change.object});
            if lines.send(format!("{event}\n").into()).await.is_err() {
                return;
            }
        }
        from = version;
        let bookmark = json!({"type": "BOOKMARK", "object": {
            "kind": "Any", "apiVersion": "v1",
            "metadata": {"resourceVersion": version.to_string()},
        }});
        if lines.send(format!("{bookmark}\n").into()).await.is_err() {
            return;
        }
        // Either way there is something to send.
        let _ = tokio::time::timeout(Duration::from_millis(100), changed.changed()).await;
    }
}

fn status(code: StatusCode, message: &str) -> Response<Body> {
    json_response(code, &failure(code, message))
}

fn failure(code: StatusCode, message: &str) -> Value {
    let reason = match code.as_u16() {
        404 => "NotFound",
        410 => "Expired",
        429 => "TooManyRequests",
        403 => "Forbidden",
        _ => "InternalError",
    };
    json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": message, "reason": reason, "code": code.as_u16(),
    })
}

fn json_response(code: StatusCode, body: &Value) -> Response<Body> {
    let body = Full::new(Bytes::from(body.to_string())).boxed();
    let response = Response::builder()
        .status(code)
        .header("content-type", "application/json");
    response.body(body).unwrap()
}
