//! What the agent needs of a kernel, asked of the kernel itself before anything is attached.
//!
//! Versions say little: distributions carry features back and leave options out. So each
//! feature is tried, in the smallest way there is, and a missing one is told by its name with
//! what it is for, the version of Linux that brought it and the option it is built with.

mod machine;

use std::fmt;
use std::time::Instant;

use crate::{capture, sandbox};

/// The oldest kernel that is tested.
pub const MINIMUM_KERNEL: &str = "6.1";

/// Whether the agent can do without a feature.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Need {
    /// Without it the agent refuses to start.
    Required,
    /// Used when present.
    Optional,
}

/// One feature, and whether this kernel has it.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Feature {
    /// What it is called, and by which hooks it is used.
    pub name: String,
    /// Whether the agent can do without.
    pub need: Need,
    /// What it is for; of an optional one, what happens without it.
    pub purpose: &'static str,
    /// The version of Linux that brought it.
    pub since: &'static str,
    /// The options a kernel must be built with.
    pub config: &'static str,
    /// Why it is missing; `None` if it is there.
    pub lack: Option<String>,
}

/// Every feature, as this kernel has it.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Features {
    /// Release of the running kernel, as `uname -r` says it.
    pub kernel: String,
    /// Its architecture.
    pub machine: String,
    /// [`MINIMUM_KERNEL`].
    pub minimum: &'static str,
    /// How long asking took, in milliseconds.
    pub probe_ms: f64,
    /// What was asked for, in the order of the table in docs/KERNELS.md.
    pub features: Vec<Feature>,
}

/// What a kernel lacks that the agent can't do without.
#[derive(Debug, thiserror::Error)]
#[error(
    "Linux {kernel} lacks what capture needs; nothing was attached. {}. The agent needs Linux \
     {MINIMUM_KERNEL} or later; `mesh-agent check` lists what it looks for",
    .missing.join(". ")
)]
pub struct Missing {
    kernel: String,
    missing: Vec<String>,
}

impl Features {
    /// Asks the kernel. Leaves nothing behind.
    #[must_use]
    pub fn probe() -> Self {
        let names = nix::sys::utsname::uname();
        let name = |name: fn(&nix::sys::utsname::UtsName) -> &std::ffi::OsStr| {
            names
                .as_ref()
                .map_or_else(|_| "?".into(), |n| name(n).to_string_lossy().into_owned())
        };
        let begun = Instant::now();
        let mut features = machine::probe();
        features.extend(capture::features::probe());
        features.extend(sandbox::features());
        Self {
            kernel: name(nix::sys::utsname::UtsName::release),
            machine: name(nix::sys::utsname::UtsName::machine),
            minimum: MINIMUM_KERNEL,
            probe_ms: milliseconds(begun),
            features,
        }
    }

    /// Refuses a kernel that lacks a required feature.
    ///
    /// # Errors
    /// [`Missing`], which names every such feature.
    pub fn require(&self) -> Result<(), Missing> {
        let missing = self.missing(Need::Required);
        let missing: Vec<_> = missing.map(ToString::to_string).collect();
        if missing.is_empty() {
            return Ok(());
        }
        Err(Missing {
            kernel: self.kernel.clone(),
            missing,
        })
    }

    /// What this kernel lacks.
    pub fn missing(&self, need: Need) -> impl Iterator<Item = &Feature> {
        let of = move |f: &&Feature| f.need == need && f.lack.is_some();
        self.features.iter().filter(of)
    }
}

/// To two digits, which is what a table has.
pub(crate) fn milliseconds(since: Instant) -> f64 {
    (since.elapsed().as_secs_f64() * 100_000.0).round() / 100.0
}

impl Feature {
    /// Whether this kernel has it.
    #[must_use]
    pub fn is_present(&self) -> bool {
        self.lack.is_none()
    }
}

/// Of a missing feature.
impl fmt::Display for Feature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            name,
            purpose,
            since,
            config,
            ..
        } = self;
        let lack = self.lack.as_deref().unwrap_or("it is there");
        write!(f, "{name} ({purpose}): Linux {since}")?;
        if !config.is_empty() {
            write!(f, " with {config}")?;
        }
        write!(f, "; here: {lack}")
    }
}
