//! A node: the real agent's discovery, its disk, and its end of a stream.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use fastrand::Rng;
use mesh_agent::supervisor::simulated::Agent;
use mesh_api::ads::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource};
use mesh_api::{ADDRESS_TYPE_URL, POLICY_TYPE_URL};
use prost::Message as _;

use crate::bugs::Bug;
use crate::news;
use crate::oracle::{Oracle, Subject, ask_all};
use crate::replica::Replica;
use crate::sources::{PORTS, addresses};
use crate::stream::Stream;

/// How long the agent gathers changes before it writes them down, in milliseconds.
const SAVE_DELAY_MS: u64 = 500;

/// What is on the disk, the place in the history that it may be of, and whether an old agent wrote
/// it.
struct Kept {
    snapshot: Vec<u8>,
    place: usize,
    by_old: bool,
}

/// A node of the mesh.
pub(crate) struct Node {
    pub(crate) name: &'static str,
    pub(crate) stream: Option<Stream>,
    /// Cut off from control until then, and not reading until then; in milliseconds.
    pub(crate) away_until: u64,
    pub(crate) slow_until: u64,
    /// Whether its agent is of an old version, which can't read what is new.
    pub(crate) old: bool,
    /// Whether what is in effect came to an old agent.
    taken_by_old: bool,
    agent: Agent,
    /// The earliest state that may be in effect.
    place: usize,
    disk: Option<Kept>,
    saved_at: Option<u64>,
    save_due: Option<u64>,
    /// Addresses that control has been asked about on this stream and may not have answered. What
    /// workers were told of them before is kept, and not always kept up to date.
    in_question: BTreeSet<IpAddr>,
    /// What was taken and is not in effect, for the bugs that forget that.
    unfinished: Vec<DeltaDiscoveryResponse>,
    /// Policies that could not be read, as they are: what is on the disk, the next agent can read.
    refused: BTreeMap<String, Resource>,
}

impl Node {
    pub(crate) fn new(name: &'static str, old: bool) -> Self {
        Self {
            name,
            stream: None,
            away_until: 0,
            slow_until: 0,
            old,
            taken_by_old: old,
            agent: Agent::new(name),
            place: 0,
            disk: None,
            saved_at: None,
            save_due: None,
            in_question: BTreeSet::new(),
            unfinished: Vec::new(),
            refused: BTreeMap::new(),
        }
    }

    pub(crate) fn connect(&mut self, index: usize, replica: &Replica, bug: Option<Bug>) {
        let mut requests = self.agent.connect();
        match bug {
            Some(Bug::UnfinishedSurvives) => {
                for response in std::mem::take(&mut self.unfinished) {
                    self.agent.take(response);
                }
            }
            Some(Bug::ClaimsWhatIsStaged) => {
                for response in &self.unfinished {
                    let versions = response.resources.iter();
                    let versions = versions.map(|r| (r.name.clone(), r.version.clone()));
                    claim(&mut requests, &response.type_url, versions);
                }
            }
            Some(Bug::ClaimsWhatItRefused) => {
                let versions = self.refused.values();
                let versions = versions.map(|r| (r.name.clone(), r.version.clone()));
                claim(&mut requests, POLICY_TYPE_URL, versions);
            }
            _ => {}
        }
        self.unfinished.clear();
        // The first answer is to all of them.
        self.in_question.clear();
        self.stream = Some(Stream::open(index, replica, self.name, requests));
    }

    /// Takes the next response, if there is one, perhaps twice.
    pub(crate) fn read(
        &mut self,
        now_ms: u64,
        twice: bool,
        bug: Option<Bug>,
        oracle: &mut Oracle,
    ) -> Result<bool, String> {
        let next = self.stream.as_mut().and_then(|s| s.responses.pop_front());
        let Some(mut response) = next else {
            return Ok(false);
        };
        if self.old {
            self.age(&mut response, bug);
        }
        response.more &= bug != Some(Bug::HalfAChange);
        for _ in 0..1 + usize::from(twice) {
            let (request, committed) = self.agent.take(response.clone());
            if let Some(stream) = &mut self.stream {
                stream.requests.push_back(request);
            }
            self.unfinished.push(response.clone());
            if committed {
                self.unfinished.clear();
                self.committed(now_ms, oracle)?;
            }
        }
        Ok(true)
    }

    fn age(&mut self, response: &mut DeltaDiscoveryResponse, bug: Option<Bug>) {
        let as_they_are = response.resources.clone();
        let refused = news::age(response);
        for resource in as_they_are {
            self.refused.remove(&resource.name);
            if refused.contains(&resource.name) {
                self.refused.insert(resource.name.clone(), resource);
            }
        }
        if bug == Some(Bug::RefusedIsGone) {
            response.resources.retain(|r| !refused.contains(&r.name));
            response.removed_resources.extend(refused);
        }
    }

    fn committed(&mut self, now_ms: u64, oracle: &mut Oracle) -> Result<(), String> {
        if self.stream.as_ref().is_some_and(Stream::is_idle) {
            self.in_question.clear();
        }
        if let Some(stream) = &mut self.stream
            && !std::mem::replace(&mut stream.took, true)
        {
            // Another replica may be behind the one before.
            self.place = stream.began_at;
            self.taken_by_old = self.old;
        }
        self.save_due.get_or_insert_with(|| {
            let next = self.saved_at.map(|at| at + SAVE_DELAY_MS);
            next.map_or(now_ms, |next| next.max(now_ms))
        });
        self.check(oracle)
    }

    /// What the workers know is all of one state, and no earlier one than before.
    pub(crate) fn check(&mut self, oracle: &mut Oracle) -> Result<(), String> {
        if !self.agent.synced() {
            let nothing = self.agent.told().next().is_none();
            return match nothing {
                true => Ok(()),
                false => Err(format!("{}: tells what it can't know", self.name)),
            };
        }
        let subject = Subject {
            node: self.name,
            agent: &self.agent,
            old: self.taken_by_old,
            in_question: &self.in_question,
        };
        let found = oracle.place(&subject, self.place, oracle.last());
        self.place = found.map_err(|why| format!("{}: {why}", self.name))?;
        Ok(())
    }

    /// At the end: every pod has asked everything, and knows what the sources say now.
    pub(crate) fn check_last(&mut self, at: usize, oracle: &mut Oracle) -> Result<(), String> {
        self.in_question.clear();
        let subject = Subject {
            node: self.name,
            agent: &self.agent,
            old: self.taken_by_old,
            in_question: &self.in_question,
        };
        match oracle.differs(&subject, at) {
            None if self.agent.synced() && Oracle::all_answered(&self.agent) => Ok(()),
            None => Err(format!("{}: lacks answers at the end", self.name)),
            Some(why) => Err(format!("{}: at the end, {why}", self.name)),
        }
    }

    /// A worker of the node asks something.
    pub(crate) fn ask(&mut self, rng: &mut Rng) {
        let uids: Vec<String> = self.agent.told().map(|(uid, _)| uid.to_owned()).collect();
        let Some(uid) = rng.choice(uids) else {
            return;
        };
        let addresses = addresses();
        let address = addresses[rng.usize(..addresses.len())];
        match rng.bool() {
            true => self.agent.ask_source(&uid, address),
            false => self
                .agent
                .ask_destination(&uid, address, PORTS[rng.usize(..2)]),
        }
        // What has been unused for a minute is forgotten; nothing of a minute ago is on its way.
        let idle = self.stream.as_ref().is_some_and(Stream::is_idle);
        self.ask_control(idle && rng.u8(..8) == 0);
    }

    /// Every pod asks all there is to ask.
    pub(crate) fn ask_all(&mut self) {
        ask_all(&mut self.agent);
        self.ask_control(false);
    }

    fn ask_control(&mut self, forgetting: bool) {
        if let Some(stream) = &mut self.stream
            && let Some(request) = self.agent.ask_control(forgetting)
        {
            let names = request.resource_names_subscribe.iter();
            let address = |name: &String| name.trim_start_matches('/').parse();
            let addresses: Result<Vec<IpAddr>, _> = names.map(address).collect();
            self.in_question.extend(addresses.expect("addresses"));
            stream.requests.push_back(request);
        }
    }

    /// Writes down what is in effect, if it is time or the stream has ended.
    pub(crate) fn save(&mut self, now_ms: u64, stream_ended: bool, bug: Option<Bug>) {
        if self
            .save_due
            .is_some_and(|due| due <= now_ms || stream_ended)
        {
            self.save_due = None;
            self.saved_at = Some(now_ms);
            let mut snapshot = self.agent.kept();
            if bug == Some(Bug::KeepsNoPolicies) {
                rewrite(&mut snapshot, |kept| retain(kept, ADDRESS_TYPE_URL));
            }
            self.disk = Some(Kept {
                snapshot,
                place: self.place,
                by_old: self.taken_by_old,
            });
        }
    }

    /// The agent ends at once, and another begins.
    pub(crate) fn restart(
        &mut self,
        old: bool,
        bug: Option<Bug>,
        oracle: &mut Oracle,
    ) -> Result<(), String> {
        self.old = old;
        self.stream = None;
        self.unfinished.clear();
        (self.saved_at, self.save_due) = (None, None);
        let Some(kept) = &mut self.disk else {
            self.agent = Agent::new(self.name);
            self.taken_by_old = old;
            return Ok(());
        };
        let mut snapshot = kept.snapshot.clone();
        rewrite(&mut snapshot, |kept| {
            for resource in &mut kept.resources {
                let known = self.refused.get(&resource.name);
                if let Some(known) = known.filter(|known| known.version == resource.version) {
                    resource.clone_from(known);
                }
            }
            if old {
                news::age(kept);
            }
        });
        if bug == Some(Bug::RestoresPodsOnly) {
            rewrite(&mut snapshot, |kept| {
                kept.resources.retain(|r| r.name.contains("//v1/Pod/"));
            });
        }
        self.agent = Agent::restored(self.name, &snapshot)?;
        self.place = kept.place;
        self.taken_by_old = old || kept.by_old;
        self.check(oracle)
    }
}

fn claim(
    requests: &mut [DeltaDiscoveryRequest],
    type_url: &str,
    versions: impl IntoIterator<Item = (String, String)>,
) {
    for request in requests {
        if request.type_url == type_url {
            request.initial_resource_versions.extend(versions);
            return;
        }
    }
}

fn rewrite(snapshot: &mut Vec<u8>, change: impl FnOnce(&mut DeltaDiscoveryResponse)) {
    let mut kept = DeltaDiscoveryResponse::decode(snapshot.as_slice()).expect("as it was written");
    change(&mut kept);
    *snapshot = kept.encode_to_vec();
}

fn retain(kept: &mut DeltaDiscoveryResponse, type_url: &str) {
    let is = |any: &prost_types::Any| any.type_url == type_url;
    kept.resources
        .retain(|r| r.resource.as_ref().is_some_and(is));
}
