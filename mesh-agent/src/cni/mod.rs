//! The chained CNI plugin, `nodemesh-cni`: a pod is enrolled by the node's agent before its first
//! container starts, or it does not start.
//!
//! The runtime runs it after the plugins that make the pod's network, once for each command
//! (<https://www.cni.dev/docs/spec/>). It does nothing itself: it asks the agent, and its result is
//! theirs, unchanged. It passes without asking what is not the mesh's: pods of excluded namespaces,
//! by which a node comes up at all.

mod call;
mod config;
mod fault;
mod run;

pub use call::{Call, Command};
pub use config::{ENTRY_TYPE, PluginConfig};
pub use fault::{Code, Fault};
pub use run::run;

/// Versions of the specification that the plugin speaks, oldest first.
pub const VERSIONS: [&str; 4] = ["0.3.1", "0.4.0", "1.0.0", "1.1.0"];
