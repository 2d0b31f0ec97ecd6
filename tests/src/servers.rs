//! Real servers with what they need to run as an unprivileged app.

use std::net::IpAddr;

use anyhow::{Context, Result};

use crate::app::App;
use crate::pod::Pod;

/// nginx on these ports, of every address family the pod has. It answers `GET /` with
/// `body`, and serves the pod's folder below `/files/`. Its access log goes to standard
/// output: the caller's address and port, the request, the status.
///
/// # Errors
/// If it can't be started or does not listen.
pub fn nginx(pod: &Pod, ports: &[u16], body: &str) -> Result<App> {
    nginx_with(pod, ports, body, "/dev/stdout shown", None)
}

/// [`nginx`] in this cgroup below the pod's.
///
/// # Errors
/// As [`nginx`].
pub fn nginx_in(pod: &Pod, ports: &[u16], body: &str, cgroup: &str) -> Result<App> {
    nginx_with(pod, ports, body, "/dev/stdout shown", Some(cgroup))
}

/// [`nginx`] without an access log, for measurements.
///
/// # Errors
/// As [`nginx`].
pub fn quiet_nginx(pod: &Pod, ports: &[u16], body: &str) -> Result<App> {
    nginx_with(pod, ports, body, "off", None)
}

/// The lab's own server, which says what addresses it sees and then echoes.
///
/// # Errors
/// As [`nginx`].
pub fn echo(pod: &Pod, port: u16) -> Result<App> {
    let server = pod.command("mesh-lab-app");
    let server = server.args(["serve", &port.to_string()]).spawn()?;
    pod.wait_listening(port)?;
    Ok(server)
}

fn nginx_with(
    pod: &Pod,
    ports: &[u16],
    body: &str,
    log: &str,
    cgroup: Option<&str>,
) -> Result<App> {
    let mut listen = String::new();
    for port in ports {
        for address in wildcards(pod) {
            listen.push_str(&format!("listen {address}:{port} backlog=4096; "));
        }
    }
    let folder = pod.folder.display();
    let configuration = format!(
        "daemon off; worker_processes 1; pid {folder}/nginx.pid;\n\
         events {{ worker_connections 16384; }}\n\
         http {{\n\
         log_format shown '$remote_addr:$remote_port \"$request\" $status'; access_log {log};\n\
         keepalive_requests 1000000000; sendfile on;\n\
         client_body_temp_path {folder}/t1; proxy_temp_path {folder}/t2; \
         fastcgi_temp_path {folder}/t3; uwsgi_temp_path {folder}/t4; scgi_temp_path {folder}/t5;\n\
         server {{ {listen}\n\
         location / {{ default_type text/plain; return 200 '{body}'; }}\n\
         location /files/ {{ alias {folder}/; }}\n\
         }}\n}}\n"
    );
    let name = format!("nginx-{}.conf", ports.first().copied().unwrap_or_default());
    let path = pod.write(&name, configuration)?;
    let nginx = pod.command("nginx").args(["-e", "stderr", "-c"]).arg(path);
    let app = match cgroup {
        Some(cgroup) => nginx.cgroup(cgroup).spawn()?,
        None => nginx.spawn()?,
    };
    for port in ports {
        pod.wait_listening(*port)
            .with_context(|| format!("nginx said {:?}", app.stderr()))?;
    }
    Ok(app)
}

/// redis on its port 6379, of every address family the pod has, without persistence.
///
/// # Errors
/// If it can't be started or does not listen.
pub fn redis(pod: &Pod) -> Result<App> {
    let bind: Vec<String> = wildcards(pod)
        .map(|address| address.trim_matches(['[', ']']).to_owned())
        .collect();
    let app = pod
        .command("redis-server")
        .args(["--port", "6379", "--protected-mode", "no"])
        .args(["--save", "", "--appendonly", "no", "--bind"])
        .args(bind)
        .spawn()?;
    pod.wait_listening(6379)?;
    Ok(app)
}

/// A DNS server on port 53 of every address the pod has, which answers for `name` with
/// `address` and knows nothing else.
///
/// # Errors
/// If it can't be started or does not listen.
pub fn dnsmasq(pod: &Pod, name: &str, address: IpAddr) -> Result<App> {
    let app = pod
        .command("dnsmasq")
        .args(["--no-daemon", "--conf-file=/dev/null", "--no-resolv"])
        .args(["--no-hosts", "--no-poll", "--pid-file="])
        .arg(format!("--address=/{name}/{address}"))
        .spawn()?;
    pod.wait_listening(53)?;
    Ok(app)
}

/// An iperf3 server on its port 5201.
///
/// # Errors
/// If it can't be started or does not listen.
pub fn iperf3(pod: &Pod) -> Result<App> {
    let app = pod.command("iperf3").arg("-s").spawn()?;
    pod.wait_listening(5201)?;
    Ok(app)
}

fn wildcards(pod: &Pod) -> impl Iterator<Item = &'static str> {
    pod.addresses().into_iter().map(|address| match address {
        IpAddr::V4(_) => "0.0.0.0",
        IpAddr::V6(_) => "[::]",
    })
}
