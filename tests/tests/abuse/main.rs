//! Abuse of a worker's HBONE port by whoever holds a certificate of the mesh, or none: bytes that
//! fuzzing has kept, and the cases of tools that others wrote to find faults in servers (h2spec,
//! tlsfuzzer). The worker survives all of it, with its memory bounded, another client's flow is
//! served in between, and what was refused is counted.
//!
//! The tools are no packages of ours to install: `H2SPEC` names the program, `TLSFUZZER` the
//! checkout, and the tests that need them are run by hand.

mod shim;

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use mesh_lab::call::Open;
use mesh_lab::forger::{self, Credentials, Flaw, Forger};
use mesh_lab::{App, Lab, Netns};
use shim::Shim;

const HBONE: u16 = 15008;
const PORT: u16 = 7000;

/// How long one input may hold a connection: what is sent has been judged long before.
const PATIENCE: Duration = Duration::from_millis(300);
/// Memory that a worker may have more after any abuse than before, in KiB.
const MEMORY_KIB: u64 = 64 * 1024;

/// A worker, its pod's server, and somebody else's flow through it.
struct Stage {
    lab: Lab,
    _server: App,
    flow: Open,
    worker: i32,
    memory_kib: u64,
    refusals: f64,
}

impl Stage {
    fn new() -> Self {
        let lab = Lab::two_nodes().unwrap();
        let web = lab.pod("shop/web");
        let server = web
            .command("mesh-lab-app")
            .args(["serve", &PORT.to_string()]);
        let server = server.spawn().unwrap();
        web.wait_listening(PORT).unwrap();
        let client = &lab.pod("shop/client").netns;
        let flow = Open::dial(client, SocketAddr::from((web.v4(), PORT)));
        let flow = flow.unwrap_or_else(|called| panic!("{called}\n{}", lab.log_tails()));
        let worker = lab.agent(1).worker_pid(web).unwrap();
        let mut stage = Self {
            worker,
            memory_kib: memory_kib(worker),
            refusals: 0.0,
            flow,
            _server: server,
            lab,
        };
        stage.refusals = stage.count();
        stage
    }

    fn target(&self) -> SocketAddr {
        (self.lab.pod("shop/web").v4(), HBONE).into()
    }

    fn outside(&self) -> &Netns {
        &self.lab.outside().netns
    }

    /// All that the worker has refused of what came in.
    fn count(&self) -> f64 {
        let metrics = self.lab.agent(1).metrics(self.lab.node(1)).unwrap();
        let refused = metrics.lines().filter(|line| {
            line.starts_with("nodemesh_refusals_inbound_total{") && line.contains("\"shop/web\"")
        });
        refused
            .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
            .sum()
    }

    /// The other flow is served as before.
    fn unharmed(&mut self, after: &str) {
        let pinged = self.flow.ping();
        pinged.unwrap_or_else(|e| panic!("after {after}: {e}\n{}", self.lab.log_tails()));
    }

    /// The same worker serves, with as much memory as before, and has counted refusals.
    fn end(mut self) {
        self.unharmed("everything");
        let web = self.lab.pod("shop/web");
        let target = SocketAddr::from((web.v4(), PORT));
        let fresh = Open::dial(&self.lab.pod("shop/client").netns, target);
        fresh.unwrap_or_else(|called| panic!("{called}\n{}", self.lab.log_tails()));
        assert_eq!(self.lab.agent(1).worker_pid(web).unwrap(), self.worker);
        let memory_kib = memory_kib(self.worker);
        let bound = self.memory_kib + MEMORY_KIB;
        assert!(
            memory_kib < bound,
            "{memory_kib} KiB, before {}",
            self.memory_kib
        );
        let refusals = self.count();
        println!("{} refusals, {memory_kib} KiB", refusals - self.refusals);
        assert!(refusals > self.refusals, "nothing was counted");
    }
}

fn memory_kib(pid: i32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let words = line.unwrap().split_whitespace().next();
    words.unwrap().parse().unwrap()
}

fn corpus(target: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../fuzz/corpus");
    let files = fs::read_dir(PathBuf::from(folder).join(target)).unwrap();
    let mut files: Vec<PathBuf> = files.map(|file| file.unwrap().path()).collect();
    files.sort();
    let read = |path: PathBuf| (path.clone(), fs::read(path).unwrap());
    files.into_iter().map(read).collect()
}

/// Sends bytes and reads what is answered, until the other side ends it or says no more.
fn send(to: SocketAddr, bytes: &[u8]) {
    let mut stream = TcpStream::connect(to).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    // Refused in the middle is refused.
    let _cut = stream.write_all(bytes);
    let mut answer = [0; 4096];
    while matches!(stream.read(&mut answer), Ok(1..)) {}
}

#[test]
fn bytes_that_fuzzing_has_kept_harm_nobody() {
    let mut stage = Stage::new();
    let target = stage.target();
    let config = forger::client(Some(genuine(&stage.lab))).unwrap();
    let shim = Shim::start(stage.outside(), target, config);
    // As frames of HTTP/2, from somebody with a certificate; and as TLS, from anybody.
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00";
    for (path, bytes) in corpus("peer_settings") {
        let frames = [preface, &bytes[1.min(bytes.len())..]].concat();
        stage.outside().run(|| send(shim.address(), &frames));
        stage.outside().run(|| send(target, &bytes));
        stage.unharmed(&path.display().to_string());
    }
    stage.end();
}

fn genuine(lab: &Lab) -> Credentials {
    let forger = Forger::new(lab).unwrap();
    forger
        .credentials("ns/shop/sa/client", &Flaw::Genuine)
        .unwrap()
}

fn named(variable: &str, how: &str) -> PathBuf {
    let value = std::env::var_os(variable);
    value
        .unwrap_or_else(|| panic!("{variable} is not set: get it by `{how}`"))
        .into()
}

const GET_H2SPEC: &str = "go install github.com/summerwind/h2spec/cmd/h2spec@latest";
const GET_TLSFUZZER: &str =
    "git clone https://github.com/tlsfuzzer/tlsfuzzer && pip install --pre tlslite-ng";

#[test]
#[ignore = "H2SPEC names the program: `go install github.com/summerwind/h2spec/cmd/h2spec@latest`"]
fn the_cases_of_h2spec_harm_nobody() {
    let mut stage = Stage::new();
    let config = forger::client(Some(genuine(&stage.lab))).unwrap();
    let shim = Shim::start(stage.outside(), stage.target(), config);
    let report = stage.lab.folder().join("h2spec.xml");
    // The last is the one case that takes the largest frame for 16 KiB: once more, with headers
    // beyond the worker's largest.
    for section in ["generic", "http2", "hpack", "http2/4.2/3"] {
        let mut h2spec = stage.outside().command(named("H2SPEC", GET_H2SPEC));
        h2spec.args([section, "--host", "127.0.0.1", "--timeout", "2"]);
        if section == "http2/4.2/3" {
            h2spec.args(["--max-header-length", "300000"]);
        }
        h2spec.args(["--port", &shim.address().port().to_string()]);
        h2spec.arg("--junit-report").arg(&report);
        let ran = h2spec.output().unwrap();
        print!("{}", String::from_utf8_lossy(&ran.stdout));
        assert!(report.is_file(), "h2spec made no report: {ran:?}");
        fs::remove_file(&report).unwrap();
        stage.unharmed(section);
    }
    stage.end();
}

/// Scripts of tlsfuzzer that are about a server of TLS 1.3.
const TLS_SCRIPTS: [&str; 12] = [
    "test-tls13-conversation.py",
    "test-tls13-ccs.py",
    "test-tls13-empty-alert.py",
    "test-tls13-finished.py",
    "test-tls13-hrr.py",
    "test-tls13-invalid-ciphers.py",
    "test-tls13-keyshare-omitted.py",
    "test-tls13-legacy-version.py",
    "test-tls13-record-layer-limits.py",
    "test-tls13-unencrypted-alert.py",
    "test-tls13-unrecognised-groups.py",
    "test-tls13-zero-length-data.py",
];

#[test]
#[ignore = "TLSFUZZER names the checkout; python3 needs `pip install --pre tlslite-ng`"]
fn the_cases_of_tlsfuzzer_harm_nobody() {
    let mut stage = Stage::new();
    let (checkout, target) = (named("TLSFUZZER", GET_TLSFUZZER), stage.target());
    for script in TLS_SCRIPTS {
        let mut python: Command = stage.outside().command("python3");
        python.arg(checkout.join("scripts").join(script));
        python.args(["-h", &target.ip().to_string()]);
        python.args(["-p", &target.port().to_string()]);
        let ran = python.env("PYTHONPATH", &checkout).output().unwrap();
        let said = String::from_utf8_lossy(&ran.stdout);
        let summary = said.lines().rev().find(|line| line.starts_with("TOTAL:"));
        // They expect a server of HTTP/1.1 without client certificates; what counts is what the
        // worker makes of what they send.
        let summary = summary.unwrap_or_else(|| panic!("{script} did not run: {ran:?}"));
        println!("{script}: {summary}");
        stage.unharmed(script);
    }
    stage.end();
}
