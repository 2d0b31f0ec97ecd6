//! What one worker may use: budgets as the operator wrote them, and the one that a workload
//! gets. The nearest scope that gives a field wins, each field by itself: labels or service
//! before namespace before mesh, then the default. Of equally near ones the lower value wins.

use crate::model::Workload;
use crate::policy::{PolicyKey, Target, namespace_of};

/// One field of a budget.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field {
    /// Its name in a manifest.
    pub name: &'static str,
    /// What holds where nobody says anything; 0 where that is no limit.
    pub default: u32,
    /// Lowest value that makes sense.
    pub low: u32,
    /// Highest value.
    pub high: u32,
}

impl Field {
    /// Whether 0 may be said, for no limit: only where that is the default.
    #[must_use]
    pub const fn takes_none(self) -> bool {
        self.default == 0
    }

    /// Whether this value may be said.
    #[must_use]
    pub fn takes(self, value: u32) -> bool {
        (self.low..=self.high).contains(&value) || (value == 0 && self.takes_none())
    }

    /// The nearest value that may be said.
    #[must_use]
    pub fn nearest(self, value: u32) -> u32 {
        match self.takes(value) {
            true => value,
            false => value.clamp(self.low, self.high),
        }
    }
}

macro_rules! fields {
    ($($(#[doc = $doc:literal])+ $field:ident = $name:literal, $default:literal, $low:literal..=$high:literal;)+) => {
        /// What is said of a budget; `None` leaves a field to the next scope.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
        pub struct Fields {
            $($(#[doc = $doc])+ pub $field: Option<u32>,)+
        }

        /// What one worker may use.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub struct Budget {
            $($(#[doc = $doc])+ pub $field: u32,)+
        }

        /// Every field, in the order of [`Fields::values`].
        pub const FIELDS: &[Field] = &[$(Field {
            name: $name,
            default: $default,
            low: $low,
            high: $high,
        },)+];

        impl Fields {
            /// What is said, by field.
            #[must_use]
            pub fn values(&self) -> [Option<u32>; FIELDS.len()] {
                [$(self.$field,)+]
            }

            /// The same of this and, where it says nothing, of another.
            #[must_use]
            pub fn or(self, other: Self) -> Self {
                Self { $($field: self.$field.or(other.$field),)+ }
            }

            /// The lower of both, field by field.
            #[must_use]
            fn lower(self, other: Self) -> Self {
                Self { $($field: lower(self.$field, other.$field),)+ }
            }

            /// The same with each value the nearest that may be said.
            #[must_use]
            pub fn in_range(self) -> Self {
                let mut fields = FIELDS.iter();
                let mut nearest = |value: Option<u32>| {
                    let field = fields.next();
                    value.map(|value| field.map_or(value, |field| field.nearest(value)))
                };
                Self { $($field: nearest(self.$field),)+ }
            }

            fn or_defaults(self) -> Budget {
                Budget { $($field: self.$field.unwrap_or($default),)+ }
            }
        }
    };
}

fields! {
    /// Share of the CPU under contention, as in `cpu.weight`. 100 is what every cgroup has that
    /// nobody has set.
    cpu_weight = "cpuWeight", 100, 1..=10_000;
    /// Most CPU, in thousandths of one; 0: no limit, since under contention the weight is enough
    /// and without it a limit only makes latency.
    cpu_max_millicores = "cpuMaxMillicores", 0, 10..=1_024_000;
    /// Memory, kernel memory and on cgroup v2 socket buffers included, in MiB. An idle worker has
    /// one MiB; the default's rest is for what `connections` and `buffered_mib` allow at their most.
    memory_max_mib = "memoryMaxMib", 1_024, 64..=1_048_576;
    /// Connections of both directions at a time. An idle one takes some 5 KiB.
    connections = "connections", 20_000, 1..=500_000;
    /// New connections a second: those of the app, those in plain from outside the mesh, and the
    /// streams of tunnels, each with this rate of its own, so that none takes the others' turn.
    /// The default is above what a core can serve.
    connections_per_second = "connectionsPerSecond", 10_000, 1..=1_000_000;
    /// TLS handshakes of callers that are under way at a time.
    handshakes = "handshakes", 256, 1..=65_536;
    /// New handshakes of callers a second. One costs half a millisecond, so that the default leaves
    /// half a core to connections that stand; as many callers come back at once after a restart.
    handshakes_per_second = "handshakesPerSecond", 1_000, 1..=100_000;
    /// Tunnels at a time, in each direction.
    tunnels = "tunnels", 4_096, 1..=100_000;
    /// Streams of callers' tunnels at a time. The default is half of `connections`: the rest is
    /// the app's own, whatever callers do.
    streams = "streams", 10_000, 1..=500_000;
    /// Streams in one tunnel.
    streams_per_tunnel = "streamsPerTunnel", 128, 1..=2_047;
    /// What of all connections may wait in the worker, in MiB. Where nobody says it it is three
    /// eighths of the memory; it is never more than three quarters.
    buffered_mib = "bufferedMib", 384, 1..=1_048_576;
}

impl Fields {
    /// What holds: this, and the defaults.
    #[must_use]
    pub fn resolve(self) -> Budget {
        let budget = self.or_defaults();
        let memory = u64::from(budget.memory_max_mib);
        let part = |eighths: u64| u32::try_from(memory * eighths / 8).unwrap_or(u32::MAX);
        let buffered_mib = self.buffered_mib.unwrap_or_else(|| part(3));
        Budget {
            buffered_mib: buffered_mib.min(part(6)),
            ..budget
        }
    }
}

impl Default for Budget {
    fn default() -> Self {
        Fields::default().resolve()
    }
}

/// 0 is no limit, and so higher than any.
fn lower(a: Option<u32>, b: Option<u32>) -> Option<u32> {
    let height = |value: &u32| value.wrapping_sub(1);
    a.into_iter().chain(b).min_by_key(height)
}

/// Budgets for the workers of some workloads.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct WorkerBudget {
    /// `<namespace>/<name>`.
    pub key: PolicyKey,
    /// The workloads whose workers it is for.
    pub target: Target,
    /// What it says.
    pub fields: Fields,
}

impl WorkerBudget {
    /// Whether it is for this workload.
    #[must_use]
    pub fn selects(&self, workload: &Workload) -> bool {
        self.target.selects(namespace_of(&self.key), workload)
    }
}

/// What is said of the worker of `workload` in all of `budgets`.
pub fn resolve<'a>(
    budgets: impl IntoIterator<Item = &'a WorkerBudget>,
    workload: &Workload,
) -> Fields {
    let mut by_nearness = [Fields::default(); Target::NEAREST as usize + 1];
    for budget in budgets {
        if budget.selects(workload) {
            let scope = &mut by_nearness[usize::from(budget.target.nearness())];
            *scope = scope.lower(budget.fields);
        }
    }
    let nearest_first = by_nearness.into_iter().rev();
    nearest_first.fold(Fields::default(), Fields::or)
}
