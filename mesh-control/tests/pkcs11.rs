//! Intermediates whose keys are in a token: SoftHSM, by the binary as the operator runs it.

mod support;

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output};

use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use cryptoki::object::{Attribute, AttributeType, ObjectClass};
use cryptoki::session::UserType;
use cryptoki::types::AuthPin;
use support::MANIFESTS;
use support::pki::{Pki, openssl};
use support::process::{Running, control, join, text, token};

/// Where Debian's package has it.
const MODULE: &str = "/usr/lib/softhsm/libsofthsm2.so";
const PIN: &str = "571934";
const CURVES: [&str; 2] = ["p256", "p384"];
/// What tells SoftHSM where its tokens are.
const CONF: &str = "SOFTHSM2_CONF";

/// A token of its own, with a PKI beside it whose intermediate has its key there.
struct Token {
    pki: Pki,
}

impl Token {
    fn new() -> Self {
        let pki = Pki::new();
        fs::create_dir(pki.path("tokens")).unwrap();
        let tokens = pki.path("tokens");
        let tokens = tokens.display();
        let conf = format!("directories.tokendir = {tokens}\nobjectstore.backend = file\n");
        pki.write("softhsm2.conf", &conf, 0o600);
        pki.write("pin", &format!("{PIN}\n"), 0o600);
        fs::create_dir(pki.path("manifests")).unwrap();
        fs::write(pki.path("manifests/mesh.yaml"), MANIFESTS).unwrap();
        let made = Self { pki };
        made.softhsm(&format!(
            "--init-token --free --label mesh --so-pin 0000 --pin {PIN}"
        ));
        made
    }

    /// A command that sees this token.
    fn seeing(&self, mut command: Command) -> Command {
        command.env(CONF, self.pki.path("softhsm2.conf"));
        command
    }

    fn softhsm(&self, line: &str) {
        let mut command = self.seeing(Command::new("softhsm2-util"));
        let done = command.args(line.split_whitespace()).output();
        let done = done.expect("softhsm2 is installed: cargo xtask setup");
        assert!(done.status.success(), "{line}: {}", text(&done.stderr));
    }

    fn uri(&self, object: &str) -> String {
        let pin = self.pki.path("pin");
        let pin = pin.display();
        format!("pkcs11:token=mesh;object={object}?module-path={MODULE}&pin-source=file:{pin}")
    }

    fn request(&self, key: &str, more: &[&str]) -> Output {
        let mut command = self.seeing(control());
        command.args(["signer", "request", "--trust-domain", "cluster.local"]);
        command.args(["--key", key]).args(more).output().unwrap()
    }

    /// The operator's root signs a request; the certificate is written to `name`.
    fn sign(&self, request: &str, name: &str) -> PathBuf {
        self.pki.write("intermediate.csr", request, 0o644);
        let extensions = "basicConstraints = critical, CA:TRUE, pathlen:0\n\
                          keyUsage = critical, keyCertSign, cRLSign\n\
                          subjectKeyIdentifier = hash\n\
                          authorityKeyIdentifier = keyid\n\
                          subjectAltName = URI:spiffe://cluster.local\n";
        self.pki.write("extensions", extensions, 0o644);
        let line = format!(
            "x509 -req -in intermediate.csr -CA root.pem -CAkey root-key.pem -days 30 -extfile extensions -out {name}"
        );
        let signed = openssl(&self.pki.path(""), &line);
        assert!(signed.status.success(), "{}", text(&signed.stderr));
        self.pki.path(name)
    }

    fn run(&self, certificate: &str, key: &str) -> Command {
        let mut command = self.seeing(control());
        command.args(["run", "--trust-domain", "cluster.local"]);
        command.args(["--listen", "127.0.0.1:0", "--ca-key", key]);
        for (option, file) in [
            ("--manifests", "manifests"),
            ("--state-dir", "state"),
            ("--ca-cert", certificate),
            ("--root", "root.pem"),
        ] {
            command.arg(option).arg(self.pki.path(file));
        }
        command
    }

    /// Serves with a key, joins a node, and has openssl verify the certificate.
    fn serves(&self, certificate: &str, key: &str) {
        let (_running, address, _) = Running::start(self.run(certificate, key));
        let made = token(&self.pki, &["--node", "node-a"]);
        let joined = join(&address, self.pki.root_pem(), text(&made.stdout).trim());
        let (leaf, rest) = joined.cert_chain.split_first().unwrap();
        self.pki.write("leaf.pem", leaf, 0o644);
        self.pki.write("rest.pem", &rest.concat(), 0o644);
        let line =
            "verify -x509_strict -purpose sslclient -CAfile root.pem -untrusted rest.pem leaf.pem";
        let verified = openssl(&self.pki.path(""), line);
        assert!(verified.status.success(), "{}", text(&verified.stderr));
    }
}

#[test]
fn control_signs_with_keys_that_were_made_in_a_token() {
    let token = Token::new();
    for curve in CURVES {
        let (uri, certificate) = (token.uri(curve), format!("{curve}.pem"));
        let made = token.request(&uri, &["--create", curve]);
        assert!(made.status.success(), "{}", text(&made.stderr));
        token.sign(&text(&made.stdout), &certificate);
        token.serves(&certificate, &uri);
        // A name is given once; the same key is asked for again without making one.
        let twice = token.request(&uri, &["--create", curve]);
        assert_eq!(twice.status.code(), Some(1));
        assert!(
            text(&twice.stderr).contains("already"),
            "{}",
            text(&twice.stderr)
        );
        let again = token.request(&uri, &[]);
        assert!(again.status.success(), "{}", text(&again.stderr));
        token.pki.write("again.csr", &text(&again.stdout), 0o644);
        let shown = |line| openssl(&token.pki.path(""), line).stdout;
        assert_eq!(
            shown("req -verify -in again.csr -noout -pubkey"),
            shown("req -in intermediate.csr -noout -pubkey")
        );
    }
    // An RSA key of the operator's, brought by its own tool.
    let line = "req -new -newkey rsa:2048 -nodes -keyout rsa.key -subj /CN=rsa -out rsa.csr";
    assert!(openssl(&token.pki.path(""), line).status.success());
    let csr = fs::read_to_string(token.pki.path("rsa.csr")).unwrap();
    token.sign(&csr, "rsa.pem");
    let key = token.pki.path("rsa.key");
    let key = key.display();
    token.softhsm(&format!(
        "--import {key} --token mesh --label rsa --id 0a --pin {PIN}"
    ));
    token.serves("rsa.pem", &token.uri("rsa"));
}

/// Looks at them with a client of its own, in a process that sees the token.
#[test]
fn keys_that_were_made_in_a_token_stay_there() {
    if std::env::var_os(CONF).is_none() {
        let token = Token::new();
        for curve in CURVES {
            let made = token.request(&token.uri(curve), &["--create", curve]);
            assert!(made.status.success(), "{}", text(&made.stderr));
        }
        let mut again = token.seeing(Command::new(std::env::current_exe().unwrap()));
        let checked = again.args(["--exact", "keys_that_were_made_in_a_token_stay_there"]);
        let said = text(&checked.output().unwrap().stdout);
        assert!(said.contains("1 passed"), "{said}");
        return;
    }
    let module = Pkcs11::new(MODULE).unwrap();
    let flags = CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK);
    module.initialize(flags).unwrap();
    let slots = module.get_slots_with_initialized_token().unwrap();
    let session = module.open_ro_session(slots[0]).unwrap();
    session
        .login(UserType::User, Some(&AuthPin::new(PIN.into())))
        .unwrap();
    for label in CURVES {
        let template = [
            Attribute::Class(ObjectClass::PRIVATE_KEY),
            Attribute::Label(label.into()),
        ];
        let keys = session.find_objects(&template).unwrap();
        let asked = [
            AttributeType::Sensitive,
            AttributeType::AlwaysSensitive,
            AttributeType::Extractable,
            AttributeType::NeverExtractable,
            AttributeType::Value,
        ];
        let said = session.get_attributes(keys[0], &asked).unwrap();
        // The value itself is not among what it tells.
        let wanted = [
            Attribute::Sensitive(true),
            Attribute::AlwaysSensitive(true),
            Attribute::Extractable(false),
            Attribute::NeverExtractable(true),
        ];
        assert_eq!(said, wanted, "{label}");
    }
}

#[test]
fn tokens_that_cant_be_used_are_refused_each_with_its_reason() {
    let token = Token::new();
    let uri = token.uri("key");
    let made = token.request(&uri, &["--create", "p256"]);
    assert!(made.status.success(), "{}", text(&made.stderr));
    token.sign(&text(&made.stdout), "ca-cert.pem");
    let other = token.request(&token.uri("other"), &["--create", "p256"]);
    token.sign(&text(&other.stdout), "other.pem");
    token.pki.write("wrong-pin", "1111", 0o600);
    token.pki.write("open-pin", PIN, 0o644);
    let with = |from: &str, to: &str| uri.replace(from, to);
    for (certificate, key, part) in [
        ("other.pem", uri.clone(), "does not match"),
        (
            "ca-cert.pem",
            with("object=key", "object=none"),
            "no such key",
        ),
        (
            "ca-cert.pem",
            with("token=mesh", "token=none"),
            "no such token; there are: \"mesh\"",
        ),
        (
            "ca-cert.pem",
            with("/pin", "/wrong-pin"),
            "logging in with the PIN",
        ),
        ("ca-cert.pem", with("/pin", "/open-pin"), "chmod 600"),
        ("ca-cert.pem", with("/pin", "/no-pin"), "no-pin"),
        (
            "ca-cert.pem",
            with("libsofthsm2", "libnone"),
            "is the token's library installed",
        ),
        (
            "ca-cert.pem",
            with("pin-source=file:", "pin-value="),
            "pin-value shows the PIN",
        ),
        (
            "ca-cert.pem",
            format!("pkcs11:token=mesh;object=key?module-path={MODULE}"),
            "pin-source",
        ),
    ] {
        let refused = token.run(certificate, &key).output().unwrap();
        let why = text(&refused.stderr);
        assert_eq!(refused.status.code(), Some(64), "{key}: {why}");
        assert!(why.contains(part), "{part} not in {why}");
        assert!(!why.contains(PIN), "the PIN in {why}");
    }
    // The same PIN as a credential of the service manager's.
    let folder = token.pki.path("credentials");
    fs::create_dir(&folder).unwrap();
    token.pki.write("credentials/mesh-pin", PIN, 0o400);
    let pin = format!("file:{}", token.pki.path("pin").display());
    let key = uri.replace(&pin, "credential:mesh-pin");
    let mut command = token.run("ca-cert.pem", &key);
    command.env("CREDENTIALS_DIRECTORY", &folder);
    Running::start(command);
}
