//! A live worker, taken over: it asks for another's certificate, through its own channel.

use std::io::Write;
use std::process::{Command, Stdio};

use mesh_lab::inject::Tracee;
use mesh_lab::{Lab, programs, wait};
use rcgen::{CertificateParams, DnType, KeyPair, SanType};
use serde_json::Value;

use crate::packets::{CERTIFICATE_REQUEST, bytes, packet, send};
use crate::{CLIENT, WEB, assert_carried, lab, worker};

/// Whatever the request says, control is asked for the identity that the supervisor has for
/// the pod, and signs nothing else.
#[test]
fn a_request_for_another_identity_gets_a_certificate_of_its_own() {
    let (lab, _server) = lab();
    let (client, web) = (lab.pod(CLIENT), lab.pod(WEB));
    let key = KeyPair::generate().unwrap();
    let wanted = web.identity();
    let mut params = CertificateParams::default();
    let name = SanType::URI(wanted.as_str().try_into().unwrap());
    params.subject_alt_names = vec![name];
    params.distinguished_name.push(DnType::CommonName, &*wanted);
    let request = params.serialize_request(&key).unwrap();

    let taken = worker(&lab, CLIENT);
    let mut seized = Tracee::seize(taken).unwrap();
    let body = bytes(1, request.der());
    assert!(send(&mut seized, &packet(CERTIFICATE_REQUEST, &body)) > 0);
    // The next certificate that the supervisor keeps for the pod is for the key of the request.
    // Its worker, once it goes on, asks for one of its own again.
    let forged = wait::until("the certificate", wait::PATIENCE, || {
        let kept = kept_certificate(&lab);
        Ok(kept.filter(|kept| is_for(kept, &key)))
    });
    drop(seized);
    let said = openssl(&["-ext", "subjectAltName", "-subject"], &forged.unwrap());
    assert!(
        said.contains(&format!("URI:{}", client.identity())),
        "{said}"
    );
    assert!(!said.contains(&wanted), "{said}");
    // It is of no use to anybody but who holds that key: the worker goes on with its own.
    assert_carried(client, web);
    assert_eq!(worker(&lab, CLIENT), taken);
}

/// The certificate in the pod's record, as PEM.
fn kept_certificate(lab: &Lab) -> Option<String> {
    let node = lab.node(lab.pod(CLIENT).node());
    let record = node.folder.join("run/pods/shop_client.json");
    let record: Value = serde_json::from_str(&std::fs::read_to_string(record).ok()?).ok()?;
    record["placed"]["certificate"][0]
        .as_str()
        .map(str::to_owned)
}

fn is_for(pem: &str, key: &KeyPair) -> bool {
    let lines = |pem: &str| -> Vec<String> { pem.lines().map(str::to_owned).collect() };
    lines(&openssl(&["-pubkey"], pem)) == lines(&key.public_key_pem())
}

/// What `openssl x509` says of a certificate.
fn openssl(arguments: &[&str], pem: &str) -> String {
    let program = programs::find(programs::OPENSSL.name.as_ref()).unwrap();
    let mut child = Command::new(program)
        .args(["x509", "-noout"])
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(pem.as_bytes())
        .unwrap();
    String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap()
}
