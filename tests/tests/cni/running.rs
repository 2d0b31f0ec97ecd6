//! Pods that run already are found by the cgroups that kubelet gives their processes.

use std::io::Write;

use mesh_lab::manifest::Stage;
use mesh_lab::{App, Lab, Pod, PodSpec, call, wait};

use crate::{WEB, lab, plan, serve, target};

/// UIDs of this test alone: other labs' agents see the processes, too.
fn uids(first: u32) -> [String; 3] {
    let of_process = std::process::id();
    [0, 1, 2].map(|n| format!("{of_process:08x}-0000-4000-8000-{:012x}", first + n))
}

fn cgroupfs(uid: &str) -> String {
    format!("kubepods/burstable/pod{uid}/0123")
}

fn systemd(uid: &str) -> String {
    let uid = uid.replace('-', "_");
    format!(
        "kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{uid}.slice/cri-containerd-0123.scope"
    )
}

fn sleep(pod: &Pod, cgroup: &str, name: &str) -> App {
    let script = format!("exec -a {name} sleep 600");
    let app = pod.command("bash").args(["-c", &script]);
    app.cgroup(cgroup).spawn().unwrap()
}

fn wait_found(lab: &Lab, key: &str) {
    let found = wait::until_true(&format!("{key} found"), wait::PATIENCE, || {
        let status = lab.agent(0).pod_status(lab.pod(key));
        Ok(status.is_ok_and(|s| s["state"] == "enrolled" && s["running"] == true))
    });
    found.unwrap_or_else(|e| panic!("{e:#}\n{}", lab.log_tails()));
}

#[test]
fn running_pods_are_found_enrolled_and_forgotten() {
    let mut lab = lab(plan());
    let uids = uids(0);
    let pods = ["shop/one", "shop/two"];
    for (key, uid) in pods.iter().zip(&uids) {
        let (namespace, name) = key.split_once('/').unwrap();
        lab.make_pod(PodSpec::new(namespace, name).uid(uid))
            .unwrap();
        lab.announce_pod(lab.pod(key), Stage::Running).unwrap();
    }
    let _server = serve(lab.pod(WEB));
    let one = sleep(lab.pod("shop/one"), &cgroupfs(&uids[0]), "app");
    let two = sleep(lab.pod("shop/two"), &systemd(&uids[1]), "app");
    for key in pods {
        wait_found(&lab, key);
        assert!(call::tcp(&lab.pod(key).netns, target(lab.pod(WEB))).served());
    }
    let count = |name: &str| lab.agent(0).metric(lab.node(0), name, &[]).unwrap();
    assert!((count("nodemesh_pods_found_total") - 2.0).abs() < 0.1);
    drop(one);
    wait::until_true("a pod without processes forgotten", wait::PATIENCE, || {
        Ok(lab.agent(0).pod_status(lab.pod("shop/one")).is_err())
    })
    .unwrap_or_else(|e| panic!("{e:#}\n{}", lab.log_tails()));
    wait_found(&lab, "shop/two");
    drop(two);
    lab.finish().unwrap();
}

#[test]
fn what_can_not_be_captured_is_refused_with_a_reason() {
    let mut lab = lab(plan());
    let uids = uids(16);
    let pods = ["shop/sandboxed", "shop/host", "shop/wrong"];
    for (key, uid) in pods.iter().zip(&uids) {
        let (namespace, name) = key.split_once('/').unwrap();
        lab.make_pod(PodSpec::new(namespace, name).uid(uid))
            .unwrap();
    }
    let _sandboxed = sleep(lab.pod(pods[0]), &cgroupfs(&uids[0]), "runsc-sandbox");
    // Its only process is in the node's network namespace; or in one with other addresses.
    let placeholder = sleep(lab.pod(pods[1]), &systemd(&uids[1]), "app");
    let mut process = lab
        .node(0)
        .netns
        .command("sleep")
        .arg("600")
        .spawn()
        .unwrap();
    let mut procs = placeholder.cgroup().procs().unwrap();
    procs
        .write_all(process.id().to_string().as_bytes())
        .unwrap();
    let other = lab.pod("shop/new");
    let _wrong = sleep(other, &cgroupfs(&uids[2]), "app");
    let pid = nix::unistd::Pid::from_raw(placeholder.pid().try_into().unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
    for key in pods {
        lab.announce_pod(lab.pod(key), Stage::Running).unwrap();
    }
    for reason in ["sandboxed", "host-network", "namespace"] {
        let label = format!("reason=\"{reason}\"");
        let name = "nodemesh_pods_found_refused_total";
        let told = wait::until_true(reason, wait::PATIENCE, || {
            Ok(lab.agent(0).metric(lab.node(0), name, &[&label])? > 0.5)
        });
        told.unwrap_or_else(|e| panic!("{e:#}\n{}", lab.log_tails()));
    }
    for key in pods {
        assert!(lab.agent(0).pod_status(lab.pod(key)).is_err(), "{key}");
    }
    for words in [
        "gVisor",
        "host network can't be enrolled",
        "it is another pod's",
    ] {
        lab.agent(0).daemon.wait_log(words).unwrap();
    }
    process.kill().unwrap();
    process.wait().unwrap();
}
