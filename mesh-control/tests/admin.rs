//! The admin socket: who may use it, what it takes, what it answers.

mod support;

use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use mesh_api::admin::{Outcome, Place, Request, Response, SOCKET_NAME, Why};
use mesh_api::node::{NodeReport, PodReport};
use mesh_control::admin::{self, Admin};
use mesh_control::observe::Series;
use mesh_control::registry::{Directory, Registry};
use mesh_control::sources::manifests::load;
use mesh_core::policy::Protocol;
use support::MANIFESTS;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;

/// `cart` may call `web`, which lets only `cart` in on 8080; DNS is at kube-dns.
const POLICIES: &str = r#"
---
kind: AuthorizationPolicy
apiVersion: nodemesh.dev/v1alpha1
metadata: {name: cart-out, namespace: shop}
spec:
  target: {labels: {app: cart}}
  direction: Outbound
  action: Allow
  rules: [{peers: [{labels: {app: web}}]}]
---
kind: AuthorizationPolicy
apiVersion: nodemesh.dev/v1alpha1
metadata: {name: web-in, namespace: shop}
spec:
  target: {labels: {app: web}}
  direction: Inbound
  action: Allow
  rules: [{peers: [{namespace: shop, serviceAccount: cart}], ports: [8080]}]
---
kind: AuthorizationPolicy
apiVersion: nodemesh.dev/v1alpha1
metadata: {name: no-port-25, namespace: nodemesh-system}
spec:
  target: {mesh: true}
  direction: Outbound
  action: Deny
  rules: [{ports: [25]}]
---
kind: Namespace
metadata: {name: kube-system}
---
kind: Pod
metadata: {name: dns-1, namespace: kube-system, labels: {app: dns}}
spec: {nodeName: node-a}
status: {podIP: 10.1.0.53}
---
kind: Service
metadata: {name: kube-dns, namespace: kube-system}
spec: {selector: {app: dns}, clusterIP: 10.96.0.10, ports: [{name: tcp, port: 53}, {name: udp, port: 53, protocol: UDP}]}
---
kind: Service
metadata: {name: web-1, namespace: shop}
spec: {selector: {app: web}, clusterIP: 10.96.0.2, ports: [{name: a, port: 80, targetPort: 8080}, {name: b, port: 81}]}
"#;

fn admin(resolvers: &[&str]) -> Arc<Admin> {
    let folder = tempfile::tempdir().unwrap();
    let text = format!("{MANIFESTS}{POLICIES}");
    std::fs::write(folder.path().join("mesh.yaml"), text).unwrap();
    let loaded = load(folder.path(), &"cluster.local".parse().unwrap()).unwrap();
    Arc::new(Admin {
        registry: Arc::new(Registry::new(Directory::new(loaded.mesh))),
        resolvers: resolvers.iter().map(|ip| ip.parse().unwrap()).collect(),
        clocks: Arc::default(),
        series: Series::detached(),
    })
}

/// A served socket, and a client on it.
struct Asking {
    folder: TempDir,
    stream: BufReader<UnixStream>,
}

impl Asking {
    async fn start() -> Self {
        Self::of(admin(&["10.200.0.1"])).await
    }

    async fn of(admin: Arc<Admin>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let listener = admin::listen(folder.path()).unwrap();
        tokio::spawn(admin::serve(listener, admin));
        let stream = UnixStream::connect(folder.path().join(SOCKET_NAME)).await;
        Self {
            folder,
            stream: BufReader::new(stream.unwrap()),
        }
    }

    async fn line(&mut self, line: &str) -> Response {
        let line = format!("{line}\n");
        self.stream.write_all(line.as_bytes()).await.unwrap();
        let mut answer = String::new();
        self.stream.read_line(&mut answer).await.unwrap();
        serde_json::from_str(&answer).unwrap()
    }

    async fn ask(&mut self, request: &Request) -> Response {
        self.line(&serde_json::to_string(request).unwrap()).await
    }

    async fn why(&mut self, source: &str, destination: Place, port: u16) -> Why {
        let request = why(Place::Name(source.to_owned()), destination, Some(port));
        let response = self.ask(&request).await;
        let error = response.error.unwrap_or_default();
        response.why.unwrap_or_else(|| panic!("{error}"))
    }
}

fn why(source: Place, destination: Place, port: Option<u16>) -> Request {
    Request::Why {
        source,
        destination,
        port,
        protocol: Protocol::Tcp,
    }
}

fn named(name: &str) -> Place {
    Place::Name(name.to_owned())
}

fn pod(name: &str) -> Place {
    Place::Pod(name.to_owned())
}

fn address(text: &str) -> Place {
    Place::Address(text.parse().unwrap())
}

#[tokio::test]
async fn a_pod_that_its_node_has_cut_off_reaches_nothing_whatever_policy_says() {
    let admin = admin(&[]);
    let mut asking = Asking::of(admin.clone()).await;
    let report = |node: &str, name: &str, state: &str| {
        let pod = PodReport {
            namespace: "shop".to_owned(),
            name: name.to_owned(),
            state: state.to_owned(),
            reason: "an app listens on [15008]".to_owned(),
            ..Default::default()
        };
        let pods = vec![pod];
        let report = NodeReport {
            pods,
            ..Default::default()
        };
        admin
            .registry
            .report(node, &report, Instant::now())
            .unwrap();
    };
    let node = |name: &str| {
        let uid = format!("Kubernetes//v1/Pod/shop/{name}");
        let current = admin.registry.current();
        current.mesh().workload(&uid).unwrap().node.clone()
    };
    for (cut_off, errno) in [("cart-1", Some("EPERM")), ("web-1", None)] {
        report(&node(cut_off), cut_off, mesh_api::STATE_CUT_OFF);
        for destination in [pod("shop/web-1"), Place::Service("shop/web-1".to_owned())] {
            let port = if destination == pod("shop/web-1") {
                8080
            } else {
                80
            };
            let why = asking.why("shop/cart-1", destination, port).await;
            assert_eq!(why.outcome, Outcome::Refused, "{}", why.text);
            assert_eq!(why.reason.unwrap().code, "cut_off");
            assert_eq!(why.errno.as_deref(), errno);
            let says = why.text.contains("listens on [15008]") && why.text.contains(cut_off);
            assert!(says, "{}", why.text);
        }
        report(&node(cut_off), cut_off, "enrolled");
        let why = asking.why("shop/cart-1", pod("shop/web-1"), 8080).await;
        assert_eq!(why.outcome, Outcome::Allowed);
    }
}

#[tokio::test]
async fn each_end_decides_and_the_policy_is_named() {
    let mut asking = Asking::start().await;
    let allowed = asking.why("shop/cart-1", pod("shop/web-1"), 8080).await;
    assert_eq!(allowed.outcome, Outcome::Allowed);
    let [attempt] = &allowed.attempts[..] else {
        panic!("one endpoint: {allowed:?}")
    };
    assert!(attempt.encrypted);
    let policy = |end: &Option<mesh_api::admin::Decision>| end.clone().unwrap().policy;
    assert_eq!(policy(&attempt.outbound).as_deref(), Some("shop/cart-out"));
    assert_eq!(policy(&attempt.inbound).as_deref(), Some("shop/web-in"));

    let service = Place::Service("shop/web-1".to_owned());
    let by_service = asking.why("shop/cart-1", service, 80).await;
    assert_eq!(by_service.outcome, Outcome::Allowed);
    assert_eq!(by_service.attempts[0].port, 8080, "the pod's own port");

    let refused = asking.why("shop/cart-1", pod("shop/web-1"), 8081).await;
    assert_eq!(refused.outcome, Outcome::Refused);
    assert_eq!(refused.reason.unwrap().code, "policy_no_rule");
    assert_eq!(refused.errno, None, "at the destination");
    assert!(refused.missing[0].contains("kind: AuthorizationPolicy"));

    let denied = asking.why("shop/cart-1", pod("shop/web-1"), 25).await;
    assert_eq!(denied.reason.unwrap().code, "policy_denied");
    assert_eq!(denied.errno.as_deref(), Some("EPERM"), "{}", denied.text);
    for part in [
        "pod shop/cart-1",
        "pod shop/web-1",
        "nodemesh-system/no-port-25",
    ] {
        assert!(denied.text.contains(part), "{part} in {}", denied.text);
    }
}

#[tokio::test]
async fn resolvers_are_those_of_the_model_and_those_given() {
    let mut asking = Asking::start().await;
    for resolver in ["10.96.0.10", "10.1.0.53", "10.200.0.1"] {
        let dns = asking.why("shop/cart-1", address(resolver), 53).await;
        assert_eq!(dns.outcome, Outcome::Allowed, "{}", dns.text);
    }
    let other = asking.why("shop/cart-1", address("10.200.0.2"), 53).await;
    assert_eq!(other.outcome, Outcome::Refused);
}

#[tokio::test]
async fn what_has_no_answer_says_what_would_have_one() {
    let mut asking = Asking::start().await;
    let cart = || named("shop/cart-1");
    for (request, part) in [
        (
            why(cart(), named("shop/web-1"), None),
            "both a pod and a service: say pod/shop/web-1 or svc/shop/web-1",
        ),
        (
            why(cart(), pod("shop/web-1"), None),
            "give a port, as in shop/web-1:80",
        ),
        (
            why(cart(), Place::Service("shop/web-1".to_owned()), None),
            "it has 80, 81",
        ),
        (why(cart(), address("fd00::1"), None), "as in [fd00::1]:80"),
        (
            why(cart(), named("shop/none"), Some(1)),
            "there is no pod or service shop/none",
        ),
        (
            why(named("shop/none"), cart(), Some(1)),
            "there is no pod shop/none",
        ),
        (
            why(named("shop"), cart(), Some(1)),
            "\"shop\" is not <namespace>/<name>",
        ),
        (
            why(named("shop/cart"), cart(), Some(1)),
            "shop/cart is a service; its pods: shop/cart-1",
        ),
        (
            why(Place::Service("shop/x".to_owned()), cart(), Some(1)),
            "there is no service shop/x",
        ),
    ] {
        let answer = asking.ask(&request).await;
        let error = answer.error.expect("an error");
        assert!(error.contains(part), "{error} should say {part}");
        assert_eq!(answer.why, None);
    }
    // The only port of a service need not be given.
    let cart = Place::Service("shop/cart".to_owned());
    let answer = asking.ask(&why(named("shop/web-1"), cart, None)).await;
    assert_eq!(answer.why.unwrap().attempts[0].port, 8080);
}

#[tokio::test]
async fn nonsense_is_answered_and_the_connection_stays() {
    let mut asking = Asking::start().await;
    for line in ["{", "{\"op\":\"stop\"}", "{\"op\":\"why\"}", "[]"] {
        let error = asking.line(line).await.error.unwrap();
        assert!(error.contains("not a request"), "{error}");
    }
    let status = asking.ask(&Request::Status).await.status.unwrap();
    assert_eq!(
        (status.workloads, status.services, status.policies),
        (4, 3, 3)
    );
    let nodes: Vec<_> = status.nodes.iter().map(|node| node.name.as_str()).collect();
    assert_eq!(nodes, ["node-a", "node-b"]);
    let pods: Vec<_> = status.nodes[0].pods.iter().map(|pod| &pod.name).collect();
    assert_eq!(pods, ["cart-1"], "not those outside the mesh");
}

#[tokio::test]
async fn the_socket_is_roots_and_one_components() {
    let asking = Asking::start().await;
    let path = asking.folder.path().join(SOCKET_NAME);
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode();
    assert_eq!(mode(&path) & 0o777, 0o600);
    let second = admin::listen(asking.folder.path()).unwrap_err();
    assert_eq!(second.kind(), io::ErrorKind::AddrInUse);
    assert!(second.to_string().contains("--state-dir"), "{second}");

    // One that nobody serves any more is replaced.
    let folder = tempfile::tempdir().unwrap();
    drop(admin::listen(folder.path()).unwrap());
    let path = folder.path().join(SOCKET_NAME);
    assert!(std::fs::metadata(&path).unwrap().file_type().is_socket());
    admin::listen(folder.path()).unwrap();
}
