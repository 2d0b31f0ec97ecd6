//! Policies as tests send them.

use mesh_api::policy::{
    Action, AuthenticationMode, AuthenticationPolicy, AuthorizationPolicy, Direction, Peer,
    PortTerm, Protocol, Rule, Target, target,
};
use mesh_api::worker::PodPolicy;

/// All members of the mesh, in both directions.
pub(super) fn members() -> PodPolicy {
    PodPolicy {
        version: "members".to_owned(),
        authorizations: vec![
            allow(Direction::Inbound, "in", []),
            allow(Direction::Outbound, "out", []),
        ],
        ..PodPolicy::default()
    }
}

/// The same, with one more.
pub(super) fn members_and(version: &str, policy: AuthorizationPolicy) -> PodPolicy {
    let mut policies = members();
    policies.version = version.to_owned();
    policies.authorizations.push(policy);
    policies
}

/// Only what these say.
pub(super) fn only(
    version: &str,
    authorizations: impl IntoIterator<Item = AuthorizationPolicy>,
) -> PodPolicy {
    PodPolicy {
        version: version.to_owned(),
        authorizations: authorizations.into_iter().collect(),
        ..PodPolicy::default()
    }
}

pub(super) fn allow(
    direction: Direction,
    name: &str,
    peers: impl IntoIterator<Item = Peer>,
) -> AuthorizationPolicy {
    authorization(Action::Allow, direction, name, peers)
}

pub(super) fn deny(
    direction: Direction,
    name: &str,
    peers: impl IntoIterator<Item = Peer>,
) -> AuthorizationPolicy {
    authorization(Action::Deny, direction, name, peers)
}

fn authorization(
    action: Action,
    direction: Direction,
    name: &str,
    peers: impl IntoIterator<Item = Peer>,
) -> AuthorizationPolicy {
    AuthorizationPolicy {
        key: format!("test/{name}"),
        target: Some(namespace()),
        direction: direction.into(),
        action: action.into(),
        rules: vec![Rule {
            peers: peers.into_iter().collect(),
            ports: Vec::new(),
        }],
    }
}

/// On this port alone.
pub(super) fn on_port(mut policy: AuthorizationPolicy, port: u16) -> AuthorizationPolicy {
    for rule in &mut policy.rules {
        rule.ports = vec![PortTerm {
            port: port.into(),
            protocol: Protocol::Tcp.into(),
        }];
    }
    policy
}

/// Plaintext is taken, as far as rules name it.
pub(super) fn permissive(mut policy: PodPolicy) -> PodPolicy {
    policy.authentications.push(AuthenticationPolicy {
        key: "test/permissive".to_owned(),
        target: Some(namespace()),
        mode: AuthenticationMode::Permissive.into(),
        ..AuthenticationPolicy::default()
    });
    policy
}

pub(super) fn audit(mut policy: PodPolicy) -> PodPolicy {
    policy.version.push_str(" in audit");
    policy.audit = true;
    policy
}

fn namespace() -> Target {
    Target {
        kind: Some(target::Kind::Namespace(true)),
    }
}

pub(super) fn identity(id: &str) -> Peer {
    Peer {
        identity: id.to_owned(),
        ..Peer::default()
    }
}

pub(super) fn app(name: &str) -> Peer {
    Peer {
        labels: [("app".to_owned(), name.to_owned())].into(),
        ..Peer::default()
    }
}

pub(super) fn service(key: &str) -> Peer {
    Peer {
        service: key.to_owned(),
        ..Peer::default()
    }
}

pub(super) fn cidr(block: &str) -> Peer {
    Peer {
        cidr: block.to_owned(),
        ..Peer::default()
    }
}
