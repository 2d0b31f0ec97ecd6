//! What is dialled, and where it leads.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use super::{Destination, Question};
use crate::model::{Endpoint, Mesh, Resolution, Service, ServiceKey, Workload};

/// What was dialled, as discovery knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Route {
    /// The source's own address: not captured, and nobody decides.
    Local,
    /// A workload's own address.
    Workload,
    /// A service's virtual address.
    Service(ServiceKey),
    /// The addresses of a headless service's pods, as DNS gives them.
    Headless(ServiceKey),
    /// Nothing that discovery knows.
    Unknown,
}

/// One place that the flow may lead to.
pub(super) struct Place {
    /// The address that the app dials.
    pub(super) dialled: IpAddr,
    pub(super) workload: Option<Arc<Workload>>,
    pub(super) address: IpAddr,
    pub(super) port: u16,
    /// The service it was dialled by.
    pub(super) service: Option<ServiceKey>,
    /// Services that policy may name it by.
    pub(super) services: Vec<ServiceKey>,
}

impl Place {
    fn endpoint(endpoint: Endpoint, dialled: IpAddr, service: Option<ServiceKey>) -> Self {
        let mut services: Vec<_> = endpoint.workload.services.keys().cloned().collect();
        services.extend(
            service
                .iter()
                .filter(|s| !services.contains(s))
                .cloned()
                .collect::<Vec<_>>(),
        );
        Self {
            dialled,
            workload: Some(endpoint.workload),
            address: endpoint.address,
            port: endpoint.port,
            service,
            services,
        }
    }

    fn unknown(address: IpAddr, port: u16) -> Self {
        Self {
            dialled: address,
            workload: None,
            address,
            port,
            service: None,
            services: Vec::new(),
        }
    }
}

pub(super) fn places(
    mesh: &Mesh,
    question: &Question,
    source: Option<&Workload>,
) -> (Route, Vec<Place>) {
    let family = source.and_then(|workload| workload.addresses.first().copied());
    let dialled = match &question.destination {
        Destination::Address(address) => Some(address.to_canonical()),
        Destination::Service(service) => match of_family(&service.addresses, family) {
            None => return headless(mesh, service, question.port, family),
            some => some,
        },
        Destination::Workload(workload) => of_family(&workload.addresses, family),
    };
    let Some(dialled) = dialled else {
        return (Route::Workload, Vec::new());
    };
    if source.is_some_and(|workload| workload.addresses.contains(&dialled)) || dialled.is_loopback()
    {
        return (Route::Local, Vec::new());
    }
    places_at(mesh, dialled, question.port)
}

/// Where a connection to `dialled:port` may lead.
pub(super) fn places_at(mesh: &Mesh, dialled: IpAddr, port: u16) -> (Route, Vec<Place>) {
    match mesh.resolve(dialled, port) {
        Resolution::Unknown => {
            let place = Place::unknown(dialled, port);
            (Route::Unknown, vec![place])
        }
        Resolution::Workload(endpoint) => {
            let place = Place::endpoint(endpoint, dialled, None);
            (Route::Workload, vec![place])
        }
        Resolution::Service(key, endpoints) => {
            let places = endpoints.into_iter();
            let place = |endpoint| Place::endpoint(endpoint, dialled, Some(key.clone()));
            (Route::Service(key.clone()), places.map(place).collect())
        }
    }
}

/// DNS answers with the pods' addresses, and the app dials its port on them.
fn headless(
    mesh: &Mesh,
    service: &Service,
    port: u16,
    family: Option<IpAddr>,
) -> (Route, Vec<Place>) {
    let places = mesh.members(&service.key).filter_map(|workload| {
        let address = of_family(&workload.addresses, family)?;
        let endpoint = Endpoint {
            workload: workload.clone(),
            address,
            port,
        };
        Some(Place::endpoint(endpoint, address, None))
    });
    (Route::Headless(service.key.clone()), places.collect())
}

/// The one of the workload's addresses with which it talks to `remote`.
pub(super) fn address_for(workload: &Workload, remote: IpAddr) -> Option<IpAddr> {
    of_family(&workload.addresses, Some(remote))
}

/// The first of the other's family, or else the first.
fn of_family(addresses: &[IpAddr], other: Option<IpAddr>) -> Option<IpAddr> {
    let same = |a: &&IpAddr| other.is_none_or(|other| other.is_ipv4() == a.is_ipv4());
    addresses.iter().find(same).or(addresses.first()).copied()
}

pub(super) fn unspecified(like: IpAddr) -> IpAddr {
    match like {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    }
}
