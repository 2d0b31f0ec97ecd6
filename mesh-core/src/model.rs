//! The one internal model of the mesh: workloads, services, and what an address leads to.
//! The control component fills it from its sources, the node agent from discovery.

use std::borrow::Borrow;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::ops::Bound;
use std::sync::Arc;

use crate::budget;
use crate::identity::Identity;
use crate::policy::{AuthenticationPolicy, AuthorizationPolicy, Labels, MESH_NAMESPACE, PolicyKey};
use crate::traffic::Traffic;

/// Unique id of a workload in all of the mesh: `<cluster>//v1/Pod/<namespace>/<name>`.
pub type WorkloadUid = Arc<str>;
/// `<namespace>/<hostname>` of a service.
pub type ServiceKey = Arc<str>;

/// How far a pod is in the mesh.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Enrolment {
    /// Not at all: it is not captured, and takes no HBONE.
    #[default]
    None,
    /// Captured, encrypted between members, all policy evaluated; what would be refused passes,
    /// counted and logged.
    Audit,
    /// Captured, and policy is enforced.
    Enforce,
}

/// The port of a pod that tunnels to it go to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TunnelPort {
    /// 15008, whatever the port of the app.
    #[default]
    Hbone,
    /// The port of the app that is called, so that a network's rules by port mean what they meant
    /// without the mesh.
    Original,
}

/// What becomes of processes that use a pod's network and are none of its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ForeignProcesses {
    /// They are counted and told of.
    #[default]
    Audit,
    /// Those from outside of the pod are refused, such as a port-forward; those that were put into
    /// its containers are counted and told of.
    Refuse,
    /// Those are refused as well: execs, and exec probes.
    RefuseExec,
}

/// Whether an endpoint takes connections, as its own node found out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Health {
    /// It does, or nobody has asked.
    #[default]
    Healthy,
    /// An active health check fails.
    Unhealthy,
}

/// Where a node stands; empty where it is not known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Locality {
    /// `topology.kubernetes.io/region` of the node.
    pub region: String,
    /// `topology.kubernetes.io/zone` of the node.
    pub zone: String,
}

/// A pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Workload {
    /// Unique id.
    pub uid: WorkloadUid,
    /// Pod name.
    pub name: String,
    /// The pod's UID as its node's kubelet has it; empty where it is not known.
    pub pod_uid: String,
    /// Its identity: trust domain, namespace, service account.
    pub identity: Identity,
    /// Node it is bound to.
    pub node: String,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// How far it is in the mesh.
    pub enrolment: Enrolment,
    /// Where tunnels to it go.
    pub tunnel_port: TunnelPort,
    /// What becomes of foreign processes in its network.
    pub foreign_processes: ForeignProcesses,
    /// Its containers share one pid namespace.
    pub shares_processes: bool,
    /// Its labels, as the orchestrator has them.
    pub labels: Labels,
    /// What its node's health checks say.
    pub health: Health,
    /// Where its node stands.
    pub locality: Locality,
    /// Its ports for each service that selects it: service port → target port. A pod that is
    /// being deleted has none: it gets no new connections through services.
    pub services: BTreeMap<ServiceKey, BTreeMap<u16, u16>>,
    /// The TCP ports that it declares for kubelet's probes and hooks.
    pub probe_ports: BTreeSet<u16>,
    /// What is said of what its worker may use.
    pub budget: budget::Fields,
}

impl Workload {
    /// A workload with nothing but its names: on no node, without addresses, not enrolled.
    #[must_use]
    pub fn new(uid: impl Into<WorkloadUid>, name: impl Into<String>, identity: Identity) -> Self {
        Self {
            uid: uid.into(),
            name: name.into(),
            pod_uid: String::new(),
            identity,
            node: String::new(),
            addresses: Vec::new(),
            enrolment: Enrolment::None,
            tunnel_port: TunnelPort::Hbone,
            foreign_processes: ForeignProcesses::Audit,
            shares_processes: false,
            labels: Labels::new(),
            health: Health::Healthy,
            locality: Locality::default(),
            services: BTreeMap::new(),
            probe_ports: BTreeSet::new(),
            budget: budget::Fields::default(),
        }
    }

    /// Whether it is captured and takes HBONE.
    #[must_use]
    pub fn enrolled(&self) -> bool {
        self.enrolment != Enrolment::None
    }

    /// The services that lead to it at another port than they were called at, with that port.
    pub fn translations(&self) -> impl Iterator<Item = (&ServiceKey, u16)> {
        let ports = |(key, ports)| std::iter::repeat(key).zip(ports);
        let all = self.services.iter().flat_map(ports);
        all.filter_map(|(key, (called, target))| (called != target).then_some((key, *target)))
    }
}

/// A service: virtual addresses in front of workloads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// `<namespace>/<hostname>`.
    pub key: ServiceKey,
    /// Service name.
    pub name: String,
    /// Namespace.
    pub namespace: String,
    /// Virtual addresses; none for a headless service.
    pub addresses: Vec<IpAddr>,
    /// Service ports.
    pub ports: BTreeSet<u16>,
    /// How its endpoints are chosen and watched.
    pub traffic: Traffic,
}

/// Where one destination leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// The workload.
    pub workload: Arc<Workload>,
    /// Its address of the family that was asked for, or else its first.
    pub address: IpAddr,
    /// The port on the workload.
    pub port: u16,
}

/// What an address and port lead to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Resolution {
    /// A workload's own address.
    Workload(Endpoint),
    /// A service's virtual address, with its endpoints for this port.
    Service(ServiceKey, Vec<Endpoint>),
    /// Nothing that discovery knows.
    Unknown,
}

/// Workloads and services, indexed by what the mesh asks for.
#[derive(Clone, Debug, Default)]
pub struct Mesh {
    workloads: BTreeMap<WorkloadUid, Arc<Workload>>,
    services: BTreeMap<ServiceKey, Arc<Service>>,
    by_address: HashMap<IpAddr, AddressOwner>,
    by_service: BTreeMap<ServiceKey, BTreeSet<WorkloadUid>>,
    by_node: BTreeMap<String, BTreeSet<WorkloadUid>>,
    authorizations: BTreeMap<PolicyKey, Arc<AuthorizationPolicy>>,
    authentications: BTreeMap<PolicyKey, Arc<AuthenticationPolicy>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum AddressOwner {
    Workload(WorkloadUid),
    Service(ServiceKey),
}

impl Mesh {
    /// Puts in or replaces a workload. Returns whether anything changed.
    pub fn insert_workload(&mut self, workload: impl Into<Arc<Workload>>) -> bool {
        let workload = workload.into();
        if self
            .workloads
            .get(&workload.uid)
            .is_some_and(|old| *old == workload)
        {
            return false;
        }
        self.remove_workload(&workload.uid);
        for address in &workload.addresses {
            self.by_address
                .insert(*address, AddressOwner::Workload(workload.uid.clone()));
        }
        for key in workload.services.keys() {
            self.by_service
                .entry(key.clone())
                .or_default()
                .insert(workload.uid.clone());
        }
        let on_node = self.by_node.entry(workload.node.clone()).or_default();
        on_node.insert(workload.uid.clone());
        self.workloads.insert(workload.uid.clone(), workload);
        true
    }

    /// Takes out a workload.
    pub fn remove_workload(&mut self, uid: &str) -> Option<Arc<Workload>> {
        let old = self.workloads.remove(uid)?;
        self.release_addresses(&old.addresses, &AddressOwner::Workload(old.uid.clone()));
        for key in old.services.keys() {
            take(&mut self.by_service, key, uid);
        }
        take(&mut self.by_node, &old.node, uid);
        Some(old)
    }

    /// Puts in or replaces a service. Returns whether anything changed.
    pub fn insert_service(&mut self, service: impl Into<Arc<Service>>) -> bool {
        let service = service.into();
        if self
            .services
            .get(&service.key)
            .is_some_and(|old| *old == service)
        {
            return false;
        }
        self.remove_service(&service.key);
        for address in &service.addresses {
            self.by_address
                .insert(*address, AddressOwner::Service(service.key.clone()));
        }
        self.services.insert(service.key.clone(), service);
        true
    }

    /// Takes out a service.
    pub fn remove_service(&mut self, key: &str) -> Option<Arc<Service>> {
        let old = self.services.remove(key)?;
        self.release_addresses(&old.addresses, &AddressOwner::Service(old.key.clone()));
        Some(old)
    }

    /// Puts in or replaces an authorization policy. Returns whether anything changed.
    pub fn insert_authorization(&mut self, policy: impl Into<Arc<AuthorizationPolicy>>) -> bool {
        let policy = policy.into();
        let old = self.authorizations.get(&policy.key);
        let news = old.is_none_or(|old| *old != policy);
        if news {
            self.authorizations.insert(policy.key.clone(), policy);
        }
        news
    }

    /// Takes out an authorization policy.
    pub fn remove_authorization(&mut self, key: &str) -> Option<Arc<AuthorizationPolicy>> {
        self.authorizations.remove(key)
    }

    /// Puts in or replaces an authentication scope. Returns whether anything changed.
    pub fn insert_authentication(&mut self, policy: impl Into<Arc<AuthenticationPolicy>>) -> bool {
        let policy = policy.into();
        let old = self.authentications.get(&policy.key);
        let news = old.is_none_or(|old| *old != policy);
        if news {
            self.authentications.insert(policy.key.clone(), policy);
        }
        news
    }

    /// Takes out an authentication scope.
    pub fn remove_authentication(&mut self, key: &str) -> Option<Arc<AuthenticationPolicy>> {
        self.authentications.remove(key)
    }

    /// All authorization policies, by key.
    pub fn authorizations(&self) -> impl Iterator<Item = &Arc<AuthorizationPolicy>> {
        self.authorizations.values()
    }

    /// All authentication scopes, by key.
    pub fn authentications(&self) -> impl Iterator<Item = &Arc<AuthenticationPolicy>> {
        self.authentications.values()
    }

    /// The policies that select a workload.
    #[must_use]
    pub fn policies_for(
        &self,
        workload: &Workload,
    ) -> (
        Vec<Arc<AuthorizationPolicy>>,
        Vec<Arc<AuthenticationPolicy>>,
    ) {
        let namespace = workload.identity.namespace();
        let authorizations = self.authorizations_over(namespace);
        let authentications = self.authentications_over(namespace);
        (
            authorizations
                .filter(|policy| policy.selects(workload))
                .cloned()
                .collect(),
            authentications
                .filter(|policy| policy.selects(workload))
                .cloned()
                .collect(),
        )
    }

    /// The authorization policies that can select workloads of a namespace: its own, and those of
    /// [`MESH_NAMESPACE`].
    pub fn authorizations_over(
        &self,
        namespace: &str,
    ) -> impl Iterator<Item = &Arc<AuthorizationPolicy>> {
        let namespaces = BTreeSet::from([namespace, MESH_NAMESPACE]).into_iter();
        namespaces.flat_map(|namespace| in_namespace(&self.authorizations, namespace))
    }

    /// The authentication scopes that can select workloads of a namespace, as
    /// [`Self::authorizations_over`].
    pub fn authentications_over(
        &self,
        namespace: &str,
    ) -> impl Iterator<Item = &Arc<AuthenticationPolicy>> {
        let namespaces = BTreeSet::from([namespace, MESH_NAMESPACE]).into_iter();
        namespaces.flat_map(|namespace| in_namespace(&self.authentications, namespace))
    }

    /// The service that owns this address.
    #[must_use]
    pub fn service_at(&self, address: IpAddr) -> Option<&Arc<Service>> {
        match self.by_address.get(&address)? {
            AddressOwner::Workload(_) => None,
            AddressOwner::Service(key) => self.services.get(key),
        }
    }

    /// An address that has meanwhile gone to another owner stays with that owner.
    fn release_addresses(&mut self, addresses: &[IpAddr], owner: &AddressOwner) {
        for address in addresses {
            if self.by_address.get(address) == Some(owner) {
                self.by_address.remove(address);
            }
        }
    }

    /// The workload with this id.
    #[must_use]
    pub fn workload(&self, uid: &str) -> Option<&Arc<Workload>> {
        self.workloads.get(uid)
    }

    /// The workload that owns this address.
    #[must_use]
    pub fn workload_at(&self, address: IpAddr) -> Option<&Arc<Workload>> {
        match self.by_address.get(&address)? {
            AddressOwner::Workload(uid) => self.workloads.get(uid),
            AddressOwner::Service(_) => None,
        }
    }

    /// The service with this key.
    #[must_use]
    pub fn service(&self, key: &str) -> Option<&Arc<Service>> {
        self.services.get(key)
    }

    /// The workloads of a service, by id.
    pub fn members(&self, service: &str) -> impl Iterator<Item = &Arc<Workload>> {
        let members = self.by_service.get(service).into_iter().flatten();
        members.filter_map(|uid| self.workloads.get(uid))
    }

    /// The workloads that are bound to a node, by id.
    pub fn on_node(&self, node: &str) -> impl Iterator<Item = &Arc<Workload>> {
        let uids = self.by_node.get(node).into_iter().flatten();
        uids.filter_map(|uid| self.workloads.get(uid))
    }

    /// All workloads, by id.
    pub fn workloads(&self) -> impl Iterator<Item = &Arc<Workload>> {
        self.workloads.values()
    }

    /// All services, by key.
    pub fn services(&self) -> impl Iterator<Item = &Arc<Service>> {
        self.services.values()
    }

    /// Where a connection to `address:port` leads.
    #[must_use]
    pub fn resolve(&self, address: IpAddr, port: u16) -> Resolution {
        match self.by_address.get(&address) {
            None => Resolution::Unknown,
            Some(AddressOwner::Workload(uid)) => {
                self.workloads
                    .get(uid)
                    .map_or(Resolution::Unknown, |workload| {
                        Resolution::Workload(Endpoint {
                            workload: workload.clone(),
                            address,
                            port,
                        })
                    })
            }
            Some(AddressOwner::Service(key)) => {
                let endpoints = self
                    .members(key)
                    .filter_map(|workload| endpoint_of(workload, key, address, port))
                    .collect();
                Resolution::Service(key.clone(), endpoints)
            }
        }
    }
}

/// Takes a workload out of an index.
fn take<K: Ord + Borrow<str>>(
    index: &mut BTreeMap<K, BTreeSet<WorkloadUid>>,
    key: &str,
    uid: &str,
) {
    if let Some(uids) = index.get_mut(key) {
        uids.remove(uid);
        if uids.is_empty() {
            index.remove(key);
        }
    }
}

/// Values whose keys are `<namespace>/<anything>`.
fn in_namespace<'a, V>(
    policies: &'a BTreeMap<PolicyKey, V>,
    namespace: &str,
) -> impl Iterator<Item = &'a V> {
    // '0' is the character after '/'.
    let (first, end) = (format!("{namespace}/"), format!("{namespace}0"));
    let range = (
        Bound::Included(first.as_str()),
        Bound::Excluded(end.as_str()),
    );
    policies.range::<str, _>(range).map(|(_, policy)| policy)
}

fn endpoint_of(workload: &Arc<Workload>, key: &str, vip: IpAddr, port: u16) -> Option<Endpoint> {
    let target = *workload.services.get(key)?.get(&port)?;
    let same_family = |a: &&IpAddr| a.is_ipv4() == vip.is_ipv4();
    let address = workload
        .addresses
        .iter()
        .find(same_family)
        .or(workload.addresses.first())?;
    Some(Endpoint {
        workload: workload.clone(),
        address: *address,
        port: target,
    })
}
