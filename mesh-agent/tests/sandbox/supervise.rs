//! As much of a supervisor and of a peer as it takes to see a worker serve: a certificate
//! authority, the messages of a start, and a tunnel in mutual TLS.

use std::os::fd::OwnedFd;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use mesh_agent::channel::SupervisorChannel;
use mesh_agent::sandbox::Newborn;
use mesh_api::WORKER_PROTOCOL_VERSION;
use mesh_api::policy::{Action, AuthorizationPolicy, Direction, Peer, Rule, Target, target};
use mesh_api::worker::{
    Certificate, Change, Changes, PodPolicy, Start, ToSupervisor, ToWorker, TrustBundle, change,
    to_supervisor, to_worker,
};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, ExtendedKeyUsagePurpose,
    IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, Error, SignatureScheme};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// Longest wait for anything here; nothing takes that long unless it never happens.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);
/// Where the worker serves HBONE, in its pod's network namespace.
const HBONE: &str = "127.0.0.1:15008";

struct Authority {
    root: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

static AUTHORITY: LazyLock<Authority> = LazyLock::new(|| {
    let key = KeyPair::generate().expect("a key");
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let root = params.self_signed(&key).expect("a root").der().clone();
    let issuer = Issuer::new(params, key);
    Authority { root, issuer }
});

/// What an SVID must say beside its name.
fn svid(mut params: CertificateParams) -> CertificateParams {
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    params
}

/// Sends one message and waits for one that `wanted` takes; those in between are passed over.
pub(crate) fn exchange<T>(
    worker: &Newborn,
    messages: Vec<to_worker::Message>,
    wanted: impl Fn(to_supervisor::Message) -> Option<T>,
) -> T {
    block_on(async {
        let end = worker.channel.try_clone().expect("a duplicate");
        let channel = SupervisorChannel::new(end).expect("a channel");
        for message in messages {
            let message = Some(message);
            channel
                .send(&ToWorker { message }, &[])
                .await
                .expect("sent");
        }
        loop {
            let (message, _fds) = receive(&channel).await;
            match message {
                to_supervisor::Message::CertificateRequest(request) => {
                    certify(&channel, &request.csr).await;
                }
                message => {
                    if let Some(found) = wanted(message) {
                        return found;
                    }
                }
            }
        }
    })
}

/// Takes a newborn through its start until it is ready.
pub(crate) fn start(worker: &Newborn) {
    let pod = mesh_api::worker::Pod {
        namespace: "default".into(),
        name: "web".into(),
        uid: "1".into(),
        service_account: "web".into(),
        trust_domain: "cluster.local".into(),
        addresses: vec![vec![127, 0, 0, 1]],
        cluster_id: "Kubernetes".into(),
    };
    let start = to_worker::Message::Start(Start {
        protocol_version: WORKER_PROTOCOL_VERSION,
        instance: "test".into(),
        node: "node".into(),
        pod: Some(pod),
        ..Start::default()
    });
    exchange(worker, vec![start, policy()], |message| match message {
        to_supervisor::Message::Ready(_) => Some(()),
        to_supervisor::Message::StartFailed(failed) => panic!("no start: {}", failed.why),
        _ => None,
    });
}

/// Every member of the namespace may call the pod.
fn policy() -> to_worker::Message {
    let target = target::Kind::Namespace(true);
    let members = Peer {
        namespace: "default".into(),
        ..Peer::default()
    };
    let allow = AuthorizationPolicy {
        key: "default/members".into(),
        target: Some(Target { kind: Some(target) }),
        direction: Direction::Inbound.into(),
        action: Action::Allow.into(),
        rules: vec![Rule {
            peers: vec![members],
            ports: Vec::new(),
        }],
    };
    let policy = change::Change::Policy(PodPolicy {
        version: "1".into(),
        authorizations: vec![allow],
        ..PodPolicy::default()
    });
    to_worker::Message::Changes(Changes {
        changes: vec![Change {
            change: Some(policy),
        }],
        more: false,
    })
}

async fn receive(channel: &SupervisorChannel) -> (to_supervisor::Message, Vec<OwnedFd>) {
    let received = tokio::time::timeout(PATIENCE, channel.recv()).await;
    let received = received.expect("a message in time").expect("a message");
    let (ToSupervisor { message }, fds) = received.expect("a worker at the other end");
    (message.expect("a message of a known kind"), fds)
}

async fn certify(channel: &SupervisorChannel, csr: &[u8]) {
    let csr = csr.to_vec().into();
    let mut request = CertificateSigningRequestParams::from_der(&csr).expect("a request");
    request.params = svid(request.params);
    let leaf = request.signed_by(&AUTHORITY.issuer).expect("a certificate");
    let bundle = to_worker::Message::TrustBundle(TrustBundle {
        roots: vec![AUTHORITY.root.to_vec()],
        ..TrustBundle::default()
    });
    let certificate = to_worker::Message::Certificate(Certificate {
        chain: vec![leaf.der().to_vec()],
    });
    for message in [bundle, certificate] {
        let message = Some(message);
        channel
            .send(&ToWorker { message }, &[])
            .await
            .expect("sent");
    }
}

/// Opens a tunnel in mutual TLS as another workload, from the calling thread's network
/// namespace, and asks for a connection through it: whatever the answer, the worker gave it.
pub(crate) fn ask_through_tunnel() {
    block_on(async {
        let answered = tokio::time::timeout(PATIENCE, async {
            let stream = TcpStream::connect(HBONE).await.expect("a connection");
            let name = ServerName::try_from("worker").expect("a name");
            let connector = TlsConnector::from(client());
            let tls = connector.connect(name, stream).await.expect("a handshake");
            let (mut requests, connection) = h2::client::handshake(tls).await.expect("HTTP/2");
            let driven = tokio::spawn(connection);
            let request = http::Request::connect("127.0.0.1:80")
                .body(())
                .expect("a request");
            let (response, _body) = requests.send_request(request, true).expect("sent");
            let status = response.await.expect("an answer").status();
            driven.abort();
            status
        });
        answered.await.expect("an answer in time");
    });
}

fn client() -> Arc<ClientConfig> {
    let key = KeyPair::generate().expect("a key");
    let mut params = svid(CertificateParams::default());
    let name = "spiffe://cluster.local/ns/default/sa/client";
    params.subject_alt_names = vec![SanType::URI(name.try_into().expect("a URI"))];
    let leaf = params.signed_by(&key, &AUTHORITY.issuer).expect("a leaf");
    let der = PrivateKeyDer::try_from(key.serialize_der()).expect("a key");
    let provider = Arc::new(aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("TLS 1.3")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyServer(provider)))
        .with_client_auth_cert(vec![leaf.der().clone()], der)
        .expect("a client's certificate");
    config.alpn_protocols = vec![b"h2".to_vec()];
    Arc::new(config)
}

/// Who the server is, is not what these tests are about.
#[derive(Debug)]
struct AnyServer(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.3 only".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

fn block_on<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime")
        .block_on(work)
}
