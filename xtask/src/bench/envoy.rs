//! A pair of Envoys that carry TCP in mutual TLS 1.3, one in each pod.

use std::path::Path;

use anyhow::{Context, Result};
use mesh_lab::{App, Lab, Pod};
use serde_json::{Value, json};

use super::haproxy::{TLS, credentials};
use super::system;
use super::ways::PORTS;

/// Namespace of the pods that have one.
pub(crate) const NAMESPACE: &str = "envoy";

/// Above what is measured: the default allows 1,024 connections to a server.
const CONNECTIONS: u32 = 100_000;

/// The running pair.
pub(crate) struct Pair {
    apps: [App; 2],
}

impl Pair {
    /// Process ids of both.
    pub(crate) fn pids(&self) -> Result<Vec<i32>> {
        system::pids(&self.apps)
    }
}

/// Makes certificates and starts both.
pub(crate) fn start(lab: &Lab, envoy: &Path) -> Result<Pair> {
    let ends = ["client", "server"].map(|name| lab.pod(&format!("{NAMESPACE}/{name}")));
    credentials(lab, ends)?;
    let [client, server] = ends;
    let far = server.v4().to_string();
    let outward = PORTS.map(|port| Leg {
        listen: ("127.0.0.1", port),
        to: (&far, port + TLS),
        downstream: None,
        upstream: Some(tls(client, "UpstreamTlsContext")),
    });
    let inward = PORTS.map(|port| Leg {
        listen: (&far, port + TLS),
        to: ("127.0.0.1", port),
        downstream: Some(tls(server, "DownstreamTlsContext")),
        upstream: None,
    });
    let pair = Pair {
        apps: [run(client, envoy, &outward)?, run(server, envoy, &inward)?],
    };
    for (pod, app, offset) in [(client, &pair.apps[0], 0), (server, &pair.apps[1], TLS)] {
        for port in PORTS {
            pod.wait_listening(port + offset)
                .with_context(|| format!("Envoy said: {}", app.stderr()))?;
        }
    }
    Ok(pair)
}

/// A listener and where it leads.
struct Leg<'a> {
    listen: (&'a str, u16),
    to: (&'a str, u16),
    downstream: Option<Value>,
    upstream: Option<Value>,
}

fn run(pod: &Pod, envoy: &Path, legs: &[Leg<'_>]) -> Result<App> {
    let listeners: Vec<Value> = legs.iter().map(listener).collect();
    let clusters: Vec<Value> = legs.iter().map(cluster).collect();
    let bootstrap = json!({ "static_resources": { "listeners": listeners, "clusters": clusters } });
    let path = pod.write("envoy.json", bootstrap.to_string())?;
    pod.command(envoy)
        .args(["--log-level", "warn", "--disable-hot-restart", "-c"])
        .arg(path)
        .spawn()
}

fn address((address, port): (&str, u16)) -> Value {
    json!({ "socket_address": { "address": address, "port_value": port } })
}

fn name(leg: &Leg<'_>) -> String {
    format!("to-{}", leg.to.1)
}

fn listener(leg: &Leg<'_>) -> Value {
    let proxy = json!({
        "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
        "stat_prefix": "bench",
        "cluster": name(leg),
    });
    let mut chain = json!({
        "filters": [{ "name": "envoy.filters.network.tcp_proxy", "typed_config": proxy }],
    });
    if let Some(tls) = &leg.downstream {
        chain["transport_socket"] = tls.clone();
    }
    json!({ "address": address(leg.listen), "filter_chains": [chain] })
}

fn cluster(leg: &Leg<'_>) -> Value {
    let endpoint = json!({ "endpoint": { "address": address(leg.to) } });
    let mut cluster = json!({
        "name": name(leg),
        "type": "STATIC",
        "connect_timeout": "5s",
        "circuit_breakers": { "thresholds": [{
            "max_connections": CONNECTIONS,
            "max_pending_requests": CONNECTIONS,
        }] },
        "load_assignment": {
            "cluster_name": name(leg),
            "endpoints": [{ "lb_endpoints": [endpoint] }],
        },
    });
    if let Some(tls) = &leg.upstream {
        cluster["transport_socket"] = tls.clone();
    }
    cluster
}

/// Mutual TLS 1.3 with the pod's own certificate.
fn tls(pod: &Pod, context: &str) -> Value {
    let file = |name: &str| json!({ "filename": pod.folder.join(name) });
    let mut config = json!({
        "@type": format!(
            "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.{context}"
        ),
        "common_tls_context": {
            "tls_params": { "tls_minimum_protocol_version": "TLSv1_3",
                            "tls_maximum_protocol_version": "TLSv1_3" },
            "tls_certificates": [{
                "certificate_chain": file("own.pem"), "private_key": file("own.pem"),
            }],
            "validation_context": { "trusted_ca": file("root.pem") },
        },
    });
    if context == "DownstreamTlsContext" {
        config["require_client_certificate"] = true.into();
    }
    json!({ "name": "envoy.transport_sockets.tls", "typed_config": config })
}
