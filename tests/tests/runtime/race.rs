//! Pods come and go as fast as the runtime can, and their addresses are used again at once.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;
use std::{fs, thread};

use anyhow::{Context, Result, ensure};
use mesh_lab::manifest::{authorization, service_account};
use mesh_lab::runtime::{Runtime, Sandbox};
use mesh_lab::traffic::{self, Traffic};
use mesh_lab::{Agent, Lab, Plan, Pod, PodSpec, pins, wait};

use crate::{CALLS, PORT, assert_tunnels_only, end_told_pod, plan, plugin, told_pod};

/// How many pods; the long form is 300.
const PODS: &str = "NODEMESH_RACE_PODS";
const FEW: usize = 40;
/// How many are in the making at a time, on each node.
const AT_ONCE: usize = 2;
/// How many addresses a node has for them: fewer than come to an end in a moment, so that each
/// is some other pod's soon.
const ADDRESSES: u8 = 6;
/// So many service accounts; the server has a port for each.
const ACCOUNTS: u16 = 4;
/// The port of the server for whoever is always there.
const STEADY: u16 = PORT + ACCOUNTS;
/// What every pod says begins with this.
const NONCE: &str = "racing-in-clear";

fn policies(plan: Plan) -> Plan {
    let own_port = |account: u16| {
        let spec = format!(
            "{{peers: [{{namespace: shop, serviceAccount: account-{account}}}], ports: [{}]}}",
            PORT + account
        );
        spec
    };
    let mut rules: Vec<String> = (0..ACCOUNTS).map(own_port).collect();
    rules.push(format!(
        "{{peers: [{{namespace: shop, serviceAccount: steady}}], ports: [{STEADY}]}}"
    ));
    let web = format!(
        "{{target: {{labels: {{app: web}}}}, direction: Inbound, action: Allow, rules: [{}]}}",
        rules.join(", ")
    );
    let racer = "{target: {labels: {app: racer}}, direction: Inbound, action: Allow, \
                 rules: [{peers: [{namespace: shop, serviceAccount: steady}]}]}";
    let out = "{target: {mesh: true}, direction: Outbound, action: Allow, rules: [{}]}";
    let accounts = (0..ACCOUNTS).map(|n| service_account("shop", &format!("account-{n}")));
    let accounts: Vec<String> = accounts.collect();
    plan.without_default_policy()
        .manifest("accounts", &accounts.join("---\n"))
        .manifest("web", &authorization("shop/web", &web))
        .manifest("racer", &authorization("shop/racer", racer))
        .manifest("out", &authorization("nodemesh-system/out", out))
        .pod(PodSpec::new("shop", "web").node(1))
        .pod(PodSpec::new("shop", "steady"))
}

fn racer(number: usize) -> PodSpec {
    let account = number % usize::from(ACCOUNTS);
    PodSpec::new("shop", &format!("racer-{number}"))
        .service_account(&format!("account-{account}"))
        .app("racer")
        .node(number / AT_ONCE % 2)
}

/// What a pod's container does: it serves, and calls each port of the server at once.
fn script(web: &Pod, name: &str) -> String {
    let (first, last, to) = (PORT, PORT + ACCOUNTS - 1, web.v4());
    format!(
        "mesh-lab-app serve {PORT} & \
         for port in $(seq {first} {last}); do \
         if echo {NONCE}-{name} | mesh-lab-app dial {to}:$port | grep -qx {NONCE}-{name}; \
         then echo port $port; fi; done; echo finished; wait"
    )
}

/// Who tells the agent of pods.
#[derive(Clone, Copy, PartialEq)]
enum By {
    Hand,
    Plugin,
}

/// One pod from its making to its end.
fn run(lab: &Lab, runtime: &Runtime, spec: &PodSpec, by: By) -> Result<Sandbox> {
    let sandbox = match by {
        By::Hand => told_pod(lab, runtime, spec)?,
        By::Plugin => plugin::pod(lab, runtime, spec)?,
    };
    let command = script(lab.pod("shop/web"), &spec.key().replace('/', "-"));
    let app = runtime.start_container(&sandbox, "app", &["sh", "-c", &command])?;
    wait::until_true("what the pod's calls come to", CALLS, || {
        Ok(app.log().contains("finished"))
    })
    .with_context(|| app.log())?;
    let said = app.log();
    let served: Vec<&str> = said
        .lines()
        .filter_map(|line| line.strip_prefix("port "))
        .collect();
    let account = spec.service_account_name().trim_start_matches("account-");
    let own = (PORT + account.parse::<u16>()?).to_string();
    ensure!(
        served == [own.as_str()],
        "{} with {}: the server let it in at {served:?}, its own port is {own}; it said {said}",
        spec.key(),
        spec.service_account_name()
    );
    // Whoever is always there finds the pod that has this address now.
    let address = SocketAddr::new(sandbox.address(), PORT);
    let steady = lab.pod("shop/steady");
    let called = wait::until_true("a call to the new pod", wait::PATIENCE, || {
        Ok(steady.netns.run(|| traffic::call(address)).map(|()| true)?)
    });
    called.with_context(|| format!("{} at {address}", spec.key()))?;
    match by {
        By::Hand => end_told_pod(lab, runtime, &sandbox, &[&app])?,
        By::Plugin => {
            runtime.remove_sandbox(&sandbox)?;
            lab.withdraw_pod(spec)?;
        }
    }
    Ok(sandbox)
}

/// What an agent keeps for pods.
fn held(lab: &Lab, node: usize) -> Vec<String> {
    let agent: &Agent = lab.agent(node);
    let records = fs::read_dir(lab.node(node).folder.join("run/pods")).unwrap();
    let mut held: Vec<String> = records
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    held.sort();
    for map in ["PODS", "WALLS"] {
        held.push(format!("{map} {}", pins::entries(agent, map)));
    }
    held.push(format!("links {:?}", pins::links(agent).unwrap()));
    held.push(format!("cgroups {}", agent.pod_cgroups().unwrap()));
    held
}

#[test]
fn pods_come_and_go_and_none_is_in_clear_or_another() {
    race(By::Plugin, FEW);
}

#[test]
fn the_same_without_the_plugin() {
    race(By::Hand, FEW / 2);
}

fn race(by: By, few: usize) {
    let told = std::env::var(PODS).ok();
    let pods = told.map_or(few, |count| count.parse().expect("a number of pods"));
    let lab = Lab::with_mesh(policies(plan())).unwrap();
    let runtimes = [0, 1].map(|node| Runtime::start(&lab, node, ADDRESSES).unwrap());
    if by == By::Plugin {
        plugin::chain(&lab, &runtimes[0], 0);
        plugin::chain(&lab, &runtimes[1], 1);
    }
    let (web, steady) = (lab.pod("shop/web"), lab.pod("shop/steady"));
    let ports: Vec<String> = (PORT..=STEADY).map(|port| port.to_string()).collect();
    let _server = web
        .command("mesh-lab-app")
        .args(["serve", &ports.join(",")])
        .spawn()
        .unwrap();
    web.wait_listening(STEADY).unwrap();
    let before = [0, 1].map(|node| held(&lab, node));
    let fabric = lab.capture(lab.node(0)).unwrap();
    let bridges = [0, 1].map(|node| Runtime::capture(lab.node(node)).unwrap());
    let to_steady = SocketAddr::new(web.v4().into(), STEADY);
    let stream = Traffic::stream(steady, to_steady);
    let calls = Traffic::calls(steady, to_steady);

    let begun = Instant::now();
    let next = AtomicUsize::new(0);
    let kubelet = || -> Result<Vec<Sandbox>> {
        let mut done = Vec::new();
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= pods {
                return Ok(done);
            }
            let spec = racer(number);
            let made = run(&lab, &runtimes[spec.node_index()], &spec, by);
            done.push(made.with_context(|| spec.key())?);
        }
    };
    let ended: Vec<Result<Vec<Sandbox>>> = thread::scope(|scope| {
        let kubelets: Vec<_> = (0..2 * AT_ONCE).map(|_| scope.spawn(kubelet)).collect();
        kubelets.into_iter().map(|k| k.join().unwrap()).collect()
    });
    let took = begun.elapsed();
    let ended: Result<Vec<Vec<Sandbox>>> = ended.into_iter().collect();
    let ended = ended
        .unwrap_or_else(|e| panic!("{e:#}\n{}", lab.log_tails()))
        .concat();
    let addresses: BTreeSet<_> = ended.iter().map(Sandbox::address).collect();
    println!(
        "{} pods with {} addresses in {took:.1?}",
        ended.len(),
        addresses.len()
    );
    assert_eq!(ended.len(), pods);
    assert!(addresses.len() < pods, "no address was used again");

    stream.finish_unharmed("a stream beside them");
    calls.finish_unharmed("calls beside them");
    wait::until_true("nothing to be left of them", wait::PATIENCE, || {
        let now = [0, 1].map(|node| held(&lab, node));
        ensure!(now == before, "{before:?} became {now:?}");
        Ok(true)
    })
    .unwrap();
    let [a, b] = bridges;
    for (place, capture) in [("fabric", fabric), ("bridge of a", a), ("bridge of b", b)] {
        assert_tunnels_only(place, &capture.stop().unwrap(), NONCE);
    }
    runtimes
        .iter()
        .for_each(|runtime| runtime.check_empty().unwrap());
    drop(runtimes);
    lab.finish().unwrap();
}
