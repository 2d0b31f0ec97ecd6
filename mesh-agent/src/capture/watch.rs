//! What the agent remembers of what it attached, to tell it from what others did since.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::CaptureOptions;
use super::error::{self, Result};

#[derive(Default)]
pub(super) struct Watch {
    /// Set when the programs were attached.
    pub(super) options: Option<CaptureOptions>,
    /// Ids of the programs that links run, by the links' names. Kernels don't use them again.
    programs: BTreeMap<String, u32>,
    /// Pods' network namespaces, by slot.
    namespaces: BTreeMap<u32, OwnedFd>,
}

/// No program has it.
const NO_PROGRAM: u32 = 0;

impl Watch {
    /// Whether a link still runs the program that it ran at the first look since the agent itself
    /// put one in.
    pub(super) fn runs_as_before(&mut self, link: &str, program_id: u32) -> bool {
        let known = self.programs.entry(link.to_owned()).or_insert(program_id);
        *known == program_id
    }

    /// The agent itself changes what this link runs.
    pub(super) fn forget(&mut self, link: &str) {
        self.programs.remove(link);
    }

    /// Whatever the link runs now, it is not what it should run.
    pub(super) fn distrust(&mut self, link: &str) {
        self.programs.insert(link.to_owned(), NO_PROGRAM);
    }

    pub(super) fn steered(&mut self, slot: u32, netns: BorrowedFd<'_>) -> Result<()> {
        let netns = netns.try_clone_to_owned();
        let netns = netns.map_err(error::io("duplicating", "the pod's network namespace"))?;
        self.namespaces.insert(slot, netns);
        Ok(())
    }

    pub(super) fn withdrawn(&mut self, slot: u32) {
        self.namespaces.remove(&slot);
        self.forget(&super::pods::steer_link(slot));
    }

    /// `None` until the pod's worker is there, after a start of the agent.
    pub(super) fn namespace(&self, slot: u32) -> Option<BorrowedFd<'_>> {
        self.namespaces.get(&slot).map(AsFd::as_fd)
    }
}
