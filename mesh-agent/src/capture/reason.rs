//! The kernel's reasons in the words of the one list of reasons.

use mesh_common::KernelReason;
use mesh_core::reason::Reason;

/// The reason that logs and metrics have for what a kernel program refused.
#[must_use]
pub const fn reason(kernel: KernelReason) -> Reason {
    match kernel {
        KernelReason::ConnectReservedPort => Reason::ConnectReservedPort,
        KernelReason::ConnectNoRoute => Reason::ConnectNoRoute,
        KernelReason::ConnectBoundDevice => Reason::ConnectBoundDevice,
        KernelReason::ConnectQuota => Reason::ConnectQuota,
        KernelReason::ConnectNoStorage => Reason::ConnectNoStorage,
        KernelReason::BindReservedPort => Reason::BindReservedPort,
        KernelReason::PublishFailed => Reason::PublishFailed,
        KernelReason::LookupNoListener => Reason::LookupNoListener,
        KernelReason::LookupAssignFailed => Reason::LookupAssignFailed,
        KernelReason::WallNotWorker => Reason::WallNotWorker,
        KernelReason::WallTupleMismatch => Reason::WallTupleMismatch,
        KernelReason::WallUnparsable => Reason::WallUnparsable,
        KernelReason::WallProtocol => Reason::WallProtocol,
        KernelReason::WallFragment => Reason::WallFragment,
        KernelReason::WallBareSegment => Reason::WallBareSegment,
        KernelReason::ConnectPolicy => Reason::PolicyDenied,
        KernelReason::WallUdp => Reason::UdpNotAllowed,
        KernelReason::WallSource => Reason::WallSource,
        KernelReason::CutOff => Reason::CutOff,
        KernelReason::WallGrandfatherEnded => Reason::GrandfatherEnded,
        KernelReason::WallProbe => Reason::WallProbe,
        KernelReason::ProbeNoRoom => Reason::ProbeNoRoom,
        KernelReason::ForeignProcess => Reason::ForeignProcess,
        KernelReason::EnteredProcess => Reason::EnteredProcess,
    }
}

/// The reason a [`mesh_common::RefusalEvent`] carries; `None` for a number this agent doesn't know.
#[must_use]
pub fn from_number(number: u32) -> Option<KernelReason> {
    KernelReason::ALL.into_iter().find(|&r| r as u32 == number)
}
