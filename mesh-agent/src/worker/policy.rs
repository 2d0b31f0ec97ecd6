//! The policy in force: the whole of what the supervisor said last, or nothing yet.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use mesh_api::convert::ConvertError;
use mesh_api::convert::policy::{
    authentication_from_wire, authorization_from_wire, check_from_wire,
};
use mesh_api::worker as wire;
use mesh_core::policy::{Decision, Direction, Flow, PodPolicy};
use mesh_core::reason::Reason;
use mesh_core::traffic::HealthCheck;
use tokio::sync::watch;

use super::discovery::address_of;
use super::fault::Fault;

/// How long a flow waits for the worker's first policy, which may be on its way.
const FIRST_POLICY_WITHIN: Duration = Duration::from_secs(2);

/// Why a policy that was sent can't be put in force.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PolicyError {
    #[error(transparent)]
    Convert(#[from] ConvertError),
    #[error("a resolver has {0} bytes, an address has 4 or 16")]
    Resolver(usize),
    #[error("one batch has parts of version {0:?} and of version {1:?}")]
    Parts(String, String),
}

/// What decides on the pod's flows.
#[derive(Debug)]
pub(crate) struct InForce {
    version: String,
    audit: bool,
    rules: PodPolicy,
    checks: Vec<HealthCheck>,
    /// Whether inbound decisions need to know more of a member, and of anyone else.
    needs: [bool; 2],
}

impl InForce {
    /// Reads the parts of one policy.
    pub(crate) fn from_wire(parts: &[wire::PodPolicy]) -> Result<Self, PolicyError> {
        let mut authorizations = Vec::new();
        let mut authentications = Vec::new();
        let (mut checks, mut resolvers) = (Vec::new(), Vec::new());
        let (mut version, mut audit) = (None, false);
        for part in parts {
            let first = version.get_or_insert(&part.version);
            if *first != &part.version {
                let versions = ((*first).clone(), part.version.clone());
                return Err(PolicyError::Parts(versions.0, versions.1));
            }
            audit = part.audit;
            for policy in &part.authorizations {
                authorizations.push(authorization_from_wire(policy)?.into());
            }
            for policy in &part.authentications {
                authentications.push(authentication_from_wire(policy)?.into());
            }
            for check in &part.checks {
                checks.push(check_from_wire(check)?);
            }
            // The same in each part.
            resolvers.clear();
            for bytes in &part.resolvers {
                resolvers.push(address_of(bytes).ok_or(PolicyError::Resolver(bytes.len()))?);
            }
        }
        let rules = PodPolicy::new(authorizations, authentications, resolvers);
        Ok(Self {
            needs: [true, false].map(|member| rules.needs_attributes(Direction::Inbound, member)),
            version: version.cloned().unwrap_or_default(),
            audit,
            rules,
            checks,
        })
    }

    /// Discovery version it was made from.
    pub(crate) fn version(&self) -> &str {
        &self.version
    }

    /// Health checks of the pod.
    pub(crate) fn checks(&self) -> &[HealthCheck] {
        &self.checks
    }

    /// Whether what policy refuses is let through and told.
    pub(crate) fn audit(&self) -> bool {
        self.audit
    }

    /// Whether inbound decisions can depend on what only discovery knows of the peer.
    pub(crate) fn needs_attributes(&self, member: bool) -> bool {
        self.needs[usize::from(!member)]
    }

    pub(crate) fn decide(&self, flow: &Flow<'_>) -> Decision<'_> {
        self.rules.decide(flow)
    }
}

/// The place of the policy in force, with a signal for all that flows are decided by.
pub(crate) struct Policy {
    in_force: RefCell<Option<Rc<InForce>>>,
    changes: watch::Sender<u64>,
}

impl Policy {
    pub(crate) fn new() -> Self {
        Self {
            in_force: RefCell::default(),
            changes: watch::Sender::new(0),
        }
    }

    pub(crate) fn replace(&self, policy: InForce) {
        *self.in_force.borrow_mut() = Some(policy.into());
    }

    pub(crate) fn in_force(&self) -> Option<Rc<InForce>> {
        self.in_force.borrow().clone()
    }

    /// The policy in force; the first one is waited for.
    pub(crate) async fn first(&self) -> Result<Rc<InForce>, Fault> {
        if let Some(policy) = self.in_force() {
            return Ok(policy);
        }
        let mut changes = self.subscribe();
        let come = changes.wait_for(|_| self.in_force.borrow().is_some());
        // The sender lives as long as `self`.
        let _come = tokio::time::timeout(FIRST_POLICY_WITHIN, come).await;
        let missing = || Fault::new(Reason::PolicyMissing, "none came within 2 s");
        self.in_force().ok_or_else(missing)
    }

    /// Sees every change from now on.
    pub(crate) fn subscribe(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// The policy, or what is known of a peer, is another: open flows are decided anew.
    pub(crate) fn changed(&self) {
        self.changes.send_modify(|changes| *changes += 1);
    }
}
