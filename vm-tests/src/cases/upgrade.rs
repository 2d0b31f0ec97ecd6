//! A supervisor is replaced by one of another ABI version, and back, under live streams.

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use mesh_lab::traffic::Traffic;
use mesh_lab::{Lab, Pod, wait};

use super::budgets::{self, CLIENT, OTHER, PORT, WEB};
use crate::{Case, Guest};

pub(super) const CASES: &[Case] = &[Case {
    name: "upgrade/another-abi-version-takes-over-and-gives-back",
    nodes: 1,
    kernel_args: "",
    timeout_s: 300,
    run: take_over,
}];

const PODS: [&str; 3] = [CLIENT, WEB, OTHER];

fn target(pod: &Pod) -> SocketAddr {
    SocketAddr::new(pod.v4().into(), PORT)
}

fn workers(lab: &Lab) -> Result<Vec<i32>> {
    let worker = |key| lab.agent(0).worker_pid(lab.pod(key));
    PODS.into_iter().map(worker).collect()
}

/// Two streams, one of which begins under each version, go on through both changes; the workers
/// are the same and nothing was refused.
fn take_over(guest: &Guest) -> Result<()> {
    let (mut lab, _apps) = budgets::lab()?;
    let before = workers(&lab)?;
    let mut streams = vec![Traffic::stream(lab.pod(CLIENT), target(lab.pod(WEB)))];
    for binary in ["mesh-agent-abi-next", "mesh-agent"] {
        let (agent, host) = lab.agent_mut(0);
        let status = agent.daemon.terminate()?;
        ensure!(status.success(), "SIGTERM: {status}");
        streams.iter().for_each(|stream| stream.wait(5));
        agent.set_binary(binary)?;
        agent.start(host)?;
        let shared = agent.metric(host, "nodemesh_capture_takeover_maps", &["shared"])?;
        ensure!(shared > 0.0, "{binary} has not taken over any map");
        guest.step(format!("{binary} has taken over"));
        for key in PODS {
            let what = format!("the worker of {key} to be adopted");
            wait::until_true(&what, wait::PATIENCE, || {
                let status = lab.agent(0).pod_status(lab.pod(key))?;
                Ok(status["state"] == "enrolled" && status["ready"] == true)
            })
            .with_context(|| lab.log_tails())?;
        }
        let now = workers(&lab)?;
        ensure!(now == before, "the workers were {before:?} and are {now:?}");
        streams.iter().for_each(|stream| stream.wait(5));
        streams.push(Traffic::stream(lab.pod(CLIENT), target(lab.pod(OTHER))));
    }
    for stream in streams {
        stream.finish_unharmed("a stream");
    }
    for key in PODS {
        let label = format!("pod=\"{key}\"");
        let metrics = lab.agent(0).metrics(lab.node(0))?;
        let refused = metrics.lines().filter(|line| {
            line.contains("refusals_") && line.contains(&label) && !line.ends_with(" 0")
        });
        let refused: Vec<_> = refused.collect();
        ensure!(refused.is_empty(), "{refused:?}");
    }
    lab.finish()
}
