//! How the two ends of a loopback connection find each other: the connecting socket
//! publishes its tuple, the accepting socket takes it into its own storage.

/// The full tuple of a connection as its *connecting* end sees it.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowKey {
    /// Address of the connecting end.
    pub source: [u8; 16],
    /// Address of the accepting end.
    pub destination: [u8; 16],
    /// Port of the connecting end.
    pub source_port: u16,
    /// Port of the accepting end.
    pub destination_port: u16,
}

/// What the connecting end says of a published tuple.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    /// Socket cookie of the connecting end: only its owner deletes an entry.
    pub cookie: u64,
    /// [`FLOW_KIND_CAPTURED`] or [`FLOW_KIND_APP_DIAL`].
    pub kind: u32,
    /// Captured: the original destination's port. App dial: the client's port.
    pub port: u32,
    /// Captured: the original destination. App dial: the client.
    pub address: [u8; 16],
}

/// An app's connection, redirected to the worker.
pub const FLOW_KIND_CAPTURED: u32 = 1;
/// The worker's own dial to the pod's app; `sk_lookup` lets it through.
pub const FLOW_KIND_APP_DIAL: u32 = 2;

/// Per-socket storage.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SocketState {
    /// A `SOCKET_*` kind: which end of which connection this is.
    pub kind: u32,
    /// Port that goes with `address`.
    pub port: u32,
    /// Captured / from app: the original destination. Worker / app accepted: the client.
    pub address: [u8; 16],
    /// App's own address family-true local address to answer in `getsockname`
    /// (captured sockets), zero otherwise.
    pub local: [u8; 16],
}

/// Not ours: every connect in an enrolled pod writes or clears its socket's state.
pub const SOCKET_NONE: u32 = 0;
/// An app's connecting socket that was redirected to the worker.
pub const SOCKET_CAPTURED: u32 = 1;
/// The worker's accepted end of a captured connection.
pub const SOCKET_FROM_APP: u32 = 2;
/// A worker's own socket; `address` and `port` are its client label, if it has one.
pub const SOCKET_WORKER: u32 = 3;
/// The app's accepted end of a worker's dial.
pub const SOCKET_APP_ACCEPTED: u32 = 4;
/// Kubelet's connecting socket, in the node's own namespace; `address` and `port` are the pod's.
pub const SOCKET_PROBE: u32 = 5;
/// The app's accepted end of a kubelet's connection; `address` and `port` are kubelet's.
pub const SOCKET_PROBE_ACCEPTED: u32 = 6;

/// Value of the private option [`crate::SO_CLIENT_LABEL`].
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientLabel {
    /// The client that the app shall see.
    pub address: [u8; 16],
    /// Its port.
    pub port: u32,
}

const _: () = assert!(size_of::<FlowKey>() == 36);
const _: () = assert!(size_of::<Flow>() == 32);
const _: () = assert!(size_of::<SocketState>() == 40);
const _: () = assert!(size_of::<ClientLabel>() == 20);
