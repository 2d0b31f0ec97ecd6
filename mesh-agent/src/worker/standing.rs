//! Whether a tunnel that stands may go on: what each end has proven in it must hold at every moment,
//! as it had to in the handshake.
//!
//! A tunnel ends when the certificate that its peer proved last, or its own, has ended; when the
//! peer's chain leads to no root any more; when something of either end is revoked. One whose
//! peer can't be shown a new certificate ends a while after its own was replaced.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use mesh_core::certificate::Side;
use mesh_core::identity::Identity;
use mesh_core::reason::Reason;
use rustls::pki_types::CertificateDer;
use tokio::sync::watch;
use tokio::time::Instant;

use super::context::Context;
use super::fault::{Direction, Fault};
use super::metrics::{Count, Metrics};
use super::tls::{self, Credentials, Trust};

/// Longest sleep; the wall clock may jump and a machine may have been suspended.
const LOOK_AT_CLOCK_EVERY: Duration = Duration::from_secs(60);
/// What the two ends of a connection derive from it, and nobody else can (RFC 5705).
pub(super) const EXPORTER: &[u8] = b"EXPERIMENTAL nodemesh tunnel";

/// A value that only the two ends of one connection have.
pub(crate) type Binding = [u8; 32];

/// What the two ends of a tunnel have proven in it.
pub(crate) struct Standing {
    direction: Direction,
    binding: Binding,
    proves_anew: bool,
    identity: Rc<Identity>,
    peer: RefCell<Peer>,
    /// What this end has shown last.
    own: RefCell<Rc<Credentials>>,
    /// When the certificate shown was replaced by another, which this peer can't be shown.
    replaced: Cell<Option<Instant>>,
    fault: RefCell<Option<Fault>>,
    changed: watch::Sender<()>,
    metrics: Rc<Metrics>,
}

/// A peer's certificate that holds.
struct Peer {
    chain: Vec<CertificateDer<'static>>,
    not_after_s: i64,
    judged_by: Arc<Trust>,
    /// A newer one whose key it has proven, and which was not trusted when it came: a root may be
    /// on its way.
    waiting: Option<(Vec<CertificateDer<'static>>, Fault)>,
}

impl Standing {
    /// Of a handshake that was done with these credentials.
    pub(crate) fn new<T>(
        direction: Direction,
        connection: &rustls::ConnectionCommon<T>,
        credentials: Rc<Credentials>,
        metrics: &Rc<Metrics>,
    ) -> Result<Rc<Self>, Fault> {
        let chain = connection.peer_certificates().unwrap_or_default();
        let chain: Vec<_> = chain.iter().map(|c| c.clone().into_owned()).collect();
        let trust = credentials.trust().clone();
        let shown = trust.read(side_of_peer(direction), &chain)?;
        let binding = connection
            .export_keying_material(Binding::default(), EXPORTER, None)
            .map_err(|e| Fault::new(Reason::TunnelTls, e))?;
        metrics.tunnel_ends(direction, None, Some(shown.not_after_s));
        Ok(Rc::new(Self {
            direction,
            binding,
            proves_anew: tls::proves_anew(connection),
            identity: shown.identity.into(),
            peer: RefCell::new(Peer {
                chain,
                not_after_s: shown.not_after_s,
                judged_by: trust,
                waiting: None,
            }),
            own: RefCell::new(credentials),
            replaced: Cell::new(None),
            fault: RefCell::default(),
            changed: watch::Sender::new(()),
            metrics: metrics.clone(),
        }))
    }

    /// Who the peer is.
    pub(crate) fn identity(&self) -> &Rc<Identity> {
        &self.identity
    }

    /// Whether the two ends prove new certificates to each other.
    pub(crate) fn proves_anew(&self) -> bool {
        self.proves_anew
    }

    pub(crate) fn direction(&self) -> Direction {
        self.direction
    }

    pub(crate) fn binding(&self) -> &Binding {
        &self.binding
    }

    /// What this end has shown last.
    pub(crate) fn own(&self) -> Rc<Credentials> {
        self.own.borrow().clone()
    }

    /// This end has shown these.
    pub(crate) fn shown(&self, credentials: Rc<Credentials>) {
        *self.own.borrow_mut() = credentials;
        self.changed.send_replace(());
    }

    /// The peer has proven to hold the key of this chain's first certificate, in this tunnel.
    pub(crate) fn proven(&self, context: &Context, chain: Vec<CertificateDer<'static>>) {
        let current = context.credentials().unwrap_or_else(|| self.own());
        let trust = current.trust().clone();
        let mut peer = self.peer.borrow_mut();
        match trust.accept(side_of_peer(self.direction), &chain) {
            Ok(accepted) => self.adopt(&mut peer, chain, accepted.not_after_s, trust),
            Err(fault) => {
                self.metrics.add(Count::ProofsWaiting, 1);
                peer.waiting = Some((chain, fault));
            }
        }
        drop(peer);
        self.changed.send_replace(());
    }

    /// The tunnel is to end for this.
    pub(crate) fn fail(&self, fault: Fault) {
        *self.fault.borrow_mut() = Some(fault);
        self.changed.send_replace(());
    }

    /// Ends when the tunnel may not go on.
    pub(crate) async fn kept(&self, context: &Context) -> Fault {
        let mut trust = context.trust_changes.subscribe();
        let mut epoch = context.epoch.subscribe();
        let mut changed = self.changed.subscribe();
        loop {
            let wait = match self.check(context) {
                Ok(wait) => wait.min(LOOK_AT_CLOCK_EVERY),
                Err(fault) => return fault.of_peer(&self.identity),
            };
            // The senders live as long as `context` and `self`.
            tokio::select! {
                _ = trust.changed() => {}
                _ = epoch.changed() => {}
                _ = changed.changed() => {}
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    /// How long nothing ends it but news.
    fn check(&self, context: &Context) -> Result<Duration, Fault> {
        if let Some(fault) = self.fault.borrow_mut().take() {
            return Err(fault);
        }
        let mut peer = self.peer.borrow_mut();
        let drained = match context.credentials() {
            Some(current) => {
                current.not_revoked()?;
                self.judge(&mut peer, &current)?;
                self.drained(&current, context.limits().tunnel_drain)?
            }
            None => Duration::MAX,
        };
        let (peer_left, own_left) = (left(peer.not_after_s), left(self.own().validity_s().1));
        if peer_left.is_zero() {
            return Err(self.expired(&peer));
        }
        if own_left.is_zero() {
            let detail = "the certificate that was shown in this tunnel has ended";
            return Err(Fault::new(Reason::NoCertificate, detail));
        }
        Ok(peer_left.min(own_left).min(drained))
    }

    /// Holds what the peer has proven against what is trusted now.
    fn judge(&self, peer: &mut Peer, current: &Rc<Credentials>) -> Result<(), Fault> {
        let trust = current.trust();
        if Arc::ptr_eq(&peer.judged_by, trust) {
            return Ok(());
        }
        let side = side_of_peer(self.direction);
        if let Some((chain, fault)) = peer.waiting.take() {
            match trust.accept(side, &chain) {
                Ok(accepted) => self.adopt(peer, chain, accepted.not_after_s, trust.clone()),
                Err(_) => peer.waiting = Some((chain, fault)),
            }
        }
        if !Arc::ptr_eq(&peer.judged_by, trust) {
            trust.accept(side, &peer.chain)?;
            peer.judged_by = trust.clone();
        }
        Ok(())
    }

    fn adopt(
        &self,
        peer: &mut Peer,
        chain: Vec<CertificateDer<'static>>,
        not_after_s: i64,
        judged_by: Arc<Trust>,
    ) {
        let (before, now) = (Some(peer.not_after_s), Some(not_after_s));
        self.metrics.tunnel_ends(self.direction, before, now);
        self.metrics.add(Count::ProofsTaken, 1);
        *peer = Peer {
            chain,
            not_after_s,
            judged_by,
            waiting: None,
        };
    }

    /// How long it may go on with a certificate that was replaced.
    fn drained(&self, current: &Credentials, drain: Duration) -> Result<Duration, Fault> {
        if self.proves_anew || self.own.borrow().same_certificate(current) {
            return Ok(Duration::MAX);
        }
        let since = self.replaced.get().unwrap_or_else(Instant::now);
        self.replaced.set(Some(since));
        let left = drain.saturating_sub(since.elapsed());
        if left.is_zero() {
            let detail = format!("{} s ago", since.elapsed().as_secs());
            return Err(Fault::new(Reason::TunnelRotated, detail));
        }
        Ok(left)
    }

    fn expired(&self, peer: &Peer) -> Fault {
        let newer = match &peer.waiting {
            Some((_, fault)) => format!("a newer one was proven and is not accepted: {fault}"),
            None => "no newer one was proven in this tunnel".to_owned(),
        };
        let detail = format!(
            "it ended at {} (seconds since the epoch); {newer}",
            peer.not_after_s
        );
        Fault::new(Reason::PeerExpired, detail)
    }
}

impl Drop for Standing {
    fn drop(&mut self) {
        let end = Some(self.peer.borrow().not_after_s);
        self.metrics.tunnel_ends(self.direction, end, None);
    }
}

pub(super) fn side_of_peer(direction: Direction) -> Side {
    match direction {
        Direction::Inbound => Side::Client,
        Direction::Outbound => Side::Server,
    }
}

/// Time until then; zero if it has come.
fn left(at_s: i64) -> Duration {
    let at = Duration::from_secs(u64::try_from(at_s).unwrap_or(0));
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    at.saturating_sub(now.unwrap_or_default())
}
