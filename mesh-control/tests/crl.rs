//! Revocation lists: which are taken, and why the others are not.

mod support;

use std::path::Path;

use mesh_control::now_s;
use mesh_control::trust::crl::{CrlFault, CrlFiles, read};
use rcgen::{CrlDistributionPoint, CrlIssuingDistributionPoint, CrlScope, Issuer, KeyPair};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use support::pki::{Pki, authority, list, openssl};
use time::{Duration, OffsetDateTime};
use tokio::sync::watch;

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
    let serials = |listed: &mut watch::Receiver<mesh_control::trust::crl::Listed>| {
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
