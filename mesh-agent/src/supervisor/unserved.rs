//! Why a pod that is to be in the mesh can't be served, and what becomes of it then.

use std::fmt;
use std::str::FromStr;

use super::devices::{Bare, MAX_DEVICES};
use super::tamper::Tamper;

/// `--unserved`: what becomes of an enrolled pod that can't be served safely.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnUnserved {
    /// It reaches nothing, and nothing reaches it.
    CutOff,
    /// It goes on as without the mesh.
    Leave,
}

impl FromStr for OnUnserved {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "cut-off" => Ok(Self::CutOff),
            "leave" => Ok(Self::Leave),
            _ => Err("neither cut-off nor leave"),
        }
    }
}

/// What is in the way of serving a pod.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Unserved {
    #[error(
        "an app of the pod listens on {0:?}, which the mesh needs (15001, 15006, 15008, 15053): give the app another port"
    )]
    PortTaken(Vec<u16>),
    #[error(
        "frames leave the pod past any wall, by {}: only a veth whose other end is in the node's namespace can be walled; remove the device, or take the pod out of the mesh", list(.0)
    )]
    Devices(Vec<Bare>),
    #[error(
        "the pod has more than {MAX_DEVICES} devices, which can't be kept track of: remove some"
    )]
    TooManyDevices,
    #[error("the pod's devices can't be told ({0}): remove those with unreadable names")]
    Unreadable(String),
    #[error("the wall at the pod's device can't be put up: {0}")]
    Wall(String),
    #[error("its worker ended before it was ready: {0}")]
    Worker(String),
}

impl Unserved {
    /// Of devices that no wall can stand around; `None` if there is none.
    pub(super) fn by_devices(bare: &[Bare]) -> Option<Self> {
        (!bare.is_empty()).then(|| Self::Devices(bare.to_vec()))
    }

    /// What it is a sign of.
    pub(super) fn kind(&self) -> Tamper {
        match self {
            Self::PortTaken(_) => Tamper::PortTaken,
            Self::Devices(_) | Self::TooManyDevices | Self::Unreadable(_) => Tamper::Device,
            Self::Wall(_) => Tamper::Program,
            Self::Worker(_) => Tamper::Worker,
        }
    }
}

fn list(bare: &[Bare]) -> impl fmt::Display {
    let names: Vec<&str> = bare.iter().map(|bare| bare.what.as_str()).collect();
    names.join(", ")
}
