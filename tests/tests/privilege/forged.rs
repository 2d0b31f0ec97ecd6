//! A live worker, taken over: it asks for another's certificate, through its own channel.

use std::io::Write;
use std::process::{Command, Stdio};
use std::time::Instant;

use mesh_lab::inject::Tracee;
use mesh_lab::{Lab, programs, wait};
use rcgen::{CertificateParams, DnType, KeyPair, SanType};
use serde_json::Value;

use crate::packets::{CERTIFICATE_REQUEST, bytes, packet, send};
use crate::{CLIENT, NEIGHBOUR, WEB, assert_carried, lab, worker};

/// Whatever the request says, control is asked for the identity that the supervisor has for
/// the pod, and signs nothing else. One that names another is refused, and not asked again.
#[test]
fn a_request_for_another_identity_gets_a_certificate_of_its_own() {
    let (lab, _server) = lab();
    let (client, web) = (lab.pod(CLIENT), lab.pod(WEB));
    let key = KeyPair::generate().unwrap();
    let wanted = web.identity();
    let taken = worker(&lab, CLIENT);
    let mut seized = Tracee::seize(taken).unwrap();
    let failures = || {
        let name = "nodemesh_certificate_failures_total";
        let (agent, node) = (lab.agent(client.node()), lab.node(client.node()));
        agent.metric(node, name, &[]).unwrap()
    };
    let before = failures();
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![SanType::URI((&*wanted).try_into().unwrap())];
    let request = params.serialize_request(&key).unwrap();
    let body = bytes(1, request.der());
    assert!(send(&mut seized, &packet(CERTIFICATE_REQUEST, &body)) > 0);
    wait::until_true("the refusal", wait::PATIENCE, || Ok(failures() > before)).unwrap();

    // Named where control looks for no identity.
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, &*wanted);
    let request = params.serialize_request(&key).unwrap();
    let body = bytes(1, request.der());
    assert!(send(&mut seized, &packet(CERTIFICATE_REQUEST, &body)) > 0);
    // The next certificate that the supervisor keeps for the pod is for the key of the request.
    // Its worker, once it goes on, asks for one of its own again.
    let forged = wait::until("the certificate", wait::PATIENCE, || {
        let kept = kept_certificate(&lab);
        Ok(kept.filter(|kept| is_for(kept, &key)))
    });
    drop(seized);
    assert_eq!(failures(), before + 1.0, "{}", lab.log_tails());
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

/// One request a second goes to control, whatever a worker sends; a neighbour gets its
/// certificate meanwhile.
#[test]
fn a_storm_of_requests_is_metered_and_keeps_no_certificate_from_others() {
    const STORM: usize = 1_000;
    let (lab, _server) = lab();
    let (client, neighbour) = (lab.pod(CLIENT), lab.pod(NEIGHBOUR));
    let (agent, node) = (lab.agent(client.node()), lab.node(client.node()));
    let metric = |name: &str, labels: &[&str]| agent.metric(node, name, labels).unwrap();
    let asked = || {
        metric("nodemesh_certificates_signed_total", &[])
            + metric("nodemesh_certificate_failures_total", &[])
    };
    let held_back = |pod: &str| {
        let name = "nodemesh_supervisor_held_back_total";
        metric(name, &["\"signing\"", &format!("pod=\"{pod}\"")])
    };
    let key = KeyPair::generate().unwrap();
    let request = CertificateParams::default().serialize_request(&key);
    // By turns one that can be signed, and one that is none.
    let good = packet(CERTIFICATE_REQUEST, &bytes(1, request.unwrap().der()));
    let bad = packet(CERTIFICATE_REQUEST, &bytes(1, b"no request"));
    let taken = worker(&lab, CLIENT);
    let (before, began) = (asked(), Instant::now());
    let mut seized = Tracee::seize(taken).unwrap();
    let mut sent = 0;
    let mut storm = || {
        let packets = [&good, &bad].into_iter().cycle().take(STORM);
        sent += packets.filter(|p| send(&mut seized, p) > 0).count();
    };
    storm();
    agent.remove_pod(neighbour).unwrap();
    storm();
    // Returns when it has its certificate.
    agent.add_pod(neighbour).unwrap();
    storm();
    // Until it has its second: the worker's own, at its start, may have been less than one
    // interval ago.
    while asked() - before < 2.0 && began.elapsed() < wait::PATIENCE {
        storm();
    }
    // The neighbour's own; in a second one of the storm, and what control refused again.
    let most = 5.0 * (1.0 + began.elapsed().as_secs_f64());
    let asked = asked() - before;
    println!("{sent} requests sent, {asked} asked of control, at most {most:.1}");
    assert!(sent > STORM, "{sent}");
    assert!((2.0..=most).contains(&asked), "{asked}, at most {most}");
    drop(seized);
    // A worker that is held does not answer a scrape.
    assert!(held_back(CLIENT) > 0.0);
    assert!(held_back(NEIGHBOUR) < 1.0);
    assert_carried(neighbour, lab.pod(WEB));
    assert_carried(client, lab.pod(WEB));
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
