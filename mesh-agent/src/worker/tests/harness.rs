//! Pods on loopback: a real worker each, with the test as its supervisor and its kernel.

use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use mesh_api::WORKER_PROTOCOL_VERSION;
use mesh_api::policy::Traffic;
use mesh_api::worker::{
    Destination, Endpoint, FdKind, Limits, MetricsRequest, Pod, PodPolicy, SourceInfo, Start,
    TrustBundle, change, refusal::Outcome, to_worker,
};
use mesh_common::{PORT_HBONE, PORT_OUTBOUND, PORT_PLAINTEXT};
use mesh_core::reason::Reason;
use socket2::{Domain, Socket, Type};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::super::run_with;
use super::super::socket::{CaptureHooks, canonical};
use super::pki::{Leaf, Pki};
use super::policies::members;
use super::relay::expect_reset;
use super::supervisor::{Heard, supervise, tell};
use crate::channel::pair;

pub(super) const PATIENCE: Duration = Duration::from_secs(20);
pub(super) const TRUST_DOMAIN: &str = "cluster.local";

/// An address nobody else has, neither another test nor another run.
pub(super) fn next_ip() -> IpAddr {
    static NEXT: AtomicU16 = AtomicU16::new(1);
    let [high, low] = NEXT.fetch_add(1, Ordering::Relaxed).to_be_bytes();
    let run = 10 + std::process::id() % 240;
    Ipv4Addr::new(127, u8::try_from(run).unwrap(), high, low).into()
}

/// Connects where the worker must refuse, be it before `connect` has returned.
pub(super) async fn connect_in_vain(to: SocketAddr) {
    match TcpStream::connect(to).await {
        Ok(mut stream) => expect_reset(&mut stream).await,
        Err(error) => assert_eq!(error.kind(), io::ErrorKind::ConnectionReset),
    }
}

/// Waits for something that must come.
pub(super) async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    timeout(PATIENCE, future)
        .await
        .unwrap_or_else(|_| panic!("{what}: nothing within {PATIENCE:?}"))
}

type Originals = Arc<Mutex<HashMap<SocketAddr, SocketAddr>>>;
type Labels = Arc<Mutex<Vec<SocketAddr>>>;

struct TestHooks {
    originals: Originals,
    labels: Labels,
}

impl CaptureHooks for TestHooks {
    fn original_destination(
        &self,
        _accepted: BorrowedFd<'_>,
        client: SocketAddr,
    ) -> io::Result<SocketAddr> {
        let originals = self.originals.lock().unwrap();
        let original = originals.get(&client).copied();
        original.ok_or_else(|| io::Error::from_raw_os_error(libc::ENOPROTOOPT))
    }

    fn inbound_destination(&self, accepted: &TcpStream) -> io::Result<SocketAddr> {
        let original = self.original_destination(accepted.as_fd(), accepted.peer_addr()?);
        original.or_else(|_| accepted.local_addr().map(canonical))
    }

    fn label_client(&self, _socket: BorrowedFd<'_>, client: SocketAddr) -> io::Result<()> {
        self.labels.lock().unwrap().push(client);
        Ok(())
    }
}

/// What all pods of one test share.
pub(super) struct Mesh {
    pub(super) pki: Pki,
    directory: Mutex<HashMap<SocketAddr, Destination>>,
    sources: Mutex<HashMap<IpAddr, Option<SourceInfo>>>,
}

impl Mesh {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self {
            pki: Pki::new(),
            directory: Mutex::default(),
            sources: Mutex::default(),
        })
    }

    /// Makes discovery know a destination.
    pub(super) fn publish(&self, at: SocketAddr, endpoints: &[Endpoint]) {
        self.publish_service(at, endpoints, None);
    }

    /// The same, with what a `ServicePolicy` says of it. Returns what a worker is told.
    pub(super) fn publish_service(
        &self,
        at: SocketAddr,
        endpoints: &[Endpoint],
        traffic: Option<Traffic>,
    ) -> to_worker::Message {
        let destination = Destination {
            address: octets(at.ip()),
            port: at.port().into(),
            endpoints: endpoints.to_vec(),
            known: true,
            traffic,
            ..Destination::default()
        };
        let mut directory = self.directory.lock().unwrap();
        directory.insert(at, destination.clone());
        tell([change::Change::Destination(destination)])
    }

    pub(super) fn look_up(&self, address: &[u8], port: u32) -> Option<Destination> {
        let ip = super::super::discovery::address_of(address).unwrap();
        let at = SocketAddr::new(ip, u16::try_from(port).unwrap());
        if at.port() == UNANSWERED_PORT {
            return None;
        }
        let known = self.directory.lock().unwrap().get(&at).cloned();
        Some(known.unwrap_or_else(|| Destination {
            address: address.to_vec(),
            port,
            ttl_ms: 200,
            ..Destination::default()
        }))
    }
}

impl Mesh {
    /// Makes discovery know a peer; `None` leaves questions for it without an answer.
    pub(super) fn introduce(&self, ip: IpAddr, source: Option<SourceInfo>) {
        self.sources.lock().unwrap().insert(ip, source);
    }

    pub(super) fn source(&self, address: &[u8]) -> Option<SourceInfo> {
        let ip = super::super::discovery::address_of(address).unwrap();
        let known = self.sources.lock().unwrap().get(&ip).cloned();
        known.unwrap_or_else(|| {
            Some(SourceInfo {
                address: address.to_vec(),
                ..SourceInfo::default()
            })
        })
    }
}

/// Questions for this port stay without an answer.
pub(super) const UNANSWERED_PORT: u16 = 9;

pub(super) fn octets(ip: IpAddr) -> Vec<u8> {
    super::super::discovery::bytes_of(ip)
}

/// An endpoint that takes HBONE.
pub(super) fn endpoint(at: SocketAddr, identity: &str) -> Endpoint {
    Endpoint {
        address: octets(at.ip()),
        port: at.port().into(),
        hbone: true,
        identity: identity.to_owned(),
        workload_uid: format!("Kubernetes//v1/Pod/test/{}", at.ip()),
        workload_name: at.ip().to_string(),
        ..Endpoint::default()
    }
}

/// What is special about a pod.
pub(super) struct Options {
    pub(super) limits: Limits,
    /// The leaf that its requests are answered with; the good one if `None`.
    pub(super) leaf: Option<Leaf>,
    /// Requests that are answered with a certificate; later ones are refused.
    pub(super) certificates: usize,
    pub(super) protocol_version: u32,
    /// What it starts with; all members in both directions if not said otherwise.
    pub(super) policy: Option<PodPolicy>,
    /// What it takes for the `memory.current` of its cgroup.
    pub(super) memory_used: Option<OwnedFd>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            limits: Limits::default(),
            leaf: None,
            certificates: usize::MAX,
            protocol_version: WORKER_PROTOCOL_VERSION,
            policy: Some(members()),
            memory_used: None,
        }
    }
}

/// One pod with its worker.
pub(super) struct TestPod {
    pub(super) ip: IpAddr,
    pub(super) identity: String,
    pub(super) heard: Arc<Mutex<Heard>>,
    pub(super) labels: Labels,
    originals: Originals,
    post: mpsc::UnboundedSender<(to_worker::Message, Vec<OwnedFd>)>,
    pub(super) thread: Option<JoinHandle<anyhow::Result<()>>>,
}

/// A listener as a worker makes it, but on the pod's address.
fn listener(at: SocketAddr) -> OwnedFd {
    let socket = Socket::new(Domain::for_address(at), Type::STREAM, None).unwrap();
    socket.set_reuse_address(true).unwrap();
    socket.bind(&at.into()).unwrap();
    socket.listen(1024).unwrap();
    socket.into()
}

impl TestPod {
    /// A pod whose worker is ready.
    pub(super) async fn start(mesh: &Arc<Mesh>, name: &str) -> Self {
        Self::start_with(mesh, name, Options::default()).await
    }

    pub(super) async fn start_with(mesh: &Arc<Mesh>, name: &str, options: Options) -> Self {
        let pod = Self::begin(mesh, name, options);
        pod.until("the worker is ready", |heard| !heard.ready.is_empty())
            .await;
        pod
    }

    /// A pod whose worker has all it was sent, ready or not.
    pub(super) fn begin(mesh: &Arc<Mesh>, name: &str, mut options: Options) -> Self {
        let ip = next_ip();
        // The worker would make what is missing, on addresses that other tests have too; so
        // the IPv6 ones are stand-ins that nobody dials.
        let kinds = [
            (FdKind::OutboundV4, PORT_OUTBOUND),
            (FdKind::PlaintextV4, PORT_PLAINTEXT),
            (FdKind::HboneV4, PORT_HBONE),
            (FdKind::OutboundV6, 0),
            (FdKind::PlaintextV6, 0),
            (FdKind::HboneV6, 0),
        ];
        let mut fds: Vec<_> = kinds
            .map(|(kind, port)| (kind as i32, listener(SocketAddr::new(ip, port))))
            .into();
        let memory_used = options.memory_used.take();
        fds.extend(memory_used.map(|fd| (FdKind::MemoryUsed as i32, fd)));
        Self::launch(mesh, name, ip, options, fds)
    }

    /// Starts a worker with what an earlier one left.
    pub(super) fn launch(
        mesh: &Arc<Mesh>,
        name: &str,
        ip: IpAddr,
        options: Options,
        fds: Vec<(i32, OwnedFd)>,
    ) -> Self {
        let identity = format!("spiffe://{TRUST_DOMAIN}/ns/test/sa/{name}");
        let (ours, theirs) = pair().unwrap();
        let (originals, labels) = (Originals::default(), Labels::default());
        let hooks = TestHooks {
            originals: originals.clone(),
            labels: labels.clone(),
        };
        let thread = std::thread::spawn(move || run_with(theirs, Box::new(hooks)));
        let (post, mail) = mpsc::unbounded_channel();
        let leaf = options.leaf.unwrap_or_else(|| Leaf::of(&identity));
        let signer = (leaf, options.certificates);
        let heard = Arc::new(Mutex::new(Heard::default()));
        tokio::spawn(supervise(ours, mesh.clone(), heard.clone(), mail, signer));
        let start = Start {
            protocol_version: options.protocol_version,
            pod: Some(Pod {
                namespace: "test".to_owned(),
                name: name.to_owned(),
                service_account: name.to_owned(),
                trust_domain: TRUST_DOMAIN.to_owned(),
                addresses: vec![octets(ip)],
                cluster_id: "Kubernetes".to_owned(),
                ..Pod::default()
            }),
            limits: Some(options.limits),
            fds: fds.iter().map(|(kind, _)| *kind).collect(),
            ..Start::default()
        };
        let fds = fds.into_iter().map(|(_, fd)| fd).collect();
        post.send((to_worker::Message::Start(start), fds)).unwrap();
        if let Some(policy) = options.policy {
            let policy = tell([change::Change::Policy(policy)]);
            post.send((policy, Vec::new())).unwrap();
        }
        let roots = mesh.pki.roots();
        let bundle = to_worker::Message::TrustBundle(TrustBundle {
            roots,
            ..TrustBundle::default()
        });
        post.send((bundle, Vec::new())).unwrap();
        Self {
            ip,
            identity,
            heard,
            labels,
            originals,
            post,
            thread: Some(thread),
        }
    }

    pub(super) fn send(&self, message: to_worker::Message) {
        self.post.send((message, Vec::new())).unwrap();
    }

    /// Waits until the worker has taken all that it was sent before.
    pub(super) async fn has_taken_all(&self) {
        self.count("", "").await;
    }

    /// Waits until the worker has said what is looked for.
    pub(super) async fn until(&self, what: &str, condition: impl Fn(&Heard) -> bool) {
        within(what, async {
            while !condition(&self.heard.lock().unwrap()) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
    }

    /// One counter's value now.
    pub(super) async fn count(&self, name: &str, label: &str) -> u64 {
        static NEXT: AtomicU16 = AtomicU16::new(1);
        let id = u64::from(NEXT.fetch_add(1, Ordering::Relaxed));
        self.send(to_worker::Message::MetricsRequest(MetricsRequest { id }));
        self.until("metrics", |heard| heard.metrics.contains_key(&id))
            .await;
        let all = self.heard.lock().unwrap().metrics.remove(&id).unwrap();
        let mut found = all.iter().filter(|(n, l, _)| n == name && l == label);
        found.next().map_or(0, |(_, _, value)| *value)
    }

    /// Waits until a counter has reached a value.
    pub(super) async fn counted(&self, name: &str, label: &str, value: u64) {
        within(&format!("{name} {label} = {value}"), async {
            while self.count(name, label).await != value {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
        .await;
    }

    /// Waits until so many flows were refused for this reason, and no other was.
    pub(super) async fn refused(&self, direction: &str, reason: Reason, times: u64) {
        let name = format!("nodemesh_refusals_{direction}_total");
        let counted = self.counted(&name, reason.code(), times);
        if timeout(PATIENCE / 2, counted).await.is_err() {
            panic!(
                "not {times} × {reason}: {:?}",
                self.heard.lock().unwrap().refusals
            );
        }
        let heard = self.heard.lock().unwrap();
        let wrong: Vec<_> = heard
            .refusals
            .iter()
            .filter(|r| r.direction == direction && r.reason != reason.code())
            .collect();
        assert!(wrong.is_empty(), "{wrong:?}");
    }

    /// Waits until a judgement of this kind was told, and gives the policy it names.
    pub(super) async fn judged(&self, outcome: Outcome, reason: Reason) -> String {
        let find = |heard: &Heard| {
            let mut all = heard.refusals.iter();
            all.find(|r| r.outcome() == outcome && r.reason == reason.code())
                .map(|r| r.policy.clone())
        };
        let what = format!("{outcome:?} {reason}");
        self.until(&what, |heard| find(heard).is_some()).await;
        let heard = self.heard.lock().unwrap();
        find(&heard).unwrap()
    }

    /// Has the supervisor send a batch of its own accord.
    pub(super) fn change(&self, changes: impl IntoIterator<Item = change::Change>) {
        self.send(tell(changes));
    }

    /// Puts another policy in force and waits until it is.
    pub(super) async fn apply(&self, policy: PodPolicy) {
        let version = policy.version.clone();
        self.change([change::Change::Policy(policy)]);
        self.until("the policy is in force", |heard| {
            heard.applied.last() == Some(&version)
        })
        .await;
    }

    /// Connects from outside the mesh in plain, steered on its way to `to`.
    pub(super) async fn call_plain(&self, from: IpAddr, to: SocketAddr) -> io::Result<TcpStream> {
        self.steer(SocketAddr::new(from, 0), to).await
    }

    /// Connects from outside the pod, steered on its way to `to`.
    pub(super) async fn steer(&self, from: SocketAddr, to: SocketAddr) -> io::Result<TcpStream> {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(from)?;
        let client = socket.local_addr().unwrap();
        self.originals.lock().unwrap().insert(client, to);
        let plaintext = SocketAddr::new(self.ip, PORT_PLAINTEXT);
        within("connect to the worker", socket.connect(plaintext)).await
    }

    /// Connects as the pod's app, captured on its way to `to`.
    pub(super) async fn dial(&self, to: SocketAddr) -> TcpStream {
        self.try_dial(to).await.unwrap()
    }

    /// The same where the worker must refuse, be it before `connect` has returned.
    pub(super) async fn dial_in_vain(&self, to: SocketAddr) {
        match self.try_dial(to).await {
            Ok(mut stream) => expect_reset(&mut stream).await,
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::ConnectionReset),
        }
    }

    async fn try_dial(&self, to: SocketAddr) -> io::Result<TcpStream> {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(SocketAddr::new(self.ip, 0)).unwrap();
        let from = socket.local_addr().unwrap();
        self.originals.lock().unwrap().insert(from, to);
        let outbound = SocketAddr::new(self.ip, PORT_OUTBOUND);
        within("connect to the worker", socket.connect(outbound)).await
    }

    /// A server of the pod's app, known to discovery.
    pub(super) async fn listen(&self, mesh: &Mesh) -> (TcpListener, SocketAddr) {
        let listener = TcpListener::bind((self.ip, 0)).await.unwrap();
        let at = listener.local_addr().unwrap();
        mesh.publish(at, &[endpoint(at, &self.identity)]);
        (listener, at)
    }

    pub(super) fn hbone(&self) -> SocketAddr {
        SocketAddr::new(self.ip, PORT_HBONE)
    }
}
