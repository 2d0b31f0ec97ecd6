//! The path: apps that know nothing of the mesh, captured, carried in mutual TLS between
//! two nodes, and what must not pass.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::Duration;

use mesh_lab::{App, Families, Lab, Netns, Plan, Pod, PodSpec, Ran, servers, wait};

const CLIENT: &str = "shop/client";
const WEB: &str = "shop/web";

fn nonce() -> String {
    let random = std::fs::read_to_string("/proc/sys/kernel/random/uuid").unwrap();
    random.trim().replace('-', "")
}

/// Starts the lab's own server, which says what addresses it sees.
fn serve(pod: &Pod, port: u16) -> App {
    servers::echo(pod, port).unwrap()
}

/// Dials from a pod, sends `data`, and returns all that came back.
fn dial(pod: &Pod, to: SocketAddr, data: &str) -> Ran {
    let input = pod.write("input", data).unwrap();
    pod.command("mesh-lab-app")
        .args(["dial", &to.to_string()])
        .stdin(File::open(input).unwrap())
        .output()
        .unwrap()
}

/// Both addresses of a pod with a port.
fn targets(pod: &Pod, port: u16) -> Vec<SocketAddr> {
    let addresses = pod.addresses().into_iter();
    addresses.map(|ip| SocketAddr::new(ip, port)).collect()
}

/// What a plain client is told: the bytes it gets, or the error.
fn plain_call(netns: &Netns, to: SocketAddr) -> Result<String, ErrorKind> {
    netns.run(|| {
        let limit = Duration::from_secs(5);
        let mut stream = TcpStream::connect_timeout(&to, limit).map_err(|e| e.kind())?;
        stream.set_read_timeout(Some(limit)).unwrap();
        let mut answer = String::new();
        stream
            .write_all(b"GET / HTTP/1.0\r\n\r\n")
            .map_err(|e| e.kind())?;
        stream.read_to_string(&mut answer).map_err(|e| e.kind())?;
        Ok(answer)
    })
}

#[test]
fn curl_reaches_nginx_over_both_families_by_address_and_by_service() {
    let lab = Lab::two_nodes().unwrap();
    let (client, web) = (lab.pod(CLIENT), lab.pod(WEB));
    let nginx = servers::nginx(web, &[80], "hello\\n").unwrap();
    let by_service = lab.service(WEB).map(|ip| SocketAddr::new(ip, 8080));
    for to in targets(web, 80).into_iter().chain(by_service) {
        let curl = client.command("curl").args(["-sS", "--max-time", "10"]);
        let answer = curl.arg(format!("http://{to}/")).output().unwrap().ok();
        assert_eq!(answer.unwrap(), "hello\n", "from {to}\n{}", lab.log_tails());
    }
    let log = nginx.stdout();
    let callers: Vec<&str> = log
        .lines()
        .map(|line| line.split(' ').next().unwrap())
        .collect();
    assert_eq!(callers.len(), 4, "{log}");
    for (caller, expected) in callers.iter().zip(
        [client.v4().to_string(), client.v6().to_string()]
            .iter()
            .cycle(),
    ) {
        assert!(caller.starts_with(&format!("{expected}:")), "{log}");
    }
    lab.finish().unwrap();
}

#[test]
fn apps_see_the_addresses_they_would_see_without_the_mesh() {
    let lab = Lab::two_nodes().unwrap();
    let (client, web) = (lab.pod(CLIENT), lab.pod(WEB));
    let _server = serve(web, 7000);
    for (from, to) in client.addresses().into_iter().zip(targets(web, 7000)) {
        let said = dial(client, to, "payload").ok().unwrap();
        let lines: Vec<&str> = said.lines().collect();
        let [dialled, accepted, echoed] = lines[..] else {
            panic!("{said}");
        };
        assert_eq!(echoed, "payload");
        let own = field(dialled, "local=");
        assert_eq!(
            field(dialled, "peer="),
            to,
            "getpeername of the client: {said}"
        );
        assert_eq!(own.ip(), from, "getsockname of the client: {said}");
        assert_eq!(field(accepted, "accept="), own, "accept: {said}");
        assert_eq!(
            field(accepted, "peer="),
            own,
            "getpeername of the server: {said}"
        );
        assert_eq!(
            field(accepted, "local="),
            to,
            "getsockname of the server: {said}"
        );
    }
}

fn field(line: &str, name: &str) -> SocketAddr {
    let word = line.split(' ').find_map(|word| word.strip_prefix(name));
    word.unwrap_or_else(|| panic!("no {name} in {line}"))
        .parse()
        .unwrap()
}

#[test]
fn pods_on_the_same_node_and_a_pod_to_itself() {
    let plan = Plan::two_nodes().pod(PodSpec::new("shop", "neighbour"));
    let lab = Lab::with_mesh(plan).unwrap();
    let (client, neighbour) = (lab.pod(CLIENT), lab.pod("shop/neighbour"));
    let _servers = [serve(neighbour, 7000), serve(client, 7000)];
    let loopback = ["127.0.0.1:7000", "[::1]:7000"].map(|a| a.parse().unwrap());
    let own = targets(client, 7000).into_iter().chain(loopback);
    for to in targets(neighbour, 7000).into_iter().chain(own) {
        let said = dial(client, to, "payload").ok().unwrap();
        assert!(said.ends_with("\npayload"), "to {to}: {said}");
        let accepted = said.lines().nth(1).unwrap();
        assert_eq!(field(accepted, "local="), to, "{said}");
    }
}

#[test]
fn a_pod_that_is_not_enrolled_is_untouched() {
    let lab = Lab::two_nodes().unwrap();
    let (caller, server) = (lab.pod("legacy/caller"), lab.pod("legacy/server"));
    let _server = serve(server, 7000);
    let capture = lab.capture(lab.node(0)).unwrap();
    let clear = nonce();
    for to in targets(server, 7000) {
        let said = dial(caller, to, &clear).ok().unwrap();
        assert!(said.ends_with(&clear), "{said}");
    }
    assert!(
        capture.stop().unwrap().contains(clear.as_bytes()),
        "it is carried as before"
    );
    // What it may do in its own namespace is as before too.
    let _own_ports = [serve(caller, 15001), serve(caller, 15008)];
}

#[test]
fn plaintext_to_an_enrolled_pod_is_refused_whoever_calls() {
    let lab = Lab::two_nodes().unwrap();
    let web = lab.pod(WEB);
    let nginx = servers::nginx(web, &[80], "hello\\n").unwrap();
    let callers = [
        ("outside", &lab.outside().netns),
        (
            "a pod that is not enrolled",
            &lab.pod("legacy/caller").netns,
        ),
        ("the node of the caller", &lab.node(0).netns),
    ];
    for (name, netns) in callers {
        for to in targets(web, 80) {
            let answer = plain_call(netns, to);
            let reset = Err(ErrorKind::ConnectionReset);
            assert_eq!(answer, reset, "{name} to {to}\n{}", lab.log_tails());
        }
    }
    assert_eq!(nginx.stdout(), "", "nginx was reached");
    let refused = |node: usize| {
        let metrics = lab.agent(node).metrics(lab.node(node)).unwrap();
        let lines = metrics
            .lines()
            .filter(|line| line.contains("\"inbound_plaintext\""));
        lines
            .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
            .sum::<f64>()
    };
    let counted = wait::until("the refusals to be counted", wait::PATIENCE, || {
        Ok(Some(refused(1)).filter(|n| *n >= 6.0))
    });
    assert_eq!(counted.unwrap(), 6.0);
    let line = lab.agent(1).daemon.wait_log("inbound_plaintext").unwrap();
    assert!(
        line.contains("shop") && line.contains("web"),
        "the pod is named: {line}"
    );
}

#[test]
fn a_destination_that_is_unknown_or_not_enrolled_is_refused() {
    let lab = Lab::two_nodes().unwrap();
    let _server = serve(lab.pod("legacy/server"), 7000);
    let unknown: IpAddr = "198.51.100.7".parse().unwrap();
    for (to, reason) in [
        (SocketAddr::new(unknown, 80), "destination_unknown"),
        (
            targets(lab.pod("legacy/server"), 7000)[0],
            "destination_not_enrolled",
        ),
    ] {
        let refused = plain_call(&lab.pod(CLIENT).netns, to);
        assert_eq!(refused, Err(ErrorKind::ConnectionReset), "{to}");
        lab.agent(0).daemon.wait_log(reason).unwrap();
    }
}

#[test]
fn all_that_is_on_the_wire_is_tls_and_no_nonce_is_seen() {
    let mut lab = Lab::build(Plan::two_nodes()).unwrap();
    let capture = lab.capture(lab.node(0)).unwrap();
    lab.start_mesh().unwrap();
    let (client, web) = (lab.pod(CLIENT), lab.pod(WEB));
    let _server = serve(web, 7000);
    let nonces: Vec<String> = (0..8).map(|_| nonce()).collect();
    for (index, sent) in nonces.iter().enumerate() {
        let to = targets(web, 7000)[index % 2];
        let said = dial(client, to, sent).ok().unwrap();
        assert!(said.ends_with(sent), "{said}");
    }
    let recording = capture.stop().unwrap();
    let (a, b) = (lab.node(0), lab.node(1));
    let streams = recording
        .streams()
        .between(|ip| a.owns(ip), |ip| b.owns(ip));
    let summary = streams.assert_all_tls().unwrap();
    assert_eq!(
        summary.ports.keys().collect::<Vec<_>>(),
        [&15008],
        "{summary:?}"
    );
    let modern = summary
        .handshakes
        .keys()
        .all(|h| h == "TLS 1.3, X25519MLKEM768");
    assert!(modern, "{summary:?}");
    for sent in &nonces {
        assert!(
            !recording.contains(sent.as_bytes()),
            "{sent} is on the wire"
        );
    }
    lab.finish().unwrap();
}

#[test]
fn with_the_agent_stopped_nothing_leaves_in_clear() {
    let mut lab = Lab::two_nodes().unwrap();
    let _server = serve(lab.pod(WEB), 7000);
    // What a worker has looked up, it goes on knowing.
    for to in targets(lab.pod(WEB), 7000) {
        dial(lab.pod(CLIENT), to, "first").ok().unwrap();
    }
    lab.agent_mut(0).0.daemon.kill9().unwrap();
    let worker = worker_pid(&lab);
    let client = lab.pod(CLIENT);
    for to in targets(lab.pod(WEB), 7000) {
        dial(client, to, "workers carry on").ok().unwrap();
    }

    // Now the worker too, with no supervisor to replace it.
    let process = nix::unistd::Pid::from_raw(worker);
    nix::sys::signal::kill(process, nix::sys::signal::Signal::SIGKILL).unwrap();
    let capture = lab.capture(lab.node(0)).unwrap();
    let clear = nonce();
    for to in targets(lab.pod(WEB), 7000) {
        let input = client.write("input", &clear).unwrap();
        let app = client
            .command("mesh-lab-app")
            .args(["dial", &to.to_string()]);
        let mut app = app.stdin(File::open(input).unwrap()).spawn().unwrap();
        // Refused or waiting for a worker: both are closed; being served is not.
        let ended = app.wait(Duration::from_secs(2));
        assert!(
            ended.is_err() || !ended.unwrap().success(),
            "{}",
            app.stdout()
        );
        assert!(!app.stdout().contains(&clear));
    }
    let recording = capture.stop().unwrap();
    assert!(
        !recording.contains(clear.as_bytes()),
        "in clear on the wire"
    );
    let from = client.addresses();
    let sent: Vec<String> = recording
        .streams()
        .directions()
        .filter(|d| from.contains(&d.from.ip()) && d.from_client)
        .map(ToString::to_string)
        .collect();
    assert!(sent.is_empty(), "left the pod: {sent:?}");
}

/// The client's worker, by its cgroup: its supervisor is gone.
fn worker_pid(lab: &Lab) -> i32 {
    let root = mesh_lab::cgroup::mount_point().unwrap();
    let group = root.join(format!("nodemesh-{}/shop_client", lab.agent(0).instance));
    let procs = std::fs::read_to_string(group.join("cgroup.procs")).unwrap();
    procs
        .trim()
        .parse()
        .unwrap_or_else(|_| panic!("workers of shop/client: {procs:?}"))
}

#[test]
fn pods_of_one_family_and_without_ipv6() {
    let plan = [Families::V4Only, Families::V6Only, Families::V6Disabled]
        .into_iter()
        .zip(["v4", "v6", "off"])
        .fold(Plan::two_nodes(), |plan, (families, name)| {
            plan.pod(PodSpec::new("shop", name).families(families))
        });
    let lab = Lab::with_mesh(plan).unwrap();
    let web = lab.pod(WEB);
    let _server = serve(web, 7000);
    let [v4, v6] = targets(web, 7000)[..] else {
        panic!("web has both families");
    };
    for (name, to) in [("v4", v4), ("v6", v6), ("off", v4)] {
        let said = dial(lab.pod(&format!("shop/{name}")), to, "payload").ok();
        assert!(said.unwrap().ends_with("\npayload"), "{name} to {to}");
    }
    for (name, to) in [("v4", v6), ("v6", v4)] {
        let netns = &lab.pod(&format!("shop/{name}")).netns;
        let error = netns.run(|| TcpStream::connect(to).unwrap_err());
        assert_eq!(
            error.raw_os_error(),
            Some(libc::ENETUNREACH),
            "{name} to {to}"
        );
    }
    // Inbound, too.
    for name in ["v4", "v6", "off"] {
        let pod = lab.pod(&format!("shop/{name}"));
        let address = if name == "off" { "0.0.0.0" } else { "::" };
        let server = pod.command("mesh-lab-app").args(["serve", "7001", address]);
        let _server = server.spawn().unwrap();
        pod.wait_listening(7001).unwrap();
        for to in targets(pod, 7001) {
            let said = dial(lab.pod(CLIENT), to, "payload").ok().unwrap();
            assert!(said.ends_with("\npayload"), "to {name}: {said}");
        }
    }
}
