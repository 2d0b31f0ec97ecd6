//! The control: one haproxy a node that serves both tenants, as a shared proxy does. Between
//! the nodes it speaks mutual TLS 1.3, with a certificate a tenant.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use mesh_lab::aggressor::stage::{FLOOD, SERVE};
use mesh_lab::node::Host;
use mesh_lab::{App, Lab, Pod, wait};

use super::super::haproxy::make_leaf;
use super::columns::SHARED;

/// Both haproxies, the clients' and the servers'.
pub(super) struct Shared {
    pub(super) apps: [App; 2],
    /// What they were given.
    pub(super) configurations: [String; 2],
}

/// What makes it a fair opponent: one thread, since one processor is what every column has;
/// no log; room for every connection; and a bound for each tenant's share of that room, which
/// is all that haproxy has of it.
const TUNED: &str = "\
global
  nbthread 1
  maxconn 8192
  tune.ssl.default-dh-param 2048
  ssl-default-bind-options ssl-min-ver TLSv1.3
  ssl-default-server-options ssl-min-ver TLSv1.3
defaults
  mode tcp
  option tcp-smart-accept
  timeout connect 5s
  timeout client 60s
  timeout server 60s
  maxconn 3000
  backlog 4096
";

/// Where a tenant's client finds the port of its server.
pub(super) fn way_in(lab: &Lab, tenant: &str, port: u16) -> SocketAddr {
    SocketAddr::new(lab.node(0).v4().into(), outer(tenant, port))
}

/// The TLS port of a tenant at the servers' haproxy.
pub(super) fn door(lab: &Lab, tenant: &str, port: u16) -> SocketAddr {
    SocketAddr::new(lab.node(1).v4().into(), outer(tenant, port) + 1_000)
}

fn outer(tenant: &str, port: u16) -> u16 {
    let second = SHARED.iter().position(|t| *t == tenant) == Some(1);
    port + 10_000 + if second { 100 } else { 0 }
}

/// Makes certificates, signed by the lab's own signer, and starts both.
pub(super) fn start(lab: &Lab) -> Result<Shared> {
    let folder = lab.folder().join("shared");
    fs::create_dir_all(&folder)?;
    let pki = &lab.mesh.as_ref().context("the mesh is not running")?.pki;
    fs::copy(pki.join("ca-cert.pem"), folder.join("root.pem"))?;
    fs::copy(pki.join("ca-key.pem"), folder.join("root.key"))?;
    let trusted = [pki.join("ca-cert.pem"), pki.join("root.pem")].map(fs::read_to_string);
    let trusted = trusted.into_iter().collect::<std::io::Result<Vec<_>>>()?;
    let ca = folder.join("trusted.pem");
    fs::write(&ca, trusted.join("\n"))?;
    let (mut outward, mut inward) = (TUNED.to_owned(), TUNED.to_owned());
    for tenant in SHARED {
        let own = folder.join(format!("{tenant}-own.pem"));
        fs::write(&own, make_leaf(&folder, tenant)?)?;
        let (own, ca) = (own.display(), ca.display());
        let server = lab.pod(&format!("{tenant}/server")).v4();
        for port in [SERVE, FLOOD] {
            let (at, far) = (way_in(lab, tenant, port), door(lab, tenant, port));
            outward.push_str(&format!(
                "listen {tenant}-{port}\n  bind {at}\n  \
                 server far {far} ssl verify required ca-file {ca} crt {own}\n"
            ));
            inward.push_str(&format!(
                "listen {tenant}-{port}\n  bind {far} ssl crt {own} ca-file {ca} verify required\n  \
                 server app {server}:{port}\n"
            ));
        }
    }
    let carrier = |node: usize| lab.pod(&format!("{}/{}", SHARED[0], ["client", "server"][node]));
    let run = |node: usize, text: &str| run(lab.node(node), carrier(node), &folder, text);
    let apps = [run(0, &outward)?, run(1, &inward)?];
    let listening = [
        (0, way_in(lab, SHARED[1], FLOOD)),
        (1, door(lab, SHARED[1], FLOOD)),
    ];
    for ((node, at), app) in listening.into_iter().zip(&apps) {
        let netns = &lab.node(node).netns;
        let ports = || mesh_lab::pod::listening_ports(netns);
        wait::until_true("haproxy to listen", wait::PATIENCE, || {
            Ok(ports()?.contains(&at.port()))
        })
        .with_context(|| format!("haproxy said: {}", app.stderr()))?;
    }
    Ok(Shared {
        apps,
        configurations: [outward, inward],
    })
}

/// `nsenter` becomes the haproxy, which is the node's, but goes with the pod.
fn run(node: &Host, pod: &Pod, folder: &Path, configuration: &str) -> Result<App> {
    let path: PathBuf = folder.join(format!("{}.cfg", node.name()));
    fs::write(&path, configuration)?;
    let haproxy = mesh_lab::programs::find("haproxy".as_ref())?;
    let command = pod.command("nsenter").root();
    let command = command.arg(format!("--net={}", node.netns.path().display()));
    command.arg(haproxy).args(["-db", "-f"]).arg(path).spawn()
}
