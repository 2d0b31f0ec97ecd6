//! A rollover of the intermediate and of the root while nodes call.

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use mesh_api::node::RenewRequest;
use mesh_api::node::node_service_client::NodeServiceClient;
use mesh_control::ca::{Published, Reloader, SignerFiles, SignerSources};
use mesh_control::server::{Limits, Rate};
use support::pki::Ca;
use support::{CART, Control, Identified, request, sign};
use tokio::time::timeout;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Error, Identity};

const OVERLAP_S: i64 = 600;
const PATIENCE: Duration = Duration::from_secs(20);

/// Renews a node's certificate.
async fn renew(channel: &Channel) -> Identified {
    let (csr, key) = request(|_| ());
    let mut nodes = NodeServiceClient::new(channel.clone());
    let renewed = nodes.renew(RenewRequest { csr }).await;
    let chain = renewed.unwrap().into_inner().cert_chain.concat();
    Identified { chain, key }
}

/// Connects as one who trusts these roots alone.
async fn connect(control: &Control, roots: &str, own: &Identified) -> Result<Channel, Error> {
    let tls = ClientTlsConfig::new()
        .ca_certificate(Certificate::from_pem(roots))
        .identity(Identity::from_pem(&own.chain, &own.key))
        .domain_name("nodemesh-control");
    let endpoint = Endpoint::from_shared(control.url()).unwrap();
    endpoint.tls_config(tls)?.connect().await
}

#[tokio::test]
async fn nodes_call_on_while_intermediate_and_root_are_replaced() {
    // A fast machine asks more often than a node may.
    let boundless = Rate {
        per_second: u32::MAX,
        burst: u32::MAX,
    };
    let limits = Limits {
        node: boundless,
        identity: boundless,
        ..Limits::default()
    };
    let control = Arc::new(Control::limited(limits).await);
    let pki = &control.pki;
    let old_root = pki.root_pem().to_owned();
    let files = SignerFiles {
        ca_cert: &pki.path("ca-cert.pem"),
        ca_key: &pki.path("ca-key.pem"),
        root: &pki.path("root.pem"),
    };
    let now_s = mesh_control::now_s();
    let published = Published::open(&control.state_dir, &control.authority.roots(), now_s);
    let mut reloader = Reloader::new(
        control.authority.clone(),
        SignerSources::from(&files),
        published.unwrap(),
        OVERLAP_S,
        control.audit.clone(),
    );
    let mut look = |seconds| {
        reloader.look(now_s + seconds);
        reloader.look(now_s + seconds);
    };
    look(0);
    let channel = control.node("node-a").await;

    // Traffic: signing requests one after the other, and not one may fail.
    let (done, signed) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicU64::new(0)),
    );
    let traffic = tokio::spawn({
        let (channel, done, signed) = (channel.clone(), done.clone(), signed.clone());
        async move {
            while !done.load(Ordering::Relaxed) {
                let (csr, _) = request(|_| ());
                sign(&channel, CART, &csr, 0).await.expect("a certificate");
                signed.fetch_add(1, Ordering::Relaxed);
            }
        }
    });
    let some_more = async || {
        let enough = signed.load(Ordering::Relaxed) + 5;
        while signed.load(Ordering::Relaxed) < enough {
            assert!(!traffic.is_finished(), "a request failed");
            tokio::task::yield_now().await;
        }
    };
    some_more().await;
    let new = Ca::root("new root");
    let intermediate = new.below("new intermediate");
    pki.write("root.pem", &format!("{old_root}{}", new.pem), 0o644);
    look(0);
    some_more().await;
    pki.write("ca-cert.pem", &intermediate.pem, 0o644);
    pki.write("ca-key.pem", &intermediate.key(), 0o600);
    look(1);
    assert_eq!(
        control.authority.status()[0].subject,
        "CN=test intermediate"
    );
    some_more().await;
    let old = renew(&channel).await;
    look(OVERLAP_S);
    assert_eq!(control.authority.status()[0].subject, "CN=new intermediate");
    some_more().await;

    // Who was told of the new root alone finds control under it, with a certificate of either.
    let renewed = renew(&channel).await;
    for own in [&old, &renewed] {
        let met = async {
            loop {
                if let Ok(channel) = connect(&control, &new.pem, own).await {
                    break channel;
                }
            }
        };
        let met = timeout(PATIENCE, met)
            .await
            .expect("control shows its new certificate");
        renew(&met).await;
    }
    some_more().await;
    done.store(true, Ordering::Relaxed);
    traffic.await.unwrap();

    // The old root goes, and with it everybody who has nothing but a certificate under it.
    let new_channel = connect(&control, &new.pem, &renewed).await.unwrap();
    pki.write("root.pem", &new.pem, 0o644);
    look(OVERLAP_S + 1);
    let cut_off = async {
        let (csr, _) = request(|_| ());
        while sign(&channel, CART, &csr, 0).await.is_ok() {}
    };
    timeout(PATIENCE, cut_off)
        .await
        .expect("the old connection ends");
    let (csr, _) = request(|_| ());
    let refused = async {
        let channel = connect(&control, &new.pem, &old).await?;
        // In TLS 1.3 the client learns of it with its first read.
        Ok::<_, Error>(sign(&channel, CART, &csr, 0).await.is_err())
    };
    assert!(
        refused.await.unwrap_or(true),
        "a certificate under the old root"
    );
    sign(&new_channel, CART, &csr, 0).await.unwrap();
}
