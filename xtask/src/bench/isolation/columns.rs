//! The columns: what carries the tenants' traffic.

use anyhow::Result;
use mesh_lab::aggressor::stage::{self, FLOOD, NOISY, SERVE, VICTIM};
use mesh_lab::aggressor::{Door, Site};
use mesh_lab::place::Place;
use mesh_lab::{App, Lab, Plan, PodSpec};

use super::haproxy::{self, Shared};
use super::{APPS, PROXIES};

/// The tenants without a mesh, the victim first.
const PLAIN: [&str; 2] = ["plain-victim", "plain-noisy"];
/// The tenants of the shared proxy, the victim first.
pub(super) const SHARED: [&str; 2] = ["shared-victim", "shared-noisy"];

/// What carries the traffic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Nothing,
    Nodemesh,
    SharedProxy,
}

impl Kind {
    pub(super) const ALL: [Self; 3] = [Self::Nothing, Self::Nodemesh, Self::SharedProxy];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Nothing => "no mesh",
            Self::Nodemesh => "Nodemesh",
            Self::SharedProxy => "shared haproxy",
        }
    }

    /// Namespaces of victim and aggressor.
    pub(super) fn tenants(self) -> [&'static str; 2] {
        match self {
            Self::Nothing => PLAIN,
            Self::Nodemesh => [VICTIM, NOISY],
            Self::SharedProxy => SHARED,
        }
    }
}

/// Everything that runs.
pub(super) struct Stage {
    pub(super) lab: Lab,
    pub(super) shared: Shared,
    /// Where the aggressor's apps run.
    pub(super) noisy_place: Place,
    servers: Vec<[App; 2]>,
}

impl Stage {
    /// Starts the proxies of every column on one processor, and the servers on the other.
    pub(super) fn start(noisy_place: Place) -> Result<Self> {
        let lab = PROXIES.run(|| Lab::with_mesh(plan()))?;
        let shared = PROXIES.run(|| haproxy::start(&lab))?;
        let mut servers = Vec::new();
        for kind in Kind::ALL {
            let places = [APPS, noisy_place];
            for (tenant, place) in kind.tenants().into_iter().zip(places) {
                let server = lab.pod(&format!("{tenant}/server"));
                servers.push(place.run(|| stage::serve(server))?);
            }
        }
        Ok(Self {
            lab,
            shared,
            noisy_place,
            servers,
        })
    }

    /// Ends all of it, and checks that nothing is left.
    pub(super) fn finish(self) -> Result<()> {
        let Self {
            lab,
            shared,
            servers,
            ..
        } = self;
        drop((shared, servers));
        lab.finish()
    }

    /// Where the aggressor of a column makes its loads.
    pub(super) fn site(&self, kind: Kind) -> Result<Site<'_>> {
        let [_, noisy] = kind.tenants();
        let meshed = stage::site(&self.lab, NOISY)?;
        if kind == Kind::Nodemesh {
            return Ok(meshed);
        }
        let client = self.lab.pod(&format!("{noisy}/client"));
        let server = self.lab.pod(&format!("{noisy}/server")).v4();
        let direct = |port: u16| (server, port).into();
        Ok(match kind {
            Kind::SharedProxy => Site {
                client,
                serve: haproxy::way_in(&self.lab, noisy, SERVE),
                flood: (haproxy::way_in(&self.lab, noisy, FLOOD), direct(FLOOD)),
                door: meshed.door.map(|door| Door {
                    address: haproxy::door(&self.lab, noisy, SERVE),
                    ..door
                }),
                nowhere: meshed.nowhere,
            },
            _ => Site {
                client,
                serve: direct(SERVE),
                flood: (direct(FLOOD), direct(FLOOD)),
                door: None,
                nowhere: meshed.nowhere,
            },
        })
    }

    /// Where the victim of a column calls.
    pub(super) fn victims_server(&self, kind: Kind) -> std::net::SocketAddr {
        let [victim, _] = kind.tenants();
        match kind {
            Kind::SharedProxy => haproxy::way_in(&self.lab, victim, SERVE),
            _ => (self.lab.pod(&format!("{victim}/server")).v4(), SERVE).into(),
        }
    }

    /// The process that carries the aggressor's traffic at its server.
    pub(super) fn noisy_proxy(&self, kind: Kind) -> Result<Option<i32>> {
        Ok(match kind {
            Kind::Nothing => None,
            Kind::Nodemesh => {
                let pod = self.lab.pod(&format!("{NOISY}/server"));
                Some(self.lab.agent(pod.node()).worker_pid(pod)?)
            }
            Kind::SharedProxy => Some(i32::try_from(self.shared.apps[1].pid())?),
        })
    }
}

fn plan() -> Plan {
    let others = PLAIN.into_iter().chain(SHARED);
    others.fold(stage::plan(), |plan, tenant| {
        plan.namespace(tenant)
            .pod(PodSpec::new(tenant, "client"))
            .pod(PodSpec::new(tenant, "server").node(1))
    })
}
