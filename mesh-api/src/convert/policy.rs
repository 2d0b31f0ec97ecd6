//! Between policy's wire format ([`crate::policy`]) and [`mesh_core::policy`],
//! [`mesh_core::traffic`].

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use mesh_core::policy::{
    Action, AuthenticationMode, AuthenticationPolicy, AuthorizationPolicy, Direction,
    MESH_NAMESPACE, PeerTerm, PolicyKey, PortTerm, Protocol, Rule, Target,
};
use mesh_core::traffic::{
    Balancing, HealthCheck, LocalityPreference, OutlierDetection, Probe, Traffic,
};

use super::{ConvertError, port_from_wire, service_key, unknown};
use crate::policy as wire;

/// What a resource of the policy type is, in the model's terms.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PolicyEntry {
    /// An authorization policy.
    Authorization(AuthorizationPolicy),
    /// An authentication scope.
    Authentication(AuthenticationPolicy),
}

impl PolicyEntry {
    /// Reads a resource.
    ///
    /// # Errors
    /// The first field that is wrong.
    pub fn from_wire(policy: &wire::Policy) -> Result<Self, ConvertError> {
        match &policy.kind {
            None => Err(ConvertError::Empty("kind")),
            Some(wire::policy::Kind::Authorization(policy)) => {
                authorization_from_wire(policy).map(Self::Authorization)
            }
            Some(wire::policy::Kind::Authentication(policy)) => {
                authentication_from_wire(policy).map(Self::Authentication)
            }
        }
    }

    /// The resource's name in discovery.
    #[must_use]
    pub fn resource_name(&self) -> String {
        match self {
            Self::Authorization(policy) => format!("authorization/{}", policy.key),
            Self::Authentication(policy) => format!("authentication/{}", policy.key),
        }
    }

    /// Writes the resource.
    #[must_use]
    pub fn to_wire(&self) -> wire::Policy {
        let kind = match self {
            Self::Authorization(policy) => {
                wire::policy::Kind::Authorization(authorization_to_wire(policy))
            }
            Self::Authentication(policy) => {
                wire::policy::Kind::Authentication(authentication_to_wire(policy))
            }
        };
        wire::Policy { kind: Some(kind) }
    }
}

/// Reads an authorization policy.
///
/// # Errors
/// The first field that is wrong.
pub fn authorization_from_wire(
    policy: &wire::AuthorizationPolicy,
) -> Result<AuthorizationPolicy, ConvertError> {
    let key = policy_key(&policy.key)?;
    let direction = match wire::Direction::try_from(policy.direction) {
        Ok(wire::Direction::Inbound) => Direction::Inbound,
        Ok(wire::Direction::Outbound) => Direction::Outbound,
        Ok(wire::Direction::Unspecified) => return Err(ConvertError::Empty("direction")),
        Err(e) => return Err(unknown("direction", e)),
    };
    let action = match wire::Action::try_from(policy.action) {
        Ok(wire::Action::Allow) => Action::Allow,
        Ok(wire::Action::Deny) => Action::Deny,
        Ok(wire::Action::Unspecified) => return Err(ConvertError::Empty("action")),
        Err(e) => return Err(unknown("action", e)),
    };
    Ok(AuthorizationPolicy {
        target: target(policy.target.as_ref(), &key)?,
        key,
        direction,
        action,
        rules: policy.rules.iter().map(rule).collect::<Result<_, _>>()?,
    })
}

/// Reads an authentication scope.
///
/// # Errors
/// The first field that is wrong.
pub fn authentication_from_wire(
    policy: &wire::AuthenticationPolicy,
) -> Result<AuthenticationPolicy, ConvertError> {
    let key = policy_key(&policy.key)?;
    let ports = policy.ports.iter().map(|(port, value)| {
        let port = port_from_wire(*port, "ports")?;
        let mode = mode(*value, "ports.mode")?.ok_or(ConvertError::Empty("ports.mode"))?;
        Ok((port, mode))
    });
    Ok(AuthenticationPolicy {
        target: target(policy.target.as_ref(), &key)?,
        key,
        mode: mode(policy.mode, "mode")?,
        ports: ports.collect::<Result<BTreeMap<_, _>, ConvertError>>()?,
    })
}

fn policy_key(key: &str) -> Result<PolicyKey, ConvertError> {
    service_key(key, "key")
}

fn target(target: Option<&wire::Target>, key: &str) -> Result<Target, ConvertError> {
    let namespace = key.split_once('/').map_or("", |(namespace, _)| namespace);
    match target.and_then(|target| target.kind.as_ref()) {
        None => Err(ConvertError::Empty("target")),
        Some(wire::target::Kind::Mesh(_)) if namespace == MESH_NAMESPACE => Ok(Target::Mesh),
        Some(wire::target::Kind::Mesh(_)) => Err(ConvertError::MeshTarget(key.to_owned())),
        Some(wire::target::Kind::Namespace(_)) => Ok(Target::Namespace),
        Some(wire::target::Kind::Service(key)) => {
            service_key(key, "target.service").map(Target::Service)
        }
        // Without labels it would select the namespace, which is said in another way.
        Some(wire::target::Kind::Labels(selector)) if selector.labels.is_empty() => {
            Err(ConvertError::Empty("target.labels"))
        }
        Some(wire::target::Kind::Labels(selector)) => Ok(Target::Labels(selector.labels.clone())),
    }
}

fn rule(rule: &wire::Rule) -> Result<Rule, ConvertError> {
    let ports = rule.ports.iter().map(port_term);
    Ok(Rule {
        peers: rule.peers.iter().map(peer).collect::<Result<_, _>>()?,
        ports: ports.collect::<Result<BTreeSet<_>, _>>()?,
    })
}

fn port_term(term: &wire::PortTerm) -> Result<PortTerm, ConvertError> {
    let protocol = match wire::Protocol::try_from(term.protocol) {
        Ok(wire::Protocol::Tcp) => Protocol::Tcp,
        Ok(wire::Protocol::Udp) => Protocol::Udp,
        Ok(wire::Protocol::Unspecified) => {
            return Err(ConvertError::Empty("rules.ports.protocol"));
        }
        Err(e) => return Err(unknown("rules.ports.protocol", e)),
    };
    let port = match term.port {
        0 => None,
        port => Some(port_from_wire(port, "rules.ports.port")?),
    };
    Ok(PortTerm { port, protocol })
}

fn peer(peer: &wire::Peer) -> Result<PeerTerm, ConvertError> {
    let term = PeerTerm {
        identity: match peer.identity.as_str() {
            "" => None,
            id => Some(id.parse()?),
        },
        namespace: (!peer.namespace.is_empty()).then(|| peer.namespace.as_str().into()),
        service: match peer.service.as_str() {
            "" => None,
            key => Some(service_key(key, "rules.peers.service")?),
        },
        labels: peer.labels.clone(),
        cidr: match peer.cidr.as_str() {
            "" => None,
            text => Some(
                text.parse()
                    .map_err(|_| ConvertError::Cidr(text.to_owned()))?,
            ),
        },
    };
    if term == PeerTerm::default() {
        return Err(ConvertError::Empty("rules.peers"));
    }
    Ok(term)
}

fn mode(value: i32, field: &'static str) -> Result<Option<AuthenticationMode>, ConvertError> {
    match wire::AuthenticationMode::try_from(value) {
        Ok(wire::AuthenticationMode::Unspecified) => Ok(None),
        Ok(wire::AuthenticationMode::Strict) => Ok(Some(AuthenticationMode::Strict)),
        Ok(wire::AuthenticationMode::Permissive) => Ok(Some(AuthenticationMode::Permissive)),
        Err(e) => Err(unknown(field, e)),
    }
}

/// Writes an authorization policy.
#[must_use]
pub fn authorization_to_wire(policy: &AuthorizationPolicy) -> wire::AuthorizationPolicy {
    wire::AuthorizationPolicy {
        key: policy.key.to_string(),
        target: Some(target_to_wire(&policy.target)),
        direction: match policy.direction {
            Direction::Inbound => wire::Direction::Inbound,
            Direction::Outbound => wire::Direction::Outbound,
        }
        .into(),
        action: match policy.action {
            Action::Allow => wire::Action::Allow,
            Action::Deny => wire::Action::Deny,
        }
        .into(),
        rules: policy.rules.iter().map(rule_to_wire).collect(),
    }
}

/// Writes an authentication scope.
#[must_use]
pub fn authentication_to_wire(policy: &AuthenticationPolicy) -> wire::AuthenticationPolicy {
    let ports = policy.ports.iter();
    wire::AuthenticationPolicy {
        key: policy.key.to_string(),
        target: Some(target_to_wire(&policy.target)),
        mode: policy.mode.map_or(0, mode_to_wire),
        ports: ports
            .map(|(port, mode)| (u32::from(*port), mode_to_wire(*mode)))
            .collect(),
    }
}

fn mode_to_wire(mode: AuthenticationMode) -> i32 {
    match mode {
        AuthenticationMode::Strict => wire::AuthenticationMode::Strict,
        AuthenticationMode::Permissive => wire::AuthenticationMode::Permissive,
    }
    .into()
}

fn target_to_wire(target: &Target) -> wire::Target {
    let kind = match target {
        Target::Mesh => wire::target::Kind::Mesh(true),
        Target::Namespace => wire::target::Kind::Namespace(true),
        Target::Service(key) => wire::target::Kind::Service(key.to_string()),
        Target::Labels(labels) => wire::target::Kind::Labels(wire::LabelSelector {
            labels: labels.clone(),
        }),
    };
    wire::Target { kind: Some(kind) }
}

fn rule_to_wire(rule: &Rule) -> wire::Rule {
    let text =
        |text: Option<&dyn std::fmt::Display>| text.map_or_else(String::new, ToString::to_string);
    wire::Rule {
        peers: rule
            .peers
            .iter()
            .map(|peer| wire::Peer {
                identity: text(peer.identity.as_ref().map(|v| v as _)),
                namespace: text(peer.namespace.as_ref().map(|v| v as _)),
                service: text(peer.service.as_ref().map(|v| v as _)),
                labels: peer.labels.clone(),
                cidr: text(peer.cidr.as_ref().map(|v| v as _)),
            })
            .collect(),
        ports: rule
            .ports
            .iter()
            .map(|term| wire::PortTerm {
                port: term.port.unwrap_or(0).into(),
                protocol: match term.protocol {
                    Protocol::Tcp => wire::Protocol::Tcp,
                    Protocol::Udp => wire::Protocol::Udp,
                }
                .into(),
            })
            .collect(),
    }
}

/// Reads what is said of a service's traffic; absent means the defaults.
///
/// # Errors
/// The first field that is wrong.
pub fn traffic_from_wire(traffic: Option<&wire::Traffic>) -> Result<Traffic, ConvertError> {
    let Some(traffic) = traffic else {
        return Ok(Traffic::default());
    };
    let balancing = wire::traffic::Balancing::try_from(traffic.balancing)
        .map_err(|e| unknown("traffic.balancing", e))?;
    let locality = wire::traffic::Locality::try_from(traffic.locality)
        .map_err(|e| unknown("traffic.locality", e))?;
    let outliers = match &traffic.outliers {
        None => OutlierDetection::default(),
        Some(outliers) => OutlierDetection {
            consecutive_failures: outliers.consecutive_failures,
            base_ejection: Duration::from_millis(outliers.base_ejection_ms.into()),
            max_ejection: Duration::from_millis(outliers.max_ejection_ms.into()),
            max_ejected_percent: u8::try_from(outliers.max_ejected_percent)
                .unwrap_or(100)
                .min(100),
        },
    };
    Ok(Traffic {
        balancing: match balancing {
            wire::traffic::Balancing::LeastRequests => Balancing::LeastRequests,
            wire::traffic::Balancing::RoundRobin => Balancing::RoundRobin,
        },
        locality: match locality {
            wire::traffic::Locality::None => LocalityPreference::None,
            wire::traffic::Locality::Nearest => LocalityPreference::Nearest,
        },
        outliers,
        checks: traffic
            .checks
            .iter()
            .map(check_from_wire)
            .collect::<Result<_, _>>()?,
    })
}

/// Writes what is said of a service's traffic; the defaults are left out.
#[must_use]
pub fn traffic_to_wire(traffic: &Traffic) -> Option<wire::Traffic> {
    (*traffic != Traffic::default()).then(|| wire::Traffic {
        balancing: match traffic.balancing {
            Balancing::LeastRequests => wire::traffic::Balancing::LeastRequests,
            Balancing::RoundRobin => wire::traffic::Balancing::RoundRobin,
        }
        .into(),
        locality: match traffic.locality {
            LocalityPreference::None => wire::traffic::Locality::None,
            LocalityPreference::Nearest => wire::traffic::Locality::Nearest,
        }
        .into(),
        outliers: Some(wire::OutlierDetection {
            consecutive_failures: traffic.outliers.consecutive_failures,
            base_ejection_ms: ms(traffic.outliers.base_ejection),
            max_ejection_ms: ms(traffic.outliers.max_ejection),
            max_ejected_percent: traffic.outliers.max_ejected_percent.into(),
        }),
        checks: traffic.checks.iter().map(check_to_wire).collect(),
    })
}

/// Reads a health check.
///
/// # Errors
/// The first field that is wrong.
pub fn check_from_wire(check: &wire::HealthCheck) -> Result<HealthCheck, ConvertError> {
    let probe = match &check.probe {
        None => return Err(ConvertError::Empty("checks.probe")),
        Some(wire::health_check::Probe::Tcp(_)) => Probe::Tcp,
        Some(wire::health_check::Probe::Http(http)) => Probe::Http {
            path: http.path.clone(),
            host: http.host.clone(),
        },
    };
    for (value, field) in [
        (check.interval_ms, "checks.interval_ms"),
        (check.timeout_ms, "checks.timeout_ms"),
        (check.unhealthy_threshold, "checks.unhealthy_threshold"),
        (check.healthy_threshold, "checks.healthy_threshold"),
    ] {
        if value == 0 {
            return Err(ConvertError::Empty(field));
        }
    }
    Ok(HealthCheck {
        port: port_from_wire(check.port, "checks.port")?,
        probe,
        interval: Duration::from_millis(check.interval_ms.into()),
        timeout: Duration::from_millis(check.timeout_ms.into()),
        unhealthy_threshold: check.unhealthy_threshold,
        healthy_threshold: check.healthy_threshold,
    })
}

/// Writes a health check.
#[must_use]
pub fn check_to_wire(check: &HealthCheck) -> wire::HealthCheck {
    wire::HealthCheck {
        port: check.port.into(),
        probe: Some(match &check.probe {
            Probe::Tcp => wire::health_check::Probe::Tcp(wire::TcpProbe {}),
            Probe::Http { path, host } => wire::health_check::Probe::Http(wire::HttpProbe {
                path: path.clone(),
                host: host.clone(),
            }),
        }),
        interval_ms: ms(check.interval),
        timeout_ms: ms(check.timeout),
        unhealthy_threshold: check.unhealthy_threshold,
        healthy_threshold: check.healthy_threshold,
    }
}

fn ms(duration: Duration) -> u32 {
    u32::try_from(duration.as_millis()).unwrap_or(u32::MAX)
}
