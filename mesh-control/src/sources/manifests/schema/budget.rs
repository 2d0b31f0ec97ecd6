//! spec of a WorkerBudget: what the workers of some pods may use.

use mesh_core::budget::Fields;
use serde::Deserialize;

use super::policy::Target;
use super::values::given;

/// spec of a WorkerBudget.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct WorkerBudget {
    #[serde(default, deserialize_with = "given")]
    pub(crate) target: Option<Target>,
    #[serde(default, deserialize_with = "given")]
    cpu_weight: Option<u32>,
    #[serde(default, deserialize_with = "given")]
    cpu_max_millicores: Option<u32>,
    #[serde(default, deserialize_with = "given")]
    memory_max_mib: Option<u32>,
    #[serde(default, deserialize_with = "given")]
    connections: Option<u32>,
    #[serde(default, deserialize_with = "given")]
    connections_per_second: Option<u32>,
    #[serde(default, deserialize_with = "given")]
    handshakes: Option<u32>,
    #[serde(default, deserialize_with = "given")]
    handshakes_per_second: Option<u32>,
    #[serde(default, deserialize_with = "given")]
    tunnels: Option<u32>,
    #[serde(default, deserialize_with = "given")]
    streams: Option<u32>,
    #[serde(default, deserialize_with = "given")]
    streams_per_tunnel: Option<u32>,
    #[serde(default, deserialize_with = "given")]
    buffered_mib: Option<u32>,
}

impl WorkerBudget {
    /// What it says.
    pub(crate) fn fields(&self) -> Fields {
        Fields {
            cpu_weight: self.cpu_weight,
            cpu_max_millicores: self.cpu_max_millicores,
            memory_max_mib: self.memory_max_mib,
            connections: self.connections,
            connections_per_second: self.connections_per_second,
            handshakes: self.handshakes,
            handshakes_per_second: self.handshakes_per_second,
            tunnels: self.tunnels,
            streams: self.streams,
            streams_per_tunnel: self.streams_per_tunnel,
            buffered_mib: self.buffered_mib,
        }
    }
}
