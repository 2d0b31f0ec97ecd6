//! From clauses to blocks of addresses.
//!
//! Terms that name peers by address alone give blocks, each with all that is said of those
//! around it too. Addresses of which discovery knows more are worked out one by one, and have
//! an entry of their own where it differs from their block's.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::super::blocks::Blocks;
use super::super::clause::{Condition, clauses};
use super::super::{Labels, PORT_DNS, Peer, PodPolicy};
use super::attributed::Attributed;
use super::layout::{Layout, mapped, takes_away};
use super::said::{Ports, Said};
use super::{KernelClass, KernelPolicy, KernelVerdict, MAX_PREFIXES, Verdicts, verdict};
use crate::model::{Endpoint, Mesh, Resolution, Service, Workload};

pub(super) struct Compiler<'a> {
    mesh: &'a Mesh,
    /// The pod's own addresses.
    own: &'a [IpAddr],
    resolvers: &'a [IpAddr],
    /// Every block that a term names, and both families as wholes.
    blocks: Blocks,
    /// What is said of each block, that of those around it included.
    said: Vec<Said>,
    /// Terms that name peers by more than their address.
    attributed: Attributed,
}

impl<'a> Compiler<'a> {
    pub(super) fn new(policy: &'a PodPolicy, own: &'a [IpAddr], mesh: &'a Mesh) -> Self {
        let mut said: HashMap<Condition, Said> = HashMap::new();
        for policy in policy.authorizations() {
            for clause in clauses(policy) {
                let member = clause.condition.member;
                let said = said.entry(clause.condition).or_default();
                for port in clause.ports {
                    said.add(policy.direction, policy.action, member, port);
                }
            }
        }
        said.retain(|_, said| !said.is_empty());
        let (by_address, attributed): (Vec<_>, Vec<_>) =
            said.into_iter().partition(|(c, _)| c.by_address_alone());

        let wholes = [IpNet::from(Ipv4Net::default()), Ipv6Net::default().into()];
        let mut of_blocks = BTreeMap::from(wholes.map(|whole| (whole, Said::default())));
        for (condition, said) in &by_address {
            for block in condition.cidr.map_or(wholes.to_vec(), |cidr| vec![cidr]) {
                of_blocks.entry(block).or_default().merge(said);
            }
        }
        for resolver in policy.resolvers() {
            let said = of_blocks.entry(IpNet::from(*resolver)).or_default();
            said.udp_out.allow.single.insert(PORT_DNS);
        }
        let blocks = Blocks::new(&of_blocks.keys().copied().collect());
        let mut all: Vec<Said> = Vec::new();
        for (node, mut own) in of_blocks.into_values().enumerate() {
            if let Some(parent) = blocks.parent(node) {
                own.merge(&all[parent]);
            }
            all.push(own);
        }
        Self {
            mesh,
            own,
            resolvers: policy.resolvers(),
            blocks,
            said: all,
            attributed: Attributed::new(attributed),
        }
    }

    pub(super) fn compile(mut self) -> KernelPolicy {
        let mut hosts = self.hosts();
        let complete = self.layout(&hosts);
        if let Some(policy) = complete.fit() {
            return policy;
        }
        // What must be there is too much: denials of TCP are left to the worker.
        let wanted = complete.len();
        for said in self.said.iter_mut().chain(hosts.values_mut()) {
            said.tcp_denied = Ports::default();
        }
        let mut policy = self
            .layout(&hosts)
            .fit()
            .unwrap_or_else(|| self.dns_alone(&hosts));
        policy.left_out = wanted.saturating_sub(policy.prefixes.len());
        policy
    }

    /// What is said of addresses of which discovery knows more, as far as that matters.
    fn hosts(&self) -> BTreeMap<IpAddr, Said> {
        let mut hosts = BTreeMap::new();
        if !self.attributed.is_empty() {
            for workload in self.mesh.workloads() {
                for &address in &workload.addresses {
                    if self.owns(workload, address) {
                        hosts.insert(address.to_canonical(), self.of_workload(workload, address));
                    }
                }
            }
        }
        for &address in self.own {
            let address = address.to_canonical();
            let known = hosts.remove(&address);
            let mut said = known
                .or_else(|| self.of_address(address).cloned())
                .unwrap_or_default();
            said.tcp_denied = Ports::default();
            hosts.insert(address, said);
        }
        // What is denied of endpoints is denied of the service in front of them.
        let denies = |s: &Said| !s.tcp_denied.is_empty() || !s.udp_out.deny.is_empty();
        if self.said.iter().any(denies) || !self.attributed.is_empty() {
            for service in self.mesh.services() {
                for &address in &service.addresses {
                    let owner = self.mesh.service_at(address);
                    let owned = owner.is_some_and(|owner| owner.key == service.key);
                    if owned && !self.is_own(address) {
                        let said = self.of_service(service, address, &hosts);
                        hosts.insert(address.to_canonical(), said);
                    }
                }
            }
        }
        hosts
    }

    fn is_own(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.own.iter().any(|own| own.to_canonical() == address)
    }

    fn owns(&self, workload: &Workload, address: IpAddr) -> bool {
        let owner = self.mesh.workload_at(address);
        owner.is_some_and(|owner| owner.uid == workload.uid)
    }

    /// What is said of an endpoint, by what `hosts` has of workloads.
    fn of_endpoint<'s>(
        &'s self,
        endpoint: &Endpoint,
        hosts: &'s BTreeMap<IpAddr, Said>,
    ) -> Cow<'s, Said> {
        let address = endpoint.address.to_canonical();
        let known = match self.attributed.is_empty() {
            _ if self.is_own(address) => hosts.get(&address),
            true => self.of_address(address),
            false => hosts
                .get(&address)
                .filter(|_| self.owns(&endpoint.workload, endpoint.address)),
        };
        let anew = || Cow::Owned(self.of_workload(&endpoint.workload, endpoint.address));
        known.map_or_else(anew, Cow::Borrowed)
    }

    fn of_workload(&self, workload: &Workload, address: IpAddr) -> Said {
        let services: Vec<_> = workload.services.keys().cloned().collect();
        self.of_peer(&Peer {
            address: address.to_canonical(),
            member: false,
            identity: Some(&workload.identity),
            services: &services,
            labels: &workload.labels,
        })
    }

    /// TCP to a virtual address goes to an endpoint; UDP is to the address itself, but what may
    /// not go to an endpoint may not go there by way of the service.
    fn of_service(
        &self,
        service: &Service,
        address: IpAddr,
        hosts: &BTreeMap<IpAddr, Said>,
    ) -> Said {
        let peer = Peer {
            address: address.to_canonical(),
            member: false,
            identity: None,
            services: std::slice::from_ref(&service.key),
            labels: &Labels::new(),
        };
        let mut said = self.of_peer(&peer);
        // A peer that comes in from there was not dialled by the service.
        said.udp_in = self
            .of_peer(&Peer {
                services: &[],
                ..peer
            })
            .udp_in;
        said.tcp_denied = Ports::default();
        let members = self.mesh.members(&service.key);
        let ports = members.filter_map(|workload| workload.services.get(&service.key));
        for port in ports
            .flat_map(BTreeMap::keys)
            .copied()
            .collect::<BTreeSet<_>>()
        {
            let Resolution::Service(_, endpoints) = self.mesh.resolve(address, port) else {
                continue;
            };
            let mut denied = endpoints.iter().map(|endpoint| {
                let said = self.of_endpoint(endpoint, hosts);
                (
                    said.tcp_denied.has(endpoint.port),
                    said.udp_out.deny.has(endpoint.port),
                )
            });
            let Some(first) = denied.next() else { continue };
            let (tcp, udp) = denied.fold(first, |all, one| (all.0 && one.0, all.1 || one.1));
            if tcp && port != 0 {
                said.tcp_denied.single.insert(port);
            }
            if udp {
                said.udp_out.deny.single.insert(port);
            }
        }
        said
    }

    fn of_peer(&self, peer: &Peer<'_>) -> Said {
        let mut said = self.of_address(peer.address).cloned().unwrap_or_default();
        self.attributed.each(peer, |one| said.merge(one));
        said
    }

    /// What is said of all at an address.
    fn of_address(&self, address: IpAddr) -> Option<&Said> {
        let block = self.blocks.holding(address).next();
        block.map(|block| &self.said[block])
    }

    fn layout(&self, hosts: &BTreeMap<IpAddr, Said>) -> Layout {
        let verdicts: Vec<_> = self.said.iter().map(Said::verdicts).collect();
        let mut layout = Layout::default();
        for (node, block) in self.blocks.blocks().enumerate() {
            let parent = self.blocks.parent(node);
            // A family has nothing from the other, whatever block of addresses it lies in.
            if parent.is_none_or(|parent| verdicts[parent] != verdicts[node]) {
                layout
                    .required
                    .insert(mapped(block), verdicts[node].clone());
            }
        }
        for (&address, said) in hosts {
            let own = said.verdicts();
            let around = self.blocks.holding(address).next();
            let around = around.map_or(&own, |node| &verdicts[node]);
            if own == *around {
                continue;
            }
            let kind = match takes_away(&own, around) {
                true => &mut layout.required,
                false => &mut layout.optional,
            };
            kind.insert(mapped(IpNet::from(address)), own);
        }
        layout.without_empty_wholes()
    }

    /// What is left where nothing else has room.
    fn dns_alone(&self, hosts: &BTreeMap<IpAddr, Said>) -> KernelPolicy {
        let dns = (KernelClass::UdpOut, PORT_DNS);
        let open = self.resolvers.iter().filter(|address| {
            let said = hosts.get(*address).or_else(|| self.of_address(**address));
            let verdicts = said.map(Said::verdicts).unwrap_or_default();
            verdict(&verdicts, dns.0, dns.1) == Some(KernelVerdict::Allow)
        });
        let verdicts = Verdicts::from([(dns, KernelVerdict::Allow)]);
        let entries = open.map(|address| (mapped(IpNet::from(*address)), verdicts.clone()));
        KernelPolicy {
            prefixes: entries.take(MAX_PREFIXES).collect(),
            left_out: 0,
        }
    }
}
