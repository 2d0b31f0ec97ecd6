//! The parts of Kubernetes' objects that the mesh reads. Values are checked while they are
//! read, so that the parser knows the line of one that is wrong. Unknown fields are none of
//! the mesh's business.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use serde::de::{Error, Visitor};
use serde::{Deserialize, Deserializer};

pub(super) use endpoints::EndpointSlice;
use probes::{Lifecycle, Probe};

pub(super) mod budget;
pub(super) mod endpoints;
pub(super) mod policy;
pub(super) mod probes;
pub(super) mod revocation;
pub(super) mod traffic;
pub(super) mod values;

/// Reads a text and has it checked at its own position.
fn checked<'de, D, T>(deserializer: D, check: fn(&str) -> Result<T, String>) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
{
    struct Checked<T>(fn(&str) -> Result<T, String>);
    impl<T> Visitor<'_> for Checked<T> {
        type Value = T;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a string")
        }

        fn visit_str<E: Error>(self, text: &str) -> Result<T, E> {
            (self.0)(text).map_err(E::custom)
        }
    }
    deserializer.deserialize_str(Checked(check))
}

macro_rules! text {
    ($(#[doc = $doc:literal] $name:ident($inner:ty) = $check:path;)+) => {$(
        #[doc = $doc]
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub(crate) struct $name(pub(crate) $inner);

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                checked(deserializer, $check).map(Self)
            }
        }
    )+};
}
use text;

text! {
    /// A DNS label (RFC 1123), as namespaces and services have.
    Label(String) = label;
    /// A DNS name (RFC 1123), as pods, service accounts and nodes have.
    Name(String) = name;
    /// A port's name (RFC 6335).
    PortName(String) = port_name;
    /// A unicast address; a v4-mapped one is taken as IPv4.
    Address(IpAddr) = address;
    /// A cluster IP, or `None` for a headless service, or nothing yet.
    ClusterIp(Option<IpAddr>) = cluster_ip;
    /// A transport protocol: whether it is TCP.
    Protocol(bool) = protocol;
}

fn dns(text: &str, limit: usize, dots: bool) -> bool {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    let part = |part: &str| {
        part.bytes().all(inner)
            && !part.is_empty()
            && !part.starts_with('-')
            && !part.ends_with('-')
    };
    text.len() <= limit && text.split('.').all(part) && (dots || !text.contains('.'))
}

fn label(text: &str) -> Result<String, String> {
    if dns(text, 63, false) {
        return Ok(text.to_owned());
    }
    Err(format!(
        "{text:?} is not a DNS label: at most 63 of a-z, 0-9 and '-', beginning and ending with a letter or digit"
    ))
}

fn name(text: &str) -> Result<String, String> {
    if dns(text, 253, true) {
        return Ok(text.to_owned());
    }
    Err(format!(
        "{text:?} is not a DNS name: at most 253 of a-z, 0-9, '-' and '.', each part beginning and ending with a letter or digit"
    ))
}

fn port_name(text: &str) -> Result<String, String> {
    if dns(text, 15, false) && text.bytes().any(|b| b.is_ascii_lowercase()) {
        return Ok(text.to_owned());
    }
    Err(format!(
        "{text:?} is not a port name: at most 15 of a-z, 0-9 and '-', with at least one letter"
    ))
}

fn address(text: &str) -> Result<IpAddr, String> {
    let wrong = |why: &str| format!("{text:?} {why}");
    let address: IpAddr = text.parse().map_err(|_| wrong("is not an IP address"))?;
    let address = address.to_canonical();
    if address.is_unspecified() || address.is_loopback() || address.is_multicast() {
        return Err(wrong(
            "is unspecified, loopback or multicast, which no pod or service can have",
        ));
    }
    Ok(address)
}

fn cluster_ip(text: &str) -> Result<Option<IpAddr>, String> {
    match text {
        "None" | "" => Ok(None),
        text => address(text).map(Some),
    }
}

fn protocol(text: &str) -> Result<bool, String> {
    match text {
        "TCP" => Ok(true),
        "UDP" | "SCTP" => Ok(false),
        _ => Err(format!("{text:?} is not a protocol: TCP, UDP or SCTP")),
    }
}

/// A port number from 1 to 65535.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Port(pub(super) u16);

/// A container's port, by number or name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum TargetPort {
    /// By number.
    Number(u16),
    /// By name.
    Name(String),
}

struct PortVisitor {
    names: bool,
}

impl Visitor<'_> for PortVisitor {
    type Value = TargetPort;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.names {
            "a port from 1 to 65535 or a port's name"
        } else {
            "a port from 1 to 65535"
        })
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<TargetPort, E> {
        match u16::try_from(number) {
            Ok(port) if port > 0 => Ok(TargetPort::Number(port)),
            _ => Err(E::custom(format!("{number} is not a port: 1 to 65535"))),
        }
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<TargetPort, E> {
        self.visit_i64(i64::try_from(number).unwrap_or(i64::MAX))
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<TargetPort, E> {
        if !self.names {
            return Err(E::invalid_type(serde::de::Unexpected::Str(text), &self));
        }
        port_name(text).map(TargetPort::Name).map_err(E::custom)
    }
}

impl<'de> Deserialize<'de> for Port {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match deserializer.deserialize_any(PortVisitor { names: false })? {
            TargetPort::Number(port) => Ok(Self(port)),
            TargetPort::Name(name) => Err(D::Error::custom(name)),
        }
    }
}

impl<'de> Deserialize<'de> for TargetPort {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(PortVisitor { names: true })
    }
}

/// What every document begins with.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Head {
    pub(super) kind: String,
    #[serde(default)]
    pub(super) api_version: Option<String>,
}

/// metadata of an object named `N` in a namespace.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", bound = "N: Deserialize<'de>")]
pub(super) struct Metadata<N> {
    pub(super) name: N,
    #[serde(default)]
    pub(super) namespace: Option<Label>,
    #[serde(default)]
    pub(super) uid: Option<String>,
    #[serde(default)]
    pub(super) labels: BTreeMap<String, String>,
    #[serde(default)]
    pub(super) annotations: Option<Annotations>,
    #[serde(default)]
    pub(super) creation_timestamp: Option<String>,
    #[serde(default)]
    pub(super) deletion_timestamp: Option<String>,
}

/// The annotations that are read.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Annotations {
    /// Which static pod of its node's kubelet a pod in the API stands for: that one's UID.
    #[serde(rename = "kubernetes.io/config.mirror")]
    pub(super) mirror: Option<String>,
}

/// A Namespace or ServiceAccount: nothing but its metadata counts.
#[derive(Clone, Debug, Deserialize)]
#[serde(bound = "N: Deserialize<'de>")]
pub(super) struct Named<N> {
    pub(super) metadata: Metadata<N>,
}

/// A Pod.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Pod {
    pub(super) metadata: Metadata<Name>,
    #[serde(default)]
    pub(super) spec: PodSpec,
    #[serde(default)]
    pub(super) status: PodStatus,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct PodSpec {
    pub(super) node_name: Option<Name>,
    pub(super) service_account_name: Option<Name>,
    pub(super) host_network: bool,
    pub(super) share_process_namespace: bool,
    pub(super) containers: Vec<Container>,
    pub(super) init_containers: Vec<Container>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Container {
    pub(super) ports: Vec<ContainerPort>,
    pub(super) liveness_probe: Option<Probe>,
    pub(super) readiness_probe: Option<Probe>,
    pub(super) startup_probe: Option<Probe>,
    pub(super) lifecycle: Option<Lifecycle>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ContainerPort {
    pub(super) container_port: Port,
    #[serde(default)]
    pub(super) name: Option<PortName>,
    #[serde(default)]
    pub(super) protocol: Option<Protocol>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct PodStatus {
    pub(super) phase: Option<String>,
    #[serde(rename = "podIP")]
    pub(super) pod_ip: Option<Address>,
    #[serde(rename = "podIPs")]
    pub(super) pod_ips: Vec<PodIp>,
}

impl PodStatus {
    /// Takes an address away.
    pub(super) fn release(&mut self, address: IpAddr) {
        self.pod_ip.take_if(|ip| ip.0 == address);
        self.pod_ips.retain(|ip| ip.ip.0 != address);
    }
}

#[derive(Clone, Debug, Deserialize)]
#[serde(expecting = "a mapping such as {ip: 10.0.0.1}")]
pub(super) struct PodIp {
    pub(super) ip: Address,
}

/// A Service.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Service {
    pub(super) metadata: Metadata<Label>,
    #[serde(default)]
    pub(super) spec: ServiceSpec,
}

impl Service {
    /// Whether it is a mere alias of a name, with neither addresses nor endpoints.
    pub(super) fn external(&self) -> bool {
        self.spec.kind.as_deref() == Some("ExternalName")
    }
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct ServiceSpec {
    #[serde(rename = "type")]
    pub(super) kind: Option<String>,
    pub(super) selector: BTreeMap<String, String>,
    #[serde(rename = "clusterIP")]
    pub(super) cluster_ip: Option<ClusterIp>,
    #[serde(rename = "clusterIPs")]
    pub(super) cluster_ips: Vec<ClusterIp>,
    pub(super) ports: Vec<ServicePort>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ServicePort {
    pub(super) port: Port,
    #[serde(default)]
    pub(super) name: Option<PortName>,
    #[serde(default)]
    pub(super) target_port: Option<TargetPort>,
    #[serde(default)]
    pub(super) protocol: Option<Protocol>,
}

/// Whether ports with this protocol field are TCP, which is the default.
pub(super) fn is_tcp(protocol: Option<&Protocol>) -> bool {
    protocol.is_none_or(|tcp| tcp.0)
}
