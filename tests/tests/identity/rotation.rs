//! Certificates that live for seconds: traffic and one long stream, on nothing that has ended.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use mesh_lab::traffic::Traffic;
use mesh_lab::{Agent, Lab, Plan, Pod, PodSpec, wait};

use crate::revocation::serve;

/// Life of a certificate, in seconds, and how many of each pod are seen. The full form is 20 and 16:
/// `NODEMESH_ROTATION=20x16`.
const SHORT: (u64, usize) = (6, 4);
const FORM: &str = "NODEMESH_ROTATION";

fn form() -> (u64, usize) {
    let Ok(form) = std::env::var(FORM) else {
        return SHORT;
    };
    let parsed = form
        .split_once('x')
        .and_then(|(life, count)| Some((life.parse().ok()?, count.parse().ok()?)));
    parsed.unwrap_or_else(|| panic!("{FORM}={form}: give LIFExCERTIFICATES, such as 20x16"))
}

fn now_s() -> f64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    since.as_secs() as f64
}

/// What a node's agent says of a pod's certificate, and of those of its peers.
fn look(agent: &Agent, lab: &Lab, pod: &Pod) -> (String, Option<f64>) {
    let before = now_s();
    let text = agent.metrics(lab.node(pod.node())).unwrap();
    let key = format!("pod=\"{}\"", pod.key());
    let values = |name: &str| {
        let lines = text
            .lines()
            .filter(|line| line.starts_with(name) && line.contains(&key));
        let values = lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
        values.collect::<Vec<_>>()
    };
    let ends = values("nodemesh_tunnel_peer_not_after_seconds");
    let first = ends.into_iter().reduce(f64::min);
    if let Some(first) = first {
        assert!(
            first >= before,
            "{}: a tunnel stood at {before} whose peer's certificate had ended at {first}",
            pod.key()
        );
    }
    let own = values("nodemesh_certificate_not_after_seconds");
    (own.first().map_or_else(String::new, f64::to_string), first)
}

#[test]
fn traffic_and_a_long_stream_run_across_rotations_on_no_expired_certificate() {
    let (life_s, certificates) = form();
    let plan = Plan::nodes(2)
        .enrolled("shop")
        .pod(PodSpec::new("shop", "client"))
        .pod(PodSpec::new("shop", "web").node(1))
        .agent_option("--certificate-lifetime", &life_s.to_string());
    let lab = Lab::with_mesh(plan).unwrap();
    let (client, web) = (lab.pod("shop/client"), lab.pod("shop/web"));
    let _server = serve(web);
    let [v4, v6] = [0, 1].map(|family| SocketAddr::new(web.addresses()[family], 7000));
    let long = Traffic::stream(client, v4);
    let calls = Traffic::calls(client, v6);
    let begun = Instant::now();
    let mut seen = [BTreeSet::new(), BTreeSet::new()];
    let mut margin = f64::INFINITY;
    let pods = [client, web];
    let patience = Duration::from_secs(life_s * certificates as u64 + 30);
    wait::until_true("the rotations", patience, || {
        for (pod, seen) in pods.iter().zip(&mut seen) {
            let (own, first) = look(lab.agent(pod.node()), &lab, pod);
            seen.insert(own);
            margin = margin.min(first.unwrap_or(margin) - now_s());
        }
        Ok(seen.iter().all(|seen| seen.len() > certificates))
    })
    .unwrap_or_else(|error| panic!("{error:#}: {seen:?}\n{}", lab.log_tails()));
    long.finish_unharmed("one long stream");
    calls.finish_unharmed("calls");
    println!(
        "{certificates} rotations of {life_s} s in {:.0?}; the nearest that a tunnel came to its peer's end: {margin} s",
        begun.elapsed()
    );
    for pod in pods {
        let agent = lab.agent(pod.node());
        let metric =
            |name: &str, labels: &[&str]| agent.metric(lab.node(pod.node()), name, labels).unwrap();
        for direction in ["inbound", "outbound"] {
            let cut = metric(&format!("nodemesh_cut_{direction}_total"), &[]);
            assert_eq!(cut, 0.0, "{}: {direction}\n{}", pod.key(), lab.log_tails());
        }
        // The long stream's tunnel was shown each new certificate of its other end.
        let taken = metric("nodemesh_tunnel_proofs_total", &["kind=\"taken\""]);
        assert!(taken >= certificates as f64 - 1.0, "{}: {taken}", pod.key());
    }
}
