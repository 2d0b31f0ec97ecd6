//! What a node's agent reads.

use mesh_agent::{supervisor, worker};
use mesh_api::admin;

use crate::input::Input;
use crate::logs;
use crate::runtime::inside;

/// A seized worker's packets, to the supervisor.
pub(crate) fn worker_messages(bytes: &[u8]) {
    logs::check();
    supervisor::fuzzing::worker_messages(Input(bytes).pieces());
}

/// The supervisor's packets, to a worker: `Start`, and the others.
pub(crate) fn supervisor_messages(bytes: &[u8]) {
    logs::check();
    let mut pieces = Input(bytes).pieces();
    let start = pieces.next().unwrap_or_default();
    inside(|_| worker::fuzzing::supervisor_messages(start, pieces));
}

/// Control's responses to an agent, and what becomes of them in a worker.
pub(crate) fn discovery_responses(bytes: &[u8]) {
    logs::check();
    // What an agent has taken in, its workers understand.
    supervisor::fuzzing::discovery_responses(
        Input(bytes).pieces(),
        worker::fuzzing::policy_is_taken,
    );
}

/// What an agent has kept on its disk.
pub(crate) fn kept_files(bytes: &[u8]) {
    supervisor::fuzzing::kept_files(bytes);
}

/// Certificates that control sends a node.
pub(crate) fn signed_chain(bytes: &[u8]) {
    if let Ok(text) = std::str::from_utf8(bytes) {
        supervisor::fuzzing::signed_chain(text);
    }
    supervisor::fuzzing::signed_chain(&pem::encode(&pem::Pem::new("CERTIFICATE", bytes)));
}

/// A peer's request for a stream: method, authority, `Forwarded` headers.
pub(crate) fn hbone_request(bytes: &[u8]) {
    let mut lines = bytes.split(|byte| *byte == b'\n');
    let method = lines.next().unwrap_or_default();
    let target = lines.next().unwrap_or_default();
    let forwarded: Vec<&[u8]> = lines.collect();
    worker::fuzzing::hbone_request(method, target, &forwarded);
}

/// A peer's HTTP/2 frames, as far as they are read for its windows.
pub(crate) fn peer_settings(bytes: &[u8]) {
    let mut input = Input(bytes);
    let piece = usize::from(input.byte());
    worker::fuzzing::peer_settings(input.0, piece);
}

/// An app's answer to a health check.
pub(crate) fn health_answer(bytes: &[u8]) {
    inside(|runtime| runtime.block_on(worker::fuzzing::health_answer(bytes)));
}

/// The kernel's word on devices and routes that a pod has made and named.
pub(crate) fn netlink_messages(bytes: &[u8]) {
    supervisor::fuzzing::netlink_messages(bytes);
}

/// `/proc` of a pod's namespace.
pub(crate) fn port_tables(bytes: &[u8]) {
    if let Ok(text) = std::str::from_utf8(bytes) {
        supervisor::fuzzing::port_tables(text);
    }
}

/// A record of the ring buffer.
pub(crate) fn kernel_event(bytes: &[u8]) {
    supervisor::fuzzing::kernel_event(bytes);
}

/// A line on either admin socket.
pub(crate) fn admin_request(line: &str) -> Option<admin::Request> {
    supervisor::fuzzing::admin_request(line);
    serde_json::from_str(line).ok()
}
