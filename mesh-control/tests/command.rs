//! The binary, run as the operator runs it.

mod support;

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Output, Stdio};

use support::MANIFESTS;
use support::pki::Pki;

fn control() -> Command {
    Command::new(env!("CARGO_BIN_EXE_mesh-control"))
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn run_command(pki: &Pki, listen: &str) -> Command {
    let mut command = control();
    command.args(["run", "--trust-domain", "cluster.local", "--listen", listen]);
    for (option, file) in [
        ("--manifests", "manifests"),
        ("--state-dir", "state"),
        ("--ca-cert", "ca-cert.pem"),
        ("--ca-key", "ca-key.pem"),
        ("--root", "root.pem"),
    ] {
        command.arg(option).arg(pki.path(file));
    }
    command
}

fn token(pki: &Pki, more: &[&str]) -> Output {
    let mut command = control();
    command
        .args(["token", "create", "--state-dir"])
        .arg(pki.path("state"));
    command.args(more).output().unwrap()
}

/// Ends the process it guards, whatever happens to the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn it_serves_until_sigterm_and_takes_tokens_made_meanwhile() {
    let pki = Pki::new();
    fs::create_dir(pki.path("manifests")).unwrap();
    fs::write(pki.path("manifests/mesh.yaml"), MANIFESTS).unwrap();
    let mut command = run_command(&pki, "127.0.0.1:0");
    command
        .args(["--log-format", "json"])
        .stderr(Stdio::piped());
    let mut running = Running(command.spawn().unwrap());
    let mut log = BufReader::new(running.0.stderr.take().unwrap()).lines();
    let serving = log.find(|line| line.as_ref().unwrap().contains("\"serving\""));
    let serving: serde_json::Value = serde_json::from_str(&serving.unwrap().unwrap()).unwrap();
    let address = serving["fields"]["address"].as_str().unwrap().to_owned();

    let made = token(&pki, &["--node", "node-a", "--ttl", "5m"]);
    assert!(made.status.success(), "{}", text(&made.stderr));
    let joined = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
        .block_on(async {
            use tonic::transport::{Certificate, ClientTlsConfig, Endpoint};
            let tls = ClientTlsConfig::new()
                .ca_certificate(Certificate::from_pem(pki.root_pem()))
                .domain_name("nodemesh-control");
            let endpoint = Endpoint::from_shared(format!("https://{address}")).unwrap();
            let channel = endpoint.tls_config(tls).unwrap().connect().await.unwrap();
            let asked = mesh_api::node::JoinRequest {
                token: text(&made.stdout).trim().to_owned(),
                node: "node-a".to_owned(),
                csr: support::request(|_| ()).0,
            };
            let mut nodes = mesh_api::node::node_service_client::NodeServiceClient::new(channel);
            nodes.join(asked).await
        });
    joined.expect("the token is good");

    // The admin socket is in the state folder.
    let mut socket = UnixStream::connect(pki.path("state/control.sock")).unwrap();
    socket.write_all(b"{\"op\":\"status\"}\n").unwrap();
    let mut answer = String::new();
    BufReader::new(socket).read_line(&mut answer).unwrap();
    let answer: serde_json::Value = serde_json::from_str(&answer).unwrap();
    assert_eq!(answer["status"]["workloads"], 3);

    let pid = running.0.id().to_string();
    assert!(
        Command::new("kill")
            .args(["-TERM", &pid])
            .status()
            .unwrap()
            .success()
    );
    let rest: Vec<_> = log.map(Result::unwrap).collect();
    assert_eq!(running.0.wait().unwrap().code(), Some(0), "{rest:#?}");
    let audit = rest
        .iter()
        .find(|line| line.contains("node_joined"))
        .expect("an audit line");
    assert!(
        audit.contains("\"target\":\"audit\"") && audit.contains("node-a"),
        "{audit}"
    );
    assert!(
        !rest.concat().contains(text(&made.stdout).trim()),
        "a token in the log"
    );
}

#[test]
fn all_mistakes_are_reported_at_once_with_exit_status_64() {
    let pki = Pki::new();
    fs::create_dir(pki.path("manifests")).unwrap();
    fs::write(
        pki.path("manifests/a.yaml"),
        "kind: Pod\nmetadata: {name: P}\n",
    )
    .unwrap();
    pki.write("ca-key.pem", "x", 0o644);
    let refused = run_command(&pki, "localhost").output().unwrap();
    assert_eq!(refused.status.code(), Some(64));
    let why = text(&refused.stderr);
    for part in [
        "--listen: \"localhost\"",
        "ca-key.pem has mode 0644",
        "a.yaml:2: metadata.name",
    ] {
        assert!(why.contains(part), "{part} not in {why}");
    }
    assert!(!why.contains("serving"));
}

#[test]
fn wrong_usage_is_exit_status_64_and_help_is_none() {
    let pki = Pki::new();
    for arguments in [&[][..], &["run"], &["token", "create"], &["nonsense"]] {
        let output = control().args(arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(64), "{arguments:?}");
    }
    for arguments in [
        &["--help"][..],
        &["run", "--help"],
        &["token", "create", "--help"],
    ] {
        let output = control().args(arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{arguments:?}");
        assert!(!output.stdout.is_empty());
    }
    let refused = token(&pki, &["--node", "a/b", "--ttl", "soon"]);
    assert_eq!(refused.status.code(), Some(64));
    let why = text(&refused.stderr);
    assert!(
        why.contains("--node:") && why.contains("--ttl: \"soon\""),
        "{why}"
    );
    assert!(refused.stdout.is_empty());
}

#[test]
fn a_state_folder_open_to_others_is_refused() {
    let pki = Pki::new();
    assert!(token(&pki, &["--node", "n"]).status.success());
    use std::os::unix::fs::PermissionsExt;
    let open = fs::Permissions::from_mode(0o755);
    fs::set_permissions(pki.path("state/tokens"), open).unwrap();
    let refused = token(&pki, &["--node", "n"]);
    assert_eq!(refused.status.code(), Some(64));
    assert!(
        text(&refused.stderr).contains("chmod 700"),
        "{}",
        text(&refused.stderr)
    );
}
