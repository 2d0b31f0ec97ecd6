//! Pods are taken out, refused, and lose their namespace's label.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use mesh_lab::{Enrolment, Lab, Netns, Pod, cgroup, pod, programs, wait};

use crate::{CLIENT, NEIGHBOUR, WEB, lab, serve, target, worker};
use mesh_lab::pins::entries;
use mesh_lab::traffic::call;

const MESH_PORTS: [u16; 4] = [15001, 15006, 15008, 15053];

fn cgroup_of(lab: &Lab, pod: &Pod) -> std::path::PathBuf {
    let name = format!("{}_{}", pod.namespace(), pod.name());
    let instance = &lab.agent(pod.node()).instance;
    cgroup::mount_point()
        .unwrap()
        .join(format!("nodemesh-{instance}"))
        .join(name)
}

fn reserved_ports(netns: &Netns) -> String {
    netns
        .run(|| fs::read_to_string("/proc/sys/net/ipv4/ip_local_reserved_ports").unwrap())
        .trim()
        .to_owned()
}

#[test]
fn a_pod_that_is_removed_leaves_nothing() {
    let lab = lab();
    let (client, agent) = (lab.pod(CLIENT), lab.agent(0));
    let _servers = [serve(lab.pod(WEB)), serve(lab.pod("legacy/server"))];
    let plain = target(lab.pod("legacy/server"));
    client.netns.run(|| {
        call(target(lab.pod(WEB))).unwrap();
        call(plain).unwrap_err();
    });
    let process = format!("/proc/{}", worker(&lab, CLIENT));
    let group = cgroup_of(&lab, client);
    let record = lab.node(0).folder.join("run/pods/shop_client.json");
    let before = |path: &Path| assert!(path.exists(), "{}", path.display());
    let things = [Path::new(&process), &group, &record];
    things.iter().for_each(|path| before(path));
    assert_eq!(["PODS", "WALLS"].map(|map| entries(agent, map)), [2, 2]);
    let listening = pod::listening_ports(&client.netns).unwrap();
    assert!(listening.contains(&15008), "{listening:?}");
    assert_ne!(reserved_ports(&client.netns), "");

    agent.remove_pod(client).unwrap();
    let after = |path: &Path| assert!(!path.exists(), "{} is left", path.display());
    things.iter().for_each(|path| after(path));
    assert!(agent.pod_status(client).is_err(), "it is still listed");
    assert_eq!(["PODS", "WALLS"].map(|map| entries(agent, map)), [1, 1]);
    let listening = pod::listening_ports(&client.netns).unwrap();
    let left = listening.iter().find(|port| MESH_PORTS.contains(port));
    assert_eq!(left, None);
    assert_eq!(reserved_ports(&client.netns), "");
    // Its namespace is as it was before: plain calls leave it.
    client.netns.run(|| call(plain).unwrap());
    // The pod next to it is still in.
    lab.pod(NEIGHBOUR).netns.run(|| {
        call(target(lab.pod(WEB))).unwrap();
        call(plain).unwrap_err();
    });
    // Removed once more, and added again.
    agent.remove_pod(client).unwrap();
    agent.add_pod(client).unwrap();
    client.netns.run(|| call(target(lab.pod(WEB))).unwrap());
    lab.finish().unwrap();
}

/// `mesh-agent pod add` for the client, with any namespace.
fn add(lab: &Lab, netns: &Netns) -> Output {
    let mut command = Command::new(programs::mesh_binary("mesh-agent").unwrap());
    command.args(["pod", "add", "--namespace", "shop", "--name", "client"]);
    command.arg("--run-dir").arg(lab.node(0).folder.join("run"));
    command.args(["--timeout", "5s", "--netns"]);
    command.arg(netns.path()).output().unwrap()
}

#[test]
fn a_pod_with_another_namespace_than_its_own_is_refused() {
    let lab = lab();
    let (client, agent) = (lab.pod(CLIENT), lab.agent(0));
    let _servers = [serve(lab.pod(WEB)), serve(lab.pod("legacy/server"))];
    agent.remove_pod(client).unwrap();
    let wrong = [
        (&lab.pod(NEIGHBOUR).netns, "shop/neighbour"),
        (&lab.node(0).netns, "the node's own network namespace"),
        (&lab.outside().netns, "control says that the pod has"),
        (&lab.pod(WEB).netns, "control says that the pod has"),
    ];
    for (netns, reason) in wrong {
        let output = add(&lab, netns);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success(), "{reason}: it was taken");
        assert!(said.contains(reason), "{reason}: {said}");
        println!("{}", said.trim());
        let status = agent.pod_status(client);
        let worker = status.map_or(serde_json::Value::Null, |s| s["worker_pid"].clone());
        assert!(worker.is_null(), "{reason}: it has a worker");
        assert_eq!(["PODS", "WALLS"].map(|map| entries(agent, map)), [1, 1]);
        assert!(!cgroup_of(&lab, client).exists(), "{reason}");
        agent.remove_pod(client).unwrap();
    }
    // Those whose namespaces were claimed are as they were.
    lab.pod(NEIGHBOUR)
        .netns
        .run(|| call(target(lab.pod(WEB))).unwrap());
    agent.add_pod(client).unwrap();
    client.netns.run(|| call(target(lab.pod(WEB))).unwrap());
}

#[test]
fn a_namespace_that_loses_its_label_leaves_the_mesh() {
    let lab = lab();
    let web = lab.pod(WEB);
    let _servers = [serve(web), serve(lab.pod("legacy/server"))];
    let plain = target(lab.pod("legacy/server"));
    let outside = &lab.outside().netns;
    outside.run(|| call(target(web)).unwrap_err());
    let state = |key: &str, wanted: &str| {
        let pod = lab.pod(key);
        let what = format!("{key} to be {wanted}");
        wait::until_true(&what, wait::PATIENCE, || {
            Ok(lab.agent(pod.node()).pod_status(pod)?["state"] == wanted)
        })
        .unwrap_or_else(|e| panic!("{e:#}\n{}", lab.log_tails()));
    };
    lab.set_enrolment("shop", Enrolment::None).unwrap();
    for key in [CLIENT, NEIGHBOUR, WEB] {
        state(key, "not-in-mesh");
        assert!(!cgroup_of(&lab, lab.pod(key)).exists(), "{key}");
    }
    assert_eq!(entries(lab.agent(0), "PODS"), 0);
    outside.run(|| call(target(web)).unwrap());
    lab.pod(CLIENT).netns.run(|| {
        call(plain).unwrap();
        call(target(web)).unwrap();
    });

    lab.set_enrolment("shop", Enrolment::Enforce).unwrap();
    for key in [CLIENT, NEIGHBOUR, WEB] {
        state(key, "enrolled");
    }
    outside.run(|| call(target(web)).unwrap_err());
    lab.pod(CLIENT).netns.run(|| {
        call(plain).unwrap_err();
        // Discovery of the other node reaches this one in its own time.
        wait::until_true("the client to reach web", wait::PATIENCE, || {
            Ok(call(target(web)).is_ok())
        })
        .unwrap();
    });
}
