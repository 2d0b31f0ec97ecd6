//! Signers that are refused at start, each with its own reason.

mod support;

use mesh_control::ca::{Authority, SignerFault, SignerFiles};
use rcgen::{BasicConstraints, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType};
use support::pki::{Pki, authority};
use time::{Duration, OffsetDateTime};

fn load(pki: &Pki) -> Result<Authority, SignerFault> {
    let files = SignerFiles {
        ca_cert: &pki.path("ca-cert.pem"),
        ca_key: &pki.path("ca-key.pem"),
        root: &pki.path("root.pem"),
    };
    Authority::load(
        &files,
        &"cluster.local".parse().unwrap(),
        mesh_control::now_s(),
    )
}

fn refusal(pki: &Pki) -> SignerFault {
    load(pki).err().expect("a refusal")
}

#[test]
fn a_sound_signer_is_taken() {
    assert!(load(&Pki::new()).is_ok());
}

#[test]
fn the_root_itself_is_no_signer() {
    let pki = Pki::new();
    let key = std::fs::read_to_string(pki.path("root-key.pem")).unwrap();
    pki.write("ca-cert.pem", pki.root_pem(), 0o644);
    pki.write("ca-key.pem", &key, 0o600);
    let fault = refusal(&pki);
    assert!(matches!(fault, SignerFault::SelfSigned { .. }), "{fault}");
    assert!(fault.to_string().contains("self-signed"), "{fault}");
}

#[test]
fn any_other_self_signed_certificate_is_no_signer_either() {
    let pki = Pki::new();
    let key = KeyPair::generate().unwrap();
    let own = authority("own").self_signed(&key).unwrap().pem();
    pki.write("ca-cert.pem", &own, 0o644);
    pki.write("ca-key.pem", &key.serialize_pem(), 0o600);
    assert!(matches!(refusal(&pki), SignerFault::SelfSigned { .. }));
}

#[test]
fn validity_counts() {
    let now = OffsetDateTime::now_utc();
    let fault = refusal(&Pki::with(|p| p.not_after = now - Duration::hours(1)));
    assert!(matches!(fault, SignerFault::Expired { .. }), "{fault}");
    assert!(
        fault.to_string().contains("test intermediate") && fault.to_string().contains("expired on")
    );
    let fault = refusal(&Pki::with(|p| p.not_before = now + Duration::hours(1)));
    assert!(matches!(fault, SignerFault::NotYetValid { .. }), "{fault}");
}

#[test]
fn the_chain_must_lead_to_the_given_root() {
    let (pki, other) = (Pki::new(), Pki::new());
    pki.write("root.pem", other.root_pem(), 0o644);
    let fault = refusal(&pki);
    assert!(matches!(fault, SignerFault::NotChained { .. }), "{fault}");
    assert!(fault.to_string().contains("does not chain"), "{fault}");
    // With both roots, as during a rollover, it does; and so with the root in the chain.
    pki.write(
        "root.pem",
        &format!("{}{}", other.root_pem(), pki.root_pem()),
        0o644,
    );
    assert!(load(&pki).is_ok());
    pki.write(
        "ca-cert.pem",
        &format!("{}{}", pki.ca_pem(), pki.root_pem()),
        0o644,
    );
    assert!(load(&pki).is_ok());
}

#[test]
fn a_longer_chain_is_followed_and_a_gap_in_it_found() {
    let pki = Pki::new();
    let root_key = KeyPair::generate().unwrap();
    let root_params = authority("long root");
    let root_pem = root_params.self_signed(&root_key).unwrap().pem();
    let root = Issuer::new(root_params, root_key);
    let (upper_key, lower_key) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
    let upper_params = authority("upper");
    let upper_pem = upper_params.signed_by(&upper_key, &root).unwrap().pem();
    let upper = Issuer::new(upper_params, upper_key);
    let lower_pem = authority("lower")
        .signed_by(&lower_key, &upper)
        .unwrap()
        .pem();
    pki.write("root.pem", &root_pem, 0o644);
    pki.write("ca-key.pem", &lower_key.serialize_pem(), 0o600);
    pki.write("ca-cert.pem", &format!("{lower_pem}{upper_pem}"), 0o644);
    assert!(load(&pki).is_ok());
    pki.write("ca-cert.pem", &lower_pem, 0o644);
    assert!(matches!(refusal(&pki), SignerFault::NotChained { .. }));
}

#[test]
fn only_a_ca_may_sign() {
    for adjust in [
        (|p: &mut rcgen::CertificateParams| p.is_ca = IsCa::ExplicitNoCa) as fn(&mut _),
        |p| p.is_ca = IsCa::NoCa,
        |p| p.key_usages = vec![KeyUsagePurpose::DigitalSignature],
    ] {
        let fault = refusal(&Pki::with(adjust));
        assert!(matches!(fault, SignerFault::NotCa { .. }), "{fault}");
    }
}

#[test]
fn the_key_must_be_the_certificates_and_its_owners_alone() {
    let pki = Pki::new();
    let key = KeyPair::generate().unwrap().serialize_pem();
    pki.write("ca-key.pem", &key, 0o600);
    let fault = refusal(&pki);
    assert!(matches!(fault, SignerFault::KeyMismatch { .. }), "{fault}");
    for mode in [0o640, 0o604, 0o620, 0o601] {
        pki.write("ca-key.pem", &key, mode);
        let fault = refusal(&pki);
        assert!(
            matches!(fault, SignerFault::KeyPermissions { .. }),
            "{fault}"
        );
        assert!(fault.to_string().contains("chmod 600"), "{fault}");
    }
}

#[test]
fn a_signer_of_another_trust_domain_is_refused() {
    let with = |uri: &str| {
        let uri = SanType::URI(uri.try_into().unwrap());
        Pki::with(|p| p.subject_alt_names = vec![uri])
    };
    assert!(load(&with("spiffe://cluster.local")).is_ok());
    let fault = refusal(&with("spiffe://other"));
    assert!(matches!(fault, SignerFault::TrustDomain { .. }), "{fault}");
}

/// The upper intermediate allows none below it: only a real verification notices.
#[test]
fn what_tls_peers_would_refuse_is_refused_at_start() {
    let pki = Pki::new();
    let root_key = KeyPair::generate().unwrap();
    let root_params = authority("long root");
    let root_pem = root_params.self_signed(&root_key).unwrap().pem();
    let root = Issuer::new(root_params, root_key);
    let (upper_key, lower_key) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
    let mut upper_params = authority("upper");
    upper_params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    let upper_pem = upper_params.signed_by(&upper_key, &root).unwrap().pem();
    let upper = Issuer::new(upper_params, upper_key);
    let lower_pem = authority("lower")
        .signed_by(&lower_key, &upper)
        .unwrap()
        .pem();
    pki.write("root.pem", &root_pem, 0o644);
    pki.write("ca-key.pem", &lower_key.serialize_pem(), 0o600);
    pki.write("ca-cert.pem", &format!("{lower_pem}{upper_pem}"), 0o644);
    let fault = refusal(&pki);
    assert!(matches!(fault, SignerFault::Unaccepted { .. }), "{fault}");
}

#[test]
fn files_that_are_not_there_or_hold_something_else_are_named() {
    let pki = Pki::new();
    pki.write("root.pem", "nothing", 0o644);
    let fault = refusal(&pki);
    assert!(
        fault
            .to_string()
            .contains("root.pem is not usable: it holds no PEM certificate"),
        "{fault}"
    );
    pki.write("root.pem", pki.root_pem(), 0o644);
    pki.write("ca-key.pem", pki.root_pem(), 0o600);
    let fault = refusal(&pki);
    assert!(
        fault.to_string().contains("ca-key.pem is not usable"),
        "{fault}"
    );
    std::fs::remove_file(pki.path("ca-key.pem")).unwrap();
    let fault = refusal(&pki);
    assert!(matches!(fault, SignerFault::Read { .. }), "{fault}");
}
