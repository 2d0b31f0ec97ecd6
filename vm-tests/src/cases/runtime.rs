//! A node whose pods are made by containerd boots, in earnest: what is on its disk is there again, and
//! nothing else. The other machine is the rest of the cluster, and sees what comes out of the node.

use std::fs;
use std::net::IpAddr;
use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};
use mesh_lab::runtime::Runtime;
use mesh_lab::runtime::pods::{NOT_READY, say_to};
use mesh_lab::wire::Recording;
use mesh_lab::{App, Lab, Plan, Pod, PodSpec, wait};
use nix::mount::{MsFlags, mount};

use crate::{Case, Guest};

pub(super) const CASES: &[Case] = &[Case {
    name: "runtime/a-node-that-boots-starts-no-pod-before-its-agent",
    nodes: 2,
    kernel_args: "",
    timeout_s: 600,
    run: a_boot,
}];

/// Of the first process, which is there in each boot.
const PREFIX: &str = "nm1x0";
const DISK: &str = "/dev/vda";
const PLUGIN: &str = "nodemesh-cni";
/// The node that boots.
const NODE: usize = 1;
const WEB: &str = "shop/web";
const SERVER: &str = "plain/server";
const PORT: u16 = 7000;
/// What pods of the mesh say, and what others do.
const NONCE: &str = "in-clear-after-a-boot";
const CLEAR: &str = "from-outside-the-mesh";

fn plan(part: usize) -> Plan {
    Plan::nodes(2)
        .enrolled("shop")
        .namespace("plain")
        .pod(PodSpec::new("shop", "web"))
        .pod(PodSpec::new("plain", "server"))
        .agent_option("--cni-bin-dir", "{folder}/runtime/bin")
        .agent_option("--cni-conf-dir", "{folder}/runtime/conf")
        .prefix(PREFIX)
        .part(part)
}

/// The pods that the node's kubelet is to run, by the API.
fn pods() -> [PodSpec; 3] {
    [
        ("shop", "client", 1),
        ("shop", "late", 2),
        ("plain", "caller", 3),
    ]
    .map(|(namespace, name, number)| {
        let uid = format!("00000000-0000-4000-8000-{number:012}");
        PodSpec::new(namespace, name).node(NODE).uid(&uid)
    })
}

fn a_boot(guest: &Guest) -> Result<()> {
    match (guest.node(), guest.boot()) {
        (0, _) => cluster(guest),
        (_, 0) => before(guest),
        (_, _) => after(guest),
    }
}

fn serve(pod: &Pod) -> Result<App> {
    let app = pod.command("mesh-lab-app");
    let app = app.args(["serve", &PORT.to_string()]).spawn()?;
    pod.wait_listening(PORT)?;
    Ok(app)
}

/// Control, and two servers, one of which is in the mesh. Nothing comes to that but TLS.
fn cluster(guest: &Guest) -> Result<()> {
    let mut lab = Lab::build(plan(0))?;
    let tell = |told: Option<String>| {
        let told = told.context("the first part tells")?;
        guest.tell("mesh", told.clone());
        Ok(told)
    };
    lab.start_part(tell).with_context(|| lab.log_tails())?;
    let _servers = [serve(lab.pod(WEB))?, serve(lab.pod(SERVER))?];
    for pod in pods() {
        lab.declare_pod(&pod, &[])?;
    }
    let wire = lab.capture(lab.node(0))?;
    guest.tell("served", "");
    // A kubelet tells the API a pod's address when its sandbox is made.
    let [client, ..] = pods();
    for boot in 0..2 {
        let address = guest.wait_for(&format!("address in boot {boot}"))?;
        lab.declare_pod(&client, &[address.parse()?])?;
    }
    guest.wait_for("all is said")?;
    nothing_in_clear(guest, "wire", &wire.stop()?, lab.pod(WEB))?;
    guest.tell("seen", "");
    lab.finish()
}

/// What members said is in TLS, and what others did is there to be seen.
fn nothing_in_clear(guest: &Guest, place: &str, seen: &Recording, web: &Pod) -> Result<()> {
    ensure!(!seen.contains(NONCE.as_bytes()), "in clear on the {place}");
    ensure!(
        seen.contains(CLEAR.as_bytes()),
        "what passes the {place} is not captured"
    );
    let web = IpAddr::from(web.v4());
    let streams = seen.streams().between(|ip| ip == web, |ip| ip != web);
    let summary = streams.assert_all_tls()?;
    ensure!(!summary.ports.is_empty(), "no stream on the {place}");
    guest.step(format!("on the {place}: {summary:?}"));
    Ok(())
}

/// The node's lab: on its disk is what a node keeps there, and on a tmpfs what goes with the boot.
fn node() -> Result<Lab> {
    let folder = std::env::temp_dir().join(PREFIX);
    let kept = |kind: &'static str, from: &str, at: PathBuf| {
        fs::create_dir_all(&at)?;
        let none = None::<&str>;
        mount(Some(from), &at, Some(kind), MsFlags::empty(), none)
            .with_context(|| format!("mounting {kind} on {}", at.display()))
    };
    kept("ext4", DISK, folder.clone())?;
    let own = folder.join("node-b");
    kept("tmpfs", "run", own.join("run"))?;
    kept("tmpfs", "state", own.join("runtime/state"))?;
    Lab::build(plan(NODE))
}

fn start_agent(guest: &Guest, lab: &mut Lab) -> Result<()> {
    lab.start_part(|_| guest.wait_for("mesh"))
        .with_context(|| lab.log_tails())
}

/// No sandbox is made of a pod, with the plugin's words.
fn refused(guest: &Guest, runtime: &Runtime, pod: &PodSpec) -> Result<()> {
    let Err(why) = runtime.run_sandbox(pod) else {
        bail!("{} has a sandbox, without an agent", pod.key());
    };
    let why = format!("{why:#}");
    ensure!(why.contains(PLUGIN) && why.contains("agent"), "{why}");
    guest.step(format!("{} is refused", pod.key()));
    Ok(())
}

fn all_are_over(runtime: &Runtime) -> Result<()> {
    let sandboxes = runtime.cri.sandboxes()?;
    let over = sandboxes.iter().all(|s| s.state == NOT_READY);
    ensure!(over, "a sandbox runs: {sandboxes:?}");
    Ok(())
}

/// A pod that talks, and whose agent goes before the machine does.
fn before(guest: &Guest) -> Result<()> {
    let mut lab = node()?;
    guest.wait_for("served")?;
    start_agent(guest, &mut lab)?;
    let runtime = Runtime::start(&lab, NODE, 8)?;
    runtime.wait_for_plugin(PLUGIN)?;
    guest.step("the runtime is up, and uses the plugin");
    let [client, late, _] = pods();
    let sandbox = runtime
        .run_sandbox(&client)
        .with_context(|| lab.log_tails())?;
    enrolled(&lab, &client)?;
    guest.tell("address in boot 0", sandbox.address().to_string());
    let to = format!("{}:{PORT}", lab.pod(WEB).v4());
    let talk = format!("while {}; do echo said; done", say_to(NONCE, &to));
    let talker = runtime.start_container(&sandbox, "app", &["sh", "-c", &talk])?;
    let talks = |times: usize| {
        wait::until_true("calls of the pod", wait::PATIENCE, || {
            Ok(talker.log().lines().count() >= times)
        })
        .with_context(|| talker.log())
    };
    talks(2)?;
    guest.step("a pod made by CRI is enrolled, and talks");
    lab.agent_mut(NODE).0.daemon.terminate()?;
    refused(guest, &runtime, &late)?;
    let said = talker.log().lines().count();
    talks(said + 2)?;
    guest.step("the machine boots again, while the pod talks");
    guest.reboot()
}

fn enrolled(lab: &Lab, pod: &PodSpec) -> Result<()> {
    let status = lab.agent(NODE).status()?;
    let pods = status["pods"].as_array().context("status has pods")?;
    let key = |p: &serde_json::Value| {
        let part = |field: &str| p[field].as_str().unwrap_or_default().to_owned();
        format!("{}/{}", part("namespace"), part("name"))
    };
    let found = pods.iter().find(|p| key(p) == pod.key());
    let state = found.map(|found| &found["state"]);
    ensure!(state.is_some_and(|s| s == "enrolled"), "{status}");
    Ok(())
}

/// A kubelet that is up before the agent is makes the pod's sandbox again, in vain, until the agent
/// is there.
fn after(guest: &Guest) -> Result<()> {
    let mut lab = node()?;
    let runtime = Runtime::resume(&lab, NODE, 8)?;
    let bridge = Runtime::capture(lab.node(NODE))?;
    runtime.wait_for_plugin(PLUGIN)?;
    guest.step("the runtime is up again, and uses the plugin");
    ensure!(
        !runtime.cri.sandboxes()?.is_empty(),
        "nothing is left of the boot before"
    );
    all_are_over(&runtime)?;
    runtime.collect_garbage()?;
    let [client, _, caller] = pods();
    for pod in [&client, &caller] {
        refused(guest, &runtime, pod)?;
    }
    all_are_over(&runtime)?;
    start_agent(guest, &mut lab)?;
    let sandbox = runtime
        .run_sandbox(&client)
        .with_context(|| lab.log_tails())?;
    enrolled(&lab, &client)?;
    guest.tell("address in boot 1", sandbox.address().to_string());
    let outside = runtime
        .run_sandbox(&caller)
        .with_context(|| lab.log_tails())?;
    for (pod, word, server) in [(&sandbox, NONCE, WEB), (&outside, CLEAR, SERVER)] {
        let call = say_to(word, &format!("{}:{PORT}", lab.pod(server).v4()));
        let app = runtime.start_container(pod, "app", &["sh", "-c", &call])?;
        runtime.wait_exit(&app, wait::PATIENCE)?;
    }
    guest.step("the pod is enrolled again, and talks");
    nothing_in_clear(guest, "bridge", &bridge.stop()?, lab.pod(WEB))?;
    guest.tell("all is said", "");
    guest.wait_for("seen")?;
    for sandbox in [sandbox, outside] {
        runtime.remove_sandbox(&sandbox)?;
    }
    runtime.collect_garbage()?;
    runtime.check_empty()
    // The rest ends with the machine: its run folder is a mount, which no agent takes away.
}
