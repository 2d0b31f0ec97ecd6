//! Between discovery's wire format ([`crate::workload`]) and [`mesh_core::model`]: the one
//! translation, used by the control component and by the node agent.
//!
//! From the wire everything is checked, because an entry that is half right would turn into
//! a wrong decision: a wrong entry is refused as a whole, with the field named.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use mesh_core::identity::{Identity, IdentityError, TrustDomain};
use mesh_core::model::{
    Enrolment, ForeignProcesses, Health, Locality, Service, ServiceKey, TunnelPort, Workload,
};

use crate::workload as wire;

pub mod budget;
pub mod policy;
pub mod security;
pub mod trust;

/// The network that every workload of a mesh without network names is in.
const NETWORK: &str = "";

/// Why an entry of discovery can't be taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConvertError {
    /// A field that must say something is empty.
    #[error("{0} is empty")]
    Empty(&'static str),
    /// An address that is neither 4 nor 16 bytes long.
    #[error("{field} has {len} bytes; an address has 4 or 16")]
    AddressLength {
        /// The field's name.
        field: &'static str,
        /// Its length in bytes.
        len: usize,
    },
    /// An address that nothing can have: unspecified, or multicast.
    #[error("{field} is {address}, which is no workload's or service's address")]
    Address {
        /// The field's name.
        field: &'static str,
        /// The address.
        address: IpAddr,
    },
    /// A value outside the enumeration.
    #[error("{field} is {value}, which this version does not know")]
    Enumeration {
        /// The field's name.
        field: &'static str,
        /// The number on the wire.
        value: i32,
    },
    /// A port that is 0 or beyond 65535.
    #[error("{field} is {value}; a port is from 1 to 65535")]
    Port {
        /// The field's name.
        field: &'static str,
        /// The number on the wire.
        value: u32,
    },
    /// A service's name that is not `<namespace>/<hostname>`.
    #[error("{field} has {key:?}, which is not <namespace>/<hostname>")]
    Key {
        /// The field's name.
        field: &'static str,
        /// The text.
        key: String,
    },
    /// Trust domain, namespace and service account make no identity.
    #[error("trust_domain, namespace, service_account make no identity: {0}")]
    Identity(#[from] IdentityError),
    /// A text that is no block of addresses.
    #[error("rules.peers.cidr is {0:?}, which is no address/length")]
    Cidr(String),
    /// A policy for the whole mesh outside the mesh's own namespace.
    #[error("{0:?} is for the whole mesh, which only policies of nodemesh-system can be")]
    MeshTarget(String),
}

/// One entry of discovery in the model's terms.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry {
    /// A pod.
    Workload(Workload),
    /// A service.
    Service(Service),
}

impl Entry {
    /// Reads an entry. `own` is the mesh's trust domain, which a workload has that names none.
    ///
    /// # Errors
    /// The first field that is wrong.
    pub fn from_wire(address: &wire::Address, own: &TrustDomain) -> Result<Self, ConvertError> {
        match &address.r#type {
            None => Err(ConvertError::Empty("type")),
            Some(wire::address::Type::Workload(workload)) => {
                workload_from_wire(workload, own).map(Self::Workload)
            }
            Some(wire::address::Type::Service(service)) => {
                Service::try_from(service).map(Self::Service)
            }
        }
    }
}

/// Reads a workload. `own` is the mesh's trust domain, which a workload has that names none.
///
/// # Errors
/// The first field that is wrong.
pub fn workload_from_wire(
    workload: &wire::Workload,
    own: &TrustDomain,
) -> Result<Workload, ConvertError> {
    let required = |text: &str, field| match text {
        "" => Err(ConvertError::Empty(field)),
        text => Ok(text.to_owned()),
    };
    let uid = required(&workload.uid, "uid")?;
    let name = required(&workload.name, "name")?;
    let namespace = required(&workload.namespace, "namespace")?;
    let trust_domain = match workload.trust_domain.as_str() {
        "" => own.clone(),
        text => text.parse()?,
    };
    let service_account = match workload.service_account.as_str() {
        "" => "default",
        text => text,
    };
    let status =
        wire::WorkloadStatus::try_from(workload.status).map_err(|e| unknown("status", e))?;
    wire::WorkloadType::try_from(workload.workload_type)
        .map_err(|e| unknown("workload_type", e))?;
    let tunnel = wire::TunnelProtocol::try_from(workload.tunnel_protocol)
        .map_err(|e| unknown("tunnel_protocol", e))?;
    let enrolment =
        wire::Enrolment::try_from(workload.enrolment).map_err(|e| unknown("enrolment", e))?;
    let tunnel_port =
        wire::TunnelPort::try_from(workload.tunnel_port).map_err(|e| unknown("tunnel_port", e))?;
    let foreign_processes = wire::ForeignProcesses::try_from(workload.foreign_processes)
        .map_err(|e| unknown("foreign_processes", e))?;
    let locality = workload.locality.as_ref();
    Ok(Workload {
        uid: uid.into(),
        name,
        pod_uid: workload.pod_uid.clone(),
        identity: Identity::new(trust_domain, &namespace, service_account)?,
        node: workload.node.clone(),
        addresses: workload
            .addresses
            .iter()
            .map(|bytes| address_from_bytes(bytes, "addresses"))
            .collect::<Result<_, _>>()?,
        enrolment: match (tunnel, enrolment) {
            (wire::TunnelProtocol::None, _) => Enrolment::None,
            (wire::TunnelProtocol::Hbone, wire::Enrolment::Audit) => Enrolment::Audit,
            (wire::TunnelProtocol::Hbone, _) => Enrolment::Enforce,
        },
        tunnel_port: match tunnel_port {
            wire::TunnelPort::HbonePort => TunnelPort::Hbone,
            wire::TunnelPort::OriginalPort => TunnelPort::Original,
        },
        foreign_processes: match foreign_processes {
            wire::ForeignProcesses::ForeignAudit => ForeignProcesses::Audit,
            wire::ForeignProcesses::ForeignRefuse => ForeignProcesses::Refuse,
            wire::ForeignProcesses::ForeignRefuseExec => ForeignProcesses::RefuseExec,
        },
        shares_processes: workload.shares_processes,
        labels: workload.labels.clone(),
        health: match status {
            wire::WorkloadStatus::Healthy => Health::Healthy,
            wire::WorkloadStatus::Unhealthy => Health::Unhealthy,
        },
        locality: locality.map_or_else(Locality::default, |locality| Locality {
            region: locality.region.clone(),
            zone: locality.zone.clone(),
        }),
        services: workload
            .services
            .iter()
            .map(|(key, ports)| Ok((service_key(key, "services")?, target_ports(ports)?)))
            .collect::<Result<_, ConvertError>>()?,
        probe_ports: workload
            .probe_ports
            .iter()
            .map(|port| port_from_wire(*port, "probe_ports"))
            .collect::<Result<_, _>>()?,
        budget: workload
            .budget
            .as_ref()
            .map(budget::from_wire)
            .unwrap_or_default(),
    })
}

impl TryFrom<&wire::Service> for Service {
    type Error = ConvertError;

    fn try_from(service: &wire::Service) -> Result<Self, ConvertError> {
        for (text, field) in [
            (&service.name, "name"),
            (&service.namespace, "namespace"),
            (&service.hostname, "hostname"),
        ] {
            if text.is_empty() {
                return Err(ConvertError::Empty(field));
            }
        }
        let key = format!("{}/{}", service.namespace, service.hostname);
        Ok(Self {
            key: service_key(&key, "namespace/hostname")?,
            name: service.name.clone(),
            namespace: service.namespace.clone(),
            addresses: service
                .addresses
                .iter()
                .map(|address| address_from_bytes(&address.address, "addresses.address"))
                .collect::<Result<_, _>>()?,
            ports: service
                .ports
                .iter()
                .map(|port| port_from_wire(port.service_port, "ports.service_port"))
                .collect::<Result<BTreeSet<_>, _>>()?,
            traffic: policy::traffic_from_wire(service.traffic.as_ref())?,
        })
    }
}

/// Writes a workload of cluster `cluster_id`.
#[must_use]
pub fn workload_to_wire(workload: &Workload, cluster_id: &str) -> wire::Workload {
    let port_list = |ports: &BTreeMap<u16, u16>| wire::PortList {
        ports: ports
            .iter()
            .map(|(service, target)| wire::Port {
                service_port: (*service).into(),
                target_port: (*target).into(),
            })
            .collect(),
    };
    let locality = &workload.locality;
    let known = *locality != Locality::default();
    let tunnel = if workload.enrolled() {
        wire::TunnelProtocol::Hbone
    } else {
        wire::TunnelProtocol::None
    };
    wire::Workload {
        name: workload.name.clone(),
        namespace: workload.identity.namespace().to_owned(),
        addresses: workload.addresses.iter().map(address_to_bytes).collect(),
        network: NETWORK.to_owned(),
        tunnel_protocol: tunnel.into(),
        trust_domain: workload.identity.trust_domain().as_str().to_owned(),
        service_account: workload.identity.service_account().to_owned(),
        node: workload.node.clone(),
        canonical_name: workload.name.clone(),
        workload_type: wire::WorkloadType::Pod.into(),
        workload_name: workload.name.clone(),
        status: match workload.health {
            Health::Healthy => wire::WorkloadStatus::Healthy,
            Health::Unhealthy => wire::WorkloadStatus::Unhealthy,
        }
        .into(),
        locality: known.then(|| wire::Locality {
            region: locality.region.clone(),
            zone: locality.zone.clone(),
            subzone: String::new(),
        }),
        enrolment: match workload.enrolment {
            Enrolment::None => wire::Enrolment::Unspecified,
            Enrolment::Audit => wire::Enrolment::Audit,
            Enrolment::Enforce => wire::Enrolment::Enforce,
        }
        .into(),
        tunnel_port: match workload.tunnel_port {
            TunnelPort::Hbone => wire::TunnelPort::HbonePort,
            TunnelPort::Original => wire::TunnelPort::OriginalPort,
        }
        .into(),
        foreign_processes: match workload.foreign_processes {
            ForeignProcesses::Audit => wire::ForeignProcesses::ForeignAudit,
            ForeignProcesses::Refuse => wire::ForeignProcesses::ForeignRefuse,
            ForeignProcesses::RefuseExec => wire::ForeignProcesses::ForeignRefuseExec,
        }
        .into(),
        shares_processes: workload.shares_processes,
        labels: workload.labels.clone(),
        cluster_id: cluster_id.to_owned(),
        uid: workload.uid.to_string(),
        services: workload
            .services
            .iter()
            .map(|(key, ports)| (key.to_string(), port_list(ports)))
            .collect(),
        probe_ports: workload.probe_ports.iter().map(|p| u32::from(*p)).collect(),
        budget: budget::to_wire(&workload.budget),
        pod_uid: workload.pod_uid.clone(),
        ..Default::default()
    }
}

/// Writes a service.
impl From<&Service> for wire::Service {
    fn from(service: &Service) -> Self {
        let hostname = service.key.split_once('/').map_or("", |(_, host)| host);
        Self {
            name: service.name.clone(),
            namespace: service.namespace.clone(),
            hostname: hostname.to_owned(),
            addresses: service
                .addresses
                .iter()
                .map(|address| wire::NetworkAddress {
                    network: NETWORK.to_owned(),
                    address: address_to_bytes(address),
                })
                .collect(),
            ports: service
                .ports
                .iter()
                .map(|port| wire::Port {
                    service_port: (*port).into(),
                    target_port: 0,
                })
                .collect(),
            subject_alt_names: Vec::new(),
            traffic: policy::traffic_to_wire(&service.traffic),
        }
    }
}

/// Reads an address of 4 or 16 bytes; a v4-mapped one is taken as IPv4.
///
/// # Errors
/// Another length, or an address nothing can have; `field` is named in the error.
pub fn address_from_bytes(bytes: &[u8], field: &'static str) -> Result<IpAddr, ConvertError> {
    let address = if let Ok(v4) = <[u8; 4]>::try_from(bytes) {
        IpAddr::from(v4)
    } else if let Ok(v6) = <[u8; 16]>::try_from(bytes) {
        IpAddr::from(v6).to_canonical()
    } else {
        let len = bytes.len();
        return Err(ConvertError::AddressLength { field, len });
    };
    if address.is_unspecified() || address.is_multicast() {
        return Err(ConvertError::Address { field, address });
    }
    Ok(address)
}

/// An address as the wire has it: 4 bytes, or 16.
#[must_use]
pub fn address_to_bytes(address: &IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

fn unknown(field: &'static str, error: prost::UnknownEnumValue) -> ConvertError {
    let value = error.0;
    ConvertError::Enumeration { field, value }
}

fn service_key(key: &str, field: &'static str) -> Result<ServiceKey, ConvertError> {
    match key.split_once('/') {
        Some((namespace, host))
            if !namespace.is_empty() && !host.is_empty() && !host.contains('/') =>
        {
            Ok(key.into())
        }
        _ => Err(ConvertError::Key {
            field,
            key: key.to_owned(),
        }),
    }
}

fn target_ports(list: &wire::PortList) -> Result<BTreeMap<u16, u16>, ConvertError> {
    list.ports
        .iter()
        .map(|port| {
            let service = port_from_wire(port.service_port, "services.ports.service_port")?;
            let target = port_from_wire(port.target_port, "services.ports.target_port")?;
            Ok((service, target))
        })
        .collect()
}

fn port_from_wire(value: u32, field: &'static str) -> Result<u16, ConvertError> {
    match u16::try_from(value) {
        Ok(port) if port > 0 => Ok(port),
        _ => Err(ConvertError::Port { field, value }),
    }
}
