//! Peers that are not the mesh's own workers: callers of an enrolled pod's HBONE port, and
//! somebody who answers on the HBONE port of a pod that discovery knows. Each flaw of a
//! certificate is refused, with its reason in metrics and log; without a flaw the same peer
//! is taken, so that nothing else is the reason.

use std::fmt::Display;
use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response};
use mesh_lab::forger::{self, Flaw, Forger};
use mesh_lab::{Lab, Plan, wait};
use rcgen::ExtendedKeyUsagePurpose;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ServerConfig};
use tokio::io::AsyncReadExt;
use tokio::runtime;
use tokio::time::timeout;
use tokio_rustls::{TlsAcceptor, TlsConnector};

const HBONE: u16 = 15008;
const PORT: u16 = 7000;
const LIMIT: Duration = Duration::from_secs(10);

fn block_on<T>(future: impl Future<Output = T>) -> T {
    let runtime = runtime::Builder::new_current_thread().enable_all().build();
    runtime.unwrap().block_on(future)
}

fn text(error: impl Display) -> String {
    error.to_string()
}

/// Waits until a metric of the agent has grown by one from `before`.
fn counted(lab: &Lab, node: usize, name: &str, labels: &[&str], before: f64) {
    let what = format!("{name} {labels:?} to be {}", before + 1.0);
    let mut last = f64::NAN;
    wait::until_true(&what, wait::PATIENCE, || {
        last = lab.agent(node).metric(lab.node(node), name, labels)?;
        Ok(last == before + 1.0)
    })
    .unwrap_or_else(|e| panic!("{e:#}: it is {last}\n{}", lab.log_tails()));
}

fn count(lab: &Lab, node: usize, name: &str, labels: &[&str]) -> f64 {
    let agent = lab.agent(node);
    agent.metric(lab.node(node), name, labels).unwrap()
}

/// Asks a pod's worker for its app, and returns the status and the app's first bytes.
async fn connect(config: ClientConfig, worker: IpAddr) -> Result<(u16, Bytes), String> {
    let tcp = tokio::net::TcpStream::connect((worker, HBONE));
    let tcp = tcp.await.map_err(text)?;
    let name = ServerName::IpAddress(worker.into());
    let tls = TlsConnector::from(Arc::new(config)).connect(name, tcp);
    let tls = tls.await.map_err(text)?;
    let (mut sender, connection) = h2::client::handshake(tls).await.map_err(text)?;
    let connection = tokio::spawn(connection);
    let request = Request::builder()
        .method(Method::CONNECT)
        .uri(SocketAddr::new(worker, PORT).to_string())
        .body(())
        .map_err(text)?;
    let answer = async {
        // The stream stays open: its sending half is held until the answer is there.
        let (response, _send) = sender.send_request(request, false).map_err(text)?;
        let response = response.await.map_err(text)?;
        let status = response.status().as_u16();
        let first = response.into_body().data().await;
        first.transpose().map_err(text).map(|first| (status, first))
    };
    match answer.await {
        Ok((status, first)) => Ok((status, first.unwrap_or_default())),
        // The reason is in the TLS alert, which ends the connection.
        Err(error) => Err(match connection.await {
            Ok(Err(ended)) => format!("{error}: {ended}"),
            _ => error,
        }),
    }
}

#[test]
fn a_foreign_client_is_taken_with_a_good_certificate_only() {
    let lab = Lab::two_nodes().unwrap();
    let web = lab.pod("shop/web");
    let server = web.command("mesh-lab-app");
    let server = server.args(["serve", &PORT.to_string()]).spawn().unwrap();
    web.wait_listening(PORT).unwrap();
    let forger = Forger::new(&lab).unwrap();
    let call = |config: ClientConfig| {
        let web = IpAddr::from(web.v4());
        let calling = async || match timeout(LIMIT, connect(config, web)).await {
            Ok(answered) => answered,
            Err(_) => Err("no answer in time".to_owned()),
        };
        lab.outside().netns.run(|| block_on(calling()))
    };
    let of = |flaw: Flaw| Some(forger.credentials("ns/shop/sa/client", &flaw).unwrap());
    let client_auth = ExtendedKeyUsagePurpose::ClientAuth;
    let cases = [
        (None, "peer_no_certificate"),
        (of(Flaw::Expired), "peer_expired"),
        (of(Flaw::IsCa), "peer_is_ca"),
        (of(Flaw::TrustDomain), "peer_trust_domain"),
        (of(Flaw::ForeignRoot), "peer_untrusted"),
        (of(Flaw::Purpose(client_auth)), "peer_key_usage"),
    ];
    for (credentials, reason) in cases {
        let label = format!("reason=\"{reason}\"");
        let labels = ["pod=\"shop/web\"", label.as_str()];
        let metrics = [
            "nodemesh_refusals_inbound_total",
            "nodemesh_handshake_failures_inbound_total",
        ];
        let before = metrics.map(|name| count(&lab, 1, name, &labels));
        let answer = call(forger::client(credentials).unwrap());
        let error = answer.expect_err(reason);
        println!("{reason}: {error}");
        for (name, before) in metrics.into_iter().zip(before) {
            counted(&lab, 1, name, &labels, before);
        }
        let line = lab.agent(1).daemon.wait_log(&format!("reason={reason}"));
        let line = line.unwrap();
        let source = format!("source={}", lab.outside().v4());
        assert!(line.contains("pod=shop/web"), "{line}");
        assert!(line.contains(&source), "{line}");
    }
    assert_eq!(server.stdout(), "", "the app was reached");

    let (name, labels) = ("nodemesh_unknown_peers_total", ["pod=\"shop/web\""]);
    let before = count(&lab, 1, name, &labels);
    let answer = call(forger::client(of(Flaw::Genuine)).unwrap());
    let (status, first) = answer.unwrap_or_else(|e| panic!("{e}\n{}", lab.log_tails()));
    assert_eq!(status, 200);
    assert!(first.starts_with(b"accept="), "{first:?}");
    counted(&lab, 1, name, &labels, before);
}

/// What somebody on a HBONE port got to see of one connection.
#[derive(Debug)]
enum Seen {
    /// The handshake failed: the caller's alert.
    Refused(String),
    /// The caller asked for this, and this is the first of what it then sent.
    Asked(String, Vec<u8>),
}

/// Serves one connection as a worker would.
async fn pose(config: ServerConfig, stream: TcpStream) -> Seen {
    stream.set_nonblocking(true).unwrap();
    let stream = tokio::net::TcpStream::from_std(stream).unwrap();
    let accepted = TlsAcceptor::from(Arc::new(config)).accept(stream).await;
    let mut tls = match accepted {
        Ok(tls) => tls,
        Err(error) => return Seen::Refused(error.to_string()),
    };
    // The server is done before the client has checked anything: its verdict comes next.
    let mut first = [0; 3];
    match tls.read_exact(&mut first).await {
        Err(error) => return Seen::Refused(error.to_string()),
        Ok(_) => assert_eq!(&first, b"PRI", "not the preface of HTTP/2"),
    }
    let (read, write) = tokio::io::split(tls);
    let read = AsyncReadExt::chain(first.as_slice(), read);
    let tls = tokio::io::join(read, write);
    let mut h2 = h2::server::handshake(tls).await.unwrap();
    let (request, mut respond) = h2.accept().await.unwrap().unwrap();
    let asked = format!("{} {}", request.method(), request.uri());
    let _send = respond.send_response(Response::new(()), false).unwrap();
    let mut body = request.into_body();
    let sent = tokio::select! {
        sent = body.data() => sent.unwrap().unwrap().to_vec(),
        // Nothing is read unless the connection is driven.
        _ = h2.accept() => Vec::new(),
    };
    Seen::Asked(asked, sent)
}

/// Poses as the worker of a pod: one connection for each configuration, in their order.
fn impostor(lab: &Lab, configs: Vec<ServerConfig>) -> Receiver<Seen> {
    let listener = lab
        .outside()
        .netns
        .run(|| std::net::TcpListener::bind((lab.outside().v4(), HBONE)).unwrap());
    let (report, seen) = channel();
    thread::spawn(move || {
        for config in configs {
            let (stream, _) = listener.accept().unwrap();
            let posed = block_on(async { timeout(LIMIT, pose(config, stream)).await });
            let silent = |_| Seen::Refused("nothing came in time".to_owned());
            if report.send(posed.unwrap_or_else(silent)).is_err() {
                return;
            }
        }
    });
    seen
}

#[test]
fn a_foreign_server_gets_nothing_unless_it_proves_to_be_the_destination() {
    let lab = Lab::with_mesh(Plan::two_nodes()).unwrap();
    let address = lab.outside().v4();
    let manifest = format!(
        "apiVersion: v1\nkind: Pod\nmetadata:\n  name: vault\n  namespace: shop\n\
         spec:\n  nodeName: node-b\n  serviceAccountName: vault\n\
         status:\n  phase: Running\n  podIPs:\n    - ip: \"{address}\"\n"
    );
    let manifest = format!(
        "apiVersion: v1\nkind: ServiceAccount\nmetadata:\n  name: vault\n  namespace: shop\n---\n{manifest}"
    );
    let manifests = &lab.mesh.as_ref().unwrap().control.manifests;
    // Nobody has asked for it yet: what the node is told is the version of the mesh.
    let version = || lab.agent(0).status().unwrap()["control"]["discovery_version"].clone();
    let before = version();
    fs::write(manifests.join("pod-shop-vault.yaml"), manifest).unwrap();
    wait::until_true("discovery to know the vault", wait::PATIENCE, || {
        Ok(version() != before)
    })
    .unwrap_or_else(|e| panic!("{e:#}\n{}", lab.log_tails()));

    let forger = Forger::new(&lab).unwrap();
    let (vault, other) = ("ns/shop/sa/vault", "ns/shop/sa/web");
    let server_auth = ExtendedKeyUsagePurpose::ServerAuth;
    let cases = [
        (other, Flaw::Genuine, "peer_identity"),
        (vault, Flaw::Expired, "peer_expired"),
        (vault, Flaw::IsCa, "peer_is_ca"),
        (vault, Flaw::TrustDomain, "peer_trust_domain"),
        (vault, Flaw::ForeignRoot, "peer_untrusted"),
        (vault, Flaw::Purpose(server_auth), "peer_key_usage"),
        (vault, Flaw::Genuine, ""),
    ];
    let configs = cases.iter().map(|(who, flaw, _)| {
        let credentials = forger.credentials(who, flaw).unwrap();
        forger::server(credentials).unwrap()
    });
    let seen = impostor(&lab, configs.collect());
    let secret = b"the app's secret".as_slice();
    let call = || -> std::io::Result<usize> {
        let mut stream = TcpStream::connect((address, PORT))?;
        stream.set_read_timeout(Some(LIMIT))?;
        stream.write_all(secret)?;
        stream.read(&mut [0; 16])
    };
    let capture = lab.capture(lab.outside()).unwrap();
    let client = lab.pod("shop/client");
    for (_, _, reason) in &cases[..cases.len() - 1] {
        let label = format!("reason=\"{reason}\"");
        let labels = ["pod=\"shop/client\"", label.as_str()];
        let metrics = [
            "nodemesh_refusals_outbound_total",
            "nodemesh_handshake_failures_outbound_total",
        ];
        let before = metrics.map(|name| count(&lab, 0, name, &labels));
        let error = client.netns.run(call).expect_err(reason);
        assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{reason}");
        match seen.recv_timeout(LIMIT * 2).unwrap() {
            Seen::Refused(alert) => println!("{reason}: {alert}"),
            Seen::Asked(asked, sent) => panic!("{reason}: it got {asked}, {sent:?}"),
        }
        for (name, before) in metrics.into_iter().zip(before) {
            counted(&lab, 0, name, &labels, before);
        }
        let line = lab.agent(0).daemon.wait_log(&format!("reason={reason}"));
        let line = line.unwrap();
        assert!(line.contains("pod=shop/client"), "{line}");
        assert!(line.contains(&format!("{address}:{PORT}")), "{line}");
    }
    // Who proves to be the destination is served.
    let _calling = thread::spawn({
        let netns = client.netns.as_fd().try_clone_to_owned().unwrap();
        move || {
            nix::sched::setns(netns, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            let mut stream = TcpStream::connect((address, PORT)).unwrap();
            stream.write_all(b"the app's secret").unwrap();
            // Its end is that of the one it talks to.
            let _ended = stream.read(&mut [0; 16]);
        }
    });
    match seen.recv_timeout(LIMIT * 2).unwrap() {
        Seen::Asked(asked, sent) => {
            assert_eq!(asked, format!("CONNECT {address}:{PORT}"));
            assert_eq!(sent, secret);
        }
        refused => panic!("{refused:?}\n{}", lab.log_tails()),
    }
    assert!(
        !capture.stop().unwrap().contains(secret),
        "in clear on the wire"
    );
}
