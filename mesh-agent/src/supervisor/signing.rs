//! A worker's signing request, under way with control.

use std::future::pending;

use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::csr::{self, CsrError, Svid};
use super::workers::PodTask;

/// A request under way with control; given up with the session.
pub(super) struct Signing {
    task: JoinHandle<Result<Svid, CsrError>>,
    trouble: mpsc::Receiver<String>,
}

impl Drop for Signing {
    fn drop(&mut self) {
        self.task.abort();
    }
}

pub(super) enum SigningEvent {
    /// Done.
    Signed(Svid),
    /// Control said no; it is asked again.
    Refused(String),
    /// The request will not be answered.
    Lost(String),
}

impl Signing {
    /// Has a pod's request signed, for the identity that the supervisor has for the pod.
    pub(super) fn start(pod: &PodTask, csr: Vec<u8>) -> Self {
        let (told, trouble) = mpsc::channel(1);
        let shared = pod.shared.clone();
        let identity = pod.identity.clone();
        let key = pod.record.key.clone();
        let report = pod.report.clone();
        let task = tokio::spawn(async move {
            let on_trouble = |error: &CsrError| {
                tracing::warn!(pod = %key, error = %error, "no certificate for the pod's worker yet; trying on");
                report.send_modify(|report| {
                    if !report.ready {
                        report.reason = format!("waiting for its certificate: {error}");
                    }
                });
                if !matches!(error, CsrError::Unreachable(_)) {
                    let _ = told.try_send(error.to_string());
                }
            };
            let (control, trust) = (&shared.control, &shared.trust);
            let asked = csr::Asked {
                identity: &identity,
                csr: &csr,
                lifetime_s: shared.config.certificate_lifetime_s.into(),
            };
            csr::relay(control, trust, &asked, on_trouble).await
        });
        Self { task, trouble }
    }

    async fn next(&mut self) -> SigningEvent {
        tokio::select! {
            Some(why) = self.trouble.recv() => SigningEvent::Refused(why),
            signed = &mut self.task => match signed {
                Ok(Ok(svid)) => SigningEvent::Signed(svid),
                Ok(Err(e)) => SigningEvent::Lost(e.to_string()),
                Err(e) => SigningEvent::Lost(format!("internal error: {e}")),
            },
        }
    }
}

/// What comes next of a request, if one is under way.
pub(super) async fn next_signing(signing: &mut Option<Signing>) -> SigningEvent {
    match signing {
        Some(signing) => signing.next().await,
        None => pending().await,
    }
}
