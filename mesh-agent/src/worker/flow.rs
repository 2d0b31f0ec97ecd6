//! One flow as policy sees it, from the decision that lets it through to its end.

use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;

use mesh_api::worker::refusal::Outcome;
use mesh_core::identity::Identity;
use mesh_core::policy::{self, Labels, PolicyKey, Protocol};
use mesh_core::reason::Reason;
use tokio::sync::watch;

use super::context::Context;
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
    /// This is.
    Attributes(Rc<Attributes>),
}

/// A flow that is, or is to be, let through. What changes is seen from its making on.
pub(crate) struct Flow {
    direction: Direction,
    /// Both ends as reports name them.
    client: SocketAddr,
    to: SocketAddr,
    /// The peer's address.
    peer: IpAddr,
    /// What it has proven; `None` makes the flow a plain one.
    proven: Option<Rc<Identity>>,
    known: Known,
    /// Where the peer's attributes come from; a plain one is looked up if need be.
    source: Option<Rc<Source>>,
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
    /// A connection from `client` to a port of the pod.
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
            proven,
            known: Known::NotYet,
            source,
            changes: context.policy.subscribe(),
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

    /// Ends when a change refuses the flow, which is counted and told.
    pub(crate) async fn cut(&mut self, context: &Context) {
        loop {
            if self.changes.changed().await.is_err() {
                // The worker is going away, and takes the flow with it.
                return std::future::pending().await;
            }
            let Some(policy) = context.policy.in_force() else {
                continue;
            };
            if policy.audit() {
                continue;
            }
            let fault = match self.judge(&policy) {
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

    fn tell(&self, context: &Context, outcome: Outcome, fault: &Fault) {
        let (client, to) = (self.client, self.to);
        let reports = &context.reports;
        reports.tell(outcome, self.direction, fault, client, to);
    }

    /// Decides; waits for what is to be known of the peer if it matters.
    async fn decide(&mut self, context: &Context, policy: Rc<InForce>) -> Result<(), Fault> {
        let mut policy = policy;
        loop {
            match self.judge(&policy) {
                Judgement::Allowed => return Ok(()),
                Judgement::Refused(reason, by) => return Err(self.fault(reason, by)),
                Judgement::Unresolved => {}
            }
            let source = self.source.take();
            let source = source.unwrap_or_else(|| context.sources.look_up(self.peer));
            let source = self.source.insert(source).clone();
            context.sources.ask(&source);
            let proven = self.proven.as_deref();
            let known = source.told(|word| known_of(word, proven)).await;
            self.known = known.ok_or_else(|| self.unresolved(&source))?;
            // It may be another by now.
            policy = context.policy.in_force().unwrap_or(policy);
        }
    }

    /// Decides with what is known now.
    fn judge(&mut self, policy: &InForce) -> Judgement {
        self.refresh();
        let member = self.proven.is_some();
        let (labels, services): (&Labels, &[_]);
        let mut identity = self.proven.as_deref();
        match &self.known {
            Known::Attributes(known) => {
                identity = Some(&known.identity);
                (labels, services) = (&known.labels, &known.services);
            }
            Known::NotYet | Known::Nothing => (labels, services) = (&NO_LABELS, &[]),
        }
        let decision = policy.decide(&policy::Flow {
            direction: self.direction.into(),
            peer: policy::Peer {
                address: self.peer,
                member,
                identity,
                services,
                labels,
            },
            port: self.to.port(),
            protocol: Protocol::Tcp,
        });
        let by = || decision.policy.cloned();
        // A term matches no less often for what else is known of the peer: what is refused
        // here stays so, but more may be denied or allowed.
        let open = matches!(self.known, Known::NotYet) && policy.needs_attributes(member);
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
    fn refresh(&mut self) {
        let Some(source) = &self.source else { return };
        let known = known_of(source.word(), self.proven.as_deref());
        match (known, &self.known) {
            (Some(Known::Attributes(new)), _) => self.known = Known::Attributes(new),
            (Some(known), Known::NotYet) => self.known = known,
            _ => {}
        }
    }

    fn fault(&self, reason: Reason, by: Option<PolicyKey>) -> Fault {
        let said = match (&self.proven, &self.known) {
            (None, Known::Attributes(known)) => format!("by its address it is {}", known.identity),
            _ => String::new(),
        };
        let fault = Fault::new(reason, said).by_policy(by);
        match &self.proven {
            Some(identity) => fault.of_peer(identity),
            None => fault,
        }
    }

    fn unresolved(&self, source: &Source) -> Fault {
        let fault = self.fault(Reason::SourceUnresolved, None);
        let said = match source.word() {
            Word::None => "no answer within 5 s".to_owned(),
            Word::Unknown => "discovery knows nobody at its address".to_owned(),
            Word::Known(known) => format!("at its address discovery knows {}", known.identity),
        };
        Fault {
            detail: said,
            ..fault
        }
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
        (Word::Known(known), _) => Some(Known::Attributes(known)),
    }
}
