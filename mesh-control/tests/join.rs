//! How nodes join and renew, over real TLS.

mod support;

use mesh_api::node::node_service_client::NodeServiceClient;
use mesh_api::node::{JoinRequest, RenewRequest};
use mesh_control::audit::Event;
use mesh_control::refusal::Refusal;
use mesh_core::certificate::{CLOCK_SKEW_S, Leaf};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use support::pki::openssl;
use support::{Control, Identified, assert_refused, request};
use tonic::Code;

fn leaf(pem: &str) -> Leaf {
    Leaf::from_der(&CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()).unwrap()
}

#[tokio::test]
async fn a_token_joins_its_node_once() {
    let control = Control::start().await;
    let token = control.token("node-a");
    let (certificate, _) = control.join(&token, "node-a").await.unwrap();
    assert_eq!(certificate.trust_domain, "cluster.local");
    assert_eq!(certificate.trust_bundle.concat(), control.pki.root_pem());
    let leaf = leaf(&certificate.cert_chain[0]);
    let node = leaf.node(&"cluster.local".parse().unwrap()).unwrap();
    assert_eq!(node.node(), "node-a");
    assert!(!leaf.is_ca && leaf.client_auth && !leaf.server_auth);
    assert_eq!(
        leaf.not_after_s - leaf.not_before_s,
        24 * 3600 + CLOCK_SKEW_S
    );

    let again = control.join(&token, "node-a").await;
    assert_refused(again, Code::Unauthenticated, "used before");
    assert_eq!(control.audit.count(Event::NodeJoined), 1);
    assert_eq!(control.audit.count(Event::JoinRefused), 1);
    assert_eq!(control.audit.refused(Refusal::TokenUsed), 1);
}

#[tokio::test]
async fn of_many_joins_with_one_token_at_once_one_succeeds() {
    let control = std::sync::Arc::new(Control::start().await);
    let token = control.token("node-a");
    let mut joins = tokio::task::JoinSet::new();
    for _ in 0..16 {
        let (control, token) = (control.clone(), token.clone());
        joins.spawn(async move { control.join(&token, "node-a").await.is_ok() });
    }
    let successes = joins.join_all().await.into_iter().filter(|ok| *ok).count();
    assert_eq!(successes, 1);
}

/// As above, but in the store itself: threads that race for the rename.
#[test]
fn of_many_threads_that_take_a_token_one_gets_it() {
    let folder = tempfile::tempdir().unwrap();
    let tokens = mesh_control::tokens::TokenStore::open(&folder.path().join("state")).unwrap();
    for _ in 0..20 {
        let token = tokens.create("n", 10).unwrap();
        let barrier = std::sync::Barrier::new(8);
        let taken: usize = std::thread::scope(|scope| {
            let take = || {
                barrier.wait();
                usize::from(tokens.consume(&token, "n", 5).is_ok())
            };
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(take)).collect();
            threads.into_iter().map(|t| t.join().unwrap()).sum()
        });
        assert_eq!(taken, 1);
    }
}

#[tokio::test]
async fn a_used_token_stays_used_and_an_unused_one_good_across_a_restart() {
    let control = Control::start().await;
    let (used, unused) = (control.token("node-a"), control.token("node-b"));
    control.join(&used, "node-a").await.unwrap();
    let control = Control::again(control).await;
    let again = control.join(&used, "node-a").await;
    assert_refused(again, Code::Unauthenticated, "used before");
    control.join(&unused, "node-b").await.unwrap();
}

#[tokio::test]
async fn wrong_expired_and_invented_tokens_are_refused() {
    let control = Control::start().await;
    let token = control.token("node-a");
    let wrong = control.join(&token, "node-b").await;
    assert_refused(wrong, Code::PermissionDenied, "another node than node-b");
    assert_eq!(control.audit.count(Event::JoinWrongNode), 1);

    let expired = control
        .tokens
        .create("node-a", mesh_control::now_s() - 1)
        .unwrap();
    let refused = control.join(&expired, "node-a").await;
    assert_refused(refused, Code::Unauthenticated, "expired");

    let invented = format!("nodemesh-join-{}", "0".repeat(64));
    let refused = control.join(&invented, "node-a").await;
    assert_refused(refused, Code::Unauthenticated, "unknown");
    for malformed in ["", "nodemesh-join-", "nodemesh-join-../../x", "x"] {
        let refused = control.join(malformed, "node-a").await;
        assert_refused(refused, Code::Unauthenticated, "not a join token");
    }
    let refused = control.join(&token, "../node").await;
    assert_refused(refused, Code::InvalidArgument, "path segment");

    for (refusal, times) in [
        (Refusal::TokenWrongNode, 1),
        (Refusal::TokenExpired, 1),
        (Refusal::TokenUnknown, 1),
        (Refusal::TokenMalformed, 4),
        (Refusal::NodeName, 1),
    ] {
        assert_eq!(control.audit.refused(refusal), times, "{refusal}");
    }
    // None of that has cost the token.
    control.join(&token, "node-a").await.unwrap();
}

#[tokio::test]
async fn a_request_that_cant_be_signed_does_not_cost_the_token() {
    let control = Control::start().await;
    let token = control.token("node-a");
    let channel = control.connect(None).await.unwrap();
    let asked = JoinRequest {
        token: token.clone(),
        node: "node-a".to_owned(),
        csr: "nonsense".to_owned(),
    };
    let refused = NodeServiceClient::new(channel).join(asked).await;
    assert_refused(refused, Code::InvalidArgument, "PKCS#10");
    control.join(&token, "node-a").await.unwrap();
}

#[test]
fn the_store_keeps_hashes_only_and_forgets_what_has_expired() {
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("state");
    let tokens = mesh_control::tokens::TokenStore::open(&state).unwrap();
    let (early, late) = (
        tokens.create("n", 10).unwrap(),
        tokens.create("n", 1000).unwrap(),
    );
    let used = tokens.create("n", 10).unwrap();
    tokens.consume(&used, "n", 5).unwrap();
    let secret = early.strip_prefix("nodemesh-join-").unwrap();
    assert_eq!(secret.len(), 64, "256 bits");
    let found = std::process::Command::new("grep")
        .args(["-r", secret])
        .arg(&state)
        .status()
        .unwrap();
    assert!(!found.success(), "the token itself must not be on disk");
    let listed = std::fs::read_dir(state.join("tokens")).unwrap();
    for entry in listed {
        assert!(
            !entry
                .unwrap()
                .file_name()
                .to_string_lossy()
                .contains(secret)
        );
    }
    assert_eq!(tokens.purge(100).unwrap(), 2);
    tokens.consume(&late, "n", 100).unwrap();
}

#[tokio::test]
async fn a_node_renews_for_itself_and_for_nobody_else() {
    let control = Control::start().await;
    let channel = control.node("node-a").await;
    let named = |name: &'static str| {
        request(|params| {
            params
                .distinguished_name
                .push(rcgen::DnType::CommonName, name);
            params.subject_alt_names = vec![rcgen::SanType::URI(name.try_into().unwrap())];
        })
    };
    let (csr, _) = named("spiffe://cluster.local/nodemesh/node/node-b");
    let refused = NodeServiceClient::new(channel.clone())
        .renew(RenewRequest { csr })
        .await;
    assert_refused(refused, Code::InvalidArgument, "node-b");
    assert_eq!(control.audit.count(Event::RenewalRefused), 1);
    assert_eq!(control.audit.refused(Refusal::CsrNames), 1);
    let (csr, key) = named("spiffe://cluster.local/nodemesh/node/node-a");
    let renewed = NodeServiceClient::new(channel)
        .renew(RenewRequest { csr })
        .await
        .unwrap()
        .into_inner();
    let uris = leaf(&renewed.cert_chain[0]).uris;
    assert_eq!(uris, ["spiffe://cluster.local/nodemesh/node/node-a"]);
    // The renewed certificate works, and OpenSSL accepts its chain.
    let chain = renewed.cert_chain.concat();
    let folder = control.pki.path("");
    control.pki.write("node.pem", &chain, 0o644);
    let verified = openssl(
        &folder,
        "verify -x509_strict -purpose sslclient -CAfile root.pem -untrusted ca-cert.pem node.pem",
    );
    assert!(
        verified.status.success(),
        "{}",
        String::from_utf8_lossy(&verified.stderr)
    );
    let channel = control
        .connect(Some(&Identified { chain, key }))
        .await
        .unwrap();
    let (csr, _) = request(|_| ());
    NodeServiceClient::new(channel)
        .renew(RenewRequest { csr })
        .await
        .unwrap();
}

#[tokio::test]
async fn renewal_needs_a_nodes_certificate() {
    let control = Control::start().await;
    let (csr, _) = request(|_| ());
    let channel = control.connect(None).await.unwrap();
    let refused = NodeServiceClient::new(channel)
        .renew(RenewRequest { csr })
        .await;
    assert_refused(refused, Code::Unauthenticated, "client certificate");
}
