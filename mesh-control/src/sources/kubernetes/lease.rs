//! Which of several replicas writes: a Lease of coordination.k8s.io, held as client-go's leader election
//! holds one. Clocks of replicas are not compared: a lease is over when nobody has seen it renewed for
//! its whole duration.

use std::time::{Duration, Instant};

use aws_lc_rs::rand;
use k8s_openapi::api::coordination::v1::{Lease as Object, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::Client;
use kube::api::{Api, ObjectMeta, PostParams};

/// Answers that say that another replica was first.
const ALREADY_EXISTS_OR_CONFLICT: u16 = 409;

/// Why something could not be written.
#[derive(Debug, thiserror::Error)]
pub enum WriteFault {
    /// The API server says no, or can't be asked.
    #[error(transparent)]
    Api(#[from] kube::Error),
    /// The client tries again by itself, for longer than there is time.
    #[error("no answer within {} ms", .0.as_millis())]
    Late(Duration),
}

/// A lease that this process may hold.
pub struct Lease {
    api: Api<Object>,
    name: String,
    identity: String,
    duration: Duration,
    /// What another one wrote last, and when that was first seen here.
    seen: Option<(LeaseSpec, Instant)>,
    held_until: Option<Instant>,
}

impl Lease {
    /// The lease of this name in the client's own namespace; others take it over when it has not been
    /// renewed for `duration`.
    #[must_use]
    pub fn new(client: &Client, name: &str, duration: Duration) -> Self {
        let mut random = [0; 8];
        // Without randomness the process has ended before: nothing of TLS works.
        let _ = rand::fill(&mut random);
        let host = std::env::var("HOSTNAME").unwrap_or_else(|_| "mesh-control".to_owned());
        let random = u64::from_ne_bytes(random);
        Self {
            api: Api::default_namespaced(client.clone()),
            name: name.to_owned(),
            identity: format!("{host}_{random:016x}"),
            duration,
            seen: None,
            held_until: None,
        }
    }

    /// Whether it is held for a while yet. It ends here before anybody may take it over.
    #[must_use]
    pub fn is_held(&self) -> bool {
        self.held_until.is_some_and(|until| Instant::now() < until)
    }

    /// How long one question to the API server may take: what takes longer could be answered when
    /// another one has the lease.
    #[must_use]
    pub fn patience(&self) -> Duration {
        self.duration / 3
    }

    /// Renews it, or takes it if it is free. Returns whether it is held now.
    ///
    /// # Errors
    /// No answer, or one that says no. What is held already stays held to its end.
    pub async fn renew(&mut self) -> Result<bool, WriteFault> {
        let patience = self.patience();
        let renewed = tokio::time::timeout(patience, self.try_renew()).await;
        Ok(renewed.map_err(|_| WriteFault::Late(patience))??)
    }

    async fn try_renew(&mut self) -> Result<bool, kube::Error> {
        let asked = Instant::now();
        let written = match self.api.get_opt(&self.name).await? {
            None => {
                let lease = self.object(None);
                self.api.create(&PostParams::default(), &lease).await
            }
            Some(there) => {
                let spec = there.spec.clone().unwrap_or_default();
                if !self.may_take(&spec) {
                    self.held_until = None;
                    return Ok(false);
                }
                let lease = self.object(Some(there));
                let params = PostParams::default();
                self.api.replace(&self.name, &params, &lease).await
            }
        };
        match written {
            Ok(_) => {
                self.seen = None;
                self.held_until = Some(asked + self.duration * 2 / 3);
                Ok(true)
            }
            Err(kube::Error::Api(status)) if status.code == ALREADY_EXISTS_OR_CONFLICT => {
                self.held_until = None;
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    fn may_take(&mut self, there: &LeaseSpec) -> bool {
        let holder = there.holder_identity.as_deref().unwrap_or_default();
        if holder.is_empty() || holder == self.identity {
            return true;
        }
        match &self.seen {
            Some((seen, since)) if seen == there => since.elapsed() >= self.duration,
            _ => {
                self.seen = Some((there.clone(), Instant::now()));
                false
            }
        }
    }

    /// The lease with this process as its holder.
    fn object(&self, there: Option<Object>) -> Object {
        let Object { metadata, spec } = there.unwrap_or_else(|| Object {
            metadata: ObjectMeta {
                name: Some(self.name.clone()),
                ..ObjectMeta::default()
            },
            spec: None,
        });
        let now = MicroTime(Timestamp::now());
        let before = spec.unwrap_or_default();
        let same = before.holder_identity.as_deref() == Some(&self.identity);
        let transitions = before.lease_transitions.unwrap_or(0) + i32::from(!same);
        let acquired = before.acquire_time.filter(|_| same);
        Object {
            metadata,
            spec: Some(LeaseSpec {
                holder_identity: Some(self.identity.clone()),
                lease_duration_seconds: i32::try_from(self.duration.as_secs().max(1)).ok(),
                acquire_time: Some(acquired.unwrap_or_else(|| now.clone())),
                renew_time: Some(now),
                lease_transitions: Some(transitions),
                ..LeaseSpec::default()
            }),
        }
    }
}
