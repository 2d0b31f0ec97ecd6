//! The lab itself, without a mesh: plain traffic passes as tests expect it to, and nothing
//! is left afterwards.

use std::io::Write;
use std::net::{SocketAddr, TcpStream};

use mesh_lab::{Families, Lab, Plan, PodSpec};

fn dial(lab: &Lab, from: &str, to: SocketAddr, data: &str) -> anyhow::Result<String> {
    let pod = lab.pod(from);
    let input = pod.write("input", data)?;
    pod.command("mesh-lab-app")
        .args(["dial", &to.to_string()])
        .stdin(std::fs::File::open(input)?)
        .output()?
        .ok()
}

#[test]
fn pods_on_two_nodes_reach_each_other_and_see_real_addresses() {
    let lab = Lab::build(Plan::two_nodes()).unwrap();
    let (client, server) = (lab.pod("legacy/caller"), lab.pod("legacy/server"));
    let app = server.command("mesh-lab-app").args(["serve", "80"]).spawn();
    let app = app.unwrap();
    server.wait_listening(80).unwrap();
    let capture = lab.capture(lab.node(0)).unwrap();
    for (from, to) in client.addresses().into_iter().zip(server.addresses()) {
        let to = SocketAddr::new(to, 80);
        let said = dial(&lab, "legacy/caller", to, "a nonce").unwrap();
        let lines: Vec<&str> = said.lines().collect();
        assert!(lines[0].starts_with(&format!("peer={to}")), "{said}");
        let local = SocketAddr::new(from, 0).to_string();
        let local = local.trim_end_matches('0');
        assert!(lines[1].starts_with(&format!("accept={local}")), "{said}");
        assert!(lines[1].ends_with(&format!(" local={to}")), "{said}");
        assert_eq!(lines[2], "a nonce");
    }
    assert_eq!(app.stdout().lines().count(), 2);
    let recording = capture.stop().unwrap();
    assert!(recording.contains(b"a nonce"), "plain text is seen as such");
    let streams = recording.streams();
    let error = streams.assert_all_tls().unwrap_err().to_string();
    assert!(error.contains("no TLS record"), "{error}");
}

#[test]
fn apps_are_unprivileged_and_in_their_own_cgroup() {
    let lab = Lab::build(Plan::two_nodes()).unwrap();
    let pod = lab.pod("shop/client");
    let shell = |command: &str| {
        let ran = pod.command("sh").args(["-c", command]).output();
        ran.unwrap().ok().unwrap()
    };
    let said = shell("id -u; id -G; grep CapEff /proc/self/status; grep ^0: /proc/self/cgroup");
    let uid = pod.uid();
    assert!(
        said.starts_with(&format!("{uid}\n{uid}\nCapEff:\t0000000000000000\n")),
        "{said}"
    );
    assert!(
        said.contains(lab.prefix()) && said.contains("/shop-client/"),
        "{said}"
    );
}

#[test]
fn every_family_of_pod_is_what_it_says() {
    let plan = [Families::V4Only, Families::V6Only, Families::V6Disabled]
        .into_iter()
        .zip(["v4", "v6", "off"])
        .fold(Plan::two_nodes(), |plan, (families, name)| {
            plan.pod(PodSpec::new("legacy", name).families(families))
        });
    let lab = Lab::build(plan).unwrap();
    let server = lab.pod("legacy/server");
    let _app = server.command("mesh-lab-app").args(["serve", "80"]).spawn();
    server.wait_listening(80).unwrap();
    let connect = |pod: &str, to: SocketAddr| {
        let netns = &lab.pod(pod).netns;
        netns.run(|| {
            TcpStream::connect(to)
                .map(drop)
                .map_err(|e| e.raw_os_error())
        })
    };
    let v4 = SocketAddr::new(server.v4().into(), 80);
    let v6 = SocketAddr::new(server.v6().into(), 80);
    let unreachable = Err(Some(libc::ENETUNREACH));
    assert_eq!(
        [connect("legacy/v4", v4), connect("legacy/v4", v6)],
        [Ok(()), unreachable]
    );
    assert_eq!(
        [connect("legacy/v6", v4), connect("legacy/v6", v6)],
        [unreachable, Ok(())]
    );
    assert_eq!(connect("legacy/off", v4), Ok(()));
    assert!(connect("legacy/off", v6).is_err());
    let loopback: SocketAddr = "[::1]:9".parse().unwrap();
    assert_eq!(
        connect("legacy/v4", loopback),
        Err(Some(libc::ECONNREFUSED))
    );
    assert_eq!(
        connect("legacy/off", loopback),
        Err(Some(libc::EADDRNOTAVAIL))
    );
}

#[test]
fn the_host_outside_reaches_pods_and_nodes() {
    let lab = Lab::build(Plan::two_nodes()).unwrap();
    let server = lab.pod("shop/web");
    let _app = server.command("mesh-lab-app").args(["serve", "80"]).spawn();
    server.wait_listening(80).unwrap();
    for address in server.addresses() {
        lab.outside().netns.run(|| {
            let mut stream = TcpStream::connect(SocketAddr::new(address, 80)).unwrap();
            stream.write_all(b"x").unwrap();
        });
    }
}

#[test]
fn nothing_is_left_also_after_a_panic() {
    let panicked = std::thread::spawn(|| {
        let lab = Lab::build(Plan::two_nodes()).unwrap();
        let app = lab
            .pod("shop/web")
            .command("sleep")
            .arg("1000")
            .spawn()
            .unwrap();
        let pid = app.pid();
        // An app that nobody holds any more lives as long as the lab.
        std::mem::forget(app);
        assert!(!mesh_lab::removal::leftovers(lab.prefix()).is_empty());
        std::panic::panic_any((lab.prefix().to_owned(), pid));
    })
    .join();
    let (prefix, pid) = *panicked.unwrap_err().downcast::<(String, u32)>().unwrap();
    assert!(mesh_lab::removal::leftovers(&prefix).is_empty());
    let state = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    assert!(state.is_empty() || state.contains(") Z "), "{state}");
    Lab::build(Plan::two_nodes()).unwrap().finish().unwrap();
}
