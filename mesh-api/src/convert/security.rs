//! Policy for data planes that take Istio's L4 authorization and not Nodemesh's own.
//!
//! They know the peer's identity and address, and nothing of services and labels. What can't be
//! said to them is refused by them: an ALLOW by it is left out, a DENY is said without it.

use mesh_core::policy::{
    Action, AuthorizationPolicy, Direction, PeerTerm, PortTerm, Protocol, Rule, Target, canonical,
};

use super::address_to_bytes;
use crate::security as wire;
use wire::string_match::MatchType;

/// Namespace of the policies that every such data plane gets. No pod can be in it.
pub const STATIC_NAMESPACE: &str = "nodemesh.dev";

/// A policy in Istio's terms.
#[derive(Clone, Debug, PartialEq)]
pub struct Converted {
    /// What is said.
    pub policy: wire::Authorization,
    /// Whether that is all that the policy says. Otherwise more is refused.
    pub exact: bool,
}

/// What holds in the mesh without any policy: what no rule allows is refused, and so is whoever
/// proves no identity.
#[must_use]
pub fn static_policies() -> [wire::Authorization; 2] {
    let policy = |name: &str, action: wire::Action, rules| wire::Authorization {
        name: name.to_owned(),
        namespace: STATIC_NAMESPACE.to_owned(),
        scope: wire::Scope::Global.into(),
        action: action.into(),
        rules,
    };
    let presence = MatchType::Presence(());
    let unproven = wire::Match {
        not_principals: vec![string_match(presence)],
        ..wire::Match::default()
    };
    let unproven = wire::Rule {
        clauses: vec![wire::Clause {
            matches: vec![unproven],
        }],
    };
    [
        policy("allow-nothing", wire::Action::Allow, Vec::new()),
        policy("deny-plaintext", wire::Action::Deny, vec![unproven]),
    ]
}

/// Whether workloads have to name it, to be selected by it.
#[must_use]
pub fn is_named_by_workloads(policy: &AuthorizationPolicy) -> bool {
    policy.direction == Direction::Inbound
        && matches!(policy.target, Target::Service(_) | Target::Labels(_))
}

/// Says a policy in Istio's terms; `None` for one that only the source's own end decides by.
#[must_use]
pub fn authorization_to_istio(policy: &AuthorizationPolicy) -> Option<Converted> {
    if policy.direction == Direction::Outbound {
        return None;
    }
    let mut exact = true;
    let rules = policy.rules.iter();
    let rules = rules
        .filter_map(|one| rule(policy, one, &mut exact))
        .collect();
    let (namespace, name) = policy.key.split_once('/').unwrap_or(("", &policy.key));
    let scope = match policy.target {
        Target::Mesh => wire::Scope::Global,
        Target::Namespace => wire::Scope::Namespace,
        Target::Service(_) | Target::Labels(_) => wire::Scope::WorkloadSelector,
    };
    let action = match policy.action {
        Action::Allow => wire::Action::Allow,
        Action::Deny => wire::Action::Deny,
    };
    let policy = wire::Authorization {
        name: name.to_owned(),
        namespace: namespace.to_owned(),
        scope: scope.into(),
        action: action.into(),
        rules,
    };
    Some(Converted { policy, exact })
}

/// `None` where a rule has nothing to say of TCP, or nothing that can be said.
fn rule(policy: &AuthorizationPolicy, rule: &Rule, exact: &mut bool) -> Option<wire::Rule> {
    let mut clauses = Vec::new();
    if !rule.peers.is_empty() {
        let matches: Vec<wire::Match> = rule
            .peers
            .iter()
            .filter_map(|term| peer(policy, term, exact))
            .collect();
        if matches.is_empty() {
            return None;
        }
        // A match that asks for nothing would never hold there, and is for everybody here.
        if !matches.contains(&wire::Match::default()) {
            clauses.push(wire::Clause { matches });
        }
    }
    let tcp = |term: &&PortTerm| term.protocol == Protocol::Tcp;
    let ports: Vec<&PortTerm> = rule.ports.iter().filter(tcp).collect();
    if ports.is_empty() && !rule.ports.is_empty() {
        return None;
    }
    if !ports.is_empty() && ports.iter().all(|term| term.port.is_some()) {
        let ports = ports.iter().filter_map(|term| term.port).map(u32::from);
        let matches = vec![wire::Match {
            destination_ports: ports.collect(),
            ..wire::Match::default()
        }];
        clauses.push(wire::Clause { matches });
    }
    Some(wire::Rule { clauses })
}

fn peer(policy: &AuthorizationPolicy, term: &PeerTerm, exact: &mut bool) -> Option<wire::Match> {
    if term.service.is_some() || !term.labels.is_empty() {
        *exact = false;
        if policy.action == Action::Allow {
            return None;
        }
    }
    // Labels without a namespace are those of the policy's own pods, unless it is the mesh's.
    let own_labels = !term.labels.is_empty() && policy.target != Target::Mesh;
    let own = own_labels.then(|| policy.namespace().into());
    let namespace = term.namespace.clone().or(own);
    let exactly = |text: String| string_match(MatchType::Exact(text));
    let principal = term.identity.as_ref().map(|identity| {
        let uri = identity.to_string();
        let path = uri.strip_prefix("spiffe://").unwrap_or(&uri);
        exactly(path.to_owned())
    });
    let block = term.cidr.map(canonical).map(|cidr| wire::Address {
        address: address_to_bytes(&cidr.network()),
        length: u32::from(cidr.prefix_len()),
    });
    Some(wire::Match {
        namespaces: namespace.iter().map(|ns| exactly(ns.to_string())).collect(),
        principals: principal.into_iter().collect(),
        source_ips: block.into_iter().collect(),
        ..wire::Match::default()
    })
}

fn string_match(match_type: MatchType) -> wire::StringMatch {
    wire::StringMatch {
        match_type: Some(match_type),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(target: Target, action: Action, rule: Rule) -> Converted {
        let policy = AuthorizationPolicy {
            key: "shop/p".into(),
            target,
            direction: Direction::Inbound,
            action,
            rules: vec![rule],
        };
        authorization_to_istio(&policy).unwrap()
    }

    fn peers(terms: Vec<PeerTerm>) -> Rule {
        Rule {
            peers: terms,
            ..Rule::default()
        }
    }

    fn labels() -> PeerTerm {
        PeerTerm {
            labels: [("app".to_owned(), "web".to_owned())].into(),
            ..PeerTerm::default()
        }
    }

    #[test]
    fn identities_namespaces_blocks_and_ports_are_said_as_they_are() {
        let identity = "spiffe://td/ns/shop/sa/cart".parse().unwrap();
        let terms = vec![
            PeerTerm {
                identity: Some(identity),
                ..PeerTerm::default()
            },
            PeerTerm {
                namespace: Some("data".into()),
                cidr: Some("10.1.0.0/16".parse().unwrap()),
                ..PeerTerm::default()
            },
        ];
        let ports = [80, 443].map(|port| PortTerm {
            port: Some(port),
            protocol: Protocol::Tcp,
        });
        let rule = Rule {
            peers: terms,
            ports: ports.into(),
        };
        let said = said(Target::Namespace, Action::Allow, rule);
        assert!(said.exact);
        assert_eq!(said.policy.scope(), wire::Scope::Namespace);
        let [rule] = &said.policy.rules[..] else {
            panic!("{said:?}")
        };
        let [from, to] = &rule.clauses[..] else {
            panic!("{rule:?}")
        };
        let exactly = |text: &str| vec![string_match(MatchType::Exact(text.to_owned()))];
        assert_eq!(from.matches[0].principals, exactly("td/ns/shop/sa/cart"));
        assert_eq!(from.matches[1].namespaces, exactly("data"));
        let block = wire::Address {
            address: vec![10, 1, 0, 0],
            length: 16,
        };
        assert_eq!(from.matches[1].source_ips, [block]);
        assert_eq!(to.matches[0].destination_ports, [80, 443]);
    }

    #[test]
    fn what_cannot_be_said_is_refused() {
        let service = PeerTerm {
            service: Some("shop/web".into()),
            ..PeerTerm::default()
        };
        // An ALLOW by it allows nobody; other peers of the rule stay.
        for term in [labels(), service.clone()] {
            let alone = said(Target::Namespace, Action::Allow, peers(vec![term.clone()]));
            assert_eq!((alone.exact, alone.policy.rules), (false, Vec::new()));
            let named = PeerTerm {
                namespace: Some("data".into()),
                ..PeerTerm::default()
            };
            let both = said(Target::Namespace, Action::Allow, peers(vec![term, named]));
            assert!(!both.exact);
            assert_eq!(both.policy.rules[0].clauses[0].matches.len(), 1);
        }
        // A DENY by it denies whoever the rest of it names: here a namespace, there everybody.
        let denied = said(Target::Namespace, Action::Deny, peers(vec![labels()]));
        let matches = &denied.policy.rules[0].clauses[0].matches;
        assert!(!denied.exact && matches[0].namespaces.len() == 1);
        for (target, term) in [(Target::Mesh, labels()), (Target::Namespace, service)] {
            let everybody = said(target, Action::Deny, peers(vec![term]));
            assert_eq!(everybody.policy.rules, [wire::Rule::default()]);
        }
    }

    #[test]
    fn rules_that_are_of_udp_alone_say_nothing() {
        let udp = PortTerm {
            port: None,
            protocol: Protocol::Udp,
        };
        let rule = Rule {
            ports: [udp].into(),
            ..Rule::default()
        };
        for action in [Action::Allow, Action::Deny] {
            let said = said(Target::Mesh, action, rule.clone());
            assert_eq!((said.exact, said.policy.rules), (true, Vec::new()));
        }
        let every = said(Target::Mesh, Action::Deny, Rule::default());
        assert_eq!(every.policy.rules, [wire::Rule::default()]);
    }

    #[test]
    fn without_a_policy_nobody_is_allowed_and_nobody_may_be_unproven() {
        let [allow, deny] = static_policies();
        assert!(allow.rules.is_empty() && allow.action() == wire::Action::Allow);
        let unproven = &deny.rules[0].clauses[0].matches[0].not_principals;
        assert_eq!(unproven.len(), 1);
        assert!(
            [allow, deny]
                .iter()
                .all(|p| p.scope() == wire::Scope::Global)
        );
    }
}
