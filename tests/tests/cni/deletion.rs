//! A pod ends, whether or not the agent is there to hear of it.

use std::path::Path;

use mesh_lab::cni::{Plugin, Sandbox};
use mesh_lab::manifest::Stage;
use mesh_lab::pins::entries;
use mesh_lab::{cgroup, wait};

use crate::{NEW, PATIENCE_MS, lab, plan};

#[test]
fn a_pod_that_ends_is_forgotten_with_or_without_a_word() {
    let mut lab = lab(plan());
    lab.announce_pod(lab.pod(NEW), Stage::Running).unwrap();
    let plugin = Plugin::of(lab.agent(0), PATIENCE_MS);
    let sandbox = Sandbox::of(lab.pod(NEW), "c-1").uid("uid-1");
    plugin.add(&sandbox).unwrap();
    let worker = lab.agent(0).worker_pid(lab.pod(NEW)).unwrap();
    for _ in 0..2 {
        assert!(plugin.run("DEL", &sandbox).unwrap().well);
        assert!(lab.agent(0).pod_status(lab.pod(NEW)).is_err());
    }
    assert!(!Path::new(&format!("/proc/{worker}")).exists());

    // Without an agent: the worker holds the namespace, whose name the runtime takes away.
    plugin.add(&sandbox).unwrap();
    let worker = lab.agent(0).worker_pid(lab.pod(NEW)).unwrap();
    lab.agent_mut(0).0.daemon.kill9().unwrap();
    assert!(plugin.run("DEL", &sandbox).unwrap().well);
    let path = lab.pod(NEW).netns.path();
    let (agent, host) = lab.agent_mut(0);
    agent.start(host).unwrap();
    assert_eq!(
        lab.agent(0).worker_pid(lab.pod(NEW)).unwrap(),
        worker,
        "it is there until it is gone"
    );
    // A process in it, such as a pod's, means that it is not gone.
    let mut app = lab.pod(NEW).command("sleep").arg("600").spawn().unwrap();
    nix::mount::umount2(&path, nix::mount::MntFlags::MNT_DETACH).unwrap();
    let looked = std::time::Instant::now();
    wait::until_true("some looks", wait::PATIENCE, || {
        Ok(looked.elapsed() > std::time::Duration::from_secs(5))
    })
    .unwrap();
    assert_eq!(lab.agent(0).worker_pid(lab.pod(NEW)).unwrap(), worker);
    app.kill();
    wait::until_true("the pod forgotten", wait::PATIENCE, || {
        Ok(lab.agent(0).pod_status(lab.pod(NEW)).is_err())
    })
    .unwrap_or_else(|e| panic!("{e:#}\n{}", lab.log_tails()));
    let instance = &lab.agent(0).instance;
    let group = format!("nodemesh-{instance}/shop_new");
    assert!(!cgroup::mount_point().unwrap().join(group).exists());
    assert_eq!(entries(lab.agent(0), "PODS"), 0);
    let gone = lab
        .agent(0)
        .metric(lab.node(0), "nodemesh_pods_gone_total", &[])
        .unwrap();
    assert!((gone - 1.0).abs() < 0.1, "{gone}");
}
