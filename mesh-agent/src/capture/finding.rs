//! What a look at the attached programs found.

use std::fmt;

/// A program that was not attached as the agent left it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Finding {
    /// Slot of the pod that it concerns; `None` for what serves all pods.
    pub slot: Option<u32>,
    /// The program and where it belongs.
    pub hook: String,
    /// What was wrong.
    pub deviation: Deviation,
    /// What became of it.
    pub remedy: Remedy,
}

/// What can be wrong with a program's attachment.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Deviation {
    /// It was taken off.
    Detached,
    /// Another program ran in its place.
    Replaced,
    /// Another program came before a wall, or after the steering.
    Order,
    /// The kernel doesn't say.
    Unknown(String),
}

/// What became of a deviation.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Remedy {
    /// It is as it should be again.
    Repaired,
    /// It could not be repaired, for this reason, and the pod's device was set down.
    CutOff(String),
    /// It could not be repaired, for this reason.
    Failed(String),
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hook = &self.hook;
        match &self.deviation {
            Deviation::Detached => write!(f, "{hook} was not attached")?,
            Deviation::Replaced => write!(f, "another program ran in the place of {hook}")?,
            Deviation::Order => write!(f, "another program had put itself before {hook}")?,
            Deviation::Unknown(why) => write!(f, "{hook} could not be looked at ({why})")?,
        }
        match &self.remedy {
            Remedy::Repaired => f.write_str("; repaired"),
            Remedy::CutOff(why) => write!(f, "; the pod's device was set down, because: {why}"),
            Remedy::Failed(why) => write!(f, "; not repaired: {why}"),
        }
    }
}
