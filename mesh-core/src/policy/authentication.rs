//! Authentication scopes, worked out per port.

use std::collections::HashMap;
use std::sync::Arc;

use super::{AuthenticationMode, AuthenticationPolicy};

/// How the ports of one pod take connections.
#[derive(Clone, Debug, Default)]
pub(super) struct Modes {
    /// Ports that differ from the rest.
    ports: HashMap<u16, AuthenticationMode>,
    rest: AuthenticationMode,
}

/// Of two that apply the greater holds: how near, whether it names the port, whether strict.
type Weight = (u8, bool, bool);

impl Modes {
    pub(super) fn new(policies: Vec<Arc<AuthenticationPolicy>>) -> Self {
        let mut rest: Option<Weight> = None;
        let mut ports: HashMap<u16, Weight> = HashMap::new();
        for policy in policies {
            let near = policy.target.nearness();
            let whole = policy.mode.map(|mode| (near, false, is_strict(mode)));
            rest = rest.max(whole);
            for (port, mode) in &policy.ports {
                let weight = (near, true, is_strict(*mode));
                let known = ports.entry(*port).or_insert(weight);
                *known = (*known).max(weight);
            }
        }
        let mode = |weight: Option<Weight>| match weight {
            Some((.., false)) => AuthenticationMode::Permissive,
            Some((.., true)) | None => AuthenticationMode::Strict,
        };
        let ports = ports.into_iter();
        Self {
            ports: ports
                .map(|(port, own)| (port, mode(rest.max(Some(own)))))
                .collect(),
            rest: mode(rest),
        }
    }

    pub(super) fn of(&self, port: u16) -> AuthenticationMode {
        self.ports.get(&port).copied().unwrap_or(self.rest)
    }
}

fn is_strict(mode: AuthenticationMode) -> bool {
    mode == AuthenticationMode::Strict
}
