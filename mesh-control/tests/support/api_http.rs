//! The double's HTTP: what a client asks for, and what it is answered.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};
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

use super::{PLURALS, State};

type Body = BoxBody<Bytes, Infallible>;

pub(super) async fn serve(
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
                async move { Ok::<_, Infallible>(answer(request, &state, &changed).await) }
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

/// What a path names.
struct Asked {
    kind: &'static str,
    plural: &'static str,
    namespace: Option<String>,
    name: Option<String>,
    status: bool,
}

impl Asked {
    fn of(path: &str) -> Option<Self> {
        let parts: Vec<&str> = path.trim_start_matches('/').split('/').collect();
        let rest = match parts[..] {
            ["api", _, ..] => &parts[2..],
            ["apis", _, _, ..] => &parts[3..],
            _ => return None,
        };
        let (namespace, rest) = match rest {
            ["namespaces", namespace, rest @ ..] if !rest.is_empty() => (Some(namespace), rest),
            rest => (None, rest),
        };
        let (kind, plural) = PLURALS
            .iter()
            .find(|(_, plural)| Some(plural) == rest.first())?;
        Some(Self {
            kind,
            plural,
            namespace: namespace.map(|&text| text.to_owned()),
            name: rest.get(1).map(|&text| text.to_owned()),
            status: rest.get(2) == Some(&"status"),
        })
    }
}

async fn answer(
    request: Request<Incoming>,
    state: &Arc<Mutex<State>>,
    changed: &watch::Sender<u64>,
) -> Response<Body> {
    if request.uri().path() == "/version" {
        let version = json!({
            "major": "1", "minor": "33", "gitVersion": "v1.33.0", "gitCommit": "", "gitTreeState": "",
            "buildDate": "", "goVersion": "", "compiler": "", "platform": "",
        });
        return json_response(StatusCode::OK, &version);
    }
    let Some(asked) = Asked::of(request.uri().path()) else {
        let what = "the server could not find the requested resource";
        return status(StatusCode::NOT_FOUND, what);
    };
    let query: HashMap<String, String> = request
        .uri()
        .query()
        .unwrap_or_default()
        .split('&')
        .filter_map(|pair| pair.split_once('='))
        .map(|(name, value)| {
            (
                name.to_owned(),
                value.replace("%3D", "=").replace("%2F", "/"),
            )
        })
        .collect();
    let method = request.method().clone();
    if method == Method::GET && asked.name.is_none() {
        return collection(&asked, &query, state, changed);
    }
    let body = request.into_body().collect().await.unwrap().to_bytes();
    let body: Value = serde_json::from_slice(&body).unwrap_or_default();
    let mut state = state.lock().unwrap();
    if let Some(code) = state.refused.get(asked.plural).copied() {
        *state.turned_away.entry(asked.plural).or_default() += 1;
        return status(code, "refused by the double");
    }
    if method != Method::GET
        && let Some(object) = state.overtaking.remove(asked.plural)
    {
        state.put(object);
    }
    if method == Method::GET {
        *state.asked.entry((asked.plural, false)).or_default() += 1;
    } else {
        *state.writes.entry(asked.plural).or_default() += 1;
    }
    let before = state.version;
    let answer = one(&method, &asked, body, &mut state);
    if state.version != before {
        changed.send_replace(state.version);
    }
    answer
}

/// A request for one object, or to make one.
fn one(method: &Method, asked: &Asked, mut body: Value, state: &mut State) -> Response<Body> {
    let Asked {
        kind, plural, name, ..
    } = asked;
    let namespace = asked.namespace.clone().unwrap_or_default();
    let name = name.as_deref().or(body["metadata"]["name"].as_str());
    let key = (
        *plural,
        namespace.clone(),
        name.unwrap_or_default().to_owned(),
    );
    let there = state.objects.get(&key).cloned();
    if !namespace.is_empty() && body.is_object() {
        body["metadata"]["namespace"] = namespace.into();
    }
    match (method, there) {
        (&Method::GET, Some(there)) => return json_response(StatusCode::OK, &there),
        (&Method::POST, None) => {
            body["kind"] = (*kind).into();
            state.put(body);
        }
        (&Method::POST, Some(_)) => return status(StatusCode::CONFLICT, "there already"),
        (&Method::PUT, Some(there)) => {
            let version = &body["metadata"]["resourceVersion"];
            if !version.is_null() && *version != there["metadata"]["resourceVersion"] {
                return status(StatusCode::CONFLICT, "the object has been modified");
            }
            state.put(body);
        }
        (&Method::PATCH, Some(mut there)) if body.is_array() => {
            if edit(&mut there, &body).is_none() {
                let what = "the patch can't be applied, or a test of it fails";
                return status(StatusCode::UNPROCESSABLE_ENTITY, what);
            }
            state.put(there);
        }
        (&Method::PATCH, Some(mut there)) => {
            let uid = &body["metadata"]["uid"];
            if !uid.is_null() && *uid != there["metadata"]["uid"] {
                return status(StatusCode::CONFLICT, "another uid");
            }
            if asked.status {
                there["status"] = body["status"].take();
            } else {
                merge(&mut there, body);
            }
            state.put(there);
        }
        (&Method::PATCH, None) if !asked.status && body["kind"].is_string() => {
            state.put(body);
        }
        (&Method::DELETE, Some(there)) => {
            state.delete(&key);
            return json_response(StatusCode::OK, &there);
        }
        _ => return status(StatusCode::NOT_FOUND, "no such object"),
    }
    json_response(StatusCode::OK, &state.objects[&key])
}

/// A JSON patch (RFC 6902), as far as ours use it; `None` if it can't be applied.
fn edit(object: &mut Value, patch: &Value) -> Option<()> {
    for step in patch.as_array()? {
        let path = step["path"].as_str()?;
        match step["op"].as_str()? {
            "test" => (object.pointer(path)? == &step["value"]).then_some(())?,
            "remove" => {
                let (parent, last) = path.rsplit_once('/')?;
                match object.pointer_mut(parent)? {
                    Value::Array(items) => {
                        let index: usize = last.parse().ok()?;
                        (index < items.len()).then(|| items.remove(index))?;
                    }
                    parent => {
                        parent.as_object_mut()?.remove(last)?;
                    }
                }
            }
            other => panic!("the double knows no {other}"),
        }
    }
    Some(())
}

/// An apply by an only owner: metadata is merged, and everything else replaced.
fn merge(there: &mut Value, body: Value) {
    let Value::Object(fields) = body else { return };
    for (name, value) in fields {
        match (name.as_str(), value) {
            ("metadata", Value::Object(metadata)) => {
                for (name, value) in metadata {
                    there["metadata"][name] = value;
                }
            }
            (_, value) => there[name] = value,
        }
    }
}

fn collection(
    asked: &Asked,
    query: &HashMap<String, String>,
    state: &Arc<Mutex<State>>,
    changed: &watch::Sender<u64>,
) -> Response<Body> {
    let plural = asked.plural;
    let is_watch = query.get("watch").is_some_and(|watch| watch == "true");
    let mut locked = state.lock().unwrap();
    *locked.asked.entry((plural, is_watch)).or_default() += 1;
    if let Some(code) = locked.refused.get(plural) {
        return status(*code, "refused by the double");
    }
    if !is_watch {
        return list(&locked, asked, query);
    }
    let from = query.get("resourceVersion").and_then(|v| v.parse().ok());
    let from: u64 = from.unwrap_or(0);
    if from < locked.compacted {
        let gone = failure(StatusCode::GONE, "too old resource version");
        // Both are seen: an answer with that status, and a watch whose only event says it.
        return match plural {
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

fn list(state: &State, asked: &Asked, query: &HashMap<String, String>) -> Response<Body> {
    let limit = query.get("limit").and_then(|v| v.parse().ok());
    let skip = query.get("continue").and_then(|v| v.parse().ok());
    let (limit, skip) = (limit.unwrap_or(usize::MAX), skip.unwrap_or(0));
    let namespace = asked.namespace.as_ref();
    let all: Vec<&Value> = state
        .objects
        .iter()
        .filter(|((of, _, _), _)| *of == asked.plural)
        .filter(|((_, of, _), _)| namespace.is_none_or(|namespace| namespace == of))
        .map(|(_, object)| object)
        .filter(|object| {
            match query
                .get("labelSelector")
                .and_then(|labels| labels.split_once('='))
            {
                Some((name, value)) => object["metadata"]["labels"][name] == value,
                None => true,
            }
        })
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
        "kind": format!("{}List", asked.kind),
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
        409 => "Conflict",
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
