//! What this node and its pods trust, and what is revoked, as control says: followed live, kept over
//! restarts. Before control has said anything it is what the operator gave.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use mesh_api::convert::trust::read_into;
use mesh_api::trust::trust_service_client::TrustServiceClient;
use mesh_api::trust::{FollowRequest, ListedByIssuer, Trust};
use mesh_api::worker::TrustBundle;
use mesh_core::revocation::Revocations;
use metrics::{counter, gauge};
use prost::Message;
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use tokio::sync::watch;
use tokio::time::sleep;
use tonic::transport::Channel;

use super::backoff::{Backoff, random};
use super::config::Config;
use super::control::{Control, FIRST_RETRY, LONGEST_RETRY};
use super::join::{chain, explain, write_private};
use crate::channel::MAX_PACKET;

const FILE: &str = "trust.pb";
/// Largest answer, in bytes.
const MAX_ANSWER: usize = 16 * 1024 * 1024;
/// Bytes of entries in one message to a worker: what is left of a packet after all around them.
const MAX_LEN: usize = MAX_PACKET - 1024;
/// Tag and length before each entry.
const ELEMENT: usize = 8;

/// Roots and revocations that hold.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Bundle {
    /// DER.
    pub(super) roots: Vec<CertificateDer<'static>>,
    revocations: mesh_api::trust::Revocations,
    version: String,
}

impl Bundle {
    /// Checks what control, or an earlier run, says.
    fn new(said: Trust) -> Result<Self, String> {
        let roots: Vec<_> = said.roots.into_iter().map(CertificateDer::from).collect();
        let mut store = RootCertStore::empty();
        for root in &roots {
            let added = store.add(root.clone());
            added.map_err(|e| format!("a root can't be used: {e}"))?;
        }
        if roots.is_empty() {
            return Err("it has no root".to_owned());
        }
        let revocations = said.revocations.unwrap_or_default();
        read_into(&mut Revocations::default(), &revocations).map_err(|e| e.to_string())?;
        Ok(Self {
            roots,
            revocations,
            version: said.version,
        })
    }

    /// The roots as text.
    pub(super) fn roots_pem(&self) -> String {
        let pem = |root: &CertificateDer<'_>| pem::Pem::new("CERTIFICATE", root.to_vec());
        let pems: Vec<_> = self.roots.iter().map(pem).collect();
        pem::encode_many(&pems)
    }

    /// What a worker is told, in messages that fit the channel's packets.
    pub(super) fn for_worker(&self) -> Vec<TrustBundle> {
        let mut parts = Parts::default();
        for root in &self.roots {
            parts.room(root.len()).roots.push(root.to_vec());
        }
        for identity in &self.revocations.identities {
            let part = parts.revoked(identity.len());
            part.identities.push(identity.clone());
        }
        for mark in &self.revocations.marks {
            parts.revoked(mark.len()).marks.push(mark.clone());
        }
        for serial in &self.revocations.serials {
            parts.revoked(serial.len()).serials.push(serial.clone());
        }
        for ListedByIssuer { issuer, serials } in &self.revocations.listed {
            for serial in serials {
                let part = parts.revoked(serial.len() + issuer.len());
                match part.listed.last_mut().filter(|last| last.issuer == *issuer) {
                    Some(last) => last.serials.push(serial.clone()),
                    None => part.listed.push(ListedByIssuer {
                        issuer: issuer.clone(),
                        serials: vec![serial.clone()],
                    }),
                }
            }
        }
        parts.done()
    }
}

#[derive(Default)]
struct Parts {
    all: Vec<TrustBundle>,
    len: usize,
}

impl Parts {
    /// Where an entry of this length goes.
    fn room(&mut self, len: usize) -> &mut TrustBundle {
        self.len += len + ELEMENT;
        if self.all.is_empty() || self.len > MAX_LEN {
            self.len = len + ELEMENT;
            self.all.push(TrustBundle::default());
        }
        let last = self.all.len() - 1;
        &mut self.all[last]
    }

    fn revoked(&mut self, len: usize) -> &mut mesh_api::trust::Revocations {
        let part = self.room(len);
        if part.revocations.is_empty() {
            part.revocations
                .push(mesh_api::trust::Revocations::default());
        }
        &mut part.revocations[0]
    }

    fn done(mut self) -> Vec<TrustBundle> {
        let followed = self.all.len().saturating_sub(1);
        for part in &mut self.all[..followed] {
            part.more = true;
        }
        self.all
    }
}

/// The bundle that holds, and its changes.
#[derive(Debug)]
pub(super) struct TrustStore {
    bundle: watch::Sender<Arc<Bundle>>,
    file: PathBuf,
}

impl TrustStore {
    /// Begins with what an earlier run was told, or else with what the operator gave.
    pub(super) fn open(config: &Config) -> Arc<Self> {
        let file = config.state_dir.join(FILE);
        let bundle = match load(&file) {
            Ok(Some(bundle)) => bundle,
            other => {
                if let Err(why) = other {
                    tracing::warn!(path = %file.display(), error = why, "the trust bundle that was kept is unusable: beginning with --trust-bundle");
                }
                Bundle {
                    roots: config.trust_bundle.clone(),
                    revocations: mesh_api::trust::Revocations::default(),
                    version: String::new(),
                }
            }
        };
        gauge!("nodemesh_trusted_roots").set(bundle.roots.len() as f64);
        Arc::new(Self {
            bundle: watch::Sender::new(Arc::new(bundle)),
            file,
        })
    }

    /// What holds.
    pub(super) fn bundle(&self) -> Arc<Bundle> {
        self.bundle.borrow().clone()
    }

    /// Changes to come.
    pub(super) fn changes(&self) -> watch::Receiver<Arc<Bundle>> {
        self.bundle.subscribe()
    }

    /// Takes what control says, if it can be read.
    fn take(&self, said: Trust) {
        let bytes = said.encode_to_vec();
        let bundle = match Bundle::new(said) {
            Ok(bundle) => bundle,
            Err(why) => {
                counter!("nodemesh_trust_refused_total").increment(1);
                tracing::error!(
                    error = why,
                    "control's trust bundle can't be used, the last good one stays (is this agent older than control?)"
                );
                return;
            }
        };
        if bundle == *self.bundle() {
            return;
        }
        if let Err(e) = write_private(&self.file, &bytes) {
            tracing::warn!(error = %chain(&e), "the trust bundle could not be kept");
        }
        let revoked = &bundle.revocations;
        let listed: usize = revoked.listed.iter().map(|by| by.serials.len()).sum();
        let serials = revoked.serials.len() + listed;
        for (kind, count) in [
            ("identity", revoked.identities.len()),
            ("node", revoked.nodes.len()),
            ("serial", serials),
        ] {
            gauge!("nodemesh_revocations", "kind" => kind).set(count as f64);
        }
        gauge!("nodemesh_trusted_roots").set(bundle.roots.len() as f64);
        tracing::info!(
            version = bundle.version,
            roots = bundle.roots.len(),
            identities = revoked.identities.len(),
            nodes = revoked.nodes.len(),
            serials,
            "trust: another bundle is in force"
        );
        self.bundle.send_replace(Arc::new(bundle));
    }
}

fn load(file: &Path) -> Result<Option<Bundle>, String> {
    let bytes = match std::fs::read(file) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e.to_string()),
    };
    let said = Trust::decode(bytes.as_slice()).map_err(|e| e.to_string())?;
    Bundle::new(said).map(Some)
}

/// Follows what control says, for ever.
pub(super) async fn follow(control: Arc<Control>, trust: Arc<TrustStore>) {
    let mut renewals = control.renewals();
    let mut backoff = Backoff::new(FIRST_RETRY, LONGEST_RETRY);
    loop {
        let replica = control.replica().await;
        renewals.mark_unchanged();
        let mut heard = false;
        let outcome = tokio::select! {
            outcome = stream(replica.channel, &trust, &mut heard) => outcome,
            _ = renewals.changed() => continue,
        };
        if heard {
            backoff.reset();
        }
        let wait = backoff.next(random());
        control.trouble("no trust bundle", &outcome, wait);
        control.leave(replica.address);
        sleep(wait).await;
    }
}

/// One stream, until it ends; returns why it did.
async fn stream(channel: Channel, trust: &TrustStore, heard: &mut bool) -> String {
    let mut client = TrustServiceClient::new(channel).max_decoding_message_size(MAX_ANSWER);
    let mut answers = match client.follow(FollowRequest {}).await {
        Ok(answers) => answers.into_inner(),
        Err(status) => return explain(&status),
    };
    loop {
        match answers.message().await {
            Ok(Some(said)) => {
                *heard = true;
                trust.take(said);
            }
            Ok(None) => return "control ended the stream".to_owned(),
            Err(status) => return explain(&status),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root() -> Vec<u8> {
        let key = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::default();
        params.self_signed(&key).unwrap().der().to_vec()
    }

    #[test]
    fn what_has_no_usable_root_or_cannot_be_read_is_refused() {
        let with = |roots: Vec<Vec<u8>>, identities: &[&str]| {
            Bundle::new(Trust {
                roots,
                revocations: Some(mesh_api::trust::Revocations {
                    identities: identities.iter().map(ToString::to_string).collect(),
                    ..mesh_api::trust::Revocations::default()
                }),
                ..Trust::default()
            })
        };
        assert!(with(vec![root()], &[]).is_ok());
        assert!(with(Vec::new(), &[]).unwrap_err().contains("no root"));
        assert!(with(vec![vec![1, 2]], &[]).is_err());
        assert!(with(vec![root()], &["cart"]).unwrap_err().contains("cart"));
    }

    #[test]
    fn a_large_bundle_is_told_in_packets_that_say_the_same_together() {
        let serial = |n: u32| [&[7; 16][..], &n.to_be_bytes()].concat();
        let listed = |issuer: u8| ListedByIssuer {
            issuer: vec![issuer; 100],
            serials: (0..6_000).map(serial).collect(),
        };
        let bundle = Bundle {
            roots: vec![root().into()],
            revocations: mesh_api::trust::Revocations {
                identities: vec!["spiffe://cluster.local/ns/a/sa/b".to_owned()],
                nodes: Vec::new(),
                marks: vec![vec![1; 8]],
                serials: (0..6_000).map(serial).collect(),
                listed: vec![listed(1), listed(2)],
            },
            version: String::new(),
        };
        let parts = bundle.for_worker();
        assert!(parts.len() > 2);
        let last = parts.len() - 1;
        let (mut expected, mut read) = (Revocations::default(), Revocations::default());
        read_into(&mut expected, &bundle.revocations).unwrap();
        let mut roots = Vec::new();
        for (index, part) in parts.into_iter().enumerate() {
            assert!(part.encoded_len() < MAX_PACKET);
            assert_eq!(part.more, index < last);
            roots.extend(part.roots);
            read_into(&mut read, &part.revocations[0]).unwrap();
        }
        assert_eq!(read, expected);
        assert_eq!(roots, [bundle.roots[0].to_vec()]);
    }
}
