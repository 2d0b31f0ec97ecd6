//! What is compared with: one ztunnel a node that serves both tenants, as in Istio's ambient mesh.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mesh_lab::aggressor::stage::SERVE;
use mesh_lab::forger::Forger;
use mesh_lab::inject::Spinning;
use mesh_lab::{Lab, Pod, call, wait};

use super::super::ztunnel::{self, Pair, Ztunnel};
use super::columns::ZTUNNEL;

/// The first threads of its runtime, which carry traffic. It has two, or more on a large machine.
const WORKERS: [&str; 2] = ["ztunnel-0", "ztunnel-1"];

/// Both ztunnels, the clients' and the servers'.
pub(super) struct Shared {
    pair: Pair,
    /// Whom they trust.
    pub(super) signer: Forger,
    /// What they say that they are.
    pub(super) version: String,
}

/// Starts both, each with the pods of both tenants on its node.
pub(super) fn start(lab: &Lab, ztunnel: &Ztunnel) -> Result<Shared> {
    let pods: Vec<&Pod> = ZTUNNEL.into_iter().flat_map(|t| ends(lab, t)).collect();
    Ok(Shared {
        pair: ztunnel::start(lab, ztunnel, &pods)?,
        signer: ztunnel.signer()?,
        version: ztunnel.version()?,
    })
}

/// Makes sure, once the servers run, that both tenants' traffic takes the way through.
pub(super) fn check(lab: &Lab) -> Result<()> {
    for tenant in ZTUNNEL {
        let [client, server] = ends(lab, tenant);
        ztunnel::check(lab, [client, server], || {
            let called = call::tcp(&client.netns, (server.v4(), SERVE).into());
            ensure!(called.served(), "{} to its server: {called}", client.key());
            Ok(())
        })?;
    }
    Ok(())
}

fn ends<'a>(lab: &'a Lab, tenant: &str) -> [&'a Pod; 2] {
    ["client", "server"].map(|name| lab.pod(&format!("{tenant}/{name}")))
}

impl Shared {
    /// The process of the servers' ztunnel.
    pub(super) fn servers(&self) -> Result<i32> {
        let [_, servers] = self.pair.pids()?[..] else {
            anyhow::bail!("there is not one ztunnel a node");
        };
        Ok(servers)
    }

    /// Has one of the threads of the servers' ztunnel spin, as a connection would that never
    /// gives way: not the one that waits for what comes for all of them.
    pub(super) fn spin(&self) -> Result<Spinning> {
        let pid = self.servers()?;
        let mut threads = Vec::new();
        for entry in fs::read_dir(format!("/proc/{pid}/task"))? {
            let entry = entry?;
            let name = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
            if WORKERS.contains(&name.trim()) {
                let id = entry.file_name().into_string().ok();
                threads.push(id.and_then(|id| id.parse().ok()).context("a thread's id")?);
            }
        }
        wait::until(
            "a ztunnel thread that may spin",
            Duration::from_secs(5),
            || Ok(Spinning::outside(nix::libc::SYS_epoll_wait, &threads)?),
        )
    }
}
