//! Active health checks: what the supervisor is told of apps of all manners.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use mesh_api::policy::{HealthCheck, HttpProbe, TcpProbe, health_check::Probe};
use mesh_api::worker::{Change, Changes, PodPolicy, Resync, change, to_worker::Message};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::harness::{Mesh, TestPod};

fn http(port: u16) -> HealthCheck {
    HealthCheck {
        port: port.into(),
        probe: Some(Probe::Http(HttpProbe {
            path: "/healthz?deep=1".to_owned(),
            host: String::new(),
        })),
        interval_ms: 40,
        timeout_ms: 200,
        unhealthy_threshold: 2,
        healthy_threshold: 3,
    }
}

fn tcp(port: u16) -> HealthCheck {
    HealthCheck {
        probe: Some(Probe::Tcp(TcpProbe {})),
        ..http(port)
    }
}

fn checks(checks: Vec<HealthCheck>) -> Message {
    let policy = PodPolicy {
        checks,
        ..PodPolicy::default()
    };
    Message::Changes(Changes {
        changes: vec![Change {
            change: Some(change::Change::Policy(policy)),
        }],
        more: false,
    })
}

/// What the app does with a probe.
const WELL: u8 = 0;
const ILL: u8 = 1;
/// Nothing, as when it is stopped: the kernel accepts for it.
const STOPPED: u8 = 2;
const GARBAGE: u8 = 3;
const ENDLESS_HEAD: u8 = 4;
const ENDLESS_BODY: u8 = 5;
const ENDLESS_INTERIM: u8 = 6;

async fn endless(mut app: TcpStream, text: &str) -> std::io::Result<()> {
    loop {
        app.write_all(text.as_bytes()).await?;
    }
}

async fn answer(mut app: TcpStream, manner: u8) -> std::io::Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match app.read_u8().await {
            Ok(byte) => head.push(byte),
            // A TCP probe.
            Err(_) => return Ok(()),
        }
    }
    let head = String::from_utf8(head).unwrap();
    assert!(
        head.starts_with("GET /healthz?deep=1 HTTP/1.1\r\n"),
        "{head}"
    );
    let host = format!("host: {}\r\n", app.local_addr()?);
    assert!(head.contains(&host), "{head}");
    match manner {
        WELL => app.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await,
        ILL => app.write_all(b"HTTP/1.1 503 <b>\r\n\r\nsorry").await,
        STOPPED => std::future::pending().await,
        GARBAGE => app.write_all(b"\x16\x03\x01 no HTTP\r\n\r\n").await,
        ENDLESS_HEAD => {
            app.write_all(b"HTTP/1.1 200 OK\r\nx: ").await?;
            endless(app, "aaaaaaaaaaaaaaaa").await
        }
        ENDLESS_BODY => {
            app.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await?;
            endless(app, "aaaaaaaaaaaaaaaa").await
        }
        _ => endless(app, "HTTP/1.1 100 Continue\r\n\r\n").await,
    }
}

/// An app whose manner the test changes.
async fn app(pod: &TestPod) -> (SocketAddr, Arc<AtomicU8>) {
    let listener = TcpListener::bind((pod.ip, 0)).await.unwrap();
    let at = listener.local_addr().unwrap();
    let manner = Arc::new(AtomicU8::new(WELL));
    let now = manner.clone();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            tokio::spawn(answer(stream, now.load(Ordering::SeqCst)));
        }
    });
    (at, manner)
}

/// Waits until the worker has said so many things of its app's health.
async fn told(pod: &TestPod, times: usize) -> (bool, String) {
    let what = format!("word {times} of the app's health");
    pod.until(&what, |h| h.health.len() >= times).await;
    let heard = pod.heard.lock().unwrap();
    assert_eq!(heard.health.len(), times, "{:?}", heard.health);
    heard.health[times - 1].clone()
}

#[tokio::test]
async fn health_follows_the_app_whatever_it_answers() {
    let mesh = Mesh::new();
    let pod = TestPod::start(&mesh, "a").await;
    let (at, manner) = app(&pod).await;
    pod.send(checks(vec![http(at.port())]));
    assert_eq!(told(&pod, 1).await, (false, String::new()));
    let name = format!("GET /healthz?deep=1 on port {}", at.port());
    let mut times = 1;
    for (ill, why) in [
        (ILL, ": answered 503"),
        (STOPPED, ": no answer within 200ms"),
        (GARBAGE, ": no HTTP answer"),
        (ENDLESS_HEAD, ": no HTTP answer"),
        (ENDLESS_INTERIM, ""),
    ] {
        manner.store(ill, Ordering::SeqCst);
        times += 1;
        let (unhealthy, detail) = told(&pod, times).await;
        assert!(
            unhealthy && detail.starts_with(&format!("{name}{why}")),
            "{detail}"
        );
        assert!(!detail.contains("<b>"), "{detail}");
        manner.store(WELL, Ordering::SeqCst);
        times += 1;
        assert_eq!(told(&pod, times).await, (false, String::new()));
    }
    // The status is all that counts.
    let passed = pod.count("nodemesh_health_checks_total", "passed").await;
    manner.store(ENDLESS_BODY, Ordering::SeqCst);
    let more = || pod.count("nodemesh_health_checks_total", "passed");
    while more().await < passed + 5 {
        tokio::task::yield_now().await;
    }
    assert_eq!(told(&pod, times).await, (false, String::new()));
    // The app sees the pod itself.
    assert!(pod.labels.lock().unwrap().iter().all(|l| l.ip() == pod.ip));
}

#[tokio::test]
async fn a_closed_port_is_unhealthy_until_it_opens() {
    let mesh = Mesh::new();
    let pod = TestPod::start(&mesh, "a").await;
    let at = SocketAddr::new(pod.ip, 7070);
    // Without checks it is healthy.
    assert_eq!(told(&pod, 1).await, (false, String::new()));
    pod.send(checks(vec![tcp(7070)]));
    let (unhealthy, detail) = told(&pod, 2).await;
    assert!(
        unhealthy && detail.starts_with("TCP port 7070: connecting to"),
        "{detail}"
    );
    let _listener = TcpListener::bind(at).await.unwrap();
    assert_eq!(told(&pod, 3).await, (false, String::new()));
}

#[tokio::test]
async fn a_check_that_stays_keeps_its_state_and_one_that_goes_is_forgotten() {
    let mesh = Mesh::new();
    let pod = TestPod::start(&mesh, "a").await;
    let (at, manner) = app(&pod).await;
    manner.store(ILL, Ordering::SeqCst);
    pod.send(checks(vec![http(at.port())]));
    assert!(told(&pod, 2).await.0);
    // The other one passes; the first fails as before, and nothing new is to be said.
    pod.send(checks(vec![tcp(at.port()), http(at.port())]));
    let failed = pod.count("nodemesh_health_checks_total", "failed").await;
    let more = || pod.count("nodemesh_health_checks_total", "failed");
    while more().await < failed + 3 {
        tokio::task::yield_now().await;
    }
    assert!(told(&pod, 2).await.0);
    // A new supervisor is told.
    pod.send(Message::Resync(Resync {}));
    assert!(told(&pod, 3).await.0);
    pod.send(checks(vec![tcp(at.port())]));
    assert_eq!(told(&pod, 4).await, (false, String::new()));
    pod.send(checks(Vec::new()));
    let passed = pod.count("nodemesh_health_checks_total", "passed").await;
    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    let after = pod.count("nodemesh_health_checks_total", "passed").await;
    assert!(after <= passed + 1, "a check that was removed goes on");
}
