//! Supervisors are killed, ended and started again.

use mesh_lab::{Lab, wait};

use crate::{CLIENT, DB, NEIGHBOUR, WEB, lab, serve, target, worker};
use mesh_lab::traffic::Traffic;

const PODS: [&str; 4] = [CLIENT, NEIGHBOUR, WEB, DB];

fn workers(lab: &Lab) -> [i32; 4] {
    PODS.map(|key| worker(lab, key))
}

fn restart_supervisors(lab: &mut Lab, orderly: bool, traffic: &[Traffic]) {
    for node in 0..2 {
        let (agent, host) = lab.agent_mut(node);
        if orderly {
            let status = agent.daemon.terminate().unwrap();
            assert!(status.success(), "SIGTERM: {status}");
        } else {
            agent.daemon.kill9().unwrap();
        }
        // Nobody supervises now.
        traffic.iter().for_each(|t| t.wait(20));
        agent.start(host).unwrap();
        traffic.iter().for_each(|t| t.wait(5));
    }
}

#[test]
fn a_supervisor_comes_and_goes_unnoticed() {
    let mut lab = lab();
    let _servers = [serve(lab.pod(WEB)), serve(lab.pod(DB))];
    let (to_web, to_db) = (target(lab.pod(WEB)), target(lab.pod(DB)));
    let traffic = [
        Traffic::stream(lab.pod(CLIENT), to_web),
        Traffic::stream(lab.pod(NEIGHBOUR), to_db),
        Traffic::calls(lab.pod(CLIENT), to_web),
        Traffic::calls(lab.pod(NEIGHBOUR), to_web),
    ];
    let before = workers(&lab);
    for control_runs in [true, false] {
        if !control_runs {
            lab.control_mut().0.daemon.kill9().unwrap();
        }
        for orderly in [false, true] {
            restart_supervisors(&mut lab, orderly, &traffic);
            for key in PODS {
                let pod = lab.pod(key);
                let agent = lab.agent(pod.node());
                wait::until_true("the worker to be adopted", wait::PATIENCE, || {
                    let status = agent.pod_status(pod)?;
                    Ok(status["state"] == "enrolled" && status["ready"] == true)
                })
                .unwrap_or_else(|e| panic!("{key}: {e:#}\n{}", lab.log_tails()));
                assert_eq!(agent.pod_status(pod).unwrap()["restarts"], 0, "{key}");
            }
            assert_eq!(workers(&lab), before, "the same workers");
        }
    }
    // What slipped through in time is no excuse: nothing was refused either.
    for key in PODS {
        let node = lab.pod(key).node();
        let labels = [format!("pod=\"{key}\"")];
        let labels = labels.each_ref().map(String::as_str);
        let refused = |name| lab.agent(node).metric(lab.node(node), name, &labels);
        let refused = [
            "nodemesh_kernel_refusals_total",
            "nodemesh_refusals_inbound_total",
            "nodemesh_refusals_outbound_total",
        ]
        .map(|name| refused(name).unwrap());
        assert_eq!(refused, [0.0; 3], "{key}: {}", lab.log_tails());
    }
    // Adopted is not just listed: a worker that dies now is replaced.
    let old = worker(&lab, NEIGHBOUR);
    for (traffic, what) in traffic.into_iter().zip([
        "a stream of the client",
        "a stream of its neighbour",
        "new connections of the client",
        "new connections of its neighbour",
    ]) {
        traffic.finish_unharmed(what);
    }
    let process = nix::unistd::Pid::from_raw(old);
    nix::sys::signal::kill(process, nix::sys::signal::Signal::SIGKILL).unwrap();
    let neighbour = lab.pod(NEIGHBOUR);
    lab.agent(0)
        .wait_new_worker(neighbour, old, wait::PATIENCE)
        .unwrap();
    let called = neighbour.netns.run(|| mesh_lab::traffic::call(to_web));
    called.unwrap_or_else(|e| panic!("{e}: {}", lab.log_tails()));
    lab.finish().unwrap();
}
