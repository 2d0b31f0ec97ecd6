//! What was found changed behind the agent's back, and what became of it: one place for the
//! metric and the line of the log.

use metrics::counter;

use super::pods::PodKey;

/// What was found. Its word is the metric's label `kind`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tamper {
    /// A device that the pod did not have.
    Device,
    /// An address that is not the pod's.
    Address,
    /// A route of the pod's namespace.
    Route,
    /// A setting (sysctl) of the pod's namespace.
    Setting,
    /// The mesh's ports are no longer kept out of the kernel's automatic choice.
    Ports,
    /// A listener of the worker was killed.
    Listener,
    /// An app holds one of the mesh's ports.
    PortTaken,
    /// A program of ours is no longer attached, or another runs in its place.
    Program,
    /// Another program runs before ours where ours must be first.
    Order,
    /// A worker that doesn't start in the pod.
    Worker,
}

/// What became of it. Its word is the metric's label `outcome`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// What stands already keeps it from doing harm.
    Contained,
    /// It was put back as it was.
    Repaired,
    /// The pod reaches nothing, and nothing reaches it.
    CutOff,
    /// It could not be put right; tried again at the next look.
    Standing,
}

impl Tamper {
    fn word(self) -> &'static str {
        match self {
            Self::Device => "device",
            Self::Address => "address",
            Self::Route => "route",
            Self::Setting => "setting",
            Self::Ports => "ports",
            Self::Listener => "listener",
            Self::PortTaken => "port_taken",
            Self::Program => "program",
            Self::Order => "order",
            Self::Worker => "worker",
        }
    }
}

impl Outcome {
    fn word(self) -> &'static str {
        match self {
            Self::Contained => "contained",
            Self::Repaired => "repaired",
            Self::CutOff => "cut_off",
            Self::Standing => "standing",
        }
    }
}

/// Counts and logs it. `pod` is `None` for what belongs to no single pod.
pub(super) fn noticed(pod: Option<&PodKey>, what: Tamper, outcome: Outcome, detail: &str) {
    let (kind, outcome) = (what.word(), outcome.word());
    let pod = pod.map(PodKey::to_string).unwrap_or_default();
    counter!("nodemesh_tampering_total", "kind" => kind, "outcome" => outcome, "pod" => pod.clone())
        .increment(1);
    tracing::warn!(pod, kind, outcome, detail, "tampering");
}
