//! Programs that a real runtime puts into a running container.

use mesh_lab::runtime::Runtime;
use mesh_lab::{Lab, PodSpec, wait};

use crate::{CALLS, PORT, end_told_pod, plan, say_to, serve, told_pod};

const LABEL: &str = "nodemesh.dev/foreign-processes";
const REASON: &str = "entered_process";

#[test]
fn an_exec_by_the_runtime_is_noticed_and_refused_where_the_label_says_so() {
    let uid = format!("{:08x}-0000-4000-a000-000000000001", std::process::id());
    let lab = Lab::with_mesh(plan()).unwrap();
    let runtime = Runtime::start(&lab, 0, 4).unwrap();
    let spec = PodSpec::new("shop", "web").uid(&uid);
    let web = told_pod(&lab, &runtime, &spec).unwrap();
    let server = serve(&runtime, &web);
    let agent = lab.agent(0);
    let wait_label = |value: &str| {
        let in_force = wait::until_true(value, wait::PATIENCE * 2, || {
            let status = agent.status()?;
            let pods = status["pods"].as_array().cloned().unwrap_or_default();
            Ok(pods.iter().any(|pod| pod["foreign_processes"] == value))
        });
        in_force.unwrap_or_else(|e| panic!("{e:#}\n{}", lab.log_tails()));
    };
    wait_label("audit");
    let call = say_to("word", &format!("127.0.0.1:{PORT}"));
    let mark = agent.mark();
    let told = |outcome: &str| {
        let lines = agent.refusals(mark).unwrap();
        let lines = lines
            .iter()
            .filter(|l| l.field("reason") == REASON && l.field("outcome") == outcome);
        lines.map(|l| l.line().to_owned()).collect::<Vec<_>>()
    };

    // What a container starts is its own, whatever it starts.
    let own = runtime
        .start_container(&web, "own", &["sh", "-c", &call])
        .unwrap();
    runtime.wait_exit(&own, CALLS).unwrap();
    runtime.shell(&server, &call).unwrap();
    let noticed = wait::until("the exec in the log", wait::PATIENCE, || {
        Ok(told("audited").into_iter().next())
    });
    let noticed = noticed.unwrap_or_else(|e| panic!("{e:#}\n{}", lab.log_tails()));
    println!("{noticed}");
    assert!(noticed.contains("command=mesh-lab-app"), "{noticed}");
    // An exec that connects to nothing is none of the mesh's business.
    runtime.shell(&server, "true").unwrap();
    assert_eq!(told("audited").len(), 1);

    let labelled = spec.clone().label(LABEL, "refuse-exec");
    lab.declare_pod(&labelled, &web.addresses).unwrap();
    wait_label("refuse-exec");
    let refused = runtime.shell(&server, &call).unwrap_err();
    println!("{refused:#}");
    wait::until_true("the refusal in the log", wait::PATIENCE, || {
        Ok(told("refused").len() == 1)
    })
    .unwrap();
    let again = runtime
        .start_container(&web, "again", &["sh", "-c", &call])
        .unwrap();
    runtime.wait_exit(&again, CALLS).unwrap();

    end_told_pod(&lab, &runtime, &web, &[&server, &own, &again]).unwrap();
    runtime.check_empty().unwrap();
    drop(runtime);
    lab.finish().unwrap();
}
