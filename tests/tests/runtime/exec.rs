//! Programs that a real runtime puts into a running container, and ports that it forwards.

use mesh_lab::mesh::Mark;
use mesh_lab::runtime::Runtime;
use mesh_lab::{Lab, PodSpec, wait};

use crate::{CALLS, PORT, end_told_pod, plan, say_to, serve, told_pod};

const LABEL: &str = "nodemesh.dev/foreign-processes";

/// Of this test alone: other labs' agents see the processes, too.
fn uid(number: u32) -> String {
    format!("{:08x}-0000-4000-a000-{number:012x}", std::process::id())
}

/// Waits until the node's agent has this value of the label in force for its one pod.
fn wait_label(lab: &Lab, value: &str) {
    let in_force = wait::until_true(value, wait::PATIENCE * 2, || {
        let status = lab.agent(0).status()?;
        let pods = status["pods"].as_array().cloned().unwrap_or_default();
        Ok(pods.iter().any(|pod| pod["foreign_processes"] == value))
    });
    in_force.unwrap_or_else(|e| panic!("{e:#}\n{}", lab.log_tails()));
}

/// The agent's lines with this reason and outcome.
fn told(lab: &Lab, since: Mark, reason: &str, outcome: &str) -> Vec<String> {
    let lines = lab.agent(0).refusals(since).unwrap();
    let lines = lines
        .iter()
        .filter(|l| l.field("reason") == reason && l.field("outcome") == outcome);
    lines.map(|l| l.line().to_owned()).collect()
}

/// Waits for the first of them.
fn wait_told(lab: &Lab, since: Mark, reason: &str, outcome: &str) -> String {
    let line = wait::until(reason, wait::PATIENCE, || {
        Ok(told(lab, since, reason, outcome).into_iter().next())
    });
    let line = line.unwrap_or_else(|e| panic!("{e:#}\n{}", lab.log_tails()));
    println!("{line}");
    line
}

#[test]
fn an_exec_by_the_runtime_is_noticed_and_refused_where_the_label_says_so() {
    let reason = "entered_process";
    let lab = Lab::with_mesh(plan()).unwrap();
    let runtime = Runtime::start(&lab, 0, 4).unwrap();
    let spec = PodSpec::new("shop", "web").uid(&uid(1));
    let web = told_pod(&lab, &runtime, &spec).unwrap();
    let server = serve(&runtime, &web);
    let agent = lab.agent(0);
    wait_label(&lab, "audit");
    let call = say_to("word", &format!("127.0.0.1:{PORT}"));
    let mark = agent.mark();

    // What a container starts is its own, whatever it starts.
    let own = runtime
        .start_container(&web, "own", &["sh", "-c", &call])
        .unwrap();
    runtime.wait_exit(&own, CALLS).unwrap();
    runtime.shell(&server, &call).unwrap();
    let noticed = wait_told(&lab, mark, reason, "audited");
    assert!(noticed.contains("command=mesh-lab-app"), "{noticed}");
    // An exec that connects to nothing is none of the mesh's business.
    runtime.shell(&server, "true").unwrap();
    assert_eq!(told(&lab, mark, reason, "audited").len(), 1);

    let labelled = spec.clone().label(LABEL, "refuse-exec");
    lab.declare_pod(&labelled, &web.addresses).unwrap();
    wait_label(&lab, "refuse-exec");
    let refused = runtime.shell(&server, &call).unwrap_err();
    println!("{refused:#}");
    wait_told(&lab, mark, reason, "refused");
    let again = runtime
        .start_container(&web, "again", &["sh", "-c", &call])
        .unwrap();
    runtime.wait_exit(&again, CALLS).unwrap();

    end_told_pod(&lab, &runtime, &web, &[&server, &own, &again]).unwrap();
    runtime.check_empty().unwrap();
    drop(runtime);
    lab.finish().unwrap();
}

#[test]
fn a_port_forward_by_the_runtime_is_noticed_and_refused_where_the_label_says_so() {
    let reason = "foreign_process";
    let lab = Lab::with_mesh(plan()).unwrap();
    let runtime = Runtime::start(&lab, 0, 4).unwrap();
    let spec = PodSpec::new("shop", "web").uid(&uid(2));
    let web = told_pod(&lab, &runtime, &spec).unwrap();
    let server = serve(&runtime, &web);
    let (node, agent) = (lab.node(0), lab.agent(0));
    wait_label(&lab, "audit");
    let mark = agent.mark();

    let answer = runtime.forward(node, &web, PORT, "word").unwrap();
    assert!(answer.contains("local=127.0.0.1:7000"), "{answer}");
    let noticed = wait_told(&lab, mark, reason, "audited");
    assert!(noticed.contains("command=containerd"), "{noticed}");

    // Execs may go on.
    let labelled = spec.clone().label(LABEL, "refuse");
    lab.declare_pod(&labelled, &web.addresses).unwrap();
    wait_label(&lab, "refuse");
    let refused = runtime.forward(node, &web, PORT, "word").unwrap_err();
    println!("{refused:#}");
    let why = format!("{refused:#}");
    assert!(why.contains("operation not permitted"), "{why}");
    wait_told(&lab, mark, reason, "refused");
    let call = say_to("word", &format!("127.0.0.1:{PORT}"));
    runtime.shell(&server, &call).unwrap();

    end_told_pod(&lab, &runtime, &web, &[&server]).unwrap();
    runtime.check_empty().unwrap();
    drop(runtime);
    lab.finish().unwrap();
}
