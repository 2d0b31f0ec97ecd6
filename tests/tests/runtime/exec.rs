//! Programs that a real runtime puts into a running container, and ports that it forwards.

use mesh_lab::mesh::Mark;
use mesh_lab::runtime::{Container, Runtime, Sandbox};
use mesh_lab::{Lab, PodSpec, wait};

use crate::{CALLS, PORT, end_told_pod, plan, say_to, serve, told_pod};

const LABEL: &str = "nodemesh.dev/foreign-processes";

/// A pod that a runtime has made, with a server in it.
struct Place {
    lab: Lab,
    runtime: Runtime,
    spec: PodSpec,
    web: Sandbox,
    server: Container,
    /// What the agent logs with this reason, from here on.
    reason: &'static str,
    mark: Mark,
}

impl Place {
    fn new(number: u32, reason: &'static str) -> Self {
        // Of this test alone: other labs' agents see the processes, too.
        let uid = format!("{:08x}-0000-4000-a000-{number:012x}", std::process::id());
        let lab = Lab::with_mesh(plan()).unwrap();
        let runtime = Runtime::start(&lab, 0, 4).unwrap();
        let spec = PodSpec::new("shop", "web").uid(&uid);
        let web = told_pod(&lab, &runtime, &spec).unwrap();
        let server = serve(&runtime, &web);
        let place = Self {
            mark: lab.agent(0).mark(),
            lab,
            runtime,
            spec,
            web,
            server,
            reason,
        };
        place.wait_label("audit");
        place
    }

    fn label(&self, value: &str) {
        let labelled = self.spec.clone().label(LABEL, value);
        self.lab
            .declare_pod(&labelled, &self.web.addresses)
            .unwrap();
        self.wait_label(value);
    }

    /// Waits until the agent has it in force.
    fn wait_label(&self, value: &str) {
        let in_force = wait::until_true(value, wait::PATIENCE * 2, || {
            let status = self.lab.agent(0).status()?;
            let pods = status["pods"].as_array().cloned().unwrap_or_default();
            Ok(pods.iter().any(|pod| pod["foreign_processes"] == value))
        });
        in_force.unwrap_or_else(|e| panic!("{e:#}\n{}", self.lab.log_tails()));
    }

    fn told(&self, outcome: &str) -> Vec<String> {
        let lines = self.lab.agent(0).refusals(self.mark).unwrap();
        let lines = lines
            .iter()
            .filter(|l| l.field("reason") == self.reason && l.field("outcome") == outcome);
        lines.map(|l| l.line().to_owned()).collect()
    }

    /// Waits for the only line with this outcome.
    fn wait_told(&self, outcome: &str) -> String {
        let line = wait::until(outcome, wait::PATIENCE, || {
            Ok(self.told(outcome).into_iter().next())
        });
        let line = line.unwrap_or_else(|e| panic!("{e:#}\n{}", self.lab.log_tails()));
        println!("{line}");
        assert_eq!(self.told(outcome).len(), 1);
        line
    }

    /// A call by a container that is started for it.
    fn own_call(&self, name: &str, call: &str) -> Container {
        let command = ["sh", "-c", call];
        let own = self.runtime.start_container(&self.web, name, &command);
        let own = own.unwrap();
        self.runtime.wait_exit(&own, CALLS).unwrap();
        own
    }

    fn end(self, others: &[&Container]) {
        let containers = [&[&self.server], others].concat();
        end_told_pod(&self.lab, &self.runtime, &self.web, &containers).unwrap();
        self.runtime.check_empty().unwrap();
        drop(self.runtime);
        self.lab.finish().unwrap();
    }
}

#[test]
fn an_exec_by_the_runtime_is_noticed_and_refused_where_the_label_says_so() {
    let place = Place::new(1, "entered_process");
    let (runtime, server) = (&place.runtime, &place.server);
    let call = say_to("word", &format!("127.0.0.1:{PORT}"));

    // What a container starts is its own, whatever it starts.
    let own = place.own_call("own", &call);
    runtime.shell(server, &call).unwrap();
    let noticed = place.wait_told("audited");
    assert!(noticed.contains("command=mesh-lab-app"), "{noticed}");
    // An exec that connects to nothing is none of the mesh's business.
    runtime.shell(server, "true").unwrap();
    assert_eq!(place.told("audited").len(), 1);

    place.label("refuse-exec");
    let refused = runtime.shell(server, &call).unwrap_err();
    println!("{refused:#}");
    place.wait_told("refused");
    let again = place.own_call("again", &call);
    place.end(&[&own, &again]);
}

#[test]
fn a_port_forward_by_the_runtime_is_noticed_and_refused_where_the_label_says_so() {
    let place = Place::new(2, "foreign_process");
    let (runtime, node) = (&place.runtime, place.lab.node(0));
    let forward = || runtime.forward(node, &place.web, PORT, "word");

    let answer = forward().unwrap();
    assert!(answer.contains("local=127.0.0.1:7000"), "{answer}");
    let noticed = place.wait_told("audited");
    assert!(noticed.contains("command=containerd"), "{noticed}");

    place.label("refuse");
    let refused = format!("{:#}", forward().unwrap_err());
    println!("{refused}");
    assert!(refused.contains("operation not permitted"), "{refused}");
    place.wait_told("refused");
    // Execs may go on.
    let call = say_to("word", &format!("127.0.0.1:{PORT}"));
    runtime.shell(&place.server, &call).unwrap();
    place.end(&[]);
}
