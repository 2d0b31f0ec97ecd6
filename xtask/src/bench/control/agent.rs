//! The memory of a real agent in a large mesh, of which one pod of its node talks to some.

use std::fmt::Write as _;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use mesh_lab::{Lab, Plan, PodSpec, call, wait};
use serde_json::{Value, json};

use super::super::system;
use super::ControlArgs;

const NAMESPACES: usize = 100;
const FIRST_POD: Ipv4Addr = Ipv4Addr::new(11, 0, 0, 1);
const FIRST_SERVICE: Ipv4Addr = Ipv4Addr::new(172, 16, 0, 1);
/// How long control may take to read the manifests.
const PATIENCE: Duration = Duration::from_secs(300);

/// Of the supervisor alone with its node, and with the whole mesh around it; and how long control
/// took to read that.
pub(super) fn weigh(args: &ControlArgs) -> Result<Value> {
    let plan = Plan::nodes(1).enrolled("shop");
    let lab = Lab::with_mesh(plan.pod(PodSpec::new("shop", "client")))?;
    let weighed = weigh_in(&lab, args).with_context(|| lab.log_tails())?;
    lab.finish()?;
    Ok(weighed)
}

fn weigh_in(lab: &Lab, args: &ControlArgs) -> Result<Value> {
    let pid = lab.agent(0).daemon.pid().context("the agent runs")?;
    let pid = i32::try_from(pid)?;
    let alone_mib = system::private_mib(pid)?;
    let draft = lab.manifests().join(".large");
    fs::write(&draft, manifests(args))?;
    let started = Instant::now();
    fs::rename(&draft, lab.manifests().join("large.yaml"))?;
    let workloads = args.workloads + 1;
    let needle = format!("workloads={workloads} ");
    wait::line_in_file(lab.control().daemon.log(), &needle, PATIENCE)?;
    let read_s = started.elapsed().as_secs_f64();
    // What comes of a call is nobody's business: where it leads has to be asked for.
    let pod = lab.pod("shop/client");
    let outcomes: Vec<call::Called> = thread::scope(|scope| {
        let call = |service| {
            let address = nth(FIRST_SERVICE, service);
            scope.spawn(move || call::tcp(&pod.netns, SocketAddr::new(address, 80)))
        };
        let calls: Vec<_> = (0..args.talks_to).map(call).collect();
        let ended = calls.into_iter().map(thread::ScopedJoinHandle::join);
        ended
            .map(|call| call.expect("a call that returns"))
            .collect()
    });
    let accepted = outcomes
        .iter()
        .filter(|outcome| !matches!(outcome, call::Called::NotConnected(_)));
    ensure!(
        accepted.count() == args.talks_to,
        "not all services were known: {outcomes:?}"
    );
    let endpoints = args.talks_to * (args.workloads / args.services);
    let what = format!("the agent to know {endpoints} endpoints");
    let held = wait::until(&what, wait::PATIENCE, || {
        let held = lab.agent(0).status()?["control"]["workloads"].as_u64();
        Ok(held.filter(|held| *held > endpoints as u64))
    })?;
    let large_mib = system::private_mib(pid)?;
    Ok(json!({
        "alone_mib": alone_mib, "large_mib": large_mib, "held": held, "manifests_read_s": read_s,
    }))
}

fn nth(first: Ipv4Addr, n: usize) -> IpAddr {
    let n = u32::try_from(n).expect("fewer than 2^20 of them");
    Ipv4Addr::from(u32::from(first) + n).into()
}

fn manifests(args: &ControlArgs) -> String {
    let mut text = String::new();
    let mut object = |object: Value| {
        let _ = writeln!(text, "---\n{object}");
    };
    for n in 0..NAMESPACES {
        let labels = json!({ "nodemesh.dev/enroll": "true" });
        let metadata = json!({ "name": format!("ns{n}"), "labels": labels });
        object(json!({ "kind": "Namespace", "metadata": metadata }));
        let metadata = json!({ "name": "app", "namespace": format!("ns{n}") });
        object(json!({ "kind": "ServiceAccount", "metadata": metadata }));
    }
    for n in 0..args.services {
        object(json!({
            "kind": "Service",
            "metadata": { "name": format!("s{n}"), "namespace": namespace(n) },
            "spec": {
                "selector": { "app": format!("s{n}") },
                "clusterIPs": [nth(FIRST_SERVICE, n)],
                "ports": [{ "port": 80, "targetPort": 8080 }],
            },
        }));
    }
    for n in 0..args.workloads {
        let service = n % args.services;
        let labels = json!({ "app": format!("s{service}") });
        let node = format!("far-{}", n % args.nodes);
        object(json!({
            "kind": "Pod",
            "metadata": {
                "name": format!("p{n}"), "namespace": namespace(service), "labels": labels,
            },
            "spec": { "nodeName": node, "serviceAccountName": "app" },
            "status": { "podIPs": [{ "ip": nth(FIRST_POD, n) }] },
        }));
    }
    text
}

fn namespace(service: usize) -> String {
    format!("ns{}", service % NAMESPACES)
}
