//! Nodes that are attested by Kubernetes: a scripted double of the API server, over TLS.

mod support;

use std::fs;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use mesh_control::attestor::{ApiServer, Attestors, Evidence, ServiceAccounts};
use mesh_control::refusal::Refusal;
use rcgen::SanType;
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};
use support::pki::Pki;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

const AUDIENCE: &str = "nodemesh-control";
const ACCOUNT: &str = "system:serviceaccount:nodemesh-system:mesh-agent";

/// An API server that answers reviews as it is told, and remembers what it was asked.
struct Api {
    pki: Pki,
    address: SocketAddr,
    asked: Arc<Mutex<Vec<(String, Value)>>>,
    answer: Arc<Mutex<(u16, Value)>>,
}

impl Api {
    async fn start() -> Self {
        let pki = Pki::new();
        let own = pki.leaf("spiffe://kubernetes", |params| {
            params.subject_alt_names = vec![SanType::IpAddress([127, 0, 0, 1].into())];
        });
        pki.write("token", "control-token-1\n", 0o600);
        let chain: Vec<_> = CertificateDer::pem_slice_iter(own.chain.as_bytes())
            .collect::<Result<_, _>>()
            .unwrap();
        let key = PrivateKeyDer::from_pem_slice(own.key.as_bytes()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let api = Self {
            pki,
            address: listener.local_addr().unwrap(),
            asked: Arc::default(),
            answer: Arc::new(Mutex::new((201, json!({})))),
        };
        let acceptor = TlsAcceptor::from(Arc::new(config));
        tokio::spawn(serve(
            listener,
            acceptor,
            api.asked.clone(),
            api.answer.clone(),
        ));
        api
    }

    fn answer(&self, status: u16, body: Value) {
        *self.answer.lock().unwrap() = (status, body);
    }

    fn asked(&self) -> Vec<(String, Value)> {
        std::mem::take(&mut self.asked.lock().unwrap())
    }

    fn attestors(&self) -> Attestors {
        let url = format!("https://{}", self.address);
        let (ca, token) = (self.pki.path("root.pem"), self.pki.path("token"));
        let api = ApiServer::new(&url, &ca, &token).unwrap();
        let accounts = ["nodemesh-system/mesh-agent".to_owned()];
        Attestors::default().with_service_accounts(ServiceAccounts::new(api, AUDIENCE, accounts))
    }
}

async fn serve(
    listener: TcpListener,
    acceptor: TlsAcceptor,
    asked: Arc<Mutex<Vec<(String, Value)>>>,
    answer: Arc<Mutex<(u16, Value)>>,
) {
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let Ok(stream) = acceptor.accept(stream).await else {
            continue;
        };
        let mut stream = BufReader::new(stream);
        let (mut head, mut len) = (String::new(), 0);
        loop {
            let mut line = String::new();
            stream.read_line(&mut line).await.unwrap();
            if let Some(value) = line.to_lowercase().strip_prefix("content-length:") {
                len = value.trim().parse().unwrap();
            }
            if line.trim().is_empty() {
                break;
            }
            head.push_str(&line);
        }
        let mut body = vec![0; len];
        stream.read_exact(&mut body).await.unwrap();
        let body = serde_json::from_slice(&body).unwrap();
        asked.lock().unwrap().push((head, body));
        let (status, body) = answer.lock().unwrap().clone();
        let body = body.to_string();
        let len = body.len();
        let said = format!("HTTP/1.1 {status} said\r\ncontent-length: {len}\r\n\r\n{body}");
        stream.write_all(said.as_bytes()).await.unwrap();
        stream.flush().await.unwrap();
    }
}

/// What an API server says of a good token.
fn vouched() -> Value {
    let claim = |name: &str| format!("authentication.kubernetes.io/{name}");
    json!({"status": {
        "authenticated": true,
        "audiences": [AUDIENCE],
        "user": {
            "username": ACCOUNT,
            "extra": {
                claim("pod-name"): ["mesh-agent-x7"],
                claim("pod-uid"): ["1c0a"],
                claim("node-name"): ["node-a"],
                claim("node-uid"): ["77fe"],
            },
        },
    }})
}

/// A token in the form of a service account's; `mark` tells one from another.
fn token(mark: &str, claims: &Value) -> String {
    let encode = |value: &Value| {
        let digits = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
        let mut text = String::new();
        for group in value.to_string().as_bytes().chunks(3) {
            let mut bits = [0; 4];
            bits[1..=group.len()].copy_from_slice(group);
            let bits = u32::from_be_bytes(bits);
            for index in 0..=group.len() {
                let digit = bits >> (18 - 6 * index) & 63;
                text.push(char::from(digits[digit as usize]));
            }
        }
        text
    };
    format!(
        "{}.{}.{mark}",
        encode(&json!({"alg": "RS256"})),
        encode(claims)
    )
}

fn good(mark: &str) -> String {
    let end_s = mesh_control::now_s() + 3600;
    token(mark, &json!({"aud": [AUDIENCE], "exp": end_s}))
}

async fn attest(attestors: &Attestors, token: &str) -> Result<String, Refusal> {
    let evidence = Evidence {
        token,
        node: None,
        now_s: mesh_control::now_s(),
    };
    let attested = attestors.bearer(evidence).await;
    attested.map(|a| a.node).map_err(|r| r.refusal)
}

#[tokio::test]
async fn a_pods_bound_token_speaks_for_its_node() {
    let api = Api::start().await;
    api.answer(201, vouched());
    let attestors = api.attestors();
    let token = good("one");
    let now_s = mesh_control::now_s();
    let evidence = Evidence {
        token: &token,
        node: Some("node-a"),
        now_s,
    };
    let attested = attestors.join(evidence).await.unwrap();
    assert_eq!(attested.node, "node-a");
    assert!((now_s..now_s + 3700).contains(&attested.not_after_s));
    for part in ["nodemesh-system/mesh-agent", "mesh-agent-x7", "77fe"] {
        assert!(attested.by.contains(part), "{}", attested.by);
    }
    let asked = api.asked();
    let [(head, body)] = asked.as_slice() else {
        panic!("{asked:?}");
    };
    assert!(
        head.starts_with("POST /apis/authentication.k8s.io/v1/tokenreviews HTTP/1.1"),
        "{head}"
    );
    let bearer = "authorization: Bearer control-token-1\r\n";
    assert!(head.contains(bearer), "{head}");
    assert_eq!(body["kind"], "TokenReview");
    assert_eq!(body["spec"]["token"], token);
    assert_eq!(body["spec"]["audiences"], json!([AUDIENCE]));
    // It may not be another node by saying so.
    let evidence = Evidence {
        node: Some("node-b"),
        ..evidence
    };
    let refused = attestors.join(evidence).await.unwrap_err();
    assert_eq!(refused.refusal, Refusal::TokenWrongNode);
    // Asked once, for calls in a row; control's own token may be another by then.
    assert_eq!(attest(&attestors, &token).await.as_deref(), Ok("node-a"));
    assert_eq!(api.asked().len(), 0);
    fs::write(api.pki.path("token"), "control-token-2").unwrap();
    assert_eq!(
        attest(&attestors, &good("two")).await.as_deref(),
        Ok("node-a")
    );
    assert!(api.asked()[0].0.contains("control-token-2"));
}

#[tokio::test]
async fn what_the_api_server_does_not_vouch_for_is_refused_each_for_its_reason() {
    let api = Api::start().await;
    let attestors = api.attestors();
    let with = |path: &str, value: Value| {
        let mut said = vouched();
        *said.pointer_mut(path).unwrap() = value;
        said
    };
    let extra = "/status/user/extra/authentication.kubernetes.io~1";
    let cases = [
        (
            201,
            with("/status/authenticated", json!(false)),
            Refusal::TokenRejected,
        ),
        (
            201,
            json!({"status": {"error": "expired"}}),
            Refusal::TokenRejected,
        ),
        (
            201,
            with("/status/audiences", json!(["other"])),
            Refusal::TokenAudience,
        ),
        (
            201,
            with("/status/audiences", json!([])),
            Refusal::TokenAudience,
        ),
        (
            201,
            with(
                "/status/user/username",
                json!("system:serviceaccount:shop:cart"),
            ),
            Refusal::TokenAccount,
        ),
        (
            201,
            with("/status/user/username", json!("admin")),
            Refusal::TokenAccount,
        ),
        (
            201,
            with(&format!("{extra}node-name"), json!([])),
            Refusal::TokenUnbound,
        ),
        (
            201,
            with(&format!("{extra}node-uid"), json!([""])),
            Refusal::TokenUnbound,
        ),
        (
            201,
            with(&format!("{extra}pod-name"), json!(["a", "b"])),
            Refusal::TokenUnbound,
        ),
        (
            403,
            json!({"message": "forbidden"}),
            Refusal::AttestorFailed,
        ),
        (201, json!(["nonsense"]), Refusal::AttestorFailed),
    ];
    for (index, (status, body, refusal)) in cases.into_iter().enumerate() {
        api.answer(status, body);
        let refused = attest(&attestors, &good(&index.to_string())).await;
        assert_eq!(refused, Err(refusal), "{index}");
        assert_eq!(api.asked().len(), 1, "{index}");
    }
}

#[tokio::test]
async fn what_can_be_no_good_token_is_not_asked_about() {
    let api = Api::start().await;
    api.answer(201, vouched());
    let attestors = api.attestors();
    let now_s = mesh_control::now_s();
    for (token, refusal) in [
        (
            token("a", &json!({"aud": ["other"], "exp": now_s + 60})),
            Refusal::TokenAudience,
        ),
        (
            token("a", &json!({"exp": now_s + 60})),
            Refusal::TokenAudience,
        ),
        (
            token("a", &json!({"aud": AUDIENCE, "exp": now_s - 1})),
            Refusal::TokenExpired,
        ),
        ("a.b.c".to_owned(), Refusal::TokenMalformed),
        ("no token".to_owned(), Refusal::TokenMalformed),
    ] {
        assert_eq!(attest(&attestors, &token).await, Err(refusal), "{token}");
    }
    assert_eq!(api.asked().len(), 0);
}

#[tokio::test]
async fn an_api_server_that_is_not_the_clusters_is_not_believed() {
    let api = Api::start().await;
    api.answer(201, vouched());
    // The answer would be good, but the certificate is another PKI's.
    let url = format!("https://{}", api.address);
    let stranger = Pki::new();
    let server = ApiServer::new(&url, &stranger.path("root.pem"), &api.pki.path("token")).unwrap();
    let accounts = ["nodemesh-system/mesh-agent".to_owned()];
    let accounts = ServiceAccounts::new(server, AUDIENCE, accounts);
    let attestors = Attestors::default().with_service_accounts(accounts);
    let refused = attest(&attestors, &good("a")).await;
    assert_eq!(refused, Err(Refusal::AttestorFailed));
    assert_eq!(api.asked().len(), 0);
    for wrong in ["http://127.0.0.1:1", "127.0.0.1", "https://a/b", "https://"] {
        let fault = ApiServer::new(wrong, &api.pki.path("root.pem"), &api.pki.path("token"));
        assert!(fault.is_err(), "{wrong}");
    }
}
