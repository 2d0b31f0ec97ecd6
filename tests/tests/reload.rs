//! A storm of policy changes while calls go on: what every version allows never fails, what
//! every version refuses never passes.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use mesh_lab::call::{self, Called};
use mesh_lab::{Lab, Netns, Plan, PodSpec, ServiceSpec, manifest, wait};

/// Control takes a folder that has come to rest, so changes come in rounds, of one to each file.
const ROUNDS: usize = 100;
/// Calls a second over allowed paths, begun on schedule whatever becomes of those before.
const RATE: u32 = 200;
const PORT: u16 = 7000;

const CLIENT: &str = "shop/client";
const STRANGER: &str = "shop/stranger";
const WEB: &str = "shop/web";

fn plan() -> Plan {
    Plan::nodes(2)
        .enrolled("shop")
        .without_default_policy()
        .pod(PodSpec::new("shop", "client").label("tier", "gold"))
        .pod(PodSpec::new("shop", "stranger"))
        .pod(PodSpec::new("shop", "web").node(1))
        .service(ServiceSpec::new("shop", "web").port(80, "7000"))
        .manifest("out", &out(0))
        .manifest("in", &inbound("shop/in", 0, true))
        .manifest("deny", &deny(0))
}

type File = (&'static str, fn(usize) -> String);

/// Files that change. The rule that lets the client in is in the first of them in even
/// versions and in the last in odd ones, so a node that saw half a change would refuse it.
const FILES: [File; 5] = [
    ("in", |version| {
        inbound("shop/in", version, version % 2 == 0)
    }),
    ("out", out),
    ("deny", deny),
    ("noise", noise),
    ("in-too", |version| {
        inbound("shop/in-too", version, version % 2 == 1)
    }),
];

/// The client may call; which rule says so changes.
fn out(version: usize) -> String {
    let peers = [
        "{namespace: shop}",
        "{service: web}",
        "{labels: {app: web}}",
    ][version % 3];
    let spec = format!(
        "{{direction: Outbound, action: Allow, rules: [\
         {{peers: [{peers}]}}, {{ports: [{}]}}]}}",
        20_000 + version
    );
    manifest::authorization("shop/out", &spec)
}

/// The web server takes the client, if `open`; by what it is named changes.
fn inbound(key: &str, version: usize, open: bool) -> String {
    let peer = [
        "{serviceAccount: client, namespace: shop}",
        "{labels: {tier: gold}}",
        "{identity: \"spiffe://cluster.local/ns/shop/sa/client\"}",
        "{labels: {app: client}}",
        "{serviceAccount: nobody, namespace: shop}",
    ][if open { version % 4 } else { 4 }];
    let spec = format!(
        "{{target: {{labels: {{app: web}}}}, direction: Inbound, action: Allow, rules: [\
         {{peers: [{peer}], ports: [{PORT}, {}]}}]}}",
        20_000 + version
    );
    manifest::authorization(key, &spec)
}

/// A stranger is denied; by what it is named changes, and now and then it is in no ALLOW and
/// named by no DENY.
fn deny(version: usize) -> String {
    let peers = [
        "{serviceAccount: stranger, namespace: shop}",
        "{labels: {app: stranger}}",
        "{serviceAccount: nobody, namespace: shop}",
    ][version % 3];
    let spec = format!(
        "{{target: {{service: web}}, direction: Inbound, action: Deny, rules: [{{peers: [{peers}]}}]}}"
    );
    manifest::authorization("shop/deny", &spec)
}

/// Policies for others, more and fewer of them, and a scope, which members don't care about.
fn noise(version: usize) -> String {
    let one = |number: usize| {
        let spec = format!(
            "{{target: {{labels: {{app: other-{number}}}}}, direction: Inbound, action: Allow, \
             rules: [{{ports: [{}]}}]}}",
            1_000 + version
        );
        manifest::authorization(&format!("shop/noise-{number}"), &spec)
    };
    let mode = ["Strict", "Permissive"][version % 2];
    let mode = manifest::authentication("shop/mode", &format!("{{mode: {mode}}}"));
    let others = (0..version % 20).map(one);
    std::iter::once(mode)
        .chain(others)
        .collect::<Vec<_>>()
        .join("---\n")
}

/// What became of all calls of one kind.
#[derive(Default)]
struct Tally {
    made: AtomicUsize,
    wrong: Mutex<Vec<String>>,
    took: Mutex<Vec<Duration>>,
}

impl Tally {
    fn add(&self, netns: &Netns, to: SocketAddr, right: impl Fn(&Called) -> bool) {
        let begun = Instant::now();
        let called = call::tcp(netns, to);
        self.took.lock().unwrap().push(begun.elapsed());
        self.made.fetch_add(1, Ordering::Relaxed);
        if !right(&called) {
            self.wrong.lock().unwrap().push(format!("{to}: {called}"));
        }
    }
}

/// Calls on schedule until told to stop.
fn keep_rate(lab: &Lab, stop: &AtomicBool, tally: &Tally) {
    let netns = &lab.pod(CLIENT).netns;
    let web = lab.pod(WEB).addresses();
    let service = lab.service(WEB);
    let to = [
        SocketAddr::new(web[0], PORT),
        SocketAddr::new(web[1], PORT),
        SocketAddr::new(service[0], 80),
        SocketAddr::new(service[1], 80),
    ];
    let started = Instant::now();
    thread::scope(|scope| {
        for (number, to) in (0u32..).zip(to.iter().cycle()) {
            let at = started + Duration::from_secs(1) * number / RATE;
            thread::sleep(at.saturating_duration_since(Instant::now()));
            if stop.load(Ordering::Relaxed) {
                return;
            }
            scope.spawn(|| tally.add(netns, *to, Called::served));
        }
    });
}

/// Calls one after the other, none of which may be answered.
fn keep_trying(lab: &Lab, stop: &AtomicBool, tally: &Tally) {
    let netns = &lab.pod(STRANGER).netns;
    let addresses = lab.pod(WEB).addresses();
    let to: Vec<_> = addresses
        .into_iter()
        .map(|ip| SocketAddr::new(ip, PORT))
        .collect();
    while !stop.load(Ordering::Relaxed) {
        to.iter()
            .for_each(|to| tally.add(netns, *to, |called| *called == Called::Reset));
    }
}

/// Lines of a log that begin a new state.
fn count(log: &std::path::Path, needle: &str) -> usize {
    let text = std::fs::read(log).unwrap();
    String::from_utf8_lossy(&text).matches(needle).count()
}

/// The version of discovery that a node has in force.
fn version(lab: &Lab, node: usize) -> String {
    let status = lab.agent(node).status().unwrap();
    status["control"]["discovery_version"]
        .as_str()
        .unwrap()
        .to_owned()
}

#[test]
fn five_hundred_policy_changes_under_load_lose_nothing_and_let_nothing_in() {
    let lab = Lab::with_mesh(plan()).unwrap();
    let server = lab.pod(WEB).command("mesh-lab-app").args(["serve", "7000"]);
    let _server = server.spawn().unwrap();
    lab.pod(WEB).wait_listening(PORT).unwrap();
    let control = lab.control().daemon.log();
    let (allowed, denied, stop) = (Tally::default(), Tally::default(), AtomicBool::new(false));
    let started = Instant::now();
    let taken_before = count(control, "manifests taken");
    let mut applied = [BTreeSet::new(), BTreeSet::new()];
    thread::scope(|scope| {
        scope.spawn(|| keep_rate(&lab, &stop, &allowed));
        scope.spawn(|| keep_trying(&lab, &stop, &denied));
        for round in 1..=ROUNDS {
            let taken = count(control, "manifests taken");
            let mut files = FILES;
            if round % 2 == 1 {
                // What opens comes before what closes: these renames are no one step.
                files.reverse();
            }
            for (name, version) in files {
                lab.write_manifest(name, &version(round)).unwrap();
            }
            let what = format!("control to take round {round}");
            let waited = wait::until_true(&what, wait::PATIENCE, || {
                Ok(count(control, "manifests taken") > taken)
            });
            if waited.is_err() {
                stop.store(true, Ordering::Relaxed);
            }
            waited.unwrap_or_else(|error| panic!("{error:#}\n{}", lab.log_tails()));
            for (node, versions) in applied.iter_mut().enumerate() {
                versions.insert(version(&lab, node));
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
    let applied = applied.map(|versions| versions.len());
    let seconds = started.elapsed().as_secs_f64();
    let taken = count(control, "manifests taken") - taken_before;
    let mut took = allowed.took.into_inner().unwrap();
    took.sort();
    let calls = took.len();
    println!(
        "{} changes in {seconds:.0} s, taken by control as {taken} versions, {applied:?} of \
         them seen in force on the nodes; \
         {calls} calls at {:.0}/s, median {:?}, 99 % within {:?}, slowest {:?}; \
         {} calls of a stranger refused",
        ROUNDS * FILES.len(),
        calls as f64 / seconds,
        took[calls / 2],
        took[calls * 99 / 100],
        took[calls - 1],
        denied.made.load(Ordering::Relaxed),
    );
    let failed = allowed.wrong.into_inner().unwrap();
    let passed = denied.wrong.into_inner().unwrap();
    assert!(
        failed.is_empty(),
        "{} failed: {failed:#?}\n{}",
        failed.len(),
        lab.log_tails()
    );
    assert!(passed.is_empty(), "not refused: {passed:#?}");
    assert!(taken >= ROUNDS, "{taken} versions");
    assert!(applied.iter().all(|seen| *seen > ROUNDS / 2), "{applied:?}");
}
