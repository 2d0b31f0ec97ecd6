//! A control component's source that follows a double of a cluster.
#![allow(
    dead_code,
    reason = "a module of several test binaries, each of which uses its part"
)]

use std::sync::Arc;
use std::time::Duration;

use mesh_control::registry::{Directory, Registry};
use mesh_control::sources::kubernetes::{Follower, Pace, Settings};
use mesh_core::identity::TrustDomain;
use mesh_core::model::{Mesh, Workload};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::api::{self, Api};

/// What is waited for comes within this time, or the test fails.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) fn trust_domain() -> TrustDomain {
    "cluster.local".parse().unwrap()
}

/// A control component's source in step with a double that has these manifests.
pub(crate) async fn following(api: &Api) -> Arc<Registry> {
    follow_with(api, settings()).await.0
}

pub(crate) fn settings() -> Settings {
    Settings {
        trust_domain: trust_domain(),
        revocations: watch::Sender::default(),
        pace: Pace {
            lease: Duration::from_secs(3),
            look: Duration::from_millis(50),
            nodes: Duration::ZERO,
            write: Duration::ZERO,
            unheard: Duration::ZERO,
        },
        startup_taint: None,
    }
}

pub(crate) async fn follow_with(api: &Api, settings: Settings) -> (Arc<Registry>, JoinHandle<()>) {
    let client = api.client();
    let start = Follower::start(&client, settings);
    let started = tokio::time::timeout(PATIENCE, start).await;
    let (follower, registry) = started.expect("everything is listed").unwrap();
    let running = follower.run(registry.clone());
    // It ends with the test, or where the test ends it.
    let running = tokio::spawn(async { drop(running.await) });
    (registry, running)
}

/// What a folder says, with the UIDs that its pods get in a cluster.
pub(crate) fn with_uids(mut mesh: Mesh) -> Directory {
    let pods: Vec<Workload> = mesh.workloads().map(|pod| (**pod).clone()).collect();
    for mut pod in pods {
        pod.pod_uid = api::pod_uid(pod.identity.namespace(), &pod.name);
        mesh.insert_workload(pod);
    }
    Directory::new(mesh)
}

pub(crate) async fn until(registry: &Registry, what: &str, holds: impl Fn(&Directory) -> bool) {
    let mut served = registry.subscribe();
    let reached = tokio::time::timeout(PATIENCE, async {
        while !holds(&registry.current()) {
            served.changed().await.expect("the registry is here");
        }
    });
    let reached = reached.await;
    reached.unwrap_or_else(|_| panic!("never came: {what}"));
}

pub(crate) const SCENARIO: &str = r#"
kind: Namespace
metadata: {name: default}
---
kind: Namespace
metadata: {name: shop, labels: {nodemesh.dev/enroll: "true"}}
---
kind: Namespace
metadata: {name: legacy}
---
kind: Node
metadata: {name: node-a, labels: {topology.kubernetes.io/region: eu, topology.kubernetes.io/zone: eu-1}}
---
kind: ServiceAccount
metadata: {name: cart, namespace: shop}
---
kind: ServiceAccount
metadata: {name: web, namespace: shop}
---
kind: Pod
metadata: {name: cart-1, namespace: shop, labels: {app: cart}}
spec:
  nodeName: node-a
  serviceAccountName: cart
  containers: [{ports: [{name: http, containerPort: 8080}]}]
status: {podIPs: [{ip: 10.1.0.1}, {ip: "fd00:1::1"}]}
---
kind: Pod
metadata: {name: web-1, namespace: shop, labels: {app: web}}
spec: {nodeName: node-b, serviceAccountName: web}
status: {podIPs: [{ip: 10.1.0.2}]}
---
kind: Pod
metadata: {name: agent, namespace: legacy}
spec: {nodeName: node-b, hostNetwork: true}
status: {podIPs: [{ip: 192.0.2.7}]}
---
kind: Service
metadata: {name: cart, namespace: shop}
spec:
  selector: {app: cart}
  clusterIPs: [10.96.0.1, "fd00:96::1"]
  ports: [{name: http, port: 80, targetPort: http}]
---
kind: Service
metadata: {name: cart-pods, namespace: shop}
spec:
  selector: {app: cart}
  clusterIP: None
  ports: [{port: 8080}]
---
kind: Service
metadata: {name: elsewhere, namespace: shop}
spec: {type: ExternalName, externalName: example.org}
---
apiVersion: nodemesh.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {name: web-to-cart, namespace: shop}
spec:
  target: {service: cart}
  direction: Inbound
  action: Allow
  rules: [{peers: [{namespace: shop, serviceAccount: web}], ports: [8080]}]
---
apiVersion: nodemesh.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {name: no-legacy, namespace: shop}
spec:
  direction: Inbound
  action: Deny
  rules: [{peers: [{namespace: legacy}]}]
---
apiVersion: nodemesh.dev/v1alpha1
kind: AuthenticationPolicy
metadata: {name: strict, namespace: shop}
spec: {mode: Strict, ports: {"9000": Permissive}}
---
apiVersion: nodemesh.dev/v1alpha1
kind: ServicePolicy
metadata: {name: cart, namespace: shop}
spec: {service: cart, balancing: RoundRobin, healthChecks: [{port: 80, http: {path: /healthz}}]}
---
apiVersion: nodemesh.dev/v1alpha1
kind: WorkerBudget
metadata: {name: small, namespace: shop}
spec: {memoryMaxMib: 64}"#;
