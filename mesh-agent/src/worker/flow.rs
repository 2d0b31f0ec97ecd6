//! One flow as policy sees it, from the decision that lets it through to its end.

use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;

use mesh_api::worker::refusal::Outcome;
use mesh_core::identity::Identity;
use mesh_core::policy::{self, Labels, PolicyKey, Protocol};
use mesh_core::reason::Reason;
use tokio::sync::watch;

use super::context::Context;
use super::destination::{Destination, Endpoint};
use super::fault::{Direction, Fault};
use super::policy::InForce;
use super::sources::{Attributes, Source, Word};

/// What is known of a peer beyond what it proves.
#[derive(Clone)]
enum Known {
    /// Nobody has said yet.
    NotYet,
    /// There is nothing.
    Nothing,
    /// Who calls.
    Source(Rc<Attributes>),
    /// Who is called.
    Endpoint(Rc<Endpoint>),
}

/// Where news of the peer comes from.
enum News {
    /// A caller that has proven this; nothing in plain, where it is looked up if need be.
    Source(Option<Rc<Identity>>, Option<Rc<Source>>),
    /// The last answer on what the app dialled. Holding it keeps it current in discovery.
    Destination(Rc<Destination>),
}

/// A flow that is, or is to be, let through. What changes is seen from its making on.
pub(crate) struct Flow {
    direction: Direction,
    /// Both ends as reports name them.
    client: SocketAddr,
    to: SocketAddr,
    /// The peer's address, and the port on the destination's workload.
    peer: IpAddr,
    port: u16,
    /// Whether it goes through a tunnel.
    member: bool,
    known: Known,
    news: News,
    changes: watch::Receiver<u64>,
}

/// What policy says of a flow.
enum Judgement {
    Allowed,
    Refused(Reason, Option<PolicyKey>),
    /// It depends on what is not known of the peer.
    Unresolved,
}

impl Flow {
    /// A connection from `client` to a port of the pod; in plain if nothing is proven.
    pub(crate) fn inbound(
        context: &Context,
        client: SocketAddr,
        to: SocketAddr,
        proven: Option<Rc<Identity>>,
        source: Option<Rc<Source>>,
    ) -> Self {
        Self {
            direction: Direction::Inbound,
            client,
            to,
            peer: client.ip(),
            port: to.port(),
            member: proven.is_some(),
            known: Known::NotYet,
            news: News::Source(proven, source),
            changes: context.policy.subscribe(),
        }
    }

    /// A connection of the app to `to`, where `destination` leads. Without an endpoint it is one
    /// to a place that discovery does not know.
    pub(crate) fn outbound(
        (client, to): (SocketAddr, SocketAddr),
        destination: Rc<Destination>,
        endpoint: Option<Rc<Endpoint>>,
        changes: watch::Receiver<u64>,
    ) -> Self {
        let at = endpoint.as_ref().map_or(to, |endpoint| endpoint.address);
        Self {
            direction: Direction::Outbound,
            client,
            to,
            peer: at.ip(),
            port: at.port(),
            member: endpoint.as_ref().is_some_and(|endpoint| endpoint.hbone),
            known: endpoint.map_or(Known::Nothing, Known::Endpoint),
            news: News::Destination(destination),
            changes,
        }
    }

    /// Lets the flow through or says why not. What policy asks of the peer is waited for. In
    /// audit everything is let through, and told.
    pub(crate) async fn admit(&mut self, context: &Context) -> Result<(), Fault> {
        let policy = context.policy.first().await?;
        let Err(fault) = self.decide(context, policy).await else {
            return Ok(());
        };
        if !context
            .policy
            .in_force()
            .is_some_and(|policy| policy.audit())
        {
            return Err(fault);
        }
        self.tell(context, Outcome::Audited, &fault);
        Ok(())
    }

    /// What policy says of it at this moment, audit or not.
    pub(crate) fn check(&mut self, context: &Context, policy: &InForce) -> Result<(), Fault> {
        match self.judge(context, policy) {
            Judgement::Allowed => Ok(()),
            Judgement::Refused(reason, by) => Err(self.fault(reason, by)),
            Judgement::Unresolved => Err(self.fault(Reason::SourceUnresolved, None)),
        }
    }

    /// Decides anew if anything has changed while the flow's way was made.
    pub(crate) async fn confirm(&mut self, context: &Context) -> Result<(), Fault> {
        // The sender lives as long as the worker.
        if !self.changes.has_changed().unwrap_or(false) {
            return Ok(());
        }
        self.changes.mark_unchanged();
        match context.policy.in_force() {
            Some(policy) if !policy.audit() => self.decide(context, policy).await,
            _ => Ok(()),
        }
    }

    /// Ends when a change refuses the flow, or the worker's time to drain is over, which is counted
    /// and told.
    pub(crate) async fn cut(&mut self, context: &Context) {
        loop {
            if self.changes.changed().await.is_err() {
                // The worker is going away, and takes the flow with it.
                return std::future::pending().await;
            }
            if context.is_over() {
                let fault = self.fault(Reason::DrainOver, None);
                return self.tell(context, Outcome::Cut, &fault);
            }
            let Some(policy) = context.policy.in_force() else {
                continue;
            };
            if policy.audit() {
                continue;
            }
            let fault = match self.judge(context, &policy) {
                Judgement::Allowed => continue,
                Judgement::Refused(reason, by) => self.fault(reason, by),
                // Rare, and large: not in every flow's memory.
                Judgement::Unresolved => match Box::pin(self.decide(context, policy)).await {
                    Ok(()) => continue,
                    Err(fault) => fault,
                },
            };
            return self.tell(context, Outcome::Cut, &fault);
        }
    }

    /// Counts and reports what became of the flow.
    pub(crate) fn tell(&self, context: &Context, outcome: Outcome, fault: &Fault) {
        let (client, to) = (self.client, self.to);
        let reports = &context.reports;
        reports.tell(outcome, self.direction, fault, client, to);
    }

    /// Decides; waits for what is to be known of the peer if it matters.
    async fn decide(&mut self, context: &Context, policy: Rc<InForce>) -> Result<(), Fault> {
        let mut policy = policy;
        loop {
            match self.judge(context, &policy) {
                Judgement::Allowed => return Ok(()),
                Judgement::Refused(reason, by) => return Err(self.fault(reason, by)),
                Judgement::Unresolved => {}
            }
            self.known = self.ask(context).await?;
            // It may be another by now.
            policy = context.policy.in_force().unwrap_or(policy);
        }
    }

    /// Waits for the supervisor's word on a caller.
    async fn ask(&mut self, context: &Context) -> Result<Known, Fault> {
        let peer = self.peer;
        let News::Source(proven, source) = &mut self.news else {
            return Ok(self.known.clone());
        };
        let source = source.get_or_insert_with(|| context.sources.look_up(peer));
        context.sources.ask(source);
        let known = source.told(|word| known_of(word, proven.as_deref())).await;
        let word = source.word();
        known.ok_or_else(|| self.unresolved(word))
    }

    /// Decides with what is known now.
    fn judge(&mut self, context: &Context, policy: &InForce) -> Judgement {
        self.refresh(context);
        let nothing = (None, &NO_LABELS, [].as_slice());
        let (said, labels, services) = match &self.known {
            Known::Source(known) => (Some(&known.identity), &known.labels, &*known.services),
            Known::Endpoint(known) => (Some(&known.identity), &known.labels, &*known.services),
            Known::NotYet | Known::Nothing => nothing,
        };
        let identity = match &self.news {
            News::Source(Some(proven), _) => Some(&**proven),
            _ => said,
        };
        let decision = policy.decide(&policy::Flow {
            direction: self.direction.into(),
            peer: policy::Peer {
                address: self.peer,
                member: self.member,
                identity,
                services,
                labels,
            },
            port: self.port,
            protocol: Protocol::Tcp,
        });
        let by = || decision.policy.cloned();
        // What more there is to know of a peer makes more terms match, never fewer: what is
        // denied here stays so, all else may change.
        let open = matches!(self.known, Known::NotYet) && policy.needs_attributes(self.member);
        match decision.refused {
            Some(reason @ (Reason::PolicyDenied | Reason::InboundPlaintext)) => {
                Judgement::Refused(reason, by())
            }
            _ if open => Judgement::Unresolved,
            Some(reason) => Judgement::Refused(reason, by()),
            None => Judgement::Allowed,
        }
    }

    /// Takes over what is known now. Who vanishes from discovery keeps what he had.
    fn refresh(&mut self, context: &Context) {
        match &mut self.news {
            News::Source(proven, source) => {
                let Some(source) = source else { return };
                match (known_of(source.word(), proven.as_deref()), &self.known) {
                    (Some(new @ Known::Source(_)), _) => self.known = new,
                    (Some(new), Known::NotYet) => self.known = new,
                    _ => {}
                }
            }
            News::Destination(last) => {
                let Some(now) = context.discovery.answer(self.to) else {
                    return;
                };
                if Rc::ptr_eq(last, &now) {
                    return;
                }
                let at = SocketAddr::new(self.peer, self.port);
                let mut endpoints = now.endpoints.iter().filter(|new| new.address == at);
                let new = endpoints.find(|new| match &self.known {
                    Known::Endpoint(old) => old.workload_uid == new.workload_uid,
                    _ => true,
                });
                if let Some(new) = new {
                    self.known = Known::Endpoint(new.clone());
                }
                *last = now;
            }
        }
    }

    fn fault(&self, reason: Reason, by: Option<PolicyKey>) -> Fault {
        let detail = match (&self.news, &self.known) {
            (News::Source(None, _), Known::Source(known)) => {
                format!("by its address it is {}", known.identity)
            }
            (News::Source(..), _) => String::new(),
            (News::Destination(_), _) => SocketAddr::new(self.peer, self.port).to_string(),
        };
        let fault = Fault::new(reason, detail).by_policy(by);
        match (&self.news, &self.known) {
            (News::Source(Some(proven), _), _) => fault.of_peer(proven),
            (News::Destination(_), Known::Endpoint(known)) => fault.of_peer(&known.identity),
            _ => fault,
        }
    }

    fn unresolved(&self, word: Word) -> Fault {
        let fault = self.fault(Reason::SourceUnresolved, None);
        let detail = match word {
            Word::None => "no answer within 5 s".to_owned(),
            Word::Unknown => "discovery knows nobody at its address".to_owned(),
            Word::Known(known) => format!("at its address discovery knows {}", known.identity),
        };
        Fault { detail, ..fault }
    }
}

static NO_LABELS: Labels = Labels::new();

/// What the supervisor's word says of a peer that proves this identity, or none. `None` while
/// it says nothing of it.
fn known_of(word: Word, proven: Option<&Identity>) -> Option<Known> {
    match (word, proven) {
        (Word::None, _) => None,
        // Who is in the mesh is in discovery sooner or later.
        (Word::Unknown, Some(_)) => None,
        (Word::Unknown, None) => Some(Known::Nothing),
        (Word::Known(known), Some(proven)) if known.identity != *proven => None,
        (Word::Known(known), _) => Some(Known::Source(known)),
    }
}
