//! What may be: everything the sources have said, in order, and for each of these states what the
//! workers of a node that knows it are told.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use mesh_agent::supervisor::simulated::{Agent, Told};
use mesh_api::convert::address_from_bytes;
use mesh_api::convert::policy::{authentication_from_wire, authorization_from_wire};
use mesh_api::worker::{PodPolicy as Message, SourceInfo};
use mesh_core::identity::Identity;
use mesh_core::model::{Mesh, ServiceKey};
use mesh_core::policy::{Direction, Flow, Peer, PodPolicy, Protocol};

use crate::news::{self, Key};
use crate::sources::{PORTS, addresses};

/// The states of the mesh.
#[derive(Default)]
pub(crate) struct Oracle {
    history: Vec<Mesh>,
    unreadable: Vec<Vec<Key>>,
    expected: HashMap<(usize, String), Arc<BTreeMap<String, Told>>>,
}

/// Who is looked at.
pub(crate) struct Subject<'a> {
    pub(crate) node: &'a str,
    pub(crate) agent: &'a Agent,
    /// Whether it can't read what is new.
    pub(crate) old: bool,
    /// Addresses of which control has still to say who is there.
    pub(crate) in_question: &'a BTreeSet<IpAddr>,
}

impl Oracle {
    /// The sources say this now. Returns the state's place in the history.
    pub(crate) fn push(&mut self, mesh: Mesh) -> usize {
        self.unreadable.push(news::unreadable(&mesh));
        self.history.push(mesh);
        self.history.len() - 1
    }

    pub(crate) fn state(&self, at: usize) -> &Mesh {
        &self.history[at]
    }

    pub(crate) fn last(&self) -> usize {
        self.history.len() - 1
    }

    /// Finds the first state from `from` to `to` that what the workers know is all of.
    pub(crate) fn place(
        &mut self,
        subject: &Subject<'_>,
        from: usize,
        to: usize,
    ) -> Result<usize, String> {
        let mut differences = Vec::new();
        for at in from..=to {
            match self.differs(subject, at) {
                None => return Ok(at),
                Some(difference) => differences.push(format!("not state {at}: {difference}")),
            }
        }
        Err(differences.join("\n"))
    }

    /// How what the workers know differs from what they should, if they were told of this state.
    pub(crate) fn differs(&mut self, subject: &Subject<'_>, at: usize) -> Option<String> {
        let expected = self.expected(subject.node, at);
        let known: Vec<&str> = subject.agent.told().map(|(uid, _)| uid).collect();
        if !known
            .iter()
            .copied()
            .eq(expected.keys().map(String::as_str))
        {
            return Some(format!("its pods are {known:?}"));
        }
        for (uid, told) in subject.agent.told() {
            let expected = &expected[uid];
            let about = |what: &str| Some(format!("{uid}: {what}"));
            let answered = |address| {
                subject.agent.answered(address) && !subject.in_question.contains(&address)
            };
            for (address, told) in &told.destinations {
                if expected.destinations[address] != *told && answered(address.0) {
                    return about(&format!("{address:?} leads to {told:?}"));
                }
            }
            for (address, told) in &told.sources {
                if expected.sources[address] != *told && answered(*address) {
                    return about(&format!("{address} is {told:?}"));
                }
            }
            let unreadable = match subject.old {
                true => self.unreadable[at].as_slice(),
                false => &[],
            };
            let policies = [&told.policy, &expected.policy];
            let [told_policy, true_policy] = policies.map(|p| p.clone().unwrap_or_default());
            if without(&told_policy, unreadable) != without(&true_policy, unreadable) {
                return about(&format!("its policy is {told_policy:?}"));
            }
            if !unreadable.is_empty()
                && let Err(why) = self.as_strict(subject, uid, at, &told_policy, &expected.sources)
            {
                return about(&why);
            }
        }
        None
    }

    /// Whether every pod has an answer to all that can be asked.
    pub(crate) fn all_answered(agent: &Agent) -> bool {
        let count = addresses().len();
        agent.told().all(|(_, told)| {
            (told.sources.len(), told.destinations.len()) == (count, count * PORTS.len())
                && addresses().into_iter().all(|a| agent.answered(a))
        })
    }

    fn expected(&mut self, node: &str, at: usize) -> Arc<BTreeMap<String, Told>> {
        let mesh = &self.history[at];
        let make = || {
            let mut agent = Agent::that_knows(node, mesh, &addresses());
            ask_all(&mut agent);
            let told = agent.told();
            Arc::new(
                told.map(|(uid, told)| (uid.to_owned(), told.clone()))
                    .collect(),
            )
        };
        let key = (at, node.to_owned());
        self.expected.entry(key).or_insert_with(make).clone()
    }

    /// Where policies can't be read: each is as it last could be, or allows nothing that it was
    /// not to.
    fn as_strict(
        &self,
        subject: &Subject<'_>,
        uid: &str,
        at: usize,
        told: &Message,
        peers: &BTreeMap<IpAddr, SourceInfo>,
    ) -> Result<(), String> {
        let mut truth = self.history[at].clone();
        for key in &self.unreadable[at] {
            self.put_held(subject.agent, key, &mut truth)?;
        }
        let workload = truth.workload(uid).ok_or("it is not known")?;
        let told = compile(told)?;
        let widest = PodPolicy::for_workload(&truth, workload, told.resolvers().to_vec());
        for peer in peers.values() {
            if let Some(flow) = wider(&told, &widest, peer) {
                return Err(format!("{flow} is allowed and was not to be"));
            }
        }
        Ok(())
    }

    /// What an agent holds in place of what it can't read has been true once.
    fn put_held(&self, agent: &Agent, key: &Key, truth: &mut Mesh) -> Result<(), String> {
        let mut states = self.history.iter();
        let known = match key {
            Key::Authorization(key) => {
                let find = |mesh: &Mesh| mesh.authorizations().find(|p| p.key == *key).cloned();
                let Some(held) = agent.with_model(find) else {
                    return Ok(());
                };
                truth.insert_authorization((*held).clone());
                states.any(|mesh| find(mesh).as_ref() == Some(&held))
            }
            Key::Authentication(key) => {
                let find = |mesh: &Mesh| mesh.authentications().find(|p| p.key == *key).cloned();
                let Some(held) = agent.with_model(find) else {
                    return Ok(());
                };
                truth.insert_authentication((*held).clone());
                states.any(|mesh| find(mesh).as_ref() == Some(&held))
            }
        };
        match known {
            true => Ok(()),
            false => Err(format!("it holds a {key:?} that never was")),
        }
    }
}

/// Asks all that can be asked, for every pod of the node.
pub(crate) fn ask_all(agent: &mut Agent) {
    let uids: Vec<String> = agent.told().map(|(uid, _)| uid.to_owned()).collect();
    for uid in uids {
        for address in addresses() {
            agent.ask_source(&uid, address);
            for port in PORTS {
                agent.ask_destination(&uid, address, port);
            }
        }
    }
}

/// A policy without those that can't be read, and what stands in for them.
fn without(policy: &Message, unreadable: &[Key]) -> Message {
    let is = |name: &str, key: &str| {
        let stand_in = name.strip_prefix(key);
        name == key || stand_in.is_some_and(|rest| rest.starts_with("#unreadable"))
    };
    let mut policy = policy.clone();
    for key in unreadable {
        match key {
            Key::Authorization(key) => policy.authorizations.retain(|p| !is(&p.key, key)),
            Key::Authentication(key) => policy.authentications.retain(|p| !is(&p.key, key)),
        }
    }
    policy
}

fn compile(message: &Message) -> Result<PodPolicy, String> {
    let authorizations = message.authorizations.iter();
    let authorizations = authorizations.map(|p| authorization_from_wire(p).map(Arc::new));
    let authentications = message.authentications.iter();
    let authentications = authentications.map(|p| authentication_from_wire(p).map(Arc::new));
    let resolvers = message.resolvers.iter();
    let resolvers = resolvers.map(|bytes| address_from_bytes(bytes, "resolvers"));
    let made = || {
        Ok(PodPolicy::new(
            authorizations.collect::<Result<_, _>>()?,
            authentications.collect::<Result<_, _>>()?,
            resolvers.collect::<Result<_, _>>()?,
        ))
    };
    made().map_err(|e: mesh_api::convert::ConvertError| e.to_string())
}

/// A flow with this peer that `told` allows and `widest` doesn't.
fn wider(told: &PodPolicy, widest: &PodPolicy, peer: &SourceInfo) -> Option<String> {
    let identity: Option<Identity> = peer.identity.parse().ok();
    let services: Vec<ServiceKey> = peer.services.iter().map(|s| s.as_str().into()).collect();
    let address = address_from_bytes(&peer.address, "address").ok()?;
    for direction in [Direction::Inbound, Direction::Outbound] {
        for member in [false, true] {
            for protocol in [Protocol::Tcp, Protocol::Udp] {
                for port in PORTS {
                    let peer = Peer {
                        address,
                        member: member && identity.is_some(),
                        identity: identity.as_ref(),
                        services: &services,
                        labels: &peer.labels,
                    };
                    let flow = Flow {
                        direction,
                        peer,
                        port,
                        protocol,
                    };
                    let allowed = |policy: &PodPolicy| policy.decide(&flow).refused.is_none();
                    if allowed(told) && !allowed(widest) {
                        return Some(format!("{flow:?}"));
                    }
                }
            }
        }
    }
    None
}
