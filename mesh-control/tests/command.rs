//! The binary, run as the operator runs it.

mod support;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::process::Command;

use support::MANIFESTS;
use support::pki::Pki;
use support::process::{Running, control, join, run_command, status, text, token};

#[test]
fn it_serves_until_sigterm_and_takes_tokens_made_meanwhile() {
    let pki = Pki::new();
    fs::create_dir(pki.path("manifests")).unwrap();
    fs::write(pki.path("manifests/mesh.yaml"), MANIFESTS).unwrap();
    let command = run_command(&pki, "127.0.0.1:0");
    let (mut running, address, log) = Running::start(command);

    let made = token(&pki, &["--node", "node-a", "--ttl", "5m"]);
    assert!(made.status.success(), "{}", text(&made.stderr));
    join(&address, pki.root_pem(), text(&made.stdout).trim());

    // The admin socket is in the state folder.
    assert_eq!(status(&pki)["workloads"], 3);

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
fn whether_it_lives_is_told_to_anybody_and_nothing_else() {
    let pki = Pki::new();
    fs::create_dir(pki.path("manifests")).unwrap();
    let mut command = run_command(&pki, "127.0.0.1:0");
    command.args(["--health-listen", "127.0.0.1:0"]);
    let (_running, _, mut log) = Running::start(command);
    let line = log.find(|line| line.as_ref().unwrap().contains("liveness"));
    let line: serde_json::Value = serde_json::from_str(&line.unwrap().unwrap()).unwrap();
    let address = line["fields"]["address"].as_str().unwrap();
    let ask = |request: &str| {
        let mut stream = TcpStream::connect(address).unwrap();
        let request = format!("{request} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    };
    let lives = ask("GET /livez");
    assert!(
        lives.starts_with("HTTP/1.1 200") && lives.ends_with("\r\n\r\nok\n"),
        "{lives}"
    );
    for request in ["GET /metrics", "GET /", "POST /livez", "GET /livez/x"] {
        let answer = ask(request);
        assert!(answer.starts_with("HTTP/1.1 404"), "{request}: {answer}");
    }
    // Its series are told by the admin socket.
    let mut socket = UnixStream::connect(pki.path("state/control.sock")).unwrap();
    socket.write_all(b"{\"op\":\"metrics\"}\n").unwrap();
    let mut answer = String::new();
    BufReader::new(socket).read_line(&mut answer).unwrap();
    let answer: serde_json::Value = serde_json::from_str(&answer).unwrap();
    let series = answer["metrics"].as_str().unwrap();
    let loads = "nodemesh_control_signer_loads_total{result=\"taken\"} 1";
    assert!(series.contains(loads), "{series}");
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
