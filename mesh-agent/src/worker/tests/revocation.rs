//! What is not trusted any more: no new tunnel, and an end to those that stand; others go on.

use std::sync::Arc;

use mesh_api::trust::{ListedByIssuer, Revocations};
use mesh_api::worker::refusal::Outcome;
use mesh_api::worker::{TrustBundle, to_worker::Message};
use mesh_core::certificate::Leaf;
use mesh_core::reason::Reason;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::harness::{Mesh, TestPod, within};
use super::pki::Pki;
use super::relay::expect_reset;

/// Pods `a`, `b` and `c`; a flow from `a` to `b`, and one from `c` to `b`.
struct Three {
    mesh: Arc<Mesh>,
    pods: [TestPod; 3],
    listener: TcpListener,
    from_a: [TcpStream; 2],
    from_c: [TcpStream; 2],
}

impl Three {
    async fn start() -> Self {
        let mesh = Mesh::new();
        let pods = [
            TestPod::start(&mesh, "a").await,
            TestPod::start(&mesh, "b").await,
            TestPod::start(&mesh, "c").await,
        ];
        let (listener, at) = pods[1].listen(&mesh).await;
        let mut flows = Vec::new();
        for caller in [&pods[0], &pods[2]] {
            let app = caller.dial(at).await;
            let (server, _) = within("accept", listener.accept()).await.unwrap();
            flows.push([app, server]);
        }
        let from_c = flows.pop().unwrap();
        let from_a = flows.pop().unwrap();
        Self {
            mesh,
            pods,
            listener,
            from_a,
            from_c,
        }
    }

    fn tell(&self, pod: usize, revocations: Revocations) {
        self.pods[pod].send(Message::TrustBundle(TrustBundle {
            roots: self.mesh.pki.roots(),
            revocations: vec![revocations],
            more: false,
        }));
    }

    fn leaf(&self, pod: usize) -> Leaf {
        let chain = self.pods[pod].heard.lock().unwrap().chain.clone();
        Leaf::from_der(&chain[0]).unwrap()
    }

    /// The flow of `a` ends and it gets no other; that of `c` goes on, and it gets others.
    async fn only_a_is_cut(mut self, by: usize, reason: Reason) {
        let at = self.listener.local_addr().unwrap();
        for end in &mut self.from_a {
            expect_reset(end).await;
        }
        self.pods[by].judged(Outcome::Cut, reason).await;
        self.pods[0].dial_in_vain(at).await;
        let [app, server] = &mut self.from_c;
        app.write_all(b"on").await.unwrap();
        let mut two = [0; 2];
        within("the other flow", server.read_exact(&mut two))
            .await
            .unwrap();
        let _new = self.pods[2].dial(at).await;
        let accepted = within("accept", self.listener.accept()).await;
        accepted.unwrap();
    }
}

#[tokio::test]
async fn a_revoked_caller_is_cut_whatever_names_it() {
    for kind in ["identity", "serial", "node", "list"] {
        println!("{kind}");
        let three = Three::start().await;
        let leaf = three.leaf(0);
        let mut revocations = Revocations::default();
        match kind {
            "identity" => revocations.identities.push(three.pods[0].identity.clone()),
            "serial" => revocations.serials.push(leaf.id.serial.clone()),
            "node" => revocations.marks.push(leaf.id.serial[..8].to_vec()),
            _ => revocations.listed.push(ListedByIssuer {
                issuer: leaf.id.issuer.clone(),
                serials: vec![leaf.id.serial.clone()],
            }),
        }
        three.tell(1, revocations);
        three.only_a_is_cut(1, Reason::PeerRevoked).await;
    }
}

#[tokio::test]
async fn a_revoked_pod_takes_part_no_more_by_its_own_worker_either() {
    let three = Three::start().await;
    let identities = vec![three.pods[0].identity.clone()];
    let revocations = Revocations {
        identities,
        ..Revocations::default()
    };
    three.tell(0, revocations);
    three.only_a_is_cut(0, Reason::OwnRevoked).await;
}

#[tokio::test]
async fn a_revoked_destination_is_cut_and_not_dialled() {
    let mut three = Three::start().await;
    let at = three.listener.local_addr().unwrap();
    let identities = vec![three.pods[1].identity.clone()];
    let revocations = Revocations {
        identities,
        ..Revocations::default()
    };
    three.tell(0, revocations.clone());
    for end in &mut three.from_a {
        expect_reset(end).await;
    }
    let a = &three.pods[0];
    a.judged(Outcome::Cut, Reason::PeerRevoked).await;
    a.dial_in_vain(at).await;
    a.refused("outbound", Reason::PeerRevoked, 1).await;
    // Taken back, it is as if nothing had been.
    three.tell(0, Revocations::default());
    three.pods[0].has_taken_all().await;
    let mut back = three.pods[0].dial(at).await;
    back.write_all(b"again").await.unwrap();
    within("accept", three.listener.accept()).await.unwrap();
}

#[tokio::test]
async fn a_root_that_is_taken_away_takes_its_tunnels_along_and_another_changes_nothing() {
    let mut three = Three::start().await;
    let other = Pki::new();
    let b = &three.pods[1];
    let trust = |roots| {
        Message::TrustBundle(TrustBundle {
            roots,
            ..TrustBundle::default()
        })
    };
    let both = [three.mesh.pki.roots(), other.roots()].concat();
    // Told in two parts, it is one bundle.
    b.send(Message::TrustBundle(TrustBundle {
        roots: vec![both[1].clone()],
        revocations: Vec::new(),
        more: true,
    }));
    b.send(trust(vec![both[0].clone()]));
    let at = three.listener.local_addr().unwrap();
    let mut app = three.pods[0].dial(at).await;
    app.write_all(b"under both").await.unwrap();
    let (mut server, _) = within("accept", three.listener.accept()).await.unwrap();
    let mut read = [0; 10];
    within("bytes", server.read_exact(&mut read)).await.unwrap();
    b.send(trust(other.roots()));
    for end in three.from_a.iter_mut().chain(&mut three.from_c) {
        expect_reset(end).await;
    }
    b.judged(Outcome::Cut, Reason::PeerUntrusted).await;
    three.pods[0].dial_in_vain(at).await;
}

#[tokio::test]
async fn a_bundle_that_cannot_be_read_changes_nothing() {
    let mut three = Three::start().await;
    three.tell(
        1,
        Revocations {
            identities: vec!["nobody".to_owned(), three.pods[0].identity.clone()],
            ..Revocations::default()
        },
    );
    let count = "nodemesh_trust_unreadable_total";
    three.pods[1].counted(count, "", 1).await;
    let [app, server] = &mut three.from_a;
    app.write_all(b"on").await.unwrap();
    within("bytes", server.read_exact(&mut [0; 2]))
        .await
        .unwrap();
}
