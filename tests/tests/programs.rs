//! Real programs run through the mesh as they do without it.

use std::os::unix::fs::chown;
use std::path::Path;
use std::time::Duration;

use mesh_lab::{App, Lab, Plan, Pod, PodCommand, PodSpec, servers};
use nix::unistd::User;

const CLIENT: &str = "shop/client";

fn lab_with(server: &str, port: u16) -> Lab {
    let pod = PodSpec::new("data", server).node(1).port("main", port);
    Lab::with_mesh(Plan::two_nodes().pod(pod)).unwrap()
}

/// Some programs insist on a user that has a name: the one their package made. The pod's
/// folder then belongs to it.
fn as_user<'a>(pod: &'a Pod, user: &str, program: &str) -> PodCommand<'a> {
    let user = User::from_name(user).unwrap();
    let uid = user.expect("the package made its user").uid.as_raw();
    chown(&pod.folder, Some(uid), Some(uid)).unwrap();
    pod.command(program)
        .uid(uid)
        .timeout(Duration::from_secs(60))
}

#[test]
fn redis_pipelined_over_both_families() {
    let lab = Lab::two_nodes().unwrap();
    let server = lab.pod("data/db");
    let _redis = servers::redis(server).unwrap();
    for address in server.addresses() {
        let load = lab.pod(CLIENT).command("redis-benchmark");
        let said = load
            .args([
                "-h",
                &address.to_string(),
                "-P",
                "32",
                "-n",
                "50000",
                "-c",
                "20",
            ])
            .args(["-t", "set,get,lpush,lrange_100", "-d", "512", "--csv"])
            .output()
            .unwrap()
            .ok()
            .unwrap();
        let done: Vec<&str> = said.lines().filter(|line| line.starts_with('"')).collect();
        assert!(done.len() > 4, "{address}: {said}");
    }
}

#[test]
fn postgresql() {
    let lab = lab_with("postgres", 5432);
    let server = lab.pod("data/postgres");
    let data = server.folder.join("data");
    let init = as_user(server, "postgres", "initdb");
    let init = init.args(["-A", "trust", "-U", "lab", "-E", "UTF8", "--no-sync", "-D"]);
    init.arg(&data).output().unwrap().ok().unwrap();
    std::fs::write(data.join("pg_hba.conf"), "host all all all trust\n").unwrap();
    let run = as_user(server, "postgres", "postgres").arg("-D").arg(&data);
    let run = run.args(["-c", "listen_addresses=*", "-c", "fsync=off", "-k"]);
    let _server = run.arg(&server.folder).spawn().unwrap();
    server.wait_listening(5432).unwrap();
    for (address, table) in server.addresses().into_iter().zip(["t4", "t6"]) {
        let psql = |sql: &str| {
            let psql = lab.pod(CLIENT).command("psql");
            let psql = psql.args(["-h", &address.to_string(), "-U", "lab", "-d", "postgres"]);
            let psql = psql.args(["-X", "-At", "-v", "ON_ERROR_STOP=1", "-c", sql]);
            psql.output().unwrap().ok().unwrap()
        };
        psql(&format!(
            "create table {table} as select g, repeat(md5(g::text), 8) as t from generate_series(1, 50000) g"
        ));
        let rows = psql(&format!("select g, t from {table} order by g"));
        assert_eq!(rows.lines().count(), 50_000);
        let sums = psql(&format!("select sum(g), sum(length(t)) from {table}"));
        assert_eq!(sums.trim(), "1250025000|12800000");
        // Whom the server takes the caller to be.
        let client = psql("select host(inet_client_addr())");
        let own = lab.pod(CLIENT).addresses().into_iter();
        assert!(
            own.map(|a| a.to_string()).any(|a| a == client.trim()),
            "{client}"
        );
    }
}

#[test]
fn mariadb_whose_server_speaks_first() {
    let lab = lab_with("mariadb", 3306);
    let server = lab.pod("data/mariadb");
    let _server = mariadb(server);
    for address in server.addresses() {
        let client = lab.pod(CLIENT).command("mariadb");
        let client = client.args(["-h", &address.to_string(), "-u", "lab", "-N", "-B", "-e"]);
        let said = client
            .arg("select user(), repeat('x', 100000)")
            .output()
            .unwrap()
            .ok()
            .unwrap_or_else(|e| panic!("{address}: {e:#}\n{}", lab.log_tails()));
        assert!(
            said.starts_with("lab@") && said.len() > 100_000,
            "{address}: {said}"
        );
    }
}

fn mariadb(server: &Pod) -> App {
    let data = server.folder.join("data");
    let option = |name: &str, path: &Path| format!("--{name}={}", path.display());
    let init = as_user(server, "mysql", "mariadb-install-db");
    let init = init.args(["--no-defaults", "--auth-root-authentication-method=normal"]);
    let init = init.arg(option("datadir", &data)).arg("--skip-test-db");
    init.output().unwrap().ok().unwrap();
    let first = "create user lab@'%';\nflush privileges;\n";
    let first = server.write("init.sql", first).unwrap();
    let run = as_user(server, "mysql", "mariadbd");
    let run = run.args(["--no-defaults", "--port=3306", "--bind-address=*"]);
    let run = run.args([
        option("datadir", &data),
        option("socket", &server.folder.join("mariadb.sock")),
        option("pid-file", &server.folder.join("mariadb.pid")),
        option("init-file", &first),
    ]);
    let app = run.args(["--skip-name-resolve"]).spawn().unwrap();
    server.wait_listening(3306).unwrap();
    app
}

#[test]
fn iperf3_in_both_directions_at_once() {
    let lab = lab_with("iperf", 5201);
    let server = lab.pod("data/iperf");
    let _server = servers::iperf3(server).unwrap();
    for address in server.addresses() {
        let iperf = lab.pod(CLIENT).command("iperf3");
        let iperf = iperf.args([
            "-c",
            &address.to_string(),
            "-t",
            "2",
            "-P",
            "4",
            "--bidir",
            "-J",
        ]);
        let said = iperf.output().unwrap().ok().unwrap();
        let report: serde_json::Value = serde_json::from_str(&said).unwrap();
        for direction in ["sum_received", "sum_received_bidir_reverse"] {
            let bytes = report["end"][direction]["bytes"]
                .as_f64()
                .unwrap_or_default();
            assert!(bytes > 1e6, "{address}, {direction}: {bytes}");
        }
    }
}
