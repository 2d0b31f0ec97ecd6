//! A set of endpoints is replaced one by one under load, as a Deployment's rollout does: a pod that
//! terminates gets nothing new, finishes what it has under the policies that held before, and nobody
//! notices.

use std::net::SocketAddr;

use mesh_lab::manifest::authorization;
use mesh_lab::servers::nginx;
use mesh_lab::{App, Lab, Plan, PodSpec, ServiceSpec, wait};

use crate::counted::Counted;
use crate::{CLIENT, COUNTED, HTTP, answered, short_requests};

const SERVICE: &str = "shop/web";
const SERVICE_PORT: u16 = 8080;
/// Connections to each endpoint that are open when it is told to go.
const CONNECTIONS: usize = 10;

fn endpoint(index: usize) -> PodSpec {
    PodSpec::new("shop", &format!("web-{index}"))
        .app("web")
        .port("http", HTTP)
        .node(index % 2)
}

/// Who may call whom is said by service alone: of a pod that is no member of it any more, nothing
/// would be allowed.
fn plan() -> Plan {
    let inbound = "{target: {service: web}, direction: Inbound, action: Allow, \
         rules: [{peers: [{namespace: shop, serviceAccount: client}]}]}";
    let outbound = "{target: {labels: {app: client}}, direction: Outbound, action: Allow, \
         rules: [{peers: [{service: web}]}]}";
    let plan = Plan::nodes(2)
        .enrolled("shop")
        .without_default_policy()
        .manifest("web", &authorization("shop/web", inbound))
        .manifest("client", &authorization("shop/client", outbound))
        .service(ServiceSpec::new("shop", "web").port(SERVICE_PORT, "http"))
        .pod(PodSpec::new("shop", "client"));
    (0..3).fold(plan, |plan, index| plan.pod(endpoint(index)))
}

fn serve(lab: &Lab, index: usize) -> App {
    nginx(lab.pod(&key(index)), &[HTTP], "hello").unwrap()
}

fn key(index: usize) -> String {
    format!("shop/web-{index}")
}

/// Requests that it has answered, as it says itself.
fn served(nginx: &App) -> usize {
    nginx.stdout().lines().count()
}

#[test]
fn endpoints_that_are_replaced_one_by_one_lose_no_request_and_no_byte() {
    let mut lab = Lab::with_mesh(plan()).unwrap();
    let mut servers: Vec<App> = (0..3).map(|index| serve(&lab, index)).collect();
    let to = SocketAddr::new(lab.service(SERVICE)[0], SERVICE_PORT);
    let short = short_requests(lab.pod(CLIENT), to);
    for old in 0..3 {
        let all_serve = |servers: &[App]| servers.iter().all(|nginx| served(nginx) > 10);
        wait::until_true("every endpoint to serve", wait::PATIENCE, || {
            Ok(all_serve(&servers))
        })
        .unwrap_or_else(|e| panic!("{e:#}\n{}", lab.log_tails()));
        // The next one comes before the old one goes.
        let new = old + 3;
        lab.add_pod(endpoint(new)).unwrap();
        servers.push(serve(&lab, new));
        let going = lab.pod(&key(old));
        let open = Counted::open(lab.pod(CLIENT), going, COUNTED, CONNECTIONS);
        lab.terminate_pod(going).unwrap();
        let nginx = servers.remove(0);
        let what = format!("{} to get nothing new", going.key());
        wait::until_true(&what, wait::PATIENCE, || {
            let (had, asked) = (served(&nginx), answered(&short));
            wait::until_true("short requests to go on", wait::PATIENCE, || {
                Ok(answered(&short) >= asked + 100)
            })?;
            Ok(served(&nginx) == had)
        })
        .unwrap_or_else(|e| panic!("{e:#}\n{}", lab.log_tails()));
        // What it has goes on; then its containers end, its network is taken away, it is gone.
        open.wait(50);
        println!("{}: {} pieces", going.key(), open.finish_unharmed());
        drop(nginx);
        lab.agent(going.node()).remove_pod(going).unwrap();
        lab.remove_manifest(&format!("pod-shop-web-{old}")).unwrap();
    }
    println!("{} short requests were answered", answered(&short));
    for node in 0..2 {
        let (agent, host) = (lab.agent(node), lab.node(node));
        for direction in ["inbound", "outbound"] {
            let cut = format!("nodemesh_cut_{direction}_total");
            assert_eq!(agent.metric(host, &cut, &[]).unwrap(), 0.0, "{direction}");
        }
    }
    drop(short);
}
