//! Errors as the specification has them: kubelet shows message and details as the pod's event.

use std::fmt;

use serde_json::{Value, json};

/// What an error means to the runtime. Below 100 the specification decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    /// The configuration's version is none of the plugin's.
    IncompatibleVersion = 1,
    /// The environment lacks something, or has what can't be used.
    Environment = 4,
    /// Standard input or output failed.
    Io = 5,
    /// What came is not what the specification says.
    Decode = 6,
    /// The network's configuration can't be used.
    Config = 7,
    /// The agent can't be asked now.
    TryAgainLater = 11,
    /// The agent has an answer, and it is no.
    Refused = 101,
    /// A pod is not as it was left.
    Check = 102,
}

/// What the runtime is told in place of a result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Its kind.
    pub code: Code,
    /// What failed, on what.
    pub msg: String,
    /// What was tried, why it failed, and what to do.
    pub details: String,
}

impl Fault {
    pub(super) fn new(code: Code, msg: impl Into<String>, details: impl Into<String>) -> Self {
        Self {
            code,
            msg: msg.into(),
            details: details.into(),
        }
    }

    /// As it is written to standard output.
    #[must_use]
    pub fn to_json(&self, cni_version: &str) -> Value {
        json!({
            "cniVersion": cni_version,
            "code": self.code as u32,
            "msg": self.msg,
            "details": self.details,
        })
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; {}", self.msg, self.details)
    }
}
