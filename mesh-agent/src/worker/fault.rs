//! A flow that can't be carried: the reason and what the operator needs with it.

use mesh_core::policy::{self, PolicyKey};
use mesh_core::reason::Reason;

/// Which way a flow goes, seen from the pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    Inbound = 0,
    Outbound = 1,
}

impl Direction {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Inbound => "inbound",
            Self::Outbound => "outbound",
        }
    }
}

impl From<Direction> for policy::Direction {
    fn from(direction: Direction) -> Self {
        match direction {
            Direction::Inbound => Self::Inbound,
            Direction::Outbound => Self::Outbound,
        }
    }
}

/// Why a flow was refused or failed.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{}: {detail}", reason.sentence())]
pub(crate) struct Fault {
    pub(crate) reason: Reason,
    /// What was tried and what came back.
    pub(crate) detail: String,
    /// Identity of the peer, as far as it was proven; or empty.
    pub(crate) peer: String,
    /// The policy that decided, if one did.
    pub(crate) policy: Option<PolicyKey>,
}

impl Fault {
    pub(crate) fn new(reason: Reason, detail: impl std::fmt::Display) -> Self {
        Self {
            reason,
            detail: detail.to_string(),
            peer: String::new(),
            policy: None,
        }
    }

    pub(crate) fn of_peer(mut self, peer: impl std::fmt::Display) -> Self {
        self.peer = peer.to_string();
        self
    }

    pub(crate) fn by_policy(mut self, policy: Option<PolicyKey>) -> Self {
        self.policy = policy;
        self
    }

    /// Whether it is policy that refuses the flow, and nothing that fails.
    pub(crate) fn is_policy(&self) -> bool {
        matches!(
            self.reason,
            Reason::PolicyDenied
                | Reason::PolicyNoRule
                | Reason::InboundPlaintext
                | Reason::DestinationUnknown
                | Reason::DestinationNotEnrolled
        )
    }
}
