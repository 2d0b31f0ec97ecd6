//! Loads: much data, many connections, connections that stall, apps that come late.

use std::net::SocketAddr;
use std::time::Duration;

use mesh_lab::{Lab, Pod, PodCommand, Ran, wait};

const CLIENT: &str = "shop/client";
const WEB: &str = "shop/web";

fn app<'a>(pod: &'a Pod, words: &str) -> PodCommand<'a> {
    pod.command("mesh-lab-app").args(words.split(' '))
}

fn to(pod: &Pod, port: u16) -> SocketAddr {
    SocketAddr::new(pod.v4().into(), port)
}

fn succeed(ran: Ran, lab: &Lab) -> String {
    ran.ok().unwrap_or_else(|e| {
        let counted = [0, 1].map(|node| lab.agent(node).metrics(lab.node(node)));
        let counted = counted.map(Result::unwrap_or_default).concat();
        panic!("{e:#}\n{}\n{counted}", lab.log_tails())
    })
}

#[test]
fn a_gibibyte_in_each_direction_at_once_arrives_whole() {
    let lab = Lab::two_nodes().unwrap();
    let web = lab.pod(WEB);
    let _server = app(web, "volume-serve 7000").spawn().unwrap();
    web.wait_listening(7000).unwrap();
    let volume = |bytes: u64| {
        let call = format!("volume {} {bytes}", to(web, 7000));
        let call = app(lab.pod(CLIENT), &call).timeout(Duration::from_secs(120));
        succeed(call.output().unwrap(), &lab);
    };
    // What a worker keeps for good, it has after some.
    volume(1 << 20);
    let before = usage(&lab);
    volume(1 << 30);
    // Its buffers it gives back when it has come to rest.
    for (pod, _, private_kib) in before {
        let what = format!("the worker of {pod} to hold {private_kib} KiB and little more");
        wait::until_true(&what, wait::PATIENCE, || {
            Ok(private_kib_of(&lab, &pod) <= private_kib + 256)
        })
        .unwrap();
    }
}

#[test]
fn two_thousand_connections_at_once() {
    let lab = Lab::two_nodes().unwrap();
    let web = lab.pod(WEB);
    let _server = app(web, "serve 7000").spawn().unwrap();
    web.wait_listening(7000).unwrap();
    let burst = app(lab.pod(CLIENT), &format!("burst {} 2000", to(web, 7000)));
    let said = succeed(
        burst.timeout(Duration::from_secs(60)).output().unwrap(),
        &lab,
    );
    assert_eq!(said, "2000 open\n2000 used\n");
}

#[test]
fn two_hundred_thousand_short_connections_leak_nothing() {
    const EACH: usize = 50_000;
    let lab = Lab::two_nodes().unwrap();
    let web = lab.pod(WEB);
    let _server = app(web, "serve 7000").spawn().unwrap();
    web.wait_listening(7000).unwrap();
    let churn = |count: usize| {
        let clients: Vec<_> = (0..4)
            .map(|_| app(lab.pod(CLIENT), &format!("churn {} {count}", to(web, 7000))))
            .map(|client| client.spawn().unwrap())
            .collect();
        for mut client in clients {
            let status = client.wait(Duration::from_secs(250)).unwrap();
            let said = client.stderr();
            assert!(status.success(), "{said}\n{}", lab.log_tails());
        }
    };
    // What a worker keeps for good, it has after some.
    churn(2_000);
    let before = usage(&lab);
    churn(EACH);
    for (pod, descriptors, private_kib) in before {
        // Connections that are being closed hold theirs a moment longer.
        let what = format!("the worker of {pod} to hold no more than {descriptors} descriptors");
        wait::until_true(&what, wait::PATIENCE, || {
            Ok(descriptors_of(&lab, &pod) <= descriptors)
        })
        .unwrap();
        let now_kib = private_kib_of(&lab, &pod);
        assert!(
            now_kib < private_kib + 2_048,
            "the worker of {pod} grew from {private_kib} to {now_kib} KiB"
        );
    }
}

fn usage(lab: &Lab) -> Vec<(String, usize, u64)> {
    let of = |pod: &str| {
        (
            pod.to_owned(),
            descriptors_of(lab, pod),
            private_kib_of(lab, pod),
        )
    };
    [CLIENT, WEB].map(of).to_vec()
}

fn worker(lab: &Lab, pod: &str) -> i32 {
    let pod = lab.pod(pod);
    lab.agent(pod.node()).worker_pid(pod).unwrap()
}

fn descriptors_of(lab: &Lab, pod: &str) -> usize {
    let folder = format!("/proc/{}/fd", worker(lab, pod));
    std::fs::read_dir(folder).unwrap().count()
}

fn private_kib_of(lab: &Lab, pod: &str) -> u64 {
    let rollup = format!("/proc/{}/smaps_rollup", worker(lab, pod));
    let text = std::fs::read_to_string(rollup).unwrap();
    let private = text.lines().filter(|line| line.starts_with("Private_"));
    let sizes = private.filter_map(|line| line.split_ascii_whitespace().nth(1));
    sizes.map(|size| size.parse::<u64>().unwrap()).sum()
}

#[test]
fn stalled_receivers_hold_up_nobody() {
    let lab = Lab::two_nodes().unwrap();
    let (client, web) = (lab.pod(CLIENT), lab.pod(WEB));
    let _servers = [
        app(web, "flood 7000").spawn().unwrap(),
        app(web, "serve 7001").spawn().unwrap(),
    ];
    web.wait_listening(7000).unwrap();
    web.wait_listening(7001).unwrap();
    let stalled = app(client, &format!("stall {} 64", to(web, 7000)))
        .spawn()
        .unwrap();
    stalled.wait_line("64 stalled").unwrap();
    let healthy = app(client, &format!("churn {} 200", to(web, 7001)));
    succeed(
        healthy.timeout(Duration::from_secs(20)).output().unwrap(),
        &lab,
    );
    // What nobody reads waits in the kernel too, and there is a bound to that.
    assert_eq!(buffers(web, "dport = :7000", "rb"), [LEG_BUFFER; 64]);
    assert_eq!(buffers(client, "sport = :15001", "tb"), [LEG_BUFFER; 64]);
    // Also a stream that was there before the others stalled for long.
    let healthy = app(client, &format!("burst {} 50", to(web, 7001)));
    succeed(
        healthy.timeout(Duration::from_secs(20)).output().unwrap(),
        &lab,
    );
}

/// What the kernel may hold at most for a worker's end of a bulk flow, as it counts.
const LEG_BUFFER: u64 = 2 * 256 * 1024;

/// The buffers named `rb` (received) or `tb` (sent) of the connections that a filter of `ss` names.
fn buffers(pod: &Pod, filter: &str, name: &str) -> Vec<u64> {
    let ss = pod.command("ss").args(["-tnmHO", "state", "established"]);
    let said = ss.args(filter.split(' ')).output().unwrap().ok().unwrap();
    let one = |line: &str| -> Option<u64> {
        let memory = line.split_once("skmem:(")?.1.split_once(')')?.0;
        let field = |field: &str| field.strip_prefix(name)?.parse().ok();
        memory.split(',').find_map(field)
    };
    said.lines().filter_map(one).collect()
}

#[test]
fn an_app_that_comes_late_without_reuseaddr_gets_its_port() {
    let lab = Lab::two_nodes().unwrap();
    let (client, web) = (lab.pod(CLIENT), lab.pod(WEB));
    let target = to(web, 7000);
    let attempt = || {
        let ran = app(client, &format!("burst {target} 1")).output().unwrap();
        ran.status.success()
    };
    for _ in 0..20 {
        assert!(!attempt(), "nothing listens yet");
    }
    let mut late = app(web, "serve-exclusive 7000").spawn().unwrap();
    web.wait_listening(7000)
        .unwrap_or_else(|e| panic!("{e:#}: {}", late.stderr()));
    assert!(attempt(), "{}", lab.log_tails());
    assert!(late.is_running().unwrap());
}
