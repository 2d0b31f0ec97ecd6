//! What guests and host say to each other: one JSON value a line.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Name of the virtio port.
pub const PORT: &str = "org.nodemesh.report";

/// From a guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Said {
    /// It is up.
    Hello {
        /// Release of its kernel.
        kernel: String,
    },
    /// A case begins.
    Began {
        /// Its name.
        case: String,
    },
    /// A case tells what happens.
    Step {
        /// In words.
        text: String,
    },
    /// A case has ended.
    Ended {
        /// Its name.
        case: String,
        /// How.
        outcome: Outcome,
        /// How long it took.
        took: Duration,
    },
    /// Something for the other node, or for the report if the key begins with `report/`.
    Tell {
        /// What it is.
        key: String,
        /// It.
        value: String,
    },
    /// It is about to boot again, in the middle of its case, which is then asked for once more.
    Reboots,
    /// All cases have ended.
    Bye,
}

/// To a guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Asked {
    /// First words: which node this is, and what to run, in that order.
    Run {
        /// 0 or 1.
        node: u8,
        /// How often it has booted again.
        boot: u32,
        /// Names of cases, and of a suite's tests as `<suite>::<test>`.
        cases: Vec<String>,
    },
    /// Either node told this.
    Told {
        /// What it is.
        key: String,
        /// It.
        value: String,
    },
}

/// How a case ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// All held.
    Passed,
    /// Something did not.
    Failed(String),
    /// It does not apply on this kernel.
    Skipped(String),
}
