//! What would allow a flow that no rule allows.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::model::{ServiceKey, Workload};
use crate::policy::{
    Action, AuthenticationMode, AuthenticationPolicy, AuthorizationPolicy, Direction, Flow, Labels,
    PeerTerm, PortTerm, Protocol, Rule, Target,
};
use crate::reason::Reason;

/// Policies that would allow a flow, and little else. Its text is manifests that can be applied.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Missing {
    /// The rule.
    pub authorization: AuthorizationPolicy,
    /// Where the port takes mutual TLS alone, and the caller has none.
    pub authentication: Option<AuthenticationPolicy>,
}

impl Missing {
    /// For `flow` at the pod `own`; `None` where no rule is what is missing.
    pub(super) fn of(
        reason: Reason,
        own: &Workload,
        flow: &Flow<'_>,
        dialled: Option<&ServiceKey>,
    ) -> Option<Self> {
        let authentication = match reason {
            Reason::InboundPlaintext => Some(permissive(own, flow.port)),
            Reason::PolicyNoRule
            | Reason::UdpNotAllowed
            | Reason::DestinationUnknown
            | Reason::DestinationNotEnrolled => None,
            _ => return None,
        };
        Some(Self {
            authorization: allow(own, flow, dialled),
            authentication,
        })
    }
}

fn allow(own: &Workload, flow: &Flow<'_>, dialled: Option<&ServiceKey>) -> AuthorizationPolicy {
    let (way, dialled) = match flow.direction {
        Direction::Inbound => ("from", None),
        Direction::Outbound => ("to", dialled),
    };
    let address = flow.peer.address.to_canonical();
    let mut peer = PeerTerm::default();
    // What is plain must be named by its place.
    let whom = match (flow.peer.identity, dialled) {
        (Some(id), _) if flow.peer.member => {
            peer.identity = Some(id.clone());
            id.service_account().to_owned()
        }
        (_, Some(service)) => {
            peer.service = Some(service.clone());
            service_name(service).1.to_owned()
        }
        _ => {
            peer.cidr = Some(IpNet::from(address));
            in_a_name(address)
        }
    };
    let port = PortTerm {
        port: Some(flow.port),
        protocol: flow.protocol,
    };
    let name = format!("{}-{way}-{whom}", own.identity.service_account());
    AuthorizationPolicy {
        key: format!("{}/{name}", own.identity.namespace()).into(),
        target: target(own),
        direction: flow.direction,
        action: Action::Allow,
        rules: vec![Rule {
            peers: vec![peer],
            ports: BTreeSet::from([port]),
        }],
    }
}

fn permissive(own: &Workload, port: u16) -> AuthenticationPolicy {
    let (namespace, account) = (own.identity.namespace(), own.identity.service_account());
    AuthenticationPolicy {
        key: format!("{namespace}/{account}-plaintext").into(),
        target: target(own),
        mode: None,
        ports: BTreeMap::from([(port, AuthenticationMode::Permissive)]),
    }
}

fn target(own: &Workload) -> Target {
    if own.labels.is_empty() {
        return Target::Namespace;
    }
    Target::Labels(own.labels.clone())
}

fn in_a_name(address: IpAddr) -> String {
    let text = address.to_string().replace([':', '.'], "-");
    text.trim_matches('-').to_owned()
}

/// Namespace and name in `<namespace>/<name>.<rest of the hostname>`.
fn service_name(key: &str) -> (&str, &str) {
    let (namespace, host) = key.split_once('/').unwrap_or(("", key));
    let name = host.split_once('.').map_or(host, |(name, _)| name);
    (namespace, name)
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            authorization: policy,
            authentication,
        } = self;
        if let Some(scope) = authentication {
            head(f, "AuthenticationPolicy", &scope.key, &scope.target)?;
            for (port, mode) in &scope.ports {
                writeln!(f, "  ports: {{{port}: {mode:?}}}")?;
            }
            f.write_str("---\n")?;
        }
        head(f, "AuthorizationPolicy", &policy.key, &policy.target)?;
        writeln!(f, "  direction: {:?}", policy.direction)?;
        writeln!(f, "  action: {:?}", policy.action)?;
        f.write_str("  rules:\n")?;
        for rule in &policy.rules {
            let peers: Vec<_> = rule.peers.iter().map(peer).collect();
            let ports: Vec<_> = rule.ports.iter().map(port).collect();
            writeln!(f, "  - peers: [{}]", peers.join(", "))?;
            writeln!(f, "    ports: [{}]", ports.join(", "))?;
        }
        Ok(())
    }
}

fn head(f: &mut fmt::Formatter<'_>, kind: &str, key: &str, target: &Target) -> fmt::Result {
    let (namespace, name) = key.split_once('/').unwrap_or(("", key));
    writeln!(f, "apiVersion: nodemesh.dev/v1alpha1\nkind: {kind}")?;
    writeln!(
        f,
        "metadata: {{name: {name}, namespace: {namespace}}}\nspec:"
    )?;
    match target {
        Target::Labels(wanted) => writeln!(f, "  target: {{labels: {}}}", labels(wanted)),
        Target::Service(key) => writeln!(f, "  target: {{service: {}}}", service_name(key).1),
        Target::Mesh => writeln!(f, "  target: {{mesh: true}}"),
        Target::Namespace => Ok(()),
    }
}

fn peer(term: &PeerTerm) -> String {
    let service = term.service.as_ref().map(|key| {
        let (namespace, name) = service_name(key);
        format!("service: {namespace}/{name}")
    });
    let fields = [
        term.identity
            .as_ref()
            .map(|id| format!("identity: \"{id}\"")),
        term.namespace
            .as_ref()
            .map(|ns| format!("namespace: {ns:?}")),
        service,
        (!term.labels.is_empty()).then(|| format!("labels: {}", labels(&term.labels))),
        term.cidr.map(|cidr| format!("cidr: \"{cidr}\"")),
    ];
    let fields: Vec<_> = fields.into_iter().flatten().collect();
    format!("{{{}}}", fields.join(", "))
}

fn port(term: &PortTerm) -> String {
    match (term.port, term.protocol) {
        (Some(port), Protocol::Tcp) => port.to_string(),
        (Some(port), Protocol::Udp) => format!("{port}/UDP"),
        (None, Protocol::Tcp) => "TCP".to_owned(),
        (None, Protocol::Udp) => "UDP".to_owned(),
    }
}

fn labels(labels: &Labels) -> String {
    let pairs: Vec<_> = labels
        .iter()
        .map(|(key, value)| format!("{key:?}: {value:?}"))
        .collect();
    format!("{{{}}}", pairs.join(", "))
}
