//! The supervisor's parsers of what workers, pods and control worded, for `mesh-fuzz`. Each entry
//! checks what must hold whatever the bytes are.

use std::cell::RefCell;
use std::fs::File;
use std::io;
use std::net::{TcpListener, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use mesh_api::ads::DeltaDiscoveryResponse;
use mesh_api::worker::to_supervisor::Message as FromWorker;
use mesh_api::worker::{Listeners, ToSupervisor};
use mesh_core::identity::{Identity, TrustDomain};
use mesh_core::model::{Enrolment, Mesh, Workload};
use mesh_core::policy::PodPolicy;
use mesh_core::policy::kernel::KernelPolicy;
use prost::Message as _;
use tokio::time::Instant;

use super::counters::Counters;
use super::discovery::View;
use super::events::{self, LineBudget};
use super::legacy::Legacy;
use super::lookups::Lookups;
use super::netlink;
use super::packets::batch;
use super::pods::{PodKey, PodRecord};
use super::ports;
use super::rules::Rules;
use super::xds::{Commit, XdsState};
use super::{admin, csr};
use crate::capture;
use crate::channel::MAX_PACKET;
use crate::handed::Handed;
use crate::netlink::List;

fn trust_domain() -> TrustDomain {
    "cluster.local".parse().expect("a trust domain")
}

fn identity() -> Identity {
    Identity::new(trust_domain(), "shop", "cart").expect("an identity")
}

/// What a worker says, one packet after the other. Nothing of it may panic the supervisor, forge
/// or fill a log line, or make an answer that no packet holds.
pub fn worker_messages<'a>(packets: impl Iterator<Item = &'a [u8]>) {
    let Ok(key) = PodKey::new("shop", "cart") else {
        unreachable!("both are names");
    };
    let (mut legacy, mut counters) = (Legacy::default(), Counters::default());
    let (mut lookups, mut lines) = (
        Lookups::new(Arc::default()),
        LineBudget::new(Instant::now()),
    );
    let mut view = View::default();
    let cart = Workload {
        addresses: vec![[10, 0, 0, 2].into()],
        enrolment: Enrolment::Enforce,
        ..Workload::new("Kubernetes//v1/Pod/shop/cart", "cart", identity())
    };
    view.mesh.insert_workload(cart);
    for packet in packets {
        let Some(message) = ToSupervisor::decode(packet).ok().and_then(|m| m.message) else {
            continue;
        };
        let answer = match message {
            FromWorker::Hello(hello) => {
                let word = events::word(&hello.version);
                assert!(word.len() <= 256 && word.bytes().all(|b| b.is_ascii_graphic()));
                None
            }
            FromWorker::Listeners(listeners) => {
                take_listeners(&mut legacy, &listeners);
                None
            }
            FromWorker::PrivateKey(_) => {
                let fds = vec![descriptor(packet.len()); usize::from(packet.len() % 3 > 0)];
                assert_eq!(fds == [FILE], legacy.take_key(owned(fds)).is_ok());
                None
            }
            FromWorker::ResolveDestination(question) => {
                let answer = lookups.destination(Some(&view), &question);
                answer.ok().flatten()
            }
            FromWorker::ResolveSource(question) => {
                lookups.source(Some(&view), &question).ok().flatten()
            }
            FromWorker::Refusal(refusal) => {
                if lines.allow(Instant::now()) {
                    events::log_worker_refusal(&key, &refusal);
                }
                None
            }
            FromWorker::TunnelOpened(tunnel) => {
                if lines.allow(Instant::now()) {
                    events::log_tunnel(&key, &tunnel);
                }
                None
            }
            FromWorker::Metrics(metrics) => {
                counters.update(1, &metrics.counters);
                for counter in counters.totals() {
                    let word = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_';
                    assert!(counter.name.bytes().chain(counter.label.bytes()).all(word));
                }
                counters.worker_ended(1);
                assert!(counters.totals().len() <= 1024);
                None
            }
            FromWorker::Health(health) => {
                assert!(events::clip(&health.detail).chars().count() <= 256);
                None
            }
            _ => None,
        };
        let batch = batch(answer);
        assert!(batch.left_out.is_empty());
        for message in batch.messages {
            assert!(message.encoded_len() < MAX_PACKET);
        }
    }
    let again = lookups.refresh(&view);
    assert!(again.is_empty(), "nothing has changed since it was told");
}

thread_local! {
    /// What a worker could have: two sockets, one of them listening, and a file.
    static DESCRIPTORS: RefCell<Vec<OwnedFd>> = RefCell::new(vec![
        TcpListener::bind("127.0.0.1:0").expect("a listener").into(),
        UdpSocket::bind("127.0.0.1:0").expect("a socket").into(),
        File::open("/proc/self/exe").expect("a file").into(),
    ]);
}

/// Where the file is among them.
const FILE: usize = 2;

fn descriptor(choice: usize) -> usize {
    choice % 3
}

fn owned(choices: Vec<usize>) -> Vec<Handed> {
    let duplicate = |choice: usize| {
        DESCRIPTORS.with_borrow(|all| Handed::from(all[choice].try_clone().expect("a duplicate")))
    };
    choices.into_iter().map(duplicate).collect()
}

fn take_listeners(legacy: &mut Legacy, listeners: &Listeners) {
    let kinds: Vec<i32> = listeners.fds.iter().copied().take(16).collect();
    let choices = kinds
        .iter()
        .map(|kind| descriptor(kind.unsigned_abs() as usize));
    let fds = owned(choices.collect());
    let cookie = DESCRIPTORS.with_borrow(|all| capture::socket_netns_cookie(all[0].as_fd()));
    if legacy
        .take_listeners(&kinds, fds, cookie.unwrap_or_default())
        .is_ok()
    {
        assert!(!legacy.has_listeners(), "none of them is on a port of ours");
    }
}

/// Control's responses on a discovery stream; an empty one begins the stream anew. Refusals are
/// told and returned, and what is kept over a restart is what is in effect. The policy of a pod that
/// comes out of it is handed to `told` in the messages that its worker gets.
pub fn discovery_responses<'a>(
    responses: impl Iterator<Item = &'a [u8]>,
    told: impl Fn(&[Vec<u8>]),
) -> Vec<String> {
    let mut state = XdsState::new(trust_domain());
    let mut view = View::default();
    let mut faults = Vec::new();
    state.subscribe("node-a");
    for response in responses {
        if response.is_empty() {
            assert_eq!(state.subscribe("node-a").len(), 2);
            continue;
        }
        let Ok(response) = DeltaDiscoveryResponse::decode(response) else {
            continue;
        };
        let nonce = response.nonce.clone();
        let applied = state.apply(response);
        assert_eq!(applied.request.response_nonce, nonce);
        let refused = applied.request.error_detail.is_some();
        assert_eq!(refused, !applied.faults.is_empty());
        faults.extend(applied.faults);
        for change in applied.commit.into_iter().flat_map(|c| c.changes) {
            change.apply(&mut view.mesh);
        }
    }
    is_kept(&state, &view.mesh);
    for workload in view.mesh.workloads().take(4) {
        let (authorizations, authentications) = view.mesh.policies_for(workload);
        let policy = PodPolicy::new(authorizations, authentications, Vec::new());
        // That it can be compiled is all.
        drop(KernelPolicy::new(&policy, &workload.addresses, &view.mesh));
        let mut rules = Rules::default();
        rules.refresh(&view, &workload.uid);
        let message = rules
            .message("1")
            .map(mesh_api::worker::change::Change::Policy);
        let batch = batch(message);
        let packets = batch.messages.iter().map(prost::Message::encode_to_vec);
        told(&packets.collect::<Vec<_>>());
    }
    faults
}

/// What `state` would leave on the disk is `mesh`.
fn is_kept(state: &XdsState, mesh: &Mesh) {
    let kept = XdsState::restore(trust_domain(), state.snapshot());
    let (_, commit, _) = kept.expect("a snapshot of its own");
    let again = made_of(commit);
    assert!(again.authorizations().eq(mesh.authorizations()));
    assert!(again.authentications().eq(mesh.authentications()));
    assert!(again.workloads().eq(mesh.workloads()));
    assert!(again.services().eq(mesh.services()));
}

fn made_of(commit: Commit) -> Mesh {
    let mut mesh = Mesh::default();
    for change in commit.changes {
        change.apply(&mut mesh);
    }
    mesh
}

/// A file that an agent finds on its disk: a pod's record, or what discovery had told. What is
/// taken is kept the same again.
pub fn kept_files(bytes: &[u8]) {
    if let Ok(record) = PodRecord::read(bytes) {
        is_one_name(&record.key);
        let kept = serde_json::to_vec(&record).expect("JSON");
        assert_eq!(PodRecord::read(&kept), Ok(record));
    }
    if let Ok(snapshot) = DeltaDiscoveryResponse::decode(bytes)
        && let Ok((state, commit, _faults)) = XdsState::restore(trust_domain(), snapshot)
    {
        is_kept(&state, &made_of(commit));
    }
}

fn is_one_name(key: &PodKey) {
    let joined = key.joined();
    assert!(!joined.contains('/') && joined.len() <= 512 && !joined.starts_with('.'));
}

/// Certificates that control has signed: what is taken names the identity that was asked for.
pub fn signed_chain(pem: &str) {
    if let Ok(svid) = csr::read_chain(&[pem.to_owned()], &identity(), &[]) {
        assert!(!svid.chain.is_empty());
        let kept = csr::chain_from_pem(&csr::chain_to_pem(&svid.chain), &identity(), &[]);
        assert_eq!(kept, Some(svid));
    }
}

/// What the kernel says of a pod's devices, addresses and routes, which the pod has named.
pub fn netlink_messages(bytes: &[u8]) {
    let link = |entry: &[u8]| Ok(netlink::read_link(entry)?.describe());
    let address = |entry: &[u8]| Ok(format!("{:?}", netlink::read_address(entry)?));
    let route = |entry: &[u8]| {
        let route = netlink::read_route(entry)?;
        Ok(route.map_or_else(String::new, |route| route.to_string()))
    };
    type Reader<'a> = &'a dyn Fn(&[u8]) -> io::Result<String>;
    let readers: [(List, Reader<'_>); 3] = [
        (netlink::LINKS, &link),
        (netlink::ADDRESSES, &address),
        (netlink::ROUTES, &route),
    ];
    for (list, read) in readers {
        let mut lines = Vec::new();
        let _broken = list.read_packet(bytes, read, &mut lines);
        assert!(lines.len() <= netlink::DUMP_LIMIT);
        for line in lines {
            assert!(!line.chars().any(char::is_control), "{line:?}");
        }
    }
}

/// Tables of `/proc` that a pod can fill: its reserved ports and its sockets.
pub fn port_tables(text: &str) {
    if let Some(ports) = ports::parse(text) {
        assert_eq!(ports::parse(&ports::format(&ports)), Some(ports));
    }
    assert!(ports::listening_in(text).count() <= text.lines().count());
}

/// A refusal out of the ring buffer.
pub fn kernel_event(bytes: &[u8]) {
    if let Ok(event) = capture::decode_event::<mesh_common::RefusalEvent>(bytes) {
        let from = events::address(event.source, event.source_port);
        assert!(!from.is_empty() && from.is_ascii());
        let reason = capture::from_number(event.reason).map(capture::reason);
        assert!(reason.is_none_or(|reason| !reason.sentence().is_empty()));
    }
}

/// A line on the admin socket.
pub fn admin_request(line: &str) {
    if let Ok(request) = serde_json::from_str::<admin::Request>(line)
        && let admin::Request::PodAdd(pod) = &request
        && let Ok(key) = PodKey::new(&pod.namespace, &pod.name)
    {
        is_one_name(&key);
    }
}
