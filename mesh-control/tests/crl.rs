//! Revocation lists: which are taken, and why the others are not.

mod support;

use std::convert::Infallible;
use std::path::Path;
use std::sync::{Arc, Mutex};

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::service::service_fn;
use hyper::{Response, StatusCode};
use hyper_util::rt::TokioIo;
use mesh_control::now_s;
use mesh_control::trust::crl::fetch::{self, Fetched};
use mesh_control::trust::crl::{CrlFault, CrlFiles, Listed, read};
use rcgen::{
    CertificateParams, CrlDistributionPoint, CrlIssuingDistributionPoint, CrlScope, IsCa, Issuer,
    KeyPair,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use support::pki::{Pki, authority, list, openssl};
use time::{Duration, OffsetDateTime};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;

fn authorities(pki: &Pki) -> Vec<CertificateDer<'static>> {
    let pem = [pki.root_pem(), pki.ca_pem()].concat();
    CertificateDer::pem_slice_iter(pem.as_bytes())
        .collect::<Result<_, _>>()
        .unwrap()
}

fn refused(pki: &Pki, text: &str) -> CrlFault {
    read(
        Path::new("list.crl"),
        text.as_bytes(),
        &authorities(pki),
        now_s(),
    )
    .unwrap_err()
}

#[test]
fn a_list_is_taken_as_pem_and_as_der_and_as_openssl_reads_it() {
    let pki = Pki::new();
    pki.write("list.pem", &pki.list(&[&[5]], |_| ()), 0o644);
    let folder = pki.path("");
    let der = openssl(&folder, "crl -in list.pem -outform DER -out list.der");
    assert!(der.status.success());
    let shown = openssl(
        &folder,
        "crl -in list.der -inform DER -noout -verify -CAfile root.pem",
    );
    assert!(String::from_utf8_lossy(&shown.stderr).contains("verify OK"));
    let taken = |name: &str| {
        let bytes = std::fs::read(pki.path(name)).unwrap();
        read(Path::new(name), &bytes, &authorities(&pki), now_s()).unwrap()
    };
    assert_eq!(taken("list.pem"), taken("list.der"));
    assert_eq!(taken("list.pem").len(), 1);
}

#[test]
fn lists_that_prove_nothing_are_refused_each_for_its_reason() {
    let pki = Pki::new();
    let other = |name: &str| Issuer::new(authority(name), KeyPair::generate().unwrap());
    let foreign = list(&other("another root"), &[&[5]], |_| ());
    assert!(matches!(refused(&pki, &foreign), CrlFault::Issuer { .. }));
    // The name is right, the key is not.
    let forged = list(&other("test root"), &[&[5]], |_| ());
    assert!(matches!(refused(&pki, &forged), CrlFault::Signature { .. }));
    let future = pki.list(&[&[5]], |params| {
        params.this_update = OffsetDateTime::now_utc() + Duration::hours(1);
        params.next_update = OffsetDateTime::now_utc() + Duration::hours(2);
    });
    assert!(matches!(refused(&pki, &future), CrlFault::Future { .. }));
    let part = pki.list(&[&[5]], |params| {
        params.issuing_distribution_point = Some(CrlIssuingDistributionPoint {
            distribution_point: CrlDistributionPoint {
                uris: vec!["http://pki.example/ca.crl".to_owned()],
            },
            scope: Some(CrlScope::CaCertsOnly),
        });
    });
    let part = read(Path::new("p"), part.as_bytes(), &authorities(&pki), now_s());
    assert_eq!(
        part.unwrap().len(),
        1,
        "what a part lists is revoked all the same"
    );
    for text in ["", "nonsense", pki.root_pem()] {
        assert!(
            matches!(refused(&pki, text), CrlFault::Malformed { .. }),
            "{text:?}"
        );
    }
}

#[tokio::test]
async fn an_older_or_broken_list_leaves_the_last_good_one_and_a_stale_one_is_good_for_what_it_lists()
 {
    let pki = Pki::new();
    let stale = |minutes: i64| {
        move |params: &mut rcgen::CertificateRevocationListParams| {
            params.this_update = OffsetDateTime::now_utc() - Duration::minutes(minutes);
            params.next_update = OffsetDateTime::now_utc() - Duration::minutes(1);
        }
    };
    pki.write("list.crl", &pki.list(&[&[5]], stale(10)), 0o644);
    let all = authorities(&pki);
    let files = CrlFiles::start(&[pki.path("list.crl")], move || all.clone(), now_s()).unwrap();
    let mut listed = files.listed();
    let serials = |listed: &mut watch::Receiver<Listed>| {
        let listed = listed.borrow_and_update();
        listed.values().flatten().cloned().collect::<Vec<_>>()
    };
    assert_eq!(serials(&mut listed), [[5]]);
    tokio::spawn(files.run());
    for refused in [pki.list(&[&[6]], stale(20)), "nonsense".to_owned()] {
        pki.write("list.crl", &refused, 0o644);
        // Long enough to be read twice.
        tokio::time::sleep(std::time::Duration::from_millis(1_200)).await;
        assert!(!listed.has_changed().unwrap());
    }
    pki.write("list.crl", &pki.list(&[&[5], &[7]], |_| ()), 0o644);
    listed.changed().await.unwrap();
    assert_eq!(serials(&mut listed), [[5], [7]]);
}

#[test]
fn a_file_that_is_not_there_or_not_good_is_refused_at_the_start() {
    let pki = Pki::new();
    let start = |name| {
        let all = authorities(&pki);
        CrlFiles::start(&[pki.path(name)], move || all.clone(), now_s())
    };
    let fault = start("absent.crl").err().unwrap();
    assert!(matches!(fault, CrlFault::Read { .. }), "{fault}");
    pki.write("list.crl", "nonsense", 0o644);
    let fault = start("list.crl").err().unwrap();
    assert!(matches!(fault, CrlFault::Malformed { .. }), "{fault}");
}

/// Serves what is there, over HTTP and, where a key is given, over TLS; nothing is an error of the
/// server.
async fn server(content: Arc<Mutex<Option<String>>>, tls: Option<TlsAcceptor>) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let content = content.clone();
            let answer = service_fn(move |_| {
                let content = content.lock().unwrap().clone();
                let mut answer =
                    Response::new(Full::new(Bytes::from(content.clone().unwrap_or_default())));
                if content.is_none() {
                    *answer.status_mut() = StatusCode::BAD_GATEWAY;
                }
                std::future::ready(Ok::<_, Infallible>(answer))
            });
            let http = hyper::server::conn::http1::Builder::new();
            // A client that does not trust it leaves.
            let _ = match &tls {
                None => http.serve_connection(TokioIo::new(stream), answer).await,
                Some(tls) => match tls.accept(stream).await {
                    Ok(stream) => http.serve_connection(TokioIo::new(stream), answer).await,
                    Err(_) => Ok(()),
                },
            };
        }
    });
    port
}

#[tokio::test]
async fn a_list_at_a_url_is_fetched_again_and_the_last_good_one_kept() {
    let pki = Pki::new();
    let content = Arc::new(Mutex::new(Some(pki.list(&[&[5]], |_| ()))));
    let port = server(content.clone(), None).await;
    let url = format!("http://127.0.0.1:{port}/root.crl");
    let list = Fetched::new(&url, &pki.path("crl"), None).unwrap();
    let all = authorities(&pki);
    list.fetch(&all).await.unwrap();
    let kept = [list.file().to_owned()];
    let files = CrlFiles::start(
        &kept,
        {
            let all = all.clone();
            move || all.clone()
        },
        now_s(),
    );
    let files = files.unwrap();
    let mut listed = files.listed();
    let serials = |listed: &mut watch::Receiver<Listed>| {
        let listed = listed.borrow_and_update();
        listed.values().flatten().cloned().collect::<Vec<_>>()
    };
    assert_eq!(serials(&mut listed), [[5]]);
    let following = tokio::spawn(files.run());
    let refresh = std::time::Duration::from_millis(100);
    let fetching = tokio::spawn(list.clone().follow(refresh, {
        let all = all.clone();
        move || all.clone()
    }));
    // The server fails, then gives another's list, then none, then a good one.
    let forged = list_of_another();
    for bad in [None, Some(forged), Some("hello".to_owned())] {
        content.lock().unwrap().clone_from(&bad);
        let error = list.fetch(&all).await.unwrap_err().to_string();
        assert!(error.starts_with(&url), "{error}");
        assert_eq!(serials(&mut listed), [[5]]);
    }
    *content.lock().unwrap() = Some(pki.list(&[&[5], &[6]], |_| ()));
    listed.changed().await.unwrap();
    assert_eq!(serials(&mut listed), [[5], [6]]);
    fetching.abort();
    following.abort();
}

fn list_of_another() -> String {
    let issuer = Issuer::new(authority("test root"), KeyPair::generate().unwrap());
    list(&issuer, &[&[7]], |_| ())
}

#[tokio::test]
async fn a_server_of_lists_is_held_against_the_roots_given_for_it() {
    let pki = Pki::new();
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
    params.is_ca = IsCa::NoCa;
    let certificate = params.self_signed(&key).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![certificate.der().clone()],
            PrivatePkcs8KeyDer::from(key.serialize_der()).into(),
        )
        .unwrap();
    let content = Arc::new(Mutex::new(Some(pki.list(&[&[5]], |_| ()))));
    let port = server(content, Some(TlsAcceptor::from(Arc::new(config)))).await;
    let url = format!("https://127.0.0.1:{port}/root.crl");
    pki.write("server.pem", &certificate.pem(), 0o644);
    let fetch = async |roots: &str| {
        let tls = fetch::tls(&pki.path(roots)).unwrap();
        let list = Fetched::new(&url, &pki.path("crl"), Some(&tls)).unwrap();
        list.fetch(&authorities(&pki)).await
    };
    let refused = fetch("root.pem").await.unwrap_err().to_string();
    assert!(refused.contains("certificate"), "{refused}");
    fetch("server.pem").await.unwrap();
    let unsure = Fetched::new(&url, &pki.path("crl"), None).err().unwrap();
    assert!(unsure.to_string().contains("--crl-server-root"), "{unsure}");
}
