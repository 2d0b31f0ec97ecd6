//! What the mesh would do with a flow, and why: the workers' own decisions, asked for in advance.

mod place;
mod suggestion;
mod text;
mod unproven;

use std::net::IpAddr;
use std::sync::Arc;

use crate::model::{Enrolment, Mesh, Service, ServiceKey, Workload};
use crate::policy::kernel::{KernelClass, KernelPolicy, KernelVerdict};
use crate::policy::{Direction, Flow, Labels, Peer, PodPolicy, PolicyKey, Protocol};
use crate::reason::Reason;

use place::Place;
pub use place::Route;
pub use suggestion::Missing;
pub use unproven::{Connection, unproven};

/// Where a flow comes from.
#[derive(Clone, Debug)]
pub enum Source {
    /// A workload that discovery knows.
    Workload(Arc<Workload>),
    /// An address, of a workload or of nobody that discovery knows.
    Address(IpAddr),
}

/// What is dialled.
#[derive(Clone, Debug)]
pub enum Destination {
    /// A workload, by an address of its own.
    Workload(Arc<Workload>),
    /// A service, by its virtual address, or a headless one by its pods' addresses.
    Service(Arc<Service>),
    /// An address, of a workload, of a service or of nobody that discovery knows.
    Address(IpAddr),
}

/// A flow to be explained.
#[derive(Clone, Debug)]
pub struct Question {
    /// Where it comes from.
    pub source: Source,
    /// What is dialled.
    pub destination: Destination,
    /// The port that is dialled: of a service, the service's.
    pub port: u16,
    /// Its protocol.
    pub protocol: Protocol,
}

/// One decision, at one end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Why it is refused; `None` where it is allowed.
    pub refused: Option<Reason>,
    /// It would be refused, and passes because the pod is enrolled for audit.
    pub audited: bool,
    /// The policy that decided; `None` where no rule matches, or none was asked.
    pub policy: Option<PolicyKey>,
    /// Where no rule allows the flow: what would.
    pub missing: Option<Missing>,
}

impl Verdict {
    /// Whether the flow goes on after this decision.
    #[must_use]
    pub fn passes(&self) -> bool {
        self.refused.is_none() || self.audited
    }
}

/// One place that the flow may lead to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// The workload there; `None` where discovery knows none.
    pub workload: Option<Arc<Workload>>,
    /// Its address.
    pub address: IpAddr,
    /// The port on it.
    pub port: u16,
    /// Whether both ends are in the mesh, so that the flow is in mutual TLS.
    pub encrypted: bool,
    /// At the source; `None` where it is outside the mesh.
    pub outbound: Option<Verdict>,
    /// At the destination; `None` where it is outside the mesh, or the flow doesn't come there.
    pub inbound: Option<Verdict>,
    /// Kubelet of the pod's node gets there, whatever is decided on others: the pod declares the port
    /// for probes.
    pub probed: bool,
}

impl Attempt {
    /// Whether the flow passes at both ends.
    #[must_use]
    pub fn passes(&self) -> bool {
        [&self.outbound, &self.inbound]
            .into_iter()
            .flatten()
            .all(Verdict::passes)
    }

    /// The first refusal on the way that stands.
    #[must_use]
    pub fn refusal(&self) -> Option<Reason> {
        let verdicts = [&self.outbound, &self.inbound].into_iter().flatten();
        verdicts.filter(|v| !v.passes()).find_map(|v| v.refused)
    }
}

/// What becomes of the flow in the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It passes, wherever it leads.
    Allowed,
    /// It passes, somewhere only because a pod is enrolled for audit.
    Audited,
    /// It passes to some endpoints and not to others.
    Partly,
    /// It does not pass anywhere.
    Refused(Reason),
}

/// What the mesh would do with a flow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explanation {
    /// What was dialled, as discovery knows it.
    pub route: Route,
    /// The reason with which the kernel refuses it, TCP at `connect` with `EPERM`. The attempts
    /// below are then what the worker would have decided.
    pub kernel: Option<Reason>,
    /// Where it may lead.
    pub attempts: Vec<Attempt>,
    /// What becomes of it.
    pub outcome: Outcome,
}

/// Explains a flow as the workers of both ends, and the kernel at the source, would decide.
#[must_use]
pub fn explain(mesh: &Mesh, question: &Question, resolvers: &[IpAddr]) -> Explanation {
    let context = Context::new(mesh, question, resolvers);
    let (route, places) = place::places(mesh, question, context.source.as_deref());
    let kernel = context.kernel(&places);
    let attempts = places.iter().map(|place| context.attempt(place, &places));
    let attempts: Vec<_> = attempts.collect();
    let outcome = outcome(&route, kernel, &attempts);
    Explanation {
        route,
        kernel,
        attempts,
        outcome,
    }
}

/// The policy that denies TCP of `source`, whose policy is `policy`, to a place that it dials: the
/// kernel refuses such a connect without saying which it was.
#[must_use]
pub fn denied_by(
    mesh: &Mesh,
    policy: &PodPolicy,
    source: &Arc<Workload>,
    (address, port): (IpAddr, u16),
) -> Option<PolicyKey> {
    let question = Question {
        source: Source::Workload(source.clone()),
        destination: Destination::Address(address),
        port,
        protocol: Protocol::Tcp,
    };
    let (_, places) = place::places(mesh, &question, Some(source));
    places.iter().find_map(|place| {
        let encrypted = place.workload.as_ref().is_some_and(|w| w.enrolled());
        let decision = policy.decide(&outbound_flow(place, encrypted, Protocol::Tcp));
        let denied = decision.refused == Some(Reason::PolicyDenied);
        denied.then(|| decision.policy.cloned()).flatten()
    })
}

fn outbound_flow(place: &Place, encrypted: bool, protocol: Protocol) -> Flow<'_> {
    let known = place.workload.as_deref();
    Flow {
        direction: Direction::Outbound,
        peer: Peer {
            address: place.address,
            member: encrypted,
            identity: known.map(|workload| &workload.identity),
            services: &place.services,
            labels: known.map_or(&NO_LABELS, |workload| &workload.labels),
        },
        port: place.port,
        protocol,
    }
}

fn outcome(route: &Route, kernel: Option<Reason>, attempts: &[Attempt]) -> Outcome {
    let refusals = || attempts.iter().filter_map(Attempt::refusal);
    let audited = attempts.iter().any(|attempt| {
        let verdicts = [&attempt.outbound, &attempt.inbound];
        verdicts
            .into_iter()
            .flatten()
            .any(|verdict| verdict.audited)
    });
    match (kernel, refusals().next()) {
        (Some(reason), _) => Outcome::Refused(reason),
        (None, Some(_)) if attempts.iter().any(Attempt::passes) => Outcome::Partly,
        (None, Some(reason)) => Outcome::Refused(reason),
        (None, None) if attempts.is_empty() && *route != Route::Local => {
            Outcome::Refused(Reason::NoEndpoint)
        }
        (None, None) if audited => Outcome::Audited,
        (None, None) => Outcome::Allowed,
    }
}

struct Context<'a> {
    mesh: &'a Mesh,
    question: &'a Question,
    resolvers: &'a [IpAddr],
    source: Option<Arc<Workload>>,
    source_services: Vec<ServiceKey>,
    /// The policy of an enrolled source.
    policy: Option<PodPolicy>,
}

static NO_LABELS: Labels = Labels::new();

impl<'a> Context<'a> {
    fn new(mesh: &'a Mesh, question: &'a Question, resolvers: &'a [IpAddr]) -> Self {
        let source = match &question.source {
            Source::Workload(workload) => Some(workload.clone()),
            Source::Address(address) => mesh.workload_at(address.to_canonical()).cloned(),
        };
        let enrolled = source.as_ref().filter(|workload| workload.enrolled());
        let policy = enrolled.map(|w| PodPolicy::for_workload(mesh, w, resolvers.to_vec()));
        let services = source.iter().flat_map(|w| w.services.keys().cloned());
        Self {
            mesh,
            question,
            resolvers,
            source_services: services.collect(),
            policy,
            source,
        }
    }

    /// Whether the kernel refuses every place that is dialled.
    fn kernel(&self, places: &[Place]) -> Option<Reason> {
        let source = self.source.as_ref()?;
        if source.enrolment != Enrolment::Enforce || self.udp() {
            return None;
        }
        let kernel = KernelPolicy::new(self.policy.as_ref()?, &source.addresses, self.mesh);
        let refuses = |place: &Place| {
            let class = KernelClass::TcpOut;
            kernel.look_up(class, place.dialled, self.question.port) == Some(KernelVerdict::Deny)
        };
        let all = !places.is_empty() && places.iter().all(refuses);
        all.then_some(Reason::PolicyDenied)
    }

    fn attempt(&self, place: &Place, places: &[Place]) -> Attempt {
        // What a service leads back to the source stays in the pod.
        let own = self
            .source
            .as_ref()
            .filter(|w| w.addresses.contains(&place.address));
        let encrypted = own.is_none() && self.encrypted(place);
        let decided = own.is_none() || self.udp();
        let outbound = decided
            .then(|| self.outbound(place, places, encrypted))
            .flatten();
        let arrives = decided && outbound.as_ref().is_none_or(Verdict::passes);
        let inbound = arrives.then(|| self.inbound(place, encrypted)).flatten();
        // Kubelet is on the node: what discovery knows as a workload is not.
        let from_outside = self.source.is_none() && !self.udp();
        let probed = from_outside
            && place
                .workload
                .as_ref()
                .is_some_and(|w| w.enrolled() && w.probe_ports.contains(&place.port));
        Attempt {
            probed,
            workload: place.workload.clone(),
            address: place.address,
            port: place.port,
            encrypted,
            outbound,
            inbound,
        }
    }

    /// No worker carries UDP.
    fn encrypted(&self, place: &Place) -> bool {
        !self.udp()
            && self.policy.is_some()
            && place.workload.as_ref().is_some_and(|w| w.enrolled())
    }

    fn outbound(&self, place: &Place, places: &[Place], encrypted: bool) -> Option<Verdict> {
        let (policy, source) = (self.policy.as_ref()?, self.source.as_ref()?);
        let at = |place, encrypted| {
            let flow = outbound_flow(place, encrypted, self.question.protocol);
            verdict(policy, source, &flow, place)
        };
        let Some(service) = place.service.as_ref().filter(|_| self.udp()) else {
            return Some(at(place, encrypted));
        };
        // A datagram goes to the virtual address itself, but a DENY of one of the endpoints that
        // it may come to holds for it.
        let denials = places.iter().map(|place| at(place, false));
        let denied = |verdict: &Verdict| verdict.refused == Some(Reason::PolicyDenied);
        denials.into_iter().find(denied).or_else(|| {
            let flow = Flow {
                direction: Direction::Outbound,
                peer: Peer {
                    address: place.dialled,
                    member: false,
                    identity: None,
                    services: std::slice::from_ref(service),
                    labels: &NO_LABELS,
                },
                port: self.question.port,
                protocol: Protocol::Udp,
            };
            Some(verdict(policy, source, &flow, place))
        })
    }

    fn udp(&self) -> bool {
        self.question.protocol == Protocol::Udp
    }

    fn inbound(&self, place: &Place, encrypted: bool) -> Option<Verdict> {
        let workload = place.workload.as_ref().filter(|w| w.enrolled())?;
        let policy = PodPolicy::for_workload(self.mesh, workload, self.resolvers.to_vec());
        let known = self.source.as_deref();
        let flow = Flow {
            direction: Direction::Inbound,
            peer: Peer {
                address: self.source_address(place.address),
                member: encrypted,
                identity: known.map(|workload| &workload.identity),
                services: &self.source_services,
                labels: known.map_or(&NO_LABELS, |workload| &workload.labels),
            },
            port: place.port,
            protocol: self.question.protocol,
        };
        Some(verdict(&policy, workload, &flow, place))
    }

    /// The address that the destination sees.
    fn source_address(&self, destination: IpAddr) -> IpAddr {
        match &self.question.source {
            Source::Address(address) => address.to_canonical(),
            Source::Workload(workload) => place::address_for(workload, destination)
                .unwrap_or_else(|| place::unspecified(destination)),
        }
    }
}

fn verdict(policy: &PodPolicy, own: &Workload, flow: &Flow<'_>, place: &Place) -> Verdict {
    let decision = policy.decide(flow);
    let dialled = place.service.as_ref();
    let missing = decision
        .refused
        .and_then(|reason| Missing::of(reason, own, flow, dialled));
    Verdict {
        refused: decision.refused,
        audited: decision.refused.is_some() && own.enrolment == Enrolment::Audit,
        policy: decision.policy.cloned(),
        missing,
    }
}
