//! Two tenants with a client on one node and a server on another, and a stranger.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use anyhow::Result;

use super::{Door, Site};
use crate::app::App;
use crate::forger::{Flaw, Forger};
use crate::lab::Lab;
use crate::plan::{Plan, PodSpec};
use crate::pod::Pod;

/// The namespaces of the two tenants.
pub const VICTIM: &str = "victim";
/// See [`VICTIM`].
pub const NOISY: &str = "noisy";
/// The pod that is not in the mesh.
pub const STRANGER: &str = "free/stranger";
/// Port of every server's `mesh-lab-app serve`.
pub const SERVE: u16 = 7000;
/// Port of every server's `mesh-lab-app flood`.
pub const FLOOD: u16 = 7001;
/// Port of the workers' tunnels.
const HBONE: u16 = 15008;
/// An address that no lab gives to anybody.
const NOBODY: Ipv4Addr = Ipv4Addr::new(10, 240, 0, 0);

/// A plan with both tenants in the mesh.
#[must_use]
pub fn plan() -> Plan {
    let plan = Plan::nodes(2)
        .enrolled(VICTIM)
        .enrolled(NOISY)
        .namespace("free");
    let plan = plan.pod(PodSpec::new("free", "stranger"));
    [VICTIM, NOISY].iter().fold(plan, |plan, tenant| {
        plan.pod(PodSpec::new(tenant, "client"))
            .pod(PodSpec::new(tenant, "server").node(1))
    })
}

/// Starts the servers of a tenant.
///
/// # Errors
/// If one can't be started.
pub fn serve(server: &Pod) -> Result<[App; 2]> {
    let app = |mode: &str, port: u16| {
        let command = server.command("mesh-lab-app");
        command.args([mode, &port.to_string()]).spawn()
    };
    let apps = [app("serve", SERVE)?, app("flood", FLOOD)?];
    server.wait_listening(SERVE)?;
    server.wait_listening(FLOOD)?;
    Ok(apps)
}

/// Where a tenant of a lab with the mesh makes its loads: from its client, and at its
/// server's tunnel port with a certificate of that client.
///
/// # Errors
/// If credentials can't be made.
pub fn site<'a>(lab: &'a Lab, tenant: &str) -> Result<Site<'a>> {
    site_signed_by(lab, tenant, &Forger::new(lab)?)
}

/// As [`site`], of a tenant whose tunnel ports trust that signer.
///
/// # Errors
/// If credentials can't be made.
pub fn site_signed_by<'a>(lab: &'a Lab, tenant: &str, signer: &Forger) -> Result<Site<'a>> {
    let server = lab.pod(&format!("{tenant}/server"));
    let stranger = lab.pod(STRANGER);
    let credentials = |name: &str, flaw: &Flaw| -> Result<PathBuf> {
        let folder = stranger.folder.join(format!("{tenant}-{name}"));
        let made = signer.credentials(&format!("ns/{tenant}/sa/client"), flaw)?;
        made.write(&folder)?;
        for entry in fs::read_dir(&folder)? {
            std::os::unix::fs::chown(entry?.path(), Some(stranger.uid()), None)?;
        }
        Ok(folder)
    };
    let to = |port| SocketAddr::from((server.v4(), port));
    Ok(Site {
        client: lab.pod(&format!("{tenant}/client")),
        serve: to(SERVE),
        flood: (to(FLOOD), to(FLOOD)),
        nowhere: SocketAddr::from((NOBODY, SERVE)),
        door: Some(Door {
            address: to(HBONE),
            stranger,
            good: credentials("good", &Flaw::Genuine)?,
            bad: credentials("bad", &Flaw::ForeignRoot)?,
        }),
    })
}
