//! Nothing that is open breaks, and everything new is in the mesh.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use mesh_lab::traffic::Traffic;
use mesh_lab::wire::{Recording, check_stream};
use mesh_lab::{Enrolment, Lab, servers, wait};

use crate::{CLIENT, WEB, enrol, older, plan, serve, target, wait_older, wait_state};

/// Every connection that was opened meanwhile is TLS, whatever its port. Its stream may be in a tunnel
/// that is older than the capture.
fn assert_new_is_tls(recording: &Recording) {
    let streams = recording.streams();
    for direction in streams.directions().filter(|d| d.from_client) {
        let bytes = direction.payload().unwrap();
        if !bytes.is_empty() {
            let found = check_stream(&bytes, true);
            found.unwrap_or_else(|fault| panic!("{direction}: {fault}"));
        }
    }
}

/// The lab's server echoes a line.
fn echo(mut stream: &TcpStream, word: &str) {
    let line = format!("{word}\n");
    stream.write_all(line.as_bytes()).unwrap();
    let mut seen = String::new();
    while !seen.contains(word) {
        let mut bytes = [0; 256];
        let read = stream.read(&mut bytes).unwrap();
        assert!(read > 0, "{word}: closed");
        seen.push_str(&String::from_utf8_lossy(&bytes[..read]));
    }
}

#[test]
fn pods_are_enrolled_under_load_and_leave_again_and_no_connection_breaks() {
    let lab = Lab::with_mesh(plan()).unwrap();
    let (client, web) = (lab.pod(CLIENT), lab.pod(WEB));
    let _servers = [
        serve(web),
        servers::redis(web).unwrap(),
        servers::iperf3(web).unwrap(),
    ];
    let address = web.v4().to_string();
    let subscriber = client.command("redis-cli");
    let subscriber = subscriber.args(["-h", &address, "subscribe", "news"]);
    let subscriber = subscriber.spawn().unwrap();
    subscriber.wait_line("subscribe").unwrap();
    let bulk = client.command("iperf3");
    let bulk = bulk.args(["-c", &address, "-t", "8", "-b", "200M", "--forceflush"]);
    let mut bulk = bulk.spawn().unwrap();
    bulk.wait_line("connected").unwrap();
    let idle = client
        .netns
        .run(|| TcpStream::connect(target(web)).unwrap());
    idle.set_read_timeout(Some(wait::scaled(wait::PATIENCE)))
        .unwrap();
    echo(&idle, "before");
    let stream = Traffic::stream(client, target(web));
    let calls = Traffic::calls(client, target(web));

    // The one that is called first: it takes plain callers until its namespace is enforced.
    enrol(&lab, WEB, Enrolment::Audit);
    calls.wait(20);
    enrol(&lab, CLIENT, Enrolment::Audit);
    let capture = lab.capture(lab.node(0)).unwrap();
    calls.wait(50);
    stream.wait(50);
    let new = client
        .netns
        .run(|| TcpStream::connect(target(web)).unwrap());
    echo(&new, "a-word-of-a-new-connection");
    echo(&idle, "a-word-of-an-old-connection");
    let recording = capture.stop().unwrap();
    assert_new_is_tls(&recording);
    assert!(!recording.contains(b"a-word-of-a-new-connection"));
    // So the capture would have seen it.
    assert!(recording.contains(b"a-word-of-an-old-connection"));

    // The subscription, the idle one, the stream; iperf3 has a connection for control as well.
    for key in [CLIENT, WEB] {
        assert!(older(&lab, key) >= 3, "{key}: {}", lab.log_tails());
    }
    let listed = lab.agent(0).admin(&["pod", "list"]).output().unwrap();
    let listed = String::from_utf8(listed.stdout).unwrap();
    let peer = format!(
        "to {}:7000 from port {}",
        web.v4(),
        idle.local_addr().unwrap().port()
    );
    assert!(listed.contains(&peer), "{listed}");

    // From audit to enforce: both are members now, so policy allows what is open.
    for key in [CLIENT, WEB] {
        lab.set_enrolment(lab.pod(key).namespace(), Enrolment::Enforce)
            .unwrap();
    }
    for key in [CLIENT, WEB] {
        let pod = lab.pod(key);
        wait::until_true("the level to be enforce", wait::PATIENCE, || {
            Ok(lab.agent(pod.node()).pod_status(pod)?["level"] == "enforce")
        })
        .unwrap();
    }
    calls.wait(20);
    let published = web
        .command("redis-cli")
        .args(["publish", "news", "late-news"]);
    assert_eq!(published.output().unwrap().ok().unwrap().trim(), "1");
    subscriber.wait_line("late-news").unwrap();
    let status = bulk.wait(Duration::from_secs(60)).unwrap();
    assert!(status.success(), "iperf3: {}", bulk.stderr());
    echo(&idle, "after");

    // Those that are over are forgotten, the others go on outside of the mesh as they began.
    wait_older(&lab, CLIENT, 3);
    lab.set_enrolment("shop", Enrolment::Audit).unwrap();
    wait::until_true("the level to be audit", wait::PATIENCE, || {
        Ok(lab.agent(1).pod_status(web)?["level"] == "audit")
    })
    .unwrap();
    echo(&new, "in the mesh until now");
    lab.set_enrolment("front", Enrolment::None).unwrap();
    // Its worker has ended by then, and with it what went through it.
    wait_state(&lab, CLIENT, "not-in-mesh");
    new.set_read_timeout(Some(wait::scaled(wait::PATIENCE)))
        .unwrap();
    let ended = (&new).read(&mut [0; 1]).unwrap_err();
    assert_eq!(ended.kind(), ErrorKind::ConnectionReset, "{ended}");
    calls.wait(20);
    stream.wait(20);
    echo(&idle, "out of the mesh");
    stream.finish_unharmed("a stream that is older");
    calls.finish_unharmed("new connections all the while");
    lab.finish().unwrap();
}
