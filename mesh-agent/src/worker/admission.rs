//! What may come in: the worker's limits, how often something new may come, and what its memory
//! still has room for. [`Admission::set`] puts other limits in force for what comes from then on.

use std::cell::{Cell, RefCell};
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::Duration;

use mesh_api::worker::Limits as LimitsMessage;
use mesh_core::budget::Budget;
use mesh_core::rate::TokenBucket;
use mesh_core::reason::Reason;
use tokio::time::Instant;

use super::fault::Fault;
use super::memory::Memory;

const MIB: u64 = 1 << 20;

/// Limits of one worker, defaults filled in.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(crate) connections: u64,
    connections_per_second: u32,
    pub(crate) handshakes: u64,
    handshakes_per_second: u32,
    pub(crate) tunnels: u64,
    pub(crate) streams: u64,
    pub(crate) streams_per_tunnel: u32,
    pub(crate) handshake_timeout: Duration,
    pub(crate) connect_timeout: Duration,
    /// Bytes of flows that may wait in this worker; beyond, a flow whose app does not read is
    /// reset: a worker that runs out of memory would take every flow of its pod with it.
    pub(crate) buffered: u64,
    /// How long a tunnel may go on after its certificate was replaced, where its peer can't be shown
    /// the new one.
    pub(crate) tunnel_drain: Duration,
    /// Bytes of its cgroup's memory limit; 0 where there is none.
    memory_max: u64,
}

impl Limits {
    fn new(message: &LimitsMessage) -> Self {
        let default = Budget::default();
        let or = |value: u32, default: u32| if value == 0 { default } else { value };
        let ms = |value, default| Duration::from_millis(or(value, default).into());
        Self {
            connections: or(message.connections, default.connections).into(),
            connections_per_second: or(
                message.connections_per_second,
                default.connections_per_second,
            ),
            handshakes: or(message.handshakes, default.handshakes).into(),
            handshakes_per_second: or(message.handshakes_per_second, default.handshakes_per_second),
            tunnels: or(message.tunnels, default.tunnels).into(),
            streams: or(message.streams, default.streams).into(),
            // More would not fit a connection window of 2^31-1 bytes.
            streams_per_tunnel: or(message.streams_per_tunnel, default.streams_per_tunnel)
                .min(2047),
            handshake_timeout: ms(message.handshake_timeout_ms, 10_000),
            connect_timeout: ms(message.connect_timeout_ms, 5_000),
            tunnel_drain: ms(message.tunnel_drain_ms, 600_000),
            buffered: u64::from(or(message.buffered_mib, default.buffered_mib)) * MIB,
            memory_max: u64::from(message.memory_max_mib) * MIB,
        }
    }

    fn per_second(&self, way: Way) -> u32 {
        match way {
            Way::Handshake => self.handshakes_per_second,
            Way::Outbound | Way::Plaintext | Way::Stream => self.connections_per_second,
        }
    }
}

/// How something new comes in. Each way has a rate of its own, so that none takes another's turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// A connection of the app.
    Outbound,
    /// A connection in plain from outside the mesh.
    Plaintext,
    /// A caller's connection to the port of tunnels.
    Handshake,
    /// A stream in a caller's tunnel.
    Stream,
}

impl Way {
    const ALL: [Self; 4] = [
        Self::Outbound,
        Self::Plaintext,
        Self::Handshake,
        Self::Stream,
    ];
}

/// What wants in, in the order in which it is refused when memory gets short.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Newcomer {
    /// A connection, or a tunnel.
    Connection,
    /// A stream of a tunnel that stands, whose caller has its place already.
    Stream,
}

/// What may come in on one way.
struct Gate {
    /// What is let in. A second's worth may come at once.
    admitted: TokenBucket,
    /// What is refused with an answer. It costs next to nothing, but not nothing: what is beyond
    /// this as well waits in the kernel's queue.
    refused: TokenBucket,
}

/// Decides what may come in.
pub(crate) struct Admission {
    limits: Cell<Limits>,
    gates: RefCell<[Gate; Way::ALL.len()]>,
    pub(crate) memory: Memory,
}

impl Admission {
    /// `memory_used` is the `memory.current` of the worker's cgroup.
    pub(crate) fn new(message: &LimitsMessage, memory_used: Option<OwnedFd>) -> Self {
        let limits = Limits::new(message);
        let now = Instant::now().into_std();
        let gates = Way::ALL.map(|way| {
            let rate = limits.per_second(way);
            Gate {
                admitted: TokenBucket::new(rate, rate, now),
                refused: TokenBucket::new(rate, rate, now),
            }
        });
        Self {
            limits: Cell::new(limits),
            gates: RefCell::new(gates),
            memory: Memory::new(memory_used, limits.memory_max),
        }
    }

    pub(crate) fn limits(&self) -> Limits {
        self.limits.get()
    }

    /// Other limits. What is open stays.
    pub(crate) fn set(&self, message: &LimitsMessage) {
        let limits = Limits::new(message);
        let now = Instant::now().into_std();
        for (gate, way) in self.gates.borrow_mut().iter_mut().zip(Way::ALL) {
            let rate = limits.per_second(way);
            gate.admitted.set(rate, rate, now);
            gate.refused.set(rate, rate, now);
        }
        self.memory.set_max(limits.memory_max);
        self.limits.set(limits);
    }

    /// Whether one more may come in now, as to how many there were lately.
    pub(crate) fn rate(&self, way: Way) -> Result<(), Fault> {
        let now = Instant::now().into_std();
        let gate = &mut self.gates.borrow_mut()[way as usize];
        if gate.admitted.take(now) {
            return Ok(());
        }
        gate.refused.spend(now);
        let reason = match way {
            Way::Handshake => Reason::HandshakeRate,
            Way::Outbound | Way::Plaintext | Way::Stream => Reason::ConnectionRate,
        };
        let rate = self.limits.get().per_second(way);
        Err(Fault::new(
            reason,
            format_args!("{rate} a second are let in"),
        ))
    }

    /// How long nothing more is to be taken from a listener: as long as the next one could neither
    /// be let in nor refused.
    pub(crate) fn rest(&self, way: Way) -> Option<Duration> {
        let now = Instant::now().into_std();
        let gate = &mut self.gates.borrow_mut()[way as usize];
        gate.admitted.refill(now);
        gate.refused.refill(now);
        let wait = gate.admitted.wait().min(gate.refused.wait());
        (!wait.is_zero()).then_some(wait)
    }

    /// Whether memory has room for one more.
    pub(crate) fn memory_for(&self, newcomer: Newcomer) -> Result<(), Fault> {
        let (used, max) = self.memory.used();
        let refused_from = match newcomer {
            Newcomer::Connection => max / 10 * 7,
            Newcomer::Stream => max / 10 * 8,
        };
        if max > 0 && used >= refused_from {
            let detail = format_args!("{} of {} MiB are in use", used / MIB, max / MIB);
            return Err(Fault::new(Reason::MemoryPressure, detail));
        }
        Ok(())
    }
}

/// Places of which there are so many.
#[derive(Clone, Default)]
pub(crate) struct Places(Rc<Cell<u64>>);

/// One of them, held until it is dropped.
pub(crate) struct Place(Rc<Cell<u64>>);

impl Places {
    pub(crate) fn taken(&self) -> u64 {
        self.0.get()
    }

    /// Takes one, whether or not there was one left.
    pub(crate) fn take(&self) -> Place {
        self.0.set(self.0.get() + 1);
        Place(self.0.clone())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}
