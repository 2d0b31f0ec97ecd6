//! A flow that can't be carried: the reason and what the operator needs with it.

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

/// Why a flow was refused or failed.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{}: {detail}", reason.sentence())]
pub(crate) struct Fault {
    pub(crate) reason: Reason,
    /// What was tried and what came back.
    pub(crate) detail: String,
    /// Identity of the peer, as far as it was proven; or empty.
    pub(crate) peer: String,
}

impl Fault {
    pub(crate) fn new(reason: Reason, detail: impl std::fmt::Display) -> Self {
        Self {
            reason,
            detail: detail.to_string(),
            peer: String::new(),
        }
    }

    pub(crate) fn of_peer(mut self, peer: impl std::fmt::Display) -> Self {
        self.peer = peer.to_string();
        self
    }
}
