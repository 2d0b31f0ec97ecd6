//! Processes that use a pod's network and are none of the pod's own.

/// How the processes of the pod in a slot are told from others. Zeros: they are not.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OwnProcesses {
    /// cgroup v2 id of the pod's own cgroup: its processes are in it or below it.
    pub cgroup_id: u64,
    /// Depth of that cgroup (the hierarchy's root is 0).
    pub cgroup_level: u32,
    /// `OWN_*` flags.
    pub flags: u32,
}

/// The cgroup is known.
pub const OWN_KNOWN: u32 = 1;
/// Processes outside of the cgroup are refused; else they are counted and let through.
pub const OWN_REFUSE_FOREIGN: u32 = 1 << 1;
/// Each container has a pid namespace of its own, so that processes which were put into one can be
/// told by their descent ([`TaskLayout`]).
pub const OWN_TELL_ENTERED: u32 = 1 << 2;
/// Those are refused; else they are counted and let through.
pub const OWN_REFUSE_ENTERED: u32 = 1 << 3;

/// A process that was noticed, as the ring buffer carries it.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ForeignEvent {
    /// `bpf_ktime_get_ns` when it called.
    pub time_ns: u64,
    /// cgroup v2 id of the process.
    pub cgroup_id: u64,
    /// Where to.
    pub destination: [u8; 16],
    /// The kernel's name of the process, which the process can choose.
    pub command: [u8; 16],
    /// [`crate::KernelReason::ForeignProcess`] or [`crate::KernelReason::EnteredProcess`].
    pub reason: u32,
    /// The pod's slot.
    pub slot: u32,
    /// The process, in the node's own pid namespace.
    pub pid: u32,
    /// Its user, in the node's own user namespace.
    pub uid: u32,
    /// Events of this pod that its budget swallowed since the last one.
    pub suppressed: u32,
    /// Destination port.
    pub destination_port: u16,
    /// IP protocol number.
    pub protocol: u8,
    /// [`crate::EVENT_AUDITED`], or 0.
    pub flags: u8,
}

/// Where this kernel has what tells a process's descent, in bytes; the loader reads it off the
/// kernel's BTF. Zeros: it can't be told.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TaskLayout {
    /// `task_struct.real_parent`.
    pub real_parent: u32,
    /// `task_struct.group_leader`.
    pub group_leader: u32,
    /// `task_struct.thread_pid`.
    pub thread_pid: u32,
    /// `pid.level`.
    pub level: u32,
    /// `pid.numbers`.
    pub numbers: u32,
    /// Size of one of them, a `upid`.
    pub number_bytes: u32,
    /// `upid.nr`.
    pub nr: u32,
}

const _: () = assert!(size_of::<OwnProcesses>() == 16);
const _: () = assert!(size_of::<ForeignEvent>() == 72);
const _: () = assert!(size_of::<TaskLayout>() == 28);
