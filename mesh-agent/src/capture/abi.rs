//! The ABI's types as aya's maps take them.

use aya::Pod;
use aya::maps::{Array, ArrayOfMaps, HashMap, MapData, MapError, SockMap};
use mesh_common::{
    EventBudget, Flow, FlowKey, GlobalConfig, Grandfathered, OwnProcesses, PodConfig, PolicyEntry,
    PolicyKey, Probe, ProbePort, TaskLayout, WallConfig, map_name,
};

use super::error::{CaptureError, Result};
use super::pins::Pins;

/// A type of `mesh_common`; aya's marker can't be given to a foreign type.
#[repr(transparent)]
#[derive(Clone, Copy, Debug)]
pub(super) struct Abi<T>(pub(super) T);

macro_rules! plain {
    ($($name:ty),+) => {$(
        // SAFETY: `mesh_common` asserts that its types have fixed-width integers and no padding,
        // so any bytes are a value and any value is bytes.
        unsafe impl Pod for Abi<$name> {}
    )+};
}
plain!(
    GlobalConfig,
    PodConfig,
    WallConfig,
    EventBudget,
    FlowKey,
    Flow,
    Grandfathered,
    PolicyKey,
    PolicyEntry,
    ProbePort,
    Probe,
    OwnProcesses,
    TaskLayout
);

/// Tuples of one pod.
pub(super) type PodFlows = HashMap<MapData, Abi<FlowKey>, Abi<Flow>>;
/// Reserved sockets of one pod.
pub(super) type PodPending = HashMap<MapData, u64, u64>;

/// Connections of one pod that are older than its enrolment.
pub(super) type PodGrandfathered = HashMap<MapData, u64, Abi<Grandfathered>>;

/// The maps the agent works with.
pub(super) struct Maps {
    pub(super) config: Array<MapData, Abi<GlobalConfig>>,
    pub(super) pods: HashMap<MapData, u64, Abi<PodConfig>>,
    pub(super) flows: ArrayOfMaps<MapData, PodFlows>,
    pub(super) pending: ArrayOfMaps<MapData, PodPending>,
    pub(super) grandfathered: ArrayOfMaps<MapData, PodGrandfathered>,
    pub(super) listeners: SockMap<MapData>,
    pub(super) walls: HashMap<MapData, u32, Abi<WallConfig>>,
    pub(super) refusals: Array<MapData, u64>,
    pub(super) audited: Array<MapData, u64>,
    pub(super) policies: ArrayOfMaps<MapData>,
    pub(super) probe_ports: HashMap<MapData, Abi<ProbePort>, u32>,
    pub(super) probes: HashMap<MapData, Abi<FlowKey>, Abi<Probe>>,
    pub(super) probed: Array<MapData, u64>,
    pub(super) event_budgets: Array<MapData, Abi<EventBudget>>,
    pub(super) processes: Array<MapData, Abi<OwnProcesses>>,
}

impl Maps {
    /// Opens the pinned maps.
    pub(super) fn open(pins: &Pins) -> Result<Self> {
        use aya::maps::Map;
        Ok(Self {
            config: typed(map_name::CONFIG, |n| Map::Array(data(pins, n)?).try_into())?,
            pods: typed(map_name::PODS, |n| Map::HashMap(data(pins, n)?).try_into())?,
            flows: typed(map_name::FLOWS, |n| {
                Map::ArrayOfMaps(data(pins, n)?).try_into()
            })?,
            pending: typed(map_name::PENDING, |n| {
                Map::ArrayOfMaps(data(pins, n)?).try_into()
            })?,
            grandfathered: typed(map_name::GRANDFATHERED, |n| {
                Map::ArrayOfMaps(data(pins, n)?).try_into()
            })?,
            listeners: typed(map_name::LISTENERS, |n| {
                Map::SockMap(data(pins, n)?).try_into()
            })?,
            walls: typed(map_name::WALLS, |n| Map::HashMap(data(pins, n)?).try_into())?,
            refusals: typed(map_name::REFUSALS, |n| {
                Map::Array(data(pins, n)?).try_into()
            })?,
            audited: typed(map_name::AUDITED, |n| Map::Array(data(pins, n)?).try_into())?,
            policies: typed(map_name::POLICIES, |n| {
                Map::ArrayOfMaps(data(pins, n)?).try_into()
            })?,
            probe_ports: typed(map_name::PROBE_PORTS, |n| {
                Map::HashMap(data(pins, n)?).try_into()
            })?,
            probes: typed(map_name::PROBES, |n| {
                Map::HashMap(data(pins, n)?).try_into()
            })?,
            probed: typed(map_name::PROBED, |n| Map::Array(data(pins, n)?).try_into())?,
            event_budgets: typed(map_name::EVENT_BUDGETS, |n| {
                Map::Array(data(pins, n)?).try_into()
            })?,
            processes: typed(map_name::PROCESSES, |n| {
                Map::Array(data(pins, n)?).try_into()
            })?,
        })
    }
}

impl Maps {
    /// Says whose the maps are.
    pub(super) fn set_config(&mut self, config: GlobalConfig) -> Result<()> {
        let set = self.config.set(0, Abi(config), 0);
        set.map_err(failed(map_name::CONFIG))
    }
}

/// A pinned map.
pub(super) fn data(pins: &Pins, name: &str) -> Result<MapData, MapError> {
    MapData::from_pin(pins.map(name))
}

fn typed<T>(name: &str, open: impl FnOnce(&str) -> Result<T, MapError>) -> Result<T> {
    open(name).map_err(failed(name))
}

/// Names the map in an error.
pub(super) fn failed(name: &str) -> impl FnOnce(MapError) -> CaptureError {
    move |source| CaptureError::Map {
        name: name.to_owned(),
        source,
    }
}
