//! The mesh is taken off nodes whose pods are still enrolled, as an uninstall does that nobody prepared:
//! pods are left connected, in clear, and nodes clean.

use mesh_lab::{call, servers, wait};

use crate::{CLIENT, COUNTED, DB, NEIGHBOUR, PODS, WEB, lab, to, workers};

#[test]
fn pods_that_are_enrolled_are_left_connected_and_their_nodes_clean() {
    let mut lab = lab(|plan| plan);
    let pods = [CLIENT, NEIGHBOUR, WEB, DB];
    let _servers = pods.map(|key| servers::echo(lab.pod(key), COUNTED).unwrap());
    let calls = |lab: &mesh_lab::Lab, from: &str, of: &str| {
        call::tcp(&lab.pod(from).netns, to(lab.pod(of), COUNTED)).served()
    };
    let outsider =
        |lab: &mesh_lab::Lab, of: &str| call::tcp(&lab.outside().netns, to(lab.pod(of), COUNTED));
    for of in pods {
        assert!(calls(&lab, CLIENT, of), "{of}");
        assert!(!outsider(&lab, of).served(), "{of} is not in the mesh");
    }
    let before = workers(&lab);
    for node in 0..2 {
        let (agent, _) = lab.agent_mut(node);
        assert!(agent.daemon.terminate().unwrap().success());
        // A DaemonSet starts it again and again.
        for _ in 0..2 {
            agent.unload().unwrap();
        }
        let here = |key: &str| lab.pod(key).node() == node;
        for of in pods.iter().filter(|key| here(key)) {
            assert!(outsider(&lab, of).served(), "{of} is still walled");
        }
        // The other node's pods are in the mesh yet, and take nothing in clear.
        for of in pods.iter().filter(|key| !here(key) && node == 0) {
            assert!(!calls(&lab, CLIENT, of), "{of}");
        }
    }
    for from in pods {
        for of in pods.into_iter().filter(|of| *of != from) {
            assert!(calls(&lab, from, of), "{from} to {of}");
        }
    }
    for (key, worker) in PODS.iter().zip(before) {
        wait::until_true(&format!("the worker of {key} gone"), wait::PATIENCE, || {
            Ok(!std::path::Path::new(&format!("/proc/{worker}")).exists())
        })
        .unwrap();
    }
    lab.finish().unwrap();
}
