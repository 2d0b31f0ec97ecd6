//! The parts of a container by which it says where kubelet calls it.

use serde::Deserialize;

use super::{Port, TargetPort};

/// A liveness, readiness or startup probe. One by `exec` has no port.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(in super::super) struct Probe {
    pub(in super::super) http_get: Option<Target>,
    pub(in super::super) tcp_socket: Option<Target>,
    pub(in super::super) grpc: Option<Grpc>,
}

/// Where a probe by HTTP or TCP goes.
#[derive(Clone, Debug, Deserialize)]
pub(in super::super) struct Target {
    /// Another host than the pod.
    #[serde(default)]
    pub(in super::super) host: Option<String>,
    pub(in super::super) port: TargetPort,
}

#[derive(Clone, Debug, Deserialize)]
pub(in super::super) struct Grpc {
    pub(in super::super) port: Port,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(in super::super) struct Lifecycle {
    pub(in super::super) post_start: Option<Hook>,
    pub(in super::super) pre_stop: Option<Hook>,
}

/// What kubelet does at a container's start or end. Its `tcpSocket` was never put to use.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(in super::super) struct Hook {
    pub(in super::super) http_get: Option<Target>,
}
