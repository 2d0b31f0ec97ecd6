//! The ways that traffic can take from a client pod to a server pod on the other node.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use anyhow::{Context, Result};
use mesh_lab::aggressor::stage::{self, SERVE};
use mesh_lab::{App, Lab, Plan, Pod, PodSpec, servers};

use super::ztunnel::Ztunnel;
use super::{envoy, haproxy, ztunnel};

/// Name of the way that is compared with the others.
pub(crate) const MESH: &str = "Nodemesh";
/// Name of the way that it has to beat.
pub(crate) const PEER: &str = "ztunnel";
/// Name of the way that says what the rest costs.
pub(crate) const PLAIN: &str = "plain TCP";
/// Name of the way that is a pair of haproxies without encryption: what is left of plain TCP when
/// all bytes pass two more processes.
pub(crate) const RELAYS: &str = "relays, no TLS";
/// Name of the way that is a pair of haproxies.
pub(crate) const HAPROXY: &str = "haproxy mTLS";

/// Name of the way that is a pair of Envoys.
pub(crate) const ENVOY: &str = "Envoy mTLS";

/// All names, in the order of the columns, and their colours.
pub(crate) const ALL: [[&str; 2]; 6] = [
    [PLAIN, "#8a8f98"],
    [RELAYS, "#e8a33d"],
    [HAPROXY, "#d9480f"],
    [ENVOY, "#9c36b5"],
    [PEER, "#2b8a3e"],
    [MESH, "#1f6feb"],
];

/// Ports of nginx, iperf3 and `mesh-lab-app serve` on each server.
const HTTP_PORT: u16 = 8080;
const IPERF_PORT: u16 = 5201;
pub(crate) const PORTS: [u16; 3] = [HTTP_PORT, IPERF_PORT, SERVE];

/// What nginx answers: 64 bytes.
const BODY: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcde\\n";

/// One way.
pub(crate) struct Way<'a> {
    pub(crate) name: &'static str,
    pub(crate) client: &'a Pod,
    pub(crate) server: &'a Pod,
    pub(crate) servers: &'a Servers,
    /// Where the client finds nginx.
    pub(crate) http: SocketAddr,
    /// Where the client finds iperf3.
    pub(crate) iperf: SocketAddr,
    /// Where the client finds `mesh-lab-app serve`.
    pub(crate) serve: SocketAddr,
    /// The processes that carry the traffic.
    pub(crate) proxies: Box<dyn Fn() -> Result<Vec<i32>> + 'a>,
}

/// The apps of a server pod.
pub(crate) struct Servers {
    pub(crate) nginx: App,
    pub(crate) iperf: App,
    _serve: [App; 2],
}

/// Everything that carries traffic beside the mesh.
pub(crate) struct Carriers {
    servers: BTreeMap<String, Servers>,
    relays: haproxy::Pair,
    haproxies: haproxy::Pair,
    envoys: Option<envoy::Pair>,
    ztunnels: Option<ztunnel::Pair>,
}

/// What there is to compare with beside plain TCP and haproxy.
pub(crate) struct Others {
    pub(crate) ztunnel: Option<Ztunnel>,
    pub(crate) envoy: Option<PathBuf>,
}

/// A client and a server for each way, on different nodes; only the mesh's are enrolled.
pub(crate) fn plan(others: &Others) -> Plan {
    let envoy = others.envoy.as_ref().map(|_| envoy::NAMESPACE);
    let ztunnel = others.ztunnel.as_ref().map(|_| ztunnel::NAMESPACE);
    let others = ["plain", haproxy::IN_PLAIN, haproxy::IN_TLS]
        .into_iter()
        .chain(envoy)
        .chain(ztunnel);
    let plan = others.clone().fold(Plan::nodes(2), Plan::namespace);
    others
        .chain(["mesh"])
        .fold(plan.enrolled("mesh"), |plan, namespace| {
            plan.pod(PodSpec::new(namespace, "client"))
                .pod(PodSpec::new(namespace, "server").node(1))
        })
}

/// Starts servers and carriers in a lab of that plan.
pub(crate) fn start(lab: &Lab, others: &Others) -> Result<Carriers> {
    let mut servers = BTreeMap::new();
    for pod in lab.pods().filter(|pod| pod.name() == "server") {
        let apps = Servers {
            nginx: servers::quiet_nginx(pod, &[HTTP_PORT], BODY)?,
            iperf: servers::iperf3(pod)?,
            _serve: stage::serve(pod)?,
        };
        servers.insert(pod.namespace().to_owned(), apps);
    }
    let ztunnels = others.ztunnel.as_ref();
    let ztunnels = ztunnels.map(|z| ztunnel::start_checked(lab, z, HTTP_PORT));
    let envoys = others.envoy.as_ref().map(|path| envoy::start(lab, path));
    Ok(Carriers {
        servers,
        relays: haproxy::start(lab, haproxy::IN_PLAIN).context("a pair of relays")?,
        haproxies: haproxy::start(lab, haproxy::IN_TLS).context("a pair of haproxies")?,
        envoys: envoys.transpose().context("a pair of Envoys")?,
        ztunnels: ztunnels.transpose().context("a pair of ztunnels")?,
    })
}

impl Carriers {
    /// The ways that there are, in the order of the columns.
    pub(crate) fn ways<'a>(&'a self, lab: &'a Lab) -> Vec<Way<'a>> {
        let way = |name, namespace: &str| {
            let server = lab.pod(&format!("{namespace}/server"));
            let at = |port| SocketAddr::new(server.v4().into(), port);
            Way {
                name,
                client: lab.pod(&format!("{namespace}/client")),
                server,
                servers: &self.servers[namespace],
                http: at(HTTP_PORT),
                iperf: at(IPERF_PORT),
                serve: at(SERVE),
                proxies: Box::new(|| Ok(Vec::new())),
            }
        };
        let relays = Way {
            proxies: Box::new(|| self.relays.pids()),
            ..by_loopback(way(RELAYS, haproxy::IN_PLAIN))
        };
        let haproxy = Way {
            proxies: Box::new(|| self.haproxies.pids()),
            ..by_loopback(way(HAPROXY, haproxy::IN_TLS))
        };
        let envoy = self.envoys.as_ref().map(|pair| Way {
            proxies: Box::new(|| pair.pids()),
            ..by_loopback(way(ENVOY, envoy::NAMESPACE))
        });
        let ztunnel = self.ztunnels.as_ref().map(|pair| Way {
            proxies: Box::new(|| pair.pids()),
            ..way(PEER, ztunnel::NAMESPACE)
        });
        let mesh = Way {
            proxies: Box::new(|| {
                let pods = [lab.pod("mesh/client"), lab.pod("mesh/server")];
                pods.into_iter()
                    .map(|pod| lab.agent(pod.node()).worker_pid(pod))
                    .collect()
            }),
            ..way(MESH, "mesh")
        };
        let ways = [
            Some(way(PLAIN, "plain")),
            Some(relays),
            Some(haproxy),
            envoy,
            ztunnel,
            Some(mesh),
        ];
        ways.into_iter().flatten().collect()
    }
}

/// The client dials a proxy of its own on loopback, as an app dials a sidecar.
fn by_loopback(way: Way<'_>) -> Way<'_> {
    let at = |to: SocketAddr| SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), to.port());
    Way {
        http: at(way.http),
        iperf: at(way.iperf),
        serve: at(way.serve),
        ..way
    }
}
