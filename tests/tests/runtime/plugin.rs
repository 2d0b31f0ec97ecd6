//! The mesh's plugin in the runtime's network configuration: no pod of the mesh starts without it.

use std::fs;

use mesh_lab::runtime::pods::{NOT_READY, new_uid};
use mesh_lab::runtime::{Runtime, Sandbox};
use mesh_lab::{Lab, PodSpec, programs, wait};
use serde_json::json;

use crate::{CALLS, plan, say, serve};

const NONCE: &str = "in-clear-in-a-first-packet";
const PLUGIN: &str = "nodemesh-cni";

/// Puts the plugin and its entry in place, and waits until the runtime has read it.
pub(crate) fn chain(lab: &Lab, runtime: &Runtime, node: usize) {
    let program = programs::mesh_binary(PLUGIN).unwrap();
    runtime.folders.install_plugin(&program).unwrap();
    let entry = json!({
        "type": PLUGIN,
        "runDir": lab.agent(node).run_dir(),
        "timeoutMs": 20_000,
    });
    runtime
        .folders
        .write_conflist(&runtime.network, &[entry])
        .unwrap();
    runtime.wait_for_plugin(PLUGIN).unwrap();
}

/// A new pod as a kubelet makes it: the API has it, bound to its node, before its sandbox is made,
/// and its addresses afterwards.
pub(crate) fn pod(lab: &Lab, runtime: &Runtime, spec: &PodSpec) -> anyhow::Result<Sandbox> {
    let spec = spec.clone().uid(&new_uid());
    lab.declare_pod(&spec, &[])?;
    let sandbox = runtime.run_sandbox(&spec)?;
    lab.declare_pod(&spec, &sandbox.addresses)?;
    Ok(sandbox)
}

/// A refusal that has these words.
pub(crate) fn refused(lab: &Lab, runtime: &Runtime, spec: &PodSpec, words: &[&str]) {
    refused_as(runtime, spec, pod(lab, runtime, spec), words);
}

/// The same, of what became of a pod.
pub(crate) fn refused_as(
    runtime: &Runtime,
    spec: &PodSpec,
    outcome: anyhow::Result<Sandbox>,
    words: &[&str],
) {
    let said = match outcome {
        Ok(sandbox) => panic!("{} has a sandbox: {sandbox:?}", spec.key()),
        Err(error) => format!("{error:#}"),
    };
    println!("{}: {said}", spec.key());
    for word in words {
        assert!(said.contains(word), "{word:?} is not in: {said}");
    }
    let sandboxes = runtime.cri.sandboxes().unwrap();
    assert!(
        sandboxes.iter().all(|sandbox| sandbox.state == NOT_READY),
        "{sandboxes:?}"
    );
}

#[test]
fn a_pods_first_packet_is_captured_and_others_pass() {
    let lab = Lab::with_mesh(plan()).unwrap();
    let runtimes = [0, 1].map(|node| Runtime::start(&lab, node, 8).unwrap());
    let [near, far] = &runtimes;
    for (node, runtime) in runtimes.iter().enumerate() {
        chain(&lab, runtime, node);
    }
    let bridge = Runtime::capture(lab.node(0)).unwrap();
    let fabric = lab.capture(lab.node(0)).unwrap();
    let web = pod(&lab, far, &PodSpec::new("shop", "web").node(1)).unwrap();
    let _server = serve(far, &web);
    let client = pod(&lab, near, &PodSpec::new("shop", "client")).unwrap();
    // An init container: it runs, and ends, before any other.
    let call = say(NONCE, &web);
    let init = near
        .start_container(&client, "init", &["sh", "-c", &call])
        .unwrap();
    near.wait_exit(&init, CALLS).unwrap();
    let streams = fabric.stop().unwrap();
    let [own, other] = [&client, &web].map(Sandbox::address);
    assert!(!streams.contains(NONCE.as_bytes()));
    let tunnels = streams.streams().between(|a| a == own, |b| b == other);
    println!("{:?}", tunnels.assert_all_tls().unwrap());
    assert!(!bridge.stop().unwrap().contains(NONCE.as_bytes()));

    // Pods of a namespace that is not in the mesh, on the same bridge.
    let caller = pod(&lab, near, &PodSpec::new("legacy", "caller")).unwrap();
    let callee = pod(&lab, far, &PodSpec::new("legacy", "callee").node(1)).unwrap();
    let _server = serve(far, &callee);
    let fabric = lab.capture(lab.node(0)).unwrap();
    let call = say(NONCE, &callee);
    let app = near
        .start_container(&caller, "app", &["sh", "-c", &call])
        .unwrap();
    near.wait_exit(&app, CALLS).unwrap();
    assert!(
        fabric.stop().unwrap().contains(NONCE.as_bytes()),
        "it is no member"
    );

    for (runtime, sandbox) in [(near, client), (near, caller), (far, web), (far, callee)] {
        runtime.remove_sandbox(&sandbox).unwrap();
        lab.withdraw_pod(&sandbox.spec).unwrap();
    }
    for (node, runtime) in runtimes.iter().enumerate() {
        runtime.check_empty().unwrap();
        let pods = lab.agent(node).status().unwrap()["pods"].clone();
        assert_eq!(pods, json!([]), "the agent has pods without sandboxes");
    }
    drop(runtimes);
    lab.finish().unwrap();
}

/// A pod is made, enrolled, and removed.
pub(crate) fn works(lab: &Lab, runtime: &Runtime, spec: &PodSpec) {
    let sandbox = pod(lab, runtime, spec).unwrap_or_else(|e| panic!("{e:#}\n{}", lab.log_tails()));
    let status = lab.agent(0).status().unwrap();
    assert_eq!(status["pods"][0]["state"], "enrolled", "{status}");
    runtime.remove_sandbox(&sandbox).unwrap();
    lab.withdraw_pod(spec).unwrap();
}

#[test]
fn no_pod_starts_without_its_agent() {
    let mut lab = Lab::with_mesh(plan()).unwrap();
    let runtime = Runtime::start(&lab, 0, 8).unwrap();
    chain(&lab, &runtime, 0);
    let spec = PodSpec::new("shop", "client");
    works(&lab, &runtime, &spec);

    lab.agent_mut(0).0.daemon.terminate().unwrap();
    refused(&lab, &runtime, &spec, &[PLUGIN, "agent"]);
    let (agent, host) = lab.agent_mut(0);
    agent.start(host).unwrap();
    works(&lab, &runtime, &spec);

    // Its socket goes under a running agent.
    fs::remove_file(lab.agent(0).run_dir().join("agent.sock")).unwrap();
    refused(&lab, &runtime, &spec, &[PLUGIN, "agent"]);
    let (agent, host) = lab.agent_mut(0);
    agent.daemon.terminate().unwrap();
    agent.start(host).unwrap();
    works(&lab, &runtime, &spec);

    // The plugin's program goes, and nobody puts it back.
    fs::remove_file(runtime.folders.plugins().join(PLUGIN)).unwrap();
    refused(&lab, &runtime, &spec, &[PLUGIN]);
    chain(&lab, &runtime, 0);
    works(&lab, &runtime, &spec);
    runtime.collect_garbage().unwrap();
    runtime.check_empty().unwrap();
    drop(runtime);
    lab.finish().unwrap();
}

#[test]
fn what_others_take_away_comes_back() {
    let plan = plan()
        .agent_option("--cni-bin-dir", "{folder}/runtime/bin")
        .agent_option("--cni-conf-dir", "{folder}/runtime/conf");
    let mut lab = Lab::with_mesh(plan).unwrap();
    let mut runtime = Runtime::start(&lab, 0, 8).unwrap();
    let spec = PodSpec::new("shop", "client");
    let program = runtime.folders.plugins().join(PLUGIN);
    runtime.wait_for_plugin(PLUGIN).unwrap();
    works(&lab, &runtime, &spec);

    fs::remove_file(&program).unwrap();
    wait::until_true("the plugin's program", wait::PATIENCE, || {
        Ok(program.exists())
    })
    .unwrap();
    works(&lab, &runtime, &spec);

    // As an installer of network plugins does when it comes up.
    runtime
        .folders
        .write_conflist(&runtime.network, &[])
        .unwrap();
    works(&lab, &runtime, &spec);

    // While the agent is away as well; and the runtime is another one, which knows nothing of before.
    lab.agent_mut(0).0.daemon.terminate().unwrap();
    runtime
        .folders
        .write_conflist(&runtime.network, &[])
        .unwrap();
    runtime.daemon.terminate().unwrap();
    runtime.start_again(lab.node(0)).unwrap();
    refused(&lab, &runtime, &spec, &[PLUGIN, "agent"]);
    let (agent, host) = lab.agent_mut(0);
    agent.start(host).unwrap();
    works(&lab, &runtime, &spec);

    // While the agent is away, nobody puts anything back: the pod has to wait.
    lab.agent_mut(0).0.daemon.terminate().unwrap();
    fs::remove_file(&program).unwrap();
    refused(&lab, &runtime, &spec, &[PLUGIN]);
    let (agent, host) = lab.agent_mut(0);
    agent.start(host).unwrap();
    wait::until_true("the plugin's program", wait::PATIENCE, || {
        Ok(program.exists())
    })
    .unwrap();
    works(&lab, &runtime, &spec);
    runtime.collect_garbage().unwrap();
    runtime.check_empty().unwrap();
    drop(runtime);
    lab.finish().unwrap();
}
