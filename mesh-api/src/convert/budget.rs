//! Between [`mesh_core::budget`], discovery, and what a worker is told.

use mesh_core::budget::{Budget, Fields};

use crate::policy as wire;
use crate::worker::Limits;

/// Reads a budget. What is out of range comes to the nearest that is in it: a newer control may
/// know wider ones, and a workload is not to be lost for its budget.
#[must_use]
pub fn from_wire(budget: &wire::Budget) -> Fields {
    let fields = Fields {
        cpu_weight: budget.cpu_weight,
        cpu_max_millicores: budget.cpu_max_millicores,
        memory_max_mib: budget.memory_max_mib,
        connections: budget.connections,
        connections_per_second: budget.connections_per_second,
        handshakes: budget.handshakes,
        handshakes_per_second: budget.handshakes_per_second,
        tunnels: budget.tunnels,
        streams: budget.streams,
        streams_per_tunnel: budget.streams_per_tunnel,
        buffered_mib: budget.buffered_mib,
    };
    fields.in_range()
}

/// Writes a budget; one that says nothing is left out.
#[must_use]
pub fn to_wire(fields: &Fields) -> Option<wire::Budget> {
    (*fields != Fields::default()).then_some(wire::Budget {
        cpu_weight: fields.cpu_weight,
        cpu_max_millicores: fields.cpu_max_millicores,
        memory_max_mib: fields.memory_max_mib,
        connections: fields.connections,
        connections_per_second: fields.connections_per_second,
        handshakes: fields.handshakes,
        handshakes_per_second: fields.handshakes_per_second,
        tunnels: fields.tunnels,
        streams: fields.streams,
        streams_per_tunnel: fields.streams_per_tunnel,
        buffered_mib: fields.buffered_mib,
    })
}

/// The worker's own part of a budget. `memory_max_mib` is left to who knows whether it is enforced.
#[must_use]
pub fn limits(budget: &Budget) -> Limits {
    Limits {
        connections: budget.connections,
        handshakes: budget.handshakes,
        streams_per_tunnel: budget.streams_per_tunnel,
        buffered_mib: budget.buffered_mib,
        connections_per_second: budget.connections_per_second,
        handshakes_per_second: budget.handshakes_per_second,
        tunnels: budget.tunnels,
        streams: budget.streams,
        ..Limits::default()
    }
}
