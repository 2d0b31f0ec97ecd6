//! Certificates for the worker.

use mesh_api::worker::to_worker::Message as ForWorker;
use mesh_api::worker::{Certificate, CertificateRefused};
use tokio::time::Instant;

use super::{SIGNING_INTERVAL, Session};
use crate::supervisor::pods::Part;
use crate::supervisor::signing::{Signing, SigningEvent};

impl Session<'_> {
    /// One request after the other, and not too many: control serves every node.
    pub(super) fn asked_to_sign(&mut self, csr: Vec<u8>) {
        // The last one counts, at the turn of the first.
        if let Some((_, waiting)) = &mut self.link.sign_later {
            *waiting = csr;
            return;
        }
        let now = Instant::now();
        let own = self
            .link
            .signed_at
            .map_or(now, |last| last + SIGNING_INTERVAL);
        let at = own.max(self.task.shared.work.signing(now));
        if at <= now {
            self.sign(csr, now);
        } else {
            self.task.held_back("signing");
            self.link.sign_later = Some((at, csr));
        }
    }

    pub(super) fn sign(&mut self, csr: Vec<u8>, now: Instant) {
        self.link.signed_at = Some(now);
        self.link.sign_later = None;
        self.link.signing = Some(Signing::start(self.task, csr));
    }

    pub(super) fn signing_event(&mut self, event: SigningEvent) {
        match event {
            SigningEvent::Signed(svid) => {
                self.link.signing = None;
                self.link.post(ForWorker::Certificate(Certificate {
                    chain: svid.chain.clone(),
                }));
                match self.link.part {
                    Part::Next => self.link.legacy.svid = Some(svid),
                    _ => self.task.keep_certificate(svid),
                }
                self.step_taken();
            }
            SigningEvent::Lost(why) => {
                let pod = &self.task.record.key;
                tracing::warn!(%pod, why, "the signing request of the pod's worker is given up");
                self.link.signing = None;
                self.link
                    .post(ForWorker::CertificateRefused(CertificateRefused { why }));
            }
            SigningEvent::Refused(why) => {
                self.link
                    .post(ForWorker::CertificateRefused(CertificateRefused { why }));
            }
        }
    }
}
