//! Pods that are not like others, as far as a runtime has to do with it: several containers, jobs, the
//! node's network. Others: `cni/kinds.rs`.

use std::path::Path;

use mesh_lab::runtime::Runtime;
use mesh_lab::runtime::pods::say_to;
use mesh_lab::{Lab, PodSpec, wait};
use serde_json::json;

use crate::plugin::{chain, pod};
use crate::{CALLS, PORT, plan, serve};

#[test]
fn containers_of_a_pod_are_one_member_and_a_job_leaves_nothing() {
    let lab = Lab::with_mesh(plan().pod(PodSpec::new("shop", "web").node(1))).unwrap();
    let runtime = Runtime::start(&lab, 0, 8).unwrap();
    chain(&lab, &runtime, 0);
    let web = lab.pod("shop/web");
    let server = web
        .command("mesh-lab-app")
        .args(["serve", &PORT.to_string()]);
    let server = server.spawn().unwrap();
    web.wait_listening(PORT).unwrap();
    let empty = lab.agent(0).pod_cgroups().unwrap();

    let job = pod(&lab, &runtime, &PodSpec::new("shop", "job")).unwrap();
    let status = lab.agent(0).status().unwrap();
    let worker = status["pods"][0]["worker_pid"].as_i64().unwrap();
    // A native sidecar is there before the init containers and after the last of the others. What is
    // said to it stays in the pod.
    let sidecar = serve(&runtime, &job);
    let call = say_to("outside", &format!("{}:{PORT}", web.v4()));
    let beside = say_to("beside", &format!("127.0.0.1:{PORT}"));
    let both = format!("{call} && {beside}");
    let run = |name: &str, command: &str| {
        let container = runtime.start_container(&job, name, &["sh", "-c", command]);
        container.unwrap()
    };
    runtime.wait_exit(&run("init", &both), CALLS).unwrap();
    let apps = ["one", "two"].map(|name| run(name, &both));
    for app in &apps {
        runtime.wait_exit(app, CALLS).unwrap();
    }
    let own = format!("accept={}:", job.address());
    let callers = server.stdout();
    let calls = callers.lines().filter(|line| line.contains(&own)).count();
    assert_eq!(calls, 3, "{callers}");
    let status = lab.agent(0).status().unwrap();
    assert_eq!(
        status["pods"][0]["worker_pid"], worker,
        "one worker for all: {status}"
    );

    // The job is done: its sidecar is ended, and the sandbox with it. Nobody takes the pod out by hand.
    runtime.cri.stop_container(&sidecar.id, 0).unwrap();
    runtime.remove_sandbox(&job).unwrap();
    lab.withdraw_pod(&job.spec).unwrap();
    let status = lab.agent(0).status().unwrap();
    assert_eq!(status["pods"], json!([]), "{status}");
    assert!(
        !Path::new(&format!("/proc/{worker}")).exists(),
        "its worker"
    );
    assert_eq!(lab.agent(0).pod_cgroups().unwrap(), empty);
    runtime.check_empty().unwrap();
    drop(runtime);
    lab.finish().unwrap();
}

#[test]
fn a_pod_on_its_nodes_network_is_no_member_and_starts_without_an_agent() {
    let mut lab = Lab::with_mesh(plan()).unwrap();
    let runtime = Runtime::start(&lab, 0, 8).unwrap();
    chain(&lab, &runtime, 0);
    lab.agent_mut(0).0.daemon.terminate().unwrap();
    let spec = PodSpec::new("shop", "proxy").host_network();
    let sandbox = pod(&lab, &runtime, &spec).unwrap();
    // It has the node's devices.
    let app = ["sh", "-c", "grep -q cni0 /proc/net/dev"];
    let app = runtime.start_container(&sandbox, "app", &app).unwrap();
    runtime.wait_exit(&app, CALLS).unwrap();

    let (agent, host) = lab.agent_mut(0);
    agent.start(host).unwrap();
    // A member that comes later is found; the other is never.
    let member = pod(&lab, &runtime, &PodSpec::new("shop", "client")).unwrap();
    let status = lab.agent(0).status().unwrap();
    let pods = status["pods"].as_array().unwrap();
    assert_eq!(pods.len(), 1, "{status}");
    assert_eq!(pods[0]["name"], "client", "{status}");
    let refused = lab
        .agent(0)
        .metric(lab.node(0), "nodemesh_pods_found_refused_total", &[]);
    assert!(refused.unwrap() < 0.5, "it is not even looked for");
    for sandbox in [sandbox, member] {
        runtime.remove_sandbox(&sandbox).unwrap();
        lab.withdraw_pod(&sandbox.spec).unwrap();
    }
    wait::until_true("nothing to be left", wait::PATIENCE, || {
        runtime.check_empty().map(|()| true)
    })
    .unwrap();
    drop(runtime);
    lab.finish().unwrap();
}
