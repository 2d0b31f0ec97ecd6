//! `meshctl pki init`, run as the operator runs it, its output judged by OpenSSL.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};

fn init(dir: &Path, more: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_meshctl"))
        .args(["pki", "init", "--trust-domain", "cluster.local", "--dir"])
        .arg(dir)
        .args(more)
        .output()
        .expect("meshctl runs")
}

fn openssl(dir: &Path, line: &str) -> Output {
    Command::new("openssl")
        .args(line.split_whitespace())
        .current_dir(dir)
        .output()
        .expect("the openssl command is installed")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn openssl_accepts_the_chain_and_sees_the_constraints() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("pki");
    let made = init(&dir, &["--intermediates", "2"]);
    assert!(made.status.success(), "{}", text(&made.stderr));
    assert!(text(&made.stdout).contains("demos and tests only"));

    for file in ["root-key.pem", "ca-key.pem", "ca-2-key.pem"] {
        let mode = fs::metadata(dir.join(file)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{file}");
    }
    for file in ["ca-cert.pem", "ca-2-cert.pem"] {
        let verified = openssl(
            &dir,
            &format!("verify -x509_strict -CAfile root.pem {file}"),
        );
        assert!(verified.status.success(), "{}", text(&verified.stderr));
        let shown = text(&openssl(&dir, &format!("x509 -in {file} -noout -text")).stdout);
        assert!(shown.contains("CA:TRUE, pathlen:0"), "{shown}");
        assert!(shown.contains("Certificate Sign"), "{shown}");
        assert!(shown.contains("URI:spiffe://cluster.local"), "{shown}");
    }

    // A leaf made with OpenSSL alone, under the intermediate.
    fs::write(
        dir.join("leaf.cnf"),
        "basicConstraints=critical,CA:FALSE\nkeyUsage=critical,digitalSignature\n\
         subjectAltName=critical,URI:spiffe://cluster.local/ns/a/sa/b\n",
    )
    .unwrap();
    for line in [
        "req -new -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout k.pem -out r.pem -subj /CN=x",
        "x509 -req -in r.pem -CA ca-cert.pem -CAkey ca-key.pem -CAcreateserial -days 1 -extfile leaf.cnf -out leaf.pem",
        "verify -CAfile root.pem -untrusted ca-cert.pem leaf.pem",
    ] {
        let run = openssl(&dir, line);
        assert!(run.status.success(), "{line}: {}", text(&run.stderr));
    }
    let unrelated = openssl(
        &dir,
        "verify -CAfile root.pem -untrusted ca-2-cert.pem leaf.pem",
    );
    assert!(
        !unrelated.status.success(),
        "the other intermediate signed nothing"
    );
}

#[test]
fn nothing_is_overwritten() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("ca-key.pem"), "precious").unwrap();
    let refused = init(folder.path(), &[]);
    assert_eq!(refused.status.code(), Some(1));
    let why = text(&refused.stderr);
    assert!(
        why.contains("refusing to overwrite") && why.contains("ca-key.pem"),
        "{why}"
    );
    let kept = fs::read_to_string(folder.path().join("ca-key.pem")).unwrap();
    assert_eq!(kept, "precious");
    assert!(!folder.path().join("root.pem").exists());
}

#[test]
fn mistakes_in_the_command_line_are_usage_errors() {
    let folder = tempfile::tempdir().unwrap();
    let cases: [&[&str]; 2] = [
        &[
            "pki",
            "init",
            "--dir",
            "x",
            "--trust-domain",
            "Not A Domain",
        ],
        &[
            "pki",
            "init",
            "--dir",
            "x",
            "--trust-domain",
            "a",
            "--root-days",
            "0",
        ],
    ];
    for arguments in cases {
        let run = Command::new(env!("CARGO_BIN_EXE_meshctl"))
            .args(arguments)
            .current_dir(folder.path())
            .output()
            .unwrap();
        assert_eq!(run.status.code(), Some(64), "{}", text(&run.stderr));
    }
    let help = Command::new(env!("CARGO_BIN_EXE_meshctl"))
        .arg("--help")
        .output()
        .unwrap();
    assert_eq!(help.status.code(), Some(0));
}
