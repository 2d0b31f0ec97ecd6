//! The ways that traffic can take from a client pod to a server pod on the other node.

use std::net::{Ipv4Addr, SocketAddr};

use anyhow::Result;
use mesh_lab::{Lab, Pod};

use super::{HTTP_PORT, IPERF_PORT, MESH, haproxy, ztunnel};

/// One way.
pub(crate) struct Way<'a> {
    pub(crate) name: &'static str,
    pub(crate) client: &'a Pod,
    /// Where the client finds nginx.
    pub(crate) http: SocketAddr,
    /// Where the client finds iperf3.
    pub(crate) iperf: SocketAddr,
    /// The processes that carry the traffic.
    pub(crate) proxies: Box<dyn Fn() -> Result<Vec<i32>> + 'a>,
}

/// Plain TCP, a pair of haproxies with mutual TLS, a pair of ztunnels if there is one, and
/// the mesh.
pub(crate) fn all<'a>(
    lab: &'a Lab,
    haproxies: &'a haproxy::Pair,
    ztunnels: Option<&'a ztunnel::Pair>,
) -> Vec<Way<'a>> {
    let way = |name, namespace: &str| {
        let server = lab.pod(&format!("{namespace}/server"));
        Way {
            name,
            client: lab.pod(&format!("{namespace}/client")),
            http: SocketAddr::new(server.v4().into(), HTTP_PORT),
            iperf: SocketAddr::new(server.v4().into(), IPERF_PORT),
            proxies: Box::new(|| Ok(Vec::new())),
        }
    };
    let plain = way("plain TCP", "plain");
    // The client dials its own haproxy on loopback, as an app dials a sidecar.
    let proxied = Way {
        http: SocketAddr::new(Ipv4Addr::LOCALHOST.into(), HTTP_PORT),
        iperf: SocketAddr::new(Ipv4Addr::LOCALHOST.into(), IPERF_PORT),
        proxies: Box::new(|| haproxies.pids()),
        ..way("haproxy mTLS", "proxied")
    };
    let ztunnel = ztunnels.map(|pair| Way {
        proxies: Box::new(|| pair.pids()),
        ..way("ztunnel", ztunnel::NAMESPACE)
    });
    let mesh = way(MESH, "mesh");
    let mesh = Way {
        proxies: Box::new(|| {
            let pods = [lab.pod("mesh/client"), lab.pod("mesh/server")];
            pods.into_iter()
                .map(|pod| lab.agent(pod.node()).worker_pid(pod))
                .collect()
        }),
        ..mesh
    };
    let ways = [Some(plain), Some(proxied), ztunnel, Some(mesh)];
    ways.into_iter().flatten().collect()
}
