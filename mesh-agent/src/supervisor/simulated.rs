//! An agent as far as discovery goes, without I/O, for the simulation in `mesh-fuzz`: what comes on
//! the stream becomes the model, and what of it the workers of the node's pods are told.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use mesh_api::ads::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use mesh_api::convert::{address_from_bytes, address_to_bytes};
use mesh_api::worker::change::Change as Answer;
use mesh_api::worker::{Destination, PodPolicy, ResolveDestination, ResolveSource, SourceInfo};
use mesh_core::identity::TrustDomain;
use mesh_core::model::Mesh;
use prost::Message as _;
use tokio::time::Instant;

use super::discovery::{Discovery, Touched, View};
use super::lookups::Lookups;
use super::rules::Rules;
use super::xds::{Commit, XdsState};

/// What the worker of a pod knows.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Told {
    /// Its pod's policy, without a version; `None` before it is told any.
    pub policy: Option<PodPolicy>,
    /// Where the destinations that it has asked for lead.
    pub destinations: BTreeMap<(IpAddr, u16), Destination>,
    /// Who the sources are that it has asked for.
    pub sources: BTreeMap<IpAddr, SourceInfo>,
}

struct Pod {
    rules: Rules,
    lookups: Lookups,
    told: Told,
}

/// The agent of one node.
pub struct Agent {
    node: String,
    xds: XdsState,
    discovery: Discovery,
    pods: BTreeMap<String, Pod>,
}

fn trust_domain() -> TrustDomain {
    "cluster.local".parse().expect("a trust domain")
}

impl Agent {
    /// One that knows nothing.
    #[must_use]
    pub fn new(node: &str) -> Self {
        Self::with(node, XdsState::new(trust_domain()))
    }

    /// One that was told all of a mesh, by nobody, and that nobody else is at these addresses.
    #[must_use]
    pub fn that_knows(node: &str, mesh: &Mesh, addresses: &[IpAddr]) -> Self {
        let mut agent = Self::new(node);
        agent.discovery.update("", |view| {
            view.mesh.clone_from(mesh);
            view.answered.extend(addresses);
            Touched::default()
        });
        agent.tell();
        agent
    }

    /// One that goes on from what [`Self::kept`] gave.
    ///
    /// # Errors
    /// If that can't be read.
    pub fn restored(node: &str, kept: &[u8]) -> Result<Self, String> {
        let snapshot = DeltaDiscoveryResponse::decode(kept).map_err(|e| e.to_string())?;
        let (xds, commit, _) = XdsState::restore(trust_domain(), snapshot)?;
        let mut agent = Self::with(node, xds);
        let asked = agent.discovery.asked();
        asked.restore(commit.answered.iter().copied(), Instant::now());
        agent.commit(commit);
        Ok(agent)
    }

    fn with(node: &str, xds: XdsState) -> Self {
        Self {
            node: node.to_owned(),
            xds,
            discovery: Discovery::new(node, &[]),
            pods: BTreeMap::new(),
        }
    }

    /// What it leaves on the disk.
    #[must_use]
    pub fn kept(&self) -> Vec<u8> {
        self.xds.snapshot().encode_to_vec()
    }

    /// The requests that begin a stream.
    pub fn connect(&mut self) -> Vec<DeltaDiscoveryRequest> {
        let new = self.discovery.asked().take_new();
        self.xds.ask(&new, &[]);
        self.xds.subscribe(&self.node)
    }

    /// On a stream that has begun: the request for what workers have asked about since, if there is
    /// anything. `forgetting` ends what no worker uses any more.
    pub fn ask_control(&mut self, forgetting: bool) -> Option<DeltaDiscoveryRequest> {
        let unused = match forgetting {
            true => self.discovery.forget_unused(Instant::now()),
            false => Vec::new(),
        };
        let new = self.discovery.asked().take_new();
        self.xds.ask(&new, &unused)
    }

    /// Takes a response: the request that answers it, and whether something took effect.
    pub fn take(&mut self, response: DeltaDiscoveryResponse) -> (DeltaDiscoveryRequest, bool) {
        let applied = self.xds.apply(response);
        let committed = applied.commit.is_some();
        if let Some(commit) = applied.commit {
            self.commit(commit);
        }
        (applied.request, committed)
    }

    fn commit(&mut self, commit: Commit) {
        self.discovery.update(&commit.version, |view| {
            view.answered.extend(commit.answered);
            let mut touched = Touched::default();
            for change in commit.changes {
                let by_it = change.apply(&mut view.mesh);
                touched.policies |= by_it.policies;
                touched.places |= by_it.places;
            }
            touched
        });
        self.tell();
    }

    /// As the pods' tasks do after a change.
    fn tell(&mut self) {
        let view = self.discovery.view();
        let uids = own_pods(&view, &self.node);
        self.pods.retain(|uid, _| uids.contains(uid));
        for uid in uids {
            let pod = self.pods.entry(uid.clone()).or_insert_with(|| Pod {
                rules: Rules::default(),
                lookups: Lookups::new(self.discovery.asked().clone()),
                told: Told::default(),
            });
            if pod.rules.refresh(&view, &uid) {
                pod.told.policy = pod.rules.message("");
            }
            for answer in pod.lookups.refresh(&view) {
                pod.told.learn(answer);
            }
        }
    }

    /// The worker of a pod asks where a destination leads.
    pub fn ask_destination(&mut self, uid: &str, address: IpAddr, port: u16) {
        let question = ResolveDestination {
            address: address_to_bytes(&address),
            port: port.into(),
        };
        if let Some(pod) = self.pods.get_mut(uid) {
            let known = self.discovery.known();
            let answer = pod.lookups.destination(known.as_deref(), &question);
            pod.told.learn_any(answer);
        }
    }

    /// The worker of a pod asks who a source is.
    pub fn ask_source(&mut self, uid: &str, address: IpAddr) {
        let question = ResolveSource {
            address: address_to_bytes(&address),
        };
        if let Some(pod) = self.pods.get_mut(uid) {
            let known = self.discovery.known();
            let answer = pod.lookups.source(known.as_deref(), &question);
            pod.told.learn_any(answer);
        }
    }

    /// Whether discovery is known.
    #[must_use]
    pub fn synced(&self) -> bool {
        self.discovery.synced()
    }

    /// What the workers know, by their pods' uids.
    pub fn told(&self) -> impl Iterator<Item = (&str, &Told)> {
        self.pods.iter().map(|(uid, pod)| (uid.as_str(), &pod.told))
    }

    /// Whether control has said who is at an address. A worker may have been told before, of
    /// somebody that the node knows for another reason.
    #[must_use]
    pub fn answered(&self, address: IpAddr) -> bool {
        self.discovery.view().answered.contains(&address)
    }

    /// Looks at the model.
    pub fn with_model<T>(&self, look: impl FnOnce(&Mesh) -> T) -> T {
        look(&self.discovery.view().mesh)
    }
}

fn own_pods(view: &View, node: &str) -> BTreeSet<String> {
    let own = view.mesh.on_node(node);
    own.map(|w| w.uid.to_string()).collect()
}

impl Told {
    fn learn_any(&mut self, answer: Result<Option<Answer>, String>) {
        if let Some(answer) = answer.expect("a question that can be read") {
            self.learn(answer);
        }
    }

    fn learn(&mut self, answer: Answer) {
        let address = |bytes: &[u8]| address_from_bytes(bytes, "address").expect("as asked for");
        match answer {
            Answer::Destination(answer) => {
                let port = u16::try_from(answer.port).expect("as asked for");
                let key = (address(&answer.address), port);
                self.destinations.insert(key, answer);
            }
            Answer::Source(answer) => {
                self.sources.insert(address(&answer.address), answer);
            }
            other => unreachable!("no look-up is answered by {other:?}"),
        }
    }
}
