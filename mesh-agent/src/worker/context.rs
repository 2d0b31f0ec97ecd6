//! What every task of one worker shares.

use std::cell::RefCell;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;

use mesh_api::worker::Start;
use mesh_common::RESERVED_PORTS;
use mesh_core::identity::{Identity, IdentityError, TrustDomain};
use mesh_core::reason::Reason;
use socket2::Socket;
use tokio::net::TcpStream;
use tokio::sync::watch;

use super::admission::{Admission, Limits, Newcomer, Places, Way};
use super::discovery::{self, Discovery};
use super::fault::Fault;
use super::metrics::{Count, Metrics};
use super::outbox::Outbox;
use super::policy::Policy;
use super::report::Reports;
use super::socket::{self, CaptureHooks};
use super::sources::Sources;
use super::tls::{Credentials, now_s};

/// Why a `Start` can't be followed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    #[error(
        "the supervisor speaks version {supervisor} of the worker protocol, this worker version {worker}; \
         both must come from the same release of mesh-agent"
    )]
    Version { supervisor: u32, worker: u32 },
    #[error("the start message names no pod")]
    NoPod,
    #[error("the pod has no valid address")]
    NoAddress,
    #[error("the pod has no identity: {0}")]
    Identity(#[from] IdentityError),
}

/// The pod this worker is for.
#[derive(Clone, Debug)]
pub(crate) struct Pod {
    pub(crate) identity: Identity,
    pub(crate) addresses: Vec<IpAddr>,
    /// Value of the `baggage` header, as ambient meshes send it.
    pub(crate) baggage: http::HeaderValue,
}

impl Pod {
    fn new(start: &Start) -> Result<Self, StartError> {
        let pod = start.pod.as_ref().ok_or(StartError::NoPod)?;
        let trust_domain: TrustDomain = pod.trust_domain.parse()?;
        let identity = Identity::new(trust_domain, &pod.namespace, &pod.service_account)?;
        let addresses: Option<Vec<_>> = pod
            .addresses
            .iter()
            .map(|bytes| discovery::address_of(bytes))
            .collect();
        let addresses = addresses
            .filter(|all| !all.is_empty())
            .ok_or(StartError::NoAddress)?;
        let baggage: Vec<_> = [
            ("k8s.cluster.name", &pod.cluster_id),
            ("k8s.namespace.name", &pod.namespace),
            ("k8s.pod.name", &pod.name),
        ]
        .iter()
        .filter(|(_, value)| !value.is_empty())
        .map(|(key, value)| format!("{key}={value}"))
        .collect();
        let baggage = http::HeaderValue::try_from(baggage.join(","))
            .unwrap_or_else(|_| http::HeaderValue::from_static(""));
        Ok(Self {
            identity,
            addresses,
            baggage,
        })
    }

    pub(crate) fn has(&self, address: IpAddr) -> bool {
        self.addresses.contains(&address.to_canonical())
    }

    /// The pod's address of the same family.
    pub(crate) fn address_like(&self, other: IpAddr) -> Option<IpAddr> {
        let same = |a: &&IpAddr| a.is_ipv4() == other.is_ipv4();
        self.addresses.iter().find(same).copied()
    }
}

/// What a worker is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Taking connections.
    Serving,
    /// Finishing what it has.
    Draining,
    /// The time to drain is over: what is open is cut.
    Over,
}

/// What every task of one worker shares. One thread: no lock anywhere.
pub(crate) struct Context {
    pub(crate) pod: Pod,
    pub(crate) admission: Admission,
    pub(crate) metrics: Rc<Metrics>,
    pub(crate) reports: Reports,
    pub(crate) outbox: Outbox,
    pub(crate) discovery: Discovery,
    pub(crate) sources: Sources,
    pub(crate) policy: Policy,
    pub(crate) hooks: Box<dyn CaptureHooks>,
    pub(crate) phase: watch::Sender<Phase>,
    /// Counts certificates: tunnels of others are cycled when it changes.
    pub(crate) epoch: watch::Sender<u64>,
    /// Counts changes of what others are held against, the time among it.
    pub(crate) trust_changes: watch::Sender<u64>,
    /// Handshakes of callers under way.
    pub(crate) handshakes: Places,
    credentials: RefCell<Option<Rc<Credentials>>>,
}

impl Context {
    pub(crate) fn new(
        start: &Start,
        memory_used: Option<OwnedFd>,
        outbox: Outbox,
        hooks: Box<dyn CaptureHooks>,
    ) -> Result<Rc<Self>, StartError> {
        let worker = mesh_api::WORKER_PROTOCOL_VERSION;
        if start.protocol_version != worker {
            let supervisor = start.protocol_version;
            return Err(StartError::Version { supervisor, worker });
        }
        let metrics = Rc::new(Metrics::new());
        Ok(Rc::new(Self {
            pod: Pod::new(start)?,
            admission: Admission::new(&start.limits.unwrap_or_default(), memory_used),
            reports: Reports::new(metrics.clone(), outbox.clone()),
            discovery: Discovery::new(outbox.clone(), metrics.clone()),
            sources: Sources::new(outbox.clone(), metrics.clone()),
            policy: Policy::new(),
            metrics,
            outbox,
            hooks,
            phase: watch::Sender::new(Phase::Serving),
            epoch: watch::Sender::new(0),
            trust_changes: watch::Sender::new(0),
            handshakes: Places::default(),
            credentials: RefCell::default(),
        }))
    }

    /// Credentials for new handshakes. True when the certificate is another than before.
    pub(crate) fn set_credentials(&self, credentials: &Rc<Credentials>) -> bool {
        let before = self.credentials.borrow_mut().replace(credentials.clone());
        let before = before.as_ref();
        if !before.is_some_and(|before| Arc::ptr_eq(before.trust(), credentials.trust())) {
            self.trust_changes.send_modify(|changes| *changes += 1);
        }
        let renewed = !before.is_some_and(|before| before.same_certificate(credentials));
        if renewed {
            self.epoch.send_modify(|epoch| *epoch += 1);
        }
        renewed
    }

    /// The wall clock was set: what is valid is another question now.
    pub(crate) fn clock_was_set(&self) {
        self.trust_changes.send_modify(|changes| *changes += 1);
    }

    pub(crate) fn credentials(&self) -> Option<Rc<Credentials>> {
        self.credentials.borrow().clone()
    }

    /// The credentials, if they may be used now.
    pub(crate) fn valid_credentials(&self) -> Result<Rc<Credentials>, Fault> {
        let credentials = self.credentials();
        let credentials = credentials
            .ok_or_else(|| Fault::new(Reason::NoCertificate, "none has been issued yet"))?;
        credentials.valid(now_s())?;
        Ok(credentials)
    }

    /// Limits that hold now.
    pub(crate) fn limits(&self) -> Limits {
        self.admission.limits()
    }

    /// Flows that are open, both ways.
    pub(crate) fn open_flows(&self) -> u64 {
        self.metrics.get(Count::InboundOpen) + self.metrics.get(Count::OutboundOpen)
    }

    /// Whether one more connection is allowed.
    pub(crate) fn admit(&self) -> Result<(), Fault> {
        self.admission.memory_for(Newcomer::Connection)?;
        self.room(self.open_flows())
    }

    /// Whether one more stream of a caller's tunnel is allowed.
    pub(crate) fn admit_stream(&self) -> Result<(), Fault> {
        self.admission.rate(Way::Stream)?;
        self.admission.memory_for(Newcomer::Stream)?;
        let streams = self.metrics.get(Count::StreamsInbound);
        if streams >= self.limits().streams {
            let detail = format!("{streams} streams are open");
            return Err(Fault::new(Reason::StreamLimit, detail));
        }
        self.room(self.open_flows())
    }

    fn room(&self, open: u64) -> Result<(), Fault> {
        if open >= self.limits().connections {
            let detail = format!("{open} connections are open");
            return Err(Fault::new(Reason::ConnectionLimit, detail));
        }
        Ok(())
    }

    /// Ends when the worker begins to drain.
    pub(crate) async fn draining(&self) {
        let mut phase = self.phase.subscribe();
        // The sender lives as long as `self`.
        let _phase = phase.wait_for(|phase| *phase != Phase::Serving).await;
    }

    /// The time to drain is over: every flow is cut, and says so.
    pub(crate) fn cut_all(&self) {
        self.phase.send_replace(Phase::Over);
        // What flows watch anyway: a watch more would cost each of them memory.
        self.policy.changed();
    }

    /// Whether the time to drain is over.
    pub(crate) fn is_over(&self) -> bool {
        *self.phase.borrow() == Phase::Over
    }

    /// Dials another place from the pod's address.
    pub(crate) async fn dial(&self, to: SocketAddr) -> std::io::Result<TcpStream> {
        socket::connect(self.dialler(to)?, to, self.limits().connect_timeout).await
    }

    /// A socket to dial another place with, from the pod's address.
    pub(crate) fn dialler(&self, to: SocketAddr) -> std::io::Result<Socket> {
        socket::dialler(self.source_like(to.ip()))
    }

    /// The pod's address of the family of `to`, to dial from.
    pub(crate) fn source_like(&self, to: IpAddr) -> IpAddr {
        let own = self.pod.address_like(to);
        own.unwrap_or_else(|| socket::unspecified_like(to))
    }

    /// Dials the pod's own app for `client`, whose address the app will see.
    pub(crate) async fn dial_app(
        &self,
        to: SocketAddr,
        client: SocketAddr,
    ) -> Result<TcpStream, Fault> {
        if RESERVED_PORTS.contains(&to.port()) {
            let detail = format!("{to} is a port of the mesh");
            return Err(Fault::new(Reason::AuthorityReservedPort, detail));
        }
        let fault = |what: &str, e: std::io::Error| {
            Fault::new(Reason::AppConnect, format!("{what} {to}: {e}"))
        };
        let socket = socket::dialler(socket::loopback_like(to.ip()))
            .map_err(|e| fault("making a socket for", e))?;
        socket::reset_on_close(&socket);
        self.hooks
            .label_client(socket.as_fd(), client)
            .map_err(|e| fault("labelling the socket for", e))?;
        socket::connect(socket, to, self.limits().connect_timeout)
            .await
            .map_err(|e| fault("connecting to", e))
    }
}
