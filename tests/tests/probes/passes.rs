//! Who passes and who doesn't, with real servers and clients.

use std::fs;
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use mesh_lab::kubelet::Kubelet;
use mesh_lab::{Lab, PodSpec, call, servers, wait};

use crate::{
    GRPC, OTHER, PORT, REDIS, WEB, get, get_with, grpc, kernel_refusals, lab_with_kubelet, passed,
    plan, targets,
};

fn redis_ping(kubelet: &Kubelet, lab: &Lab, to: SocketAddr) -> bool {
    let mut redis = kubelet
        .command(lab.node(0).netns.as_fd(), "redis-cli")
        .unwrap();
    redis.args(["-h", &to.ip().to_string(), "-p", &to.port().to_string()]);
    let output = redis.arg("ping").output().unwrap();
    output.stdout == b"PONG\n"
}

/// A gRPC health check by curl: the message, and the status in the trailers; else what came.
fn grpc_health(kubelet: &Kubelet, lab: &Lab, to: SocketAddr) -> Result<(), String> {
    let [request, answer, head] = ["request", "answer", "head"].map(|name| lab.folder().join(name));
    fs::write(&request, grpc::REQUEST).unwrap();
    let mut curl = kubelet.command(lab.node(0).netns.as_fd(), "curl").unwrap();
    curl.args(["--silent", "--show-error", "--http2-prior-knowledge"]);
    curl.args(["--max-time", "20", "--header", "te: trailers"]);
    curl.args(["--header", "content-type: application/grpc"]);
    curl.arg("--data-binary")
        .arg(format!("@{}", request.display()));
    curl.arg("--output").arg(&answer);
    curl.arg("--dump-header").arg(&head);
    let ran = curl.arg(format!("http://{to}{}", grpc::CHECK)).output();
    let ran = ran.unwrap();
    let message = fs::read(&answer).unwrap_or_default();
    let said = fs::read_to_string(&head).unwrap_or_default();
    let served = message == grpc::SERVING && said.contains("grpc-status: 0");
    match ran.status.success() && served {
        true => Ok(()),
        false => Err(format!(
            "{}: {}{said}{message:?}",
            ran.status,
            String::from_utf8_lossy(&ran.stderr)
        )),
    }
}

#[test]
fn kubelets_probes_of_a_strict_pod_pass_to_declared_ports_in_both_families() {
    let (lab, kubelet) = lab_with_kubelet(plan());
    let (web, node) = (lab.pod(WEB), &lab.node(0).netns);
    let _nginx = servers::nginx(web, &[PORT, OTHER], "alive").unwrap();
    let _redis = servers::redis(web).unwrap();
    grpc::serve(web, GRPC);
    for family in 0..2 {
        let at = |port| targets(web, port)[family];
        get(&kubelet, node, at(PORT)).unwrap_or_else(|e| panic!("{e}\n{}", lab.log_tails()));
        assert!(redis_ping(&kubelet, &lab, at(REDIS)), "{}", lab.log_tails());
        grpc_health(&kubelet, &lab, at(GRPC)).unwrap();
        get(&kubelet, node, at(OTHER)).unwrap_err();
    }
    assert_eq!(passed(&lab, WEB), 6.0);
    // Not even of the last segments that an app sends was any refused.
    assert_eq!(kernel_refusals(&lab, WEB), 0.0, "{}", lab.log_tails());
    // A probe by exec is a process of the pod that asks its app: no packet leaves the pod.
    let exec = web.command("curl");
    let exec = exec.args(["--fail", "--silent", &format!("http://127.0.0.1:{PORT}/")]);
    assert_eq!(exec.output().unwrap().ok().unwrap(), "alive");
    let listed = lab.agent(0).admin(&["pod", "list"]).output().unwrap();
    let listed = String::from_utf8(listed.stdout).unwrap();
    let ports = "kubelet's probes pass to 6379, 8080, 8082";
    assert!(listed.contains(ports), "{listed}");
    let status = lab.agent(0).status().unwrap();
    let cgroup = status["kubelet"]["cgroup"].as_str().unwrap();
    assert!(kubelet.path().ends_with(&cgroup[1..]), "{status}");
    lab.finish().unwrap();
}

/// A connection of the test itself, with the node's address: refused as before there were probes.
fn stranger(lab: &Lab, to: SocketAddr) {
    let node = lab.node(0);
    let before = lab
        .agent(0)
        .refused(node, lab.pod(WEB), "inbound_plaintext")
        .unwrap();
    call::http(&node.netns, to, "/", call::PATIENCE).unwrap_err();
    wait::until_true("the refusal to be counted", wait::PATIENCE, || {
        let refused = lab
            .agent(0)
            .refused(node, lab.pod(WEB), "inbound_plaintext")?;
        Ok(refused > before)
    })
    .unwrap_or_else(|e| panic!("{e:#}\n{}", lab.log_tails()));
}

/// Carries connections to a port of the node to another place, as what serves a NodePort does.
fn forward(listener: &TcpListener, to: SocketAddr, stop: &AtomicBool) {
    for caller in listener.incoming() {
        if stop.load(Ordering::Acquire) {
            return;
        }
        let Ok(caller) = caller else { continue };
        let Ok(called) = TcpStream::connect(to) else {
            continue;
        };
        let both = [(&caller, &called), (&called, &caller)];
        thread::scope(|scope| {
            for (mut from, mut to) in both {
                scope.spawn(move || {
                    let _: io::Result<u64> = io::copy(&mut from, &mut to);
                    let _ = to.shutdown(std::net::Shutdown::Both);
                });
            }
        });
    }
}

#[test]
fn nobody_else_passes_whatever_address_it_has() {
    let plan = plan().namespace("legacy");
    let plan = plan.pod(PodSpec::new("legacy", "lodger"));
    let (lab, kubelet) = lab_with_kubelet(plan);
    let (web, node) = (lab.pod(WEB), lab.node(0));
    let _nginx = servers::nginx(web, &[PORT], "alive").unwrap();
    let to = targets(web, PORT)[0];
    get(&kubelet, &node.netns, to).unwrap();
    // Another process of the node.
    stranger(&lab, to);
    // One in kubelet's cgroup, but in another pod.
    get(&kubelet, &lab.pod("legacy/lodger").netns, to).unwrap_err();
    // Traffic from outside that the node passes on under its own address.
    let at = SocketAddr::new(node.v4().into(), 30_080);
    let listener = node.netns.run(|| TcpListener::bind(at)).unwrap();
    let stop = AtomicBool::new(false);
    let outside = &lab.outside().netns;
    thread::scope(|scope| {
        let (stop, listener) = (&stop, &listener);
        scope.spawn(move || node.netns.run(|| forward(listener, to, stop)));
        let called = call::http(outside, at, "/", call::PATIENCE);
        stop.store(true, Ordering::Release);
        drop(node.netns.run(|| TcpStream::connect(at)));
        called.unwrap_err();
    });
    assert_eq!(passed(&lab, WEB), 1.0);
    // The tuple that a probe of kubelet's had, taken by another process once the probe is over: of
    // several, for the node's kernel keeps the port of one that its end was the first to close.
    let taken = (40_123..40_143_u16).any(|port| {
        let port = port.to_string();
        let same = ["--local-port", &port, "--header", "Connection: close"];
        get_with(&kubelet, node.netns.as_fd(), to, &same).unwrap();
        let before = passed(&lab, WEB);
        let mut curl = node.netns.command("curl");
        curl.args(["--silent", "--show-error", "--fail", "--max-time", "20"]);
        curl.args(same).arg(format!("http://{to}/"));
        let output = curl.output().unwrap();
        assert!(!output.status.success(), "it passed under kubelet's tuple");
        assert_eq!(passed(&lab, WEB), before);
        !String::from_utf8_lossy(&output.stderr).contains("bind failed")
    });
    assert!(taken, "no port of a probe's was free again");
    get(&kubelet, &node.netns, to).unwrap();
    lab.finish().unwrap();
}
