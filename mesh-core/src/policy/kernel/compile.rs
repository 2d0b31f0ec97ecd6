//! From clauses to blocks of addresses.
//!
//! Terms that name peers by address alone give blocks, each with all that is said of those
//! around it too. Addresses of which discovery knows more are worked out one by one, and have
//! an entry of their own where it differs from their block's.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::super::blocks::Blocks;
use super::super::clause::{Condition, clauses};
use super::super::{Labels, PORT_DNS, Peer, PodPolicy};
use super::said::{Ports, Said};
use super::{
    KernelClass, KernelPolicy, KernelVerdict, MAX_PREFIXES, MAX_VERDICTS, Verdicts, verdict,
};
use crate::identity::Identity;
use crate::model::{Mesh, Resolution, Service, ServiceKey, Workload};

pub(super) struct Compiler<'a> {
    mesh: &'a Mesh,
    resolvers: &'a [IpAddr],
    /// Every block that a term names, and both families as wholes.
    blocks: Blocks,
    /// What is said of each block, that of those around it included.
    said: Vec<Said>,
    /// Terms that name peers by more than their address.
    attributed: Attributed,
}

impl<'a> Compiler<'a> {
    pub(super) fn new(policy: &'a PodPolicy, mesh: &'a Mesh) -> Self {
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
                    let owner = self.mesh.workload_at(address);
                    if owner.is_some_and(|owner| owner.uid == workload.uid) {
                        hosts.insert(address.to_canonical(), self.of_workload(workload, address));
                    }
                }
            }
        }
        // What is denied of endpoints is denied of the service in front of them.
        let denies = |s: &Said| !s.tcp_denied.is_empty() || !s.udp_out.deny.is_empty();
        if self.said.iter().any(denies) || !self.attributed.is_empty() {
            for service in self.mesh.services() {
                for &address in &service.addresses {
                    let owner = self.mesh.service_at(address);
                    if owner.is_some_and(|owner| owner.key == service.key) {
                        hosts.insert(address.to_canonical(), self.of_service(service, address));
                    }
                }
            }
        }
        hosts
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
    fn of_service(&self, service: &Service, address: IpAddr) -> Said {
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
                let said = self.of_workload(&endpoint.workload, endpoint.address);
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
        let block = self.blocks.holding(peer.address).next();
        let mut said = block
            .map(|block| self.said[block].clone())
            .unwrap_or_default();
        self.attributed.each(peer, |one| said.merge(one));
        said
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
            let block = self.blocks.holding(**address).next();
            let said = hosts.get(*address).or(block.map(|block| &self.said[block]));
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

/// Whether without `own` more would pass, or more would be refused, than policy says.
fn takes_away(own: &Verdicts, around: &Verdicts) -> bool {
    let mut keys = own.keys().chain(around.keys());
    keys.any(|&(class, port)| {
        let given = verdict(around, class, port);
        given.is_some() && given != verdict(own, class, port)
    })
}

fn mapped(block: IpNet) -> Ipv6Net {
    match block {
        IpNet::V4(v4) => Ipv6Net::new_assert(v4.addr().to_ipv6_mapped(), 96 + v4.prefix_len()),
        IpNet::V6(v6) => v6,
    }
}

#[derive(Default)]
struct Layout {
    /// Without one of these the rest would say something else.
    required: BTreeMap<Ipv6Net, Verdicts>,
    /// Each says something more, and nothing else rests on it.
    optional: BTreeMap<Ipv6Net, Verdicts>,
}

impl Layout {
    fn len(&self) -> usize {
        self.required.len() + self.optional.len()
    }

    /// A family of which nothing is said needs a block only inside one of which something is.
    fn without_empty_wholes(mut self) -> Self {
        for whole in [Ipv6Net::default(), mapped(Ipv4Net::default().into())] {
            let around = |block: &Ipv6Net| *block != whole && block.contains(&whole);
            let said = self.required.get(&whole).is_some_and(|v| !v.is_empty());
            if !said && !self.required.keys().any(around) {
                self.required.remove(&whole);
            }
        }
        self
    }

    /// What must be there, and as much of the rest as there is room for.
    fn fit(&self) -> Option<KernelPolicy> {
        let verdicts: usize = self.required.values().map(BTreeMap::len).sum();
        let mut room = MAX_VERDICTS.checked_sub(verdicts)?;
        let blocks = MAX_PREFIXES.checked_sub(self.required.len())?;
        let more = self
            .optional
            .iter()
            .take(blocks)
            .take_while(|(_, verdicts)| {
                let left = room.checked_sub(verdicts.len());
                room = left.unwrap_or(0);
                left.is_some()
            });
        let more: Vec<_> = more.map(|(b, verdicts)| (*b, verdicts.clone())).collect();
        let left_out = self.optional.len() - more.len();
        let mut prefixes = self.required.clone();
        prefixes.extend(more);
        Some(KernelPolicy { prefixes, left_out })
    }
}

/// Terms by one of the attributes they ask for.
#[derive(Default)]
struct Attributed(HashMap<Attribute, Vec<(Condition, Said)>>);

#[derive(PartialEq, Eq, Hash)]
enum Attribute {
    Identity(Identity),
    Service(ServiceKey),
    Label(String, String),
    Namespace(String),
}

impl Attributed {
    fn new(terms: Vec<(Condition, Said)>) -> Self {
        let mut all = Self::default();
        for (condition, said) in terms {
            let label = condition.labels.first_key_value();
            let label = label.map(|(key, value)| Attribute::Label(key.clone(), value.clone()));
            let namespace = condition.namespace.as_deref().map(str::to_owned);
            let identity = condition.identity.clone().map(Attribute::Identity);
            let attribute = identity
                .or(condition.service.clone().map(Attribute::Service))
                .or(label)
                .or(namespace.map(Attribute::Namespace));
            // A term without any of these is by address.
            if let Some(attribute) = attribute {
                all.0.entry(attribute).or_default().push((condition, said));
            }
        }
        all
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What is said of a peer.
    fn each(&self, peer: &Peer<'_>, mut visit: impl FnMut(&Said)) {
        if self.is_empty() {
            return;
        }
        let namespace = peer.identity.map(|id| id.namespace().to_owned());
        let services = peer.services.iter().cloned().map(Attribute::Service);
        let labels = peer.labels.iter();
        let labels = labels.map(|(key, value)| Attribute::Label(key.clone(), value.clone()));
        let identity = peer.identity.cloned().map(Attribute::Identity);
        let attributes = identity
            .into_iter()
            .chain(namespace.map(Attribute::Namespace))
            .chain(services.collect::<Vec<_>>())
            .chain(labels);
        for term in attributes
            .filter_map(|attribute| self.0.get(&attribute))
            .flatten()
        {
            if term.0.holds(peer, peer.address) {
                visit(&term.1);
            }
        }
    }
}
