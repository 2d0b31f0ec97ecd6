//! The binary, as a process of its own.

use std::io::{BufRead, BufReader, Lines, Write};
use std::os::unix::net::UnixStream;
use std::process::{Child, ChildStderr, Command, Output, Stdio};

use mesh_api::node::node_service_client::NodeServiceClient;
use mesh_api::node::{JoinRequest, NodeCertificate};
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint};

use super::pki::Pki;

pub fn control() -> Command {
    Command::new(env!("CARGO_BIN_EXE_mesh-control"))
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

pub fn run_command(pki: &Pki, listen: &str) -> Command {
    let mut command = sourceless_command(pki, listen);
    command.arg("--manifests").arg(pki.path("manifests"));
    command
}

/// The same without a source.
pub fn sourceless_command(pki: &Pki, listen: &str) -> Command {
    let mut command = control();
    command.args(["run", "--trust-domain", "cluster.local", "--listen", listen]);
    for (option, file) in [
        ("--state-dir", "state"),
        ("--ca-cert", "ca-cert.pem"),
        ("--ca-key", "ca-key.pem"),
        ("--root", "root.pem"),
    ] {
        command.arg(option).arg(pki.path(file));
    }
    command
}

pub fn token(pki: &Pki, more: &[&str]) -> Output {
    let mut command = control();
    command
        .args(["token", "create", "--state-dir"])
        .arg(pki.path("state"));
    command.args(more).output().unwrap()
}

/// Ends the process it guards, whatever happens to the test.
pub struct Running(pub Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Running {
    /// Starts it, and waits until it serves: where, and what it logs from then on.
    pub fn start(mut command: Command) -> (Self, String, Lines<BufReader<ChildStderr>>) {
        command
            .args(["--log-format", "json"])
            .stderr(Stdio::piped());
        let mut running = Self(command.spawn().unwrap());
        let mut log = BufReader::new(running.0.stderr.take().unwrap()).lines();
        let mut before = Vec::new();
        let serving = loop {
            let line = log
                .next()
                .unwrap_or_else(|| panic!("it ended: {before:#?}"));
            let line = line.unwrap();
            if line.contains("\"serving\"") {
                break line;
            }
            before.push(line);
        };
        let serving: serde_json::Value = serde_json::from_str(&serving).unwrap();
        let address = serving["fields"]["address"].as_str().unwrap().to_owned();
        (running, address, log)
    }
}

/// Joins as node-a, with a token.
pub fn join(address: &str, root_pem: &str, token: &str) -> NodeCertificate {
    let joined = async {
        let tls = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(root_pem))
            .domain_name("nodemesh-control");
        let endpoint = Endpoint::from_shared(format!("https://{address}")).unwrap();
        let channel = endpoint.tls_config(tls).unwrap().connect().await.unwrap();
        let asked = JoinRequest {
            token: token.to_owned(),
            node: "node-a".to_owned(),
            csr: super::request(|_| ()).0,
        };
        NodeServiceClient::new(channel).join(asked).await
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(joined).unwrap().into_inner()
}

/// What its admin socket says of the mesh.
pub fn status(pki: &Pki) -> serde_json::Value {
    let mut socket = UnixStream::connect(pki.path("state/control.sock")).unwrap();
    socket.write_all(b"{\"op\":\"status\"}\n").unwrap();
    let mut answer = String::new();
    BufReader::new(socket).read_line(&mut answer).unwrap();
    let answer: serde_json::Value = serde_json::from_str(&answer).unwrap();
    answer["status"].clone()
}
