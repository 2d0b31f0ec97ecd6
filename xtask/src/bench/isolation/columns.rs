//! The columns: what carries the tenants' traffic.

use anyhow::Result;
use mesh_lab::aggressor::fault::{Fault, Lasting};
use mesh_lab::aggressor::stage::{self, FLOOD, NOISY, SERVE, VICTIM};
use mesh_lab::aggressor::{Door, Site};
use mesh_lab::place::Place;
use mesh_lab::{App, Lab, Plan, PodSpec};

use super::super::ztunnel::Ztunnel;
use super::haproxy::{self, Shared};
use super::{APPS, PROXIES, ztunnel};

/// The tenants without a mesh, the victim first.
const PLAIN: [&str; 2] = ["plain-victim", "plain-noisy"];
/// The tenants of the shared proxy, the victim first.
pub(super) const SHARED: [&str; 2] = ["shared-victim", "shared-noisy"];

/// The tenants of the ztunnels, the victim first.
pub(super) const ZTUNNEL: [&str; 2] = ["ztunnel-victim", "ztunnel-noisy"];

/// What carries the traffic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Nothing,
    Nodemesh,
    SharedProxy,
    Ztunnel,
}

impl Kind {
    pub(super) const ALL: [Self; 4] = [
        Self::Nothing,
        Self::Nodemesh,
        Self::SharedProxy,
        Self::Ztunnel,
    ];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Nothing => "no mesh",
            Self::Nodemesh => "Nodemesh",
            Self::SharedProxy => "shared haproxy",
            Self::Ztunnel => "ztunnel",
        }
    }

    /// Namespaces of victim and aggressor.
    pub(super) fn tenants(self) -> [&'static str; 2] {
        match self {
            Self::Nothing => PLAIN,
            Self::Nodemesh => [VICTIM, NOISY],
            Self::SharedProxy => SHARED,
            Self::Ztunnel => ZTUNNEL,
        }
    }
}

/// Everything that runs.
pub(super) struct Stage {
    pub(super) lab: Lab,
    pub(super) shared: Shared,
    /// If there are any.
    pub(super) ztunnels: Option<ztunnel::Shared>,
    /// Where the aggressor's apps run.
    pub(super) noisy_place: Place,
    servers: Vec<[App; 2]>,
}

impl Stage {
    /// Starts the proxies of every column on one processor, and the servers on the other.
    pub(super) fn start(noisy_place: Place, ztunnel: Option<&Ztunnel>) -> Result<Self> {
        let kinds = kinds(ztunnel.is_some());
        let lab = PROXIES.run(|| Lab::with_mesh(plan(&kinds)))?;
        let shared = PROXIES.run(|| haproxy::start(&lab))?;
        let ztunnels = ztunnel.map(|z| PROXIES.run(|| ztunnel::start(&lab, z)));
        let ztunnels = ztunnels.transpose()?;
        let mut servers = Vec::new();
        for kind in kinds {
            let places = [APPS, noisy_place];
            for (tenant, place) in kind.tenants().into_iter().zip(places) {
                let server = lab.pod(&format!("{tenant}/server"));
                servers.push(place.run(|| stage::serve(server))?);
            }
        }
        if ztunnels.is_some() {
            ztunnel::check(&lab)?;
        }
        Ok(Self {
            lab,
            shared,
            ztunnels,
            noisy_place,
            servers,
        })
    }

    /// The columns that there are.
    pub(super) fn kinds(&self) -> Vec<Kind> {
        kinds(self.ztunnels.is_some())
    }

    /// Ends all of it, and checks that nothing is left.
    pub(super) fn finish(self) -> Result<()> {
        let Self {
            lab,
            shared,
            ztunnels,
            servers,
            ..
        } = self;
        drop((shared, ztunnels, servers));
        lab.finish()
    }

    /// Where the aggressor of a column makes its loads.
    pub(super) fn site(&self, kind: Kind) -> Result<Site<'_>> {
        let [_, noisy] = kind.tenants();
        if let (Kind::Ztunnel, Some(ztunnels)) = (kind, &self.ztunnels) {
            return stage::site_signed_by(&self.lab, noisy, &ztunnels.signer);
        }
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
    fn noisy_proxy(&self, kind: Kind) -> Result<Option<i32>> {
        Ok(match kind {
            Kind::Nothing => None,
            Kind::Nodemesh => {
                let pod = self.lab.pod(&format!("{NOISY}/server"));
                Some(self.lab.agent(pod.node()).worker_pid(pod)?)
            }
            Kind::SharedProxy => Some(i32::try_from(self.shared.apps[1].pid())?),
            Kind::Ztunnel => match &self.ztunnels {
                Some(ztunnels) => Some(ztunnels.servers()?),
                None => None,
            },
        })
    }

    /// Lets something befall what carries the aggressor's traffic at its server; returns which
    /// process that is, too. None if nothing does.
    pub(super) fn befall(&self, kind: Kind, fault: Fault) -> Result<Option<(i32, Lasting)>> {
        let Some(pid) = self.noisy_proxy(kind)? else {
            return Ok(None);
        };
        let lasting = match (fault, &self.ztunnels) {
            (Fault::Spin, Some(ztunnels)) if kind == Kind::Ztunnel => ztunnels.spin()?.into(),
            _ => fault.befall(pid)?,
        };
        Ok(Some((pid, lasting)))
    }
}

fn kinds(with_ztunnel: bool) -> Vec<Kind> {
    let all = Kind::ALL.into_iter();
    all.filter(|kind| with_ztunnel || *kind != Kind::Ztunnel)
        .collect()
}

/// The mesh's tenants, and those of the other columns.
fn plan(kinds: &[Kind]) -> Plan {
    let others = kinds.iter().filter(|kind| **kind != Kind::Nodemesh);
    let others = others.flat_map(|kind| kind.tenants());
    others.fold(stage::plan(), |plan, tenant| {
        plan.namespace(tenant)
            .pod(PodSpec::new(tenant, "client"))
            .pod(PodSpec::new(tenant, "server").node(1))
    })
}
