//! A control component on loopback with a PKI of its own, and clients that call it over real
//! TLS.
#![allow(
    dead_code,
    unreachable_pub,
    reason = "a module of several test binaries, each of which uses its part"
)]

pub mod pki;
pub mod process;
pub mod subscriber;

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use mesh_api::ca::istio_certificate_service_client::IstioCertificateServiceClient;
use mesh_api::ca::{IstioCertificateRequest, IstioCertificateResponse};
use mesh_api::node::node_service_client::NodeServiceClient;
use mesh_api::node::{JoinRequest, NodeCertificate};
use mesh_control::audit::Audit;
use mesh_control::ca::{Authority, SignerFiles};
use mesh_control::registry::Registry;
use mesh_control::server::{Limits, Server, listen};
use mesh_control::sources::manifests::Watcher;
use mesh_control::tokens::TokenStore;
use mesh_control::trust;
use mesh_control::trust::crl::CrlFiles;
use prost_types::value::Kind;
use rcgen::{CertificateParams, KeyPair};
use tokio::sync::watch;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Code, Status};

use pki::Pki;

/// Namespace `shop` enrolled, `legacy` not; `cart` on nodes a and b, `web` on b, `old` on a.
pub const MANIFESTS: &str = r#"
kind: Namespace
metadata: {name: shop, labels: {nodemesh.dev/enroll: "true"}}
---
kind: Namespace
metadata: {name: legacy}
---
kind: ServiceAccount
metadata: {name: cart, namespace: shop}
---
kind: ServiceAccount
metadata: {name: web, namespace: shop}
---
kind: Pod
metadata: {name: cart-1, namespace: shop, labels: {app: cart}}
spec:
  nodeName: node-a
  serviceAccountName: cart
  containers: [{ports: [{name: http, containerPort: 8080}]}]
status: {podIPs: [{ip: 10.1.0.1}, {ip: "fd00:1::1"}]}
---
kind: Pod
metadata: {name: web-1, namespace: shop, labels: {app: web}}
spec: {nodeName: node-b, serviceAccountName: web}
status: {podIPs: [{ip: 10.1.0.2}]}
---
kind: Pod
metadata: {name: old-1, namespace: legacy}
spec: {nodeName: node-a}
status: {podIPs: [{ip: 10.1.0.3}]}
---
kind: Service
metadata: {name: cart, namespace: shop}
spec:
  selector: {app: cart}
  clusterIPs: [10.96.0.1, "fd00:96::1"]
  ports: [{port: 80, targetPort: http}]
"#;

pub const CART: &str = "spiffe://cluster.local/ns/shop/sa/cart";
pub const WEB: &str = "spiffe://cluster.local/ns/shop/sa/web";
pub const OLD: &str = "spiffe://cluster.local/ns/legacy/sa/default";

pub struct Control {
    pub pki: Pki,
    pub manifests: PathBuf,
    pub tokens: TokenStore,
    pub state_dir: PathBuf,
    pub audit: Arc<Audit>,
    pub registry: Arc<Registry>,
    pub authority: Arc<Authority>,
    address: SocketAddr,
    stop: watch::Sender<bool>,
    served: tokio::task::JoinHandle<anyhow::Result<()>>,
}

impl Control {
    pub async fn start() -> Self {
        Self::limited(Limits::default()).await
    }

    /// One that callers may ask only so often.
    pub async fn limited(limits: Limits) -> Self {
        Self::with(Pki::new(), MANIFESTS, limits).await
    }

    /// With this PKI, and the CRL in its `list.crl`, if there is one.
    pub async fn start_on(pki: Pki) -> Self {
        Self::with(pki, MANIFESTS, Limits::default()).await
    }

    /// Starts on the same PKI, state and manifests as one that was stopped.
    pub async fn again(earlier: Self) -> Self {
        let Self {
            pki, stop, served, ..
        } = earlier;
        stop.send(true).unwrap();
        served.await.unwrap().unwrap();
        let manifests = fs::read_to_string(pki.path("manifests/mesh.yaml")).unwrap();
        Self::with(pki, &manifests, Limits::default()).await
    }

    /// One that serves the state of another source than its folder.
    pub async fn serving(registry: Arc<Registry>) -> Self {
        Self::over(Pki::new(), MANIFESTS, Limits::default(), Some(registry)).await
    }

    async fn with(pki: Pki, manifests: &str, limits: Limits) -> Self {
        Self::over(pki, manifests, limits, None).await
    }

    async fn over(
        pki: Pki,
        manifests: &str,
        limits: Limits,
        elsewhere: Option<Arc<Registry>>,
    ) -> Self {
        let folder = pki.path("manifests");
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("mesh.yaml"), manifests).unwrap();
        let domain = "cluster.local".parse().unwrap();
        let files = SignerFiles {
            ca_cert: &pki.path("ca-cert.pem"),
            ca_key: &pki.path("ca-key.pem"),
            root: &pki.path("root.pem"),
        };
        let authority = Authority::load(&files, &domain, mesh_control::now_s());
        let authority = Arc::new(authority.unwrap());
        let state_dir = pki.path("state");
        let tokens = TokenStore::open(&state_dir).unwrap();
        let (watcher, of_folder) = Watcher::start(&folder, &domain).unwrap();
        let registry = elsewhere.unwrap_or(of_folder);
        let of_lists = authority.clone();
        let authorities = move || of_lists.authorities();
        let lists: Vec<_> = [pki.path("list.crl")]
            .into_iter()
            .filter(|path| path.exists())
            .collect();
        let crls = CrlFiles::start(&lists, authorities, mesh_control::now_s()).unwrap();
        let trust = trust::Sources {
            roots: authority.bundle(),
            revocations: watcher.revocations(),
            listed: crls.listed(),
        };
        tokio::spawn(crls.run());
        tokio::spawn(watcher.run());
        let audit = Arc::new(Audit::default());
        let listener = listen("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = Server {
            authority: authority.clone(),
            attestors: tokens.clone().into(),
            limits,
            clocks: Arc::default(),
            registry: registry.clone(),
            audit: audit.clone(),
            trust: trust.follow(),
        };
        let (stop, stopping) = watch::channel(false);
        let served = tokio::spawn(server.serve(listener, stopping));
        Self {
            pki,
            manifests: folder,
            tokens,
            state_dir,
            audit,
            registry,
            authority,
            address,
            stop,
            served,
        }
    }

    pub fn write_manifests(&self, text: &str) {
        let draft = self.manifests.join(".draft");
        fs::write(&draft, text).unwrap();
        fs::rename(draft, self.manifests.join("mesh.yaml")).unwrap();
    }

    /// Where it serves.
    pub fn url(&self) -> String {
        format!("https://{}", self.address)
    }

    /// A token for a node, good for an hour.
    pub fn token(&self, node: &str) -> String {
        self.tokens
            .create(node, mesh_control::now_s() + 3600)
            .unwrap()
    }

    /// A connection with this certificate and key, or with none.
    pub async fn connect(
        &self,
        identity: Option<&Identified>,
    ) -> Result<Channel, tonic::transport::Error> {
        let mut tls = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(self.pki.root_pem()))
            .domain_name("nodemesh-control");
        if let Some(identified) = identity {
            tls = tls.identity(Identity::from_pem(&identified.chain, &identified.key));
        }
        let endpoint = Endpoint::from_shared(self.url()).unwrap();
        endpoint.tls_config(tls)?.connect().await
    }

    pub async fn join(&self, token: &str, node: &str) -> Result<(NodeCertificate, String), Status> {
        let (csr, key) = request(|_| ());
        let channel = self.connect(None).await.unwrap();
        let asked = JoinRequest {
            token: token.to_owned(),
            node: node.to_owned(),
            csr,
        };
        let answer = NodeServiceClient::new(channel).join(asked).await?;
        Ok((answer.into_inner(), key))
    }

    /// Joins with a fresh token and connects as the node.
    pub async fn node(&self, name: &str) -> Channel {
        let (certificate, key) = self.join(&self.token(name), name).await.unwrap();
        let chain = certificate.cert_chain.concat();
        self.connect(Some(&Identified { chain, key }))
            .await
            .unwrap()
    }
}

/// A certificate chain and its key, PEM.
pub struct Identified {
    pub chain: String,
    pub key: String,
}

/// A CSR and its key, PEM.
pub fn request(adjust: impl FnOnce(&mut CertificateParams)) -> (String, String) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    adjust(&mut params);
    let csr = params.serialize_request(&key).unwrap().pem().unwrap();
    (csr, key.serialize_pem())
}

/// Asks for a workload's certificate.
pub async fn sign(
    channel: &Channel,
    identity: &str,
    csr: &str,
    lifetime_s: i64,
) -> Result<IstioCertificateResponse, Status> {
    let value = prost_types::Value {
        kind: Some(Kind::StringValue(identity.to_owned())),
    };
    let asked = IstioCertificateRequest {
        csr: csr.to_owned(),
        validity_duration: lifetime_s,
        metadata: Some(prost_types::Struct {
            fields: [("ImpersonatedIdentity".to_owned(), value)].into(),
        }),
    };
    let mut client = IstioCertificateServiceClient::new(channel.clone());
    Ok(client.create_certificate(asked).await?.into_inner())
}

/// Asserts on a refusal: its code, and a part of what it says.
pub fn assert_refused<T>(answer: Result<T, Status>, code: Code, part: &str) {
    let status = answer.err().expect("a refusal");
    assert_eq!(status.code(), code, "{status}");
    assert!(
        status.message().contains(part),
        "{status} should say {part}"
    );
}
