//! Pairs of haproxies that carry TCP, one in each pod: in mutual TLS 1.3, or as it is, which is
//! what two more ends in user space cost whoever they are.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use mesh_lab::{App, Lab, Pod};

use super::system;
use super::ways::PORTS;
use crate::exec;

/// Namespace of the pods of each pair.
pub(super) const IN_TLS: &str = "proxied";
pub(super) const IN_PLAIN: &str = "relayed";

/// The far side's listeners are so many ports higher than what they serve.
pub(super) const TLS: u16 = 10_000;

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

/// Starts a pair, with certificates where it is the one that needs them.
pub(crate) fn start(lab: &Lab, namespace: &str) -> Result<Pair> {
    let end = |name| lab.pod(&format!("{namespace}/{name}"));
    let (client, server) = (end("client"), end("server"));
    let tls = namespace == IN_TLS;
    if tls {
        credentials(lab, [client, server])?;
    }
    let files = |pod: &Pod| {
        let [root, own] = ["root.pem", "own.pem"].map(|name| pod.folder.join(name));
        let (root, own) = (root.display(), own.display());
        match tls {
            true => format!("ssl verify required ca-file {root} crt {own}"),
            false => String::new(),
        }
    };
    let outward = |port: u16| {
        format!(
            "listen out{port}\n  bind 127.0.0.1:{port}\n  server far {}:{} {}\n",
            server.v4(),
            port + TLS,
            files(client)
        )
    };
    let inward = |port: u16| {
        format!(
            "listen in{port}\n  bind {}:{} {}\n  server app 127.0.0.1:{port}\n",
            server.v4(),
            port + TLS,
            files(server)
        )
    };
    let at_client: String = PORTS.into_iter().map(outward).collect();
    let at_server: String = PORTS.into_iter().map(inward).collect();
    let pair = Pair {
        apps: [run(client, &at_client)?, run(server, &at_server)?],
    };
    for port in PORTS {
        client.wait_listening(port)?;
        server.wait_listening(port + TLS)?;
    }
    Ok(pair)
}

/// Gives both ends `root.pem` and `own.pem`, certificate and key.
pub(super) fn credentials(lab: &Lab, ends: [&Pod; 2]) -> Result<()> {
    let folder = lab.folder().join(ends[0].namespace());
    fs::create_dir_all(&folder)?;
    make_root(&folder)?;
    for pod in ends {
        pod.write("root.pem", fs::read(folder.join("root.pem"))?)?;
        pod.write("own.pem", make_leaf(&folder, pod.name())?)?;
    }
    Ok(())
}

fn run(pod: &Pod, proxies: &str) -> Result<App> {
    let configuration = format!(
        "global\n  maxconn 9000\n  ssl-default-bind-options ssl-min-ver TLSv1.3\n  \
         ssl-default-server-options ssl-min-ver TLSv1.3\n\
         defaults\n  mode tcp\n  timeout connect 5s\n  timeout client 60s\n  timeout server 60s\n\
         {proxies}"
    );
    let path = pod.write("haproxy.cfg", configuration)?;
    pod.command("haproxy").args(["-db", "-f"]).arg(path).spawn()
}

fn openssl(folder: &Path, arguments: &str) -> Result<()> {
    let mut command = Command::new("openssl");
    command.current_dir(folder).args(arguments.split(' '));
    exec::read(&mut command).map(drop)
}

fn make_root(folder: &Path) -> Result<()> {
    openssl(
        folder,
        "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout root.key \
         -out root.pem -subj /CN=bench -days 1",
    )
    .context("making a root certificate")
}

/// Certificate and key of one side, in one PEM file.
pub(super) fn make_leaf(folder: &Path, name: &str) -> Result<Vec<u8>> {
    openssl(
        folder,
        &format!(
            "req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout {name}.key \
             -out {name}.csr -subj /CN={name} -addext subjectAltName=DNS:{name}"
        ),
    )?;
    openssl(
        folder,
        &format!(
            "x509 -req -in {name}.csr -CA root.pem -CAkey root.key -CAcreateserial -days 1 \
             -copy_extensions copy -out {name}.pem"
        ),
    )?;
    let mut both = fs::read(folder.join(format!("{name}.pem")))?;
    both.extend(fs::read(folder.join(format!("{name}.key")))?);
    Ok(both)
}
