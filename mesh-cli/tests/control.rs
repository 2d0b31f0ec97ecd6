//! `meshctl why` and `meshctl status` against a control component's admin socket, run as the
//! operator runs them.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::time::Instant;

use mesh_api::admin::SOCKET_NAME;
use mesh_api::node::{NodeReport, PodReport};
use mesh_control::admin::{self, Admin};
use mesh_control::clocks::Clocks;
use mesh_control::observe::Series;
use mesh_control::registry::{Directory, Registry};
use mesh_control::sources::manifests::load;
use tempfile::TempDir;

const MANIFESTS: &str = r#"
kind: Namespace
metadata: {name: shop, labels: {nodemesh.dev/enroll: "true"}}
---
kind: Namespace
metadata: {name: trial, labels: {nodemesh.dev/enroll: audit}}
---
kind: Pod
metadata: {name: cart-1, namespace: shop, labels: {app: cart}}
spec: {nodeName: node-a}
status: {podIPs: [{ip: 10.1.0.1}, {ip: "fd00:1::1"}]}
---
kind: Pod
metadata: {name: web-1, namespace: shop, labels: {app: web}}
spec: {nodeName: node-b}
status: {podIPs: [{ip: 10.1.0.2}, {ip: "fd00:1::2"}]}
---
kind: Pod
metadata: {name: web-2, namespace: shop, labels: {app: web, closed: "yes"}}
spec: {nodeName: node-b}
status: {podIP: 10.1.0.3}
---
kind: Pod
metadata: {name: new-1, namespace: trial}
spec: {nodeName: node-a}
status: {podIP: 10.1.0.4}
---
kind: Service
metadata: {name: web, namespace: shop}
spec: {selector: {app: web}, clusterIP: 10.96.0.1, ports: [{port: 80, targetPort: 8080}]}
---
kind: AuthorizationPolicy
apiVersion: nodemesh.dev/v1alpha1
metadata: {name: out, namespace: shop}
spec: {direction: Outbound, action: Allow, rules: [{}]}
---
kind: AuthorizationPolicy
apiVersion: nodemesh.dev/v1alpha1
metadata: {name: web-in, namespace: shop}
spec: {target: {service: web}, direction: Inbound, action: Allow, rules: [{ports: [8080]}]}
---
kind: AuthorizationPolicy
apiVersion: nodemesh.dev/v1alpha1
metadata: {name: closed, namespace: shop}
spec: {target: {labels: {closed: "yes"}}, direction: Inbound, action: Deny, rules: [{}]}
---
kind: AuthorizationPolicy
apiVersion: nodemesh.dev/v1alpha1
metadata: {name: not-there, namespace: nodemesh-system}
spec: {target: {mesh: true}, direction: Outbound, action: Deny, rules: [{peers: [{cidr: 192.0.2.0/24}]}]}
"#;

/// A control component's registry behind its admin socket.
struct Control {
    folder: TempDir,
    registry: Arc<Registry>,
    clocks: Arc<Clocks>,
    _runtime: tokio::runtime::Runtime,
}

impl Control {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let manifests = folder.path().join("manifests");
        std::fs::create_dir(&manifests).unwrap();
        std::fs::write(manifests.join("mesh.yaml"), MANIFESTS).unwrap();
        let loaded = load(&manifests, &"cluster.local".parse().unwrap()).unwrap();
        let registry = Arc::new(Registry::new(Directory::new(loaded.mesh)));
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let clocks = Arc::new(Clocks::default());
        let answers = Arc::new(Admin {
            registry: registry.clone(),
            resolvers: vec![],
            clocks: clocks.clone(),
            series: Series::detached(),
        });
        let guard = runtime.enter();
        let listener = admin::listen(folder.path()).unwrap();
        drop(guard);
        runtime.spawn(admin::serve(listener, answers));
        Self {
            folder,
            registry,
            clocks,
            _runtime: runtime,
        }
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join(SOCKET_NAME)
    }

    fn meshctl(&self, line: &str) -> Output {
        meshctl(&self.socket(), line)
    }
}

fn meshctl(socket: &Path, line: &str) -> Output {
    Command::new(env!("CARGO_BIN_EXE_meshctl"))
        .args(line.split_whitespace())
        .arg("--control-socket")
        .arg(socket)
        .output()
        .expect("meshctl runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn why_says_by_its_exit_status_and_in_words_what_becomes_of_a_flow() {
    let control = Control::start();
    for (line, status, parts) in [
        (
            "why shop/cart-1 shop/web-1:8080",
            0,
            &["allowed", "shop/out", "shop/web-in"][..],
        ),
        (
            "why shop/cart-1 [fd00:1::2]:8080",
            0,
            &["allowed", "[fd00:1::2]:8080"],
        ),
        (
            "why shop/cart-1 shop/web-1:8081",
            1,
            &["policy_no_rule", "this would allow it"],
        ),
        (
            "why shop/cart-1 shop/web-2:8080",
            1,
            &["policy_denied", "shop/closed"],
        ),
        (
            "why shop/cart-1 192.0.2.7:443",
            1,
            &["policy_denied", "EPERM", "nodemesh-system/not-there"],
        ),
        (
            "why shop/cart-1 10.9.9.9:53 --protocol udp",
            1,
            &["udp_not_allowed"],
        ),
        ("why 10.9.9.9 shop/web-1:8080", 1, &["inbound_plaintext"]),
        ("why trial/new-1 shop/web-1:8080", 0, &["audit"]),
        // One of two endpoints: which one it will be nobody can tell.
        (
            "why shop/cart-1 shop/web",
            2,
            &["some endpoints", "shop/web-1", "shop/web-2"],
        ),
    ] {
        let run = control.meshctl(line);
        let shown = text(&run.stdout) + &text(&run.stderr);
        assert_eq!(run.status.code(), Some(status), "{line}: {shown}");
        for part in parts {
            assert!(shown.contains(part), "{line}: {part} in {shown}");
        }
    }
}

#[test]
fn why_can_be_read_by_programs() {
    let control = Control::start();
    let run = control.meshctl("why shop/cart-1 192.0.2.7:443 -o json");
    assert_eq!(run.status.code(), Some(1));
    let why: serde_json::Value = serde_json::from_slice(&run.stdout).unwrap();
    assert_eq!(why["outcome"], "refused");
    assert_eq!(why["reason"]["code"], "policy_denied");
    assert_eq!(why["errno"], "EPERM");
    let policy = &why["attempts"][0]["outbound"]["policy"];
    assert_eq!(policy, "nodemesh-system/not-there");
}

#[test]
fn what_cant_be_told_is_status_2_and_wrong_usage_64() {
    let control = Control::start();
    for (line, status, part) in [
        (
            "why shop/nobody shop/web-1:80",
            2,
            "there is no pod shop/nobody",
        ),
        ("why shop/cart-1 shop/web-1", 2, "give a port"),
        ("why shop/cart-1 web:80", 64, "say namespace/pod"),
        ("why shop/cart-1:1 shop/web-1:80", 64, "a source has none"),
        ("why shop/cart-1 shop/web-1:0", 64, "1 to 65535"),
        ("why shop/cart-1 shop/web-1:80 --protocol sctp", 64, "sctp"),
    ] {
        let run = control.meshctl(line);
        let shown = text(&run.stderr);
        assert_eq!(run.status.code(), Some(status), "{line}: {shown}");
        assert!(shown.contains(part), "{line}: {part} in {shown}");
    }
    let nowhere = meshctl(Path::new("/nonexistent/control.sock"), "status");
    assert_eq!(nowhere.status.code(), Some(2));
    let why = text(&nowhere.stderr);
    assert!(
        why.contains("/nonexistent/control.sock") && why.contains("--control-socket"),
        "{why}"
    );
}

#[test]
fn status_shows_nodes_and_what_they_told() {
    let control = Control::start();
    let version = control.registry.current().version().to_string();
    let report = NodeReport {
        clock_ms: 0,
        unreadable_policies: vec![],
        version: "1.2.3".to_owned(),
        discovery_version: version.clone(),
        pods: vec![PodReport {
            namespace: "shop".to_owned(),
            name: "cart-1".to_owned(),
            state: "enrolled".to_owned(),
            worker_pid: 4711,
            worker_version: "1.2.2".to_owned(),
            worker_restarts: 3,
            certificate_not_after_s: i64::MAX,
            policy_version: version,
            unhealthy: true,
            health_detail: "GET /: 503".to_owned(),
            ..Default::default()
        }],
        not_ready: "the CNI plugin is not in place".to_owned(),
        ..NodeReport::default()
    };
    control
        .registry
        .report("node-a", &report, Instant::now())
        .unwrap();
    control.clocks.note("node-a", 1_000_000, 1_120_000);
    let run = control.meshctl("status");
    assert_eq!(run.status.code(), Some(0), "{}", text(&run.stderr));
    let shown = text(&run.stdout);
    for part in [
        "4 workloads, 1 services, 4 policies",
        "node-a: mesh-agent 1.2.3, seen 0 s ago, behind, at ",
        ", not ready: the CNI plugin is not in place, its clock is 120 s behind control's\n",
        "node-b: has not reported since mesh-control started",
        "namespace shop: all enrolled pods run as the service account default",
        "unhealthy: GET /: 503",
    ] {
        assert!(shown.contains(part), "{part} in\n{shown}");
    }
    let row = |name: &str| {
        let line = shown.lines().find(|line| line.contains(name)).unwrap();
        line.split_whitespace().collect::<Vec<_>>()
    };
    let cart = row("shop/cart-1");
    assert_eq!(cart[1..6], ["enforce", "enrolled", "4711", "1.2.2", "3"]);
    assert_eq!(row("trial/new-1")[1..4], ["audit", "not", "reported"]);

    let run = control.meshctl("status -o json");
    let status: serde_json::Value = serde_json::from_slice(&run.stdout).unwrap();
    assert_eq!(status["nodes"][0]["pods"][0]["report"]["worker_pid"], 4711);
    // The unhealthy pod made a new state, which the node has not told of yet.
    assert_eq!(status["nodes"][0]["report"]["behind"], true);
    assert_eq!(status["nodes"][0]["report"]["clock_ahead_s"], -120);
    let not_ready = &status["nodes"][0]["report"]["not_ready"];
    assert_eq!(*not_ready, "the CNI plugin is not in place");
    // The one pod of namespace trial shares its account with nobody.
    assert_eq!(status["namespaces_on_default"], serde_json::json!(["shop"]));
    let run = control.meshctl("metrics");
    assert_eq!(run.status.code(), Some(0), "{}", text(&run.stderr));
}

#[test]
fn a_reader_that_has_seen_enough_is_no_failure() {
    let control = Control::start();
    let mut command = Command::new(env!("CARGO_BIN_EXE_meshctl"));
    command.args(["status", "--control-socket"]);
    command.arg(control.socket()).stdout(Stdio::piped());
    let mut running = command.spawn().expect("meshctl runs");
    drop(running.stdout.take());
    assert_eq!(running.wait().unwrap().code(), Some(0));
}
