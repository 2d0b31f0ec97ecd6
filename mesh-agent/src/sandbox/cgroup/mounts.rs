//! Where the cgroup hierarchies are, and which controllers live in which.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use super::{Budget, CgroupError, call, usage};

/// A controller that carries a part of a worker's budget.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Controller {
    Cpu,
    Memory,
    Pids,
}

impl Controller {
    pub(super) const ALL: [Self; 3] = [Self::Cpu, Self::Memory, Self::Pids];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Memory => "memory",
            Self::Pids => "pids",
        }
    }

    /// The files of its limits and what to write there, in v2 (`unified`) or in v1.
    pub(super) fn settings(self, budget: Budget, unified: bool) -> Vec<(&'static str, Value)> {
        let weight = match budget.cpu_weight {
            0 => 100,
            weight => u64::from(weight.clamp(1, 10_000)),
        };
        let quota_us = u64::from(budget.cpu_max_millicores) * CPU_PERIOD_US / 1_000;
        let pids = u64::from(budget.pids_max);
        match (self, unified) {
            (Self::Cpu, true) => vec![
                ("cpu.weight", Value::Plain(weight)),
                ("cpu.max", Value::CpuMax(quota_us)),
            ],
            // The defaults of both scales, 100 and 1,024, are the same share. The period has the
            // default of both versions.
            (Self::Cpu, false) => vec![
                ("cpu.shares", Value::Plain((weight * 1024 / 100).max(2))),
                ("cpu.cfs_quota_us", Value::OrMinusOne(quota_us)),
            ],
            (Self::Memory, true) => {
                vec![("memory.max", Value::MemoryMax(budget.memory_max_bytes))]
            }
            (Self::Memory, false) => vec![(
                "memory.limit_in_bytes",
                Value::MemoryLimit(budget.memory_max_bytes),
            )],
            (Self::Pids, _) => vec![("pids.max", Value::OrMax(pids))],
        }
    }
}

/// The period of CPU limits, in microseconds: the kernel's own default.
const CPU_PERIOD_US: u64 = 100_000;

/// What is written to a limit's file; 0 is no limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Value {
    /// The number.
    Plain(u64),
    /// `max` for none.
    OrMax(u64),
    /// `-1` for none.
    OrMinusOne(u64),
    /// The quota of [`CPU_PERIOD_US`], `max` for none.
    CpuMax(u64),
    /// Bytes of `memory.max`. Below what is in use it would have the kernel end the worker.
    MemoryMax(u64),
    /// Bytes of `memory.limit_in_bytes`, which takes none below what is in use.
    MemoryLimit(u64),
}

impl Value {
    /// Whether it is no limit.
    pub(super) fn is_none(self) -> bool {
        match self {
            Self::Plain(_) => false,
            Self::OrMax(n)
            | Self::OrMinusOne(n)
            | Self::CpuMax(n)
            | Self::MemoryMax(n)
            | Self::MemoryLimit(n) => n == 0,
        }
    }

    /// Whether more memory than this is in use in that cgroup.
    pub(super) fn lowers_below_use(self, folder: &Path) -> bool {
        match self {
            Self::MemoryMax(bytes) | Self::MemoryLimit(bytes) if bytes > 0 => {
                usage::memory_bytes(folder).is_some_and(|used| used >= bytes)
            }
            _ => false,
        }
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CpuMax(0) => write!(f, "max {CPU_PERIOD_US}"),
            Self::CpuMax(quota_us) => write!(f, "{quota_us} {CPU_PERIOD_US}"),
            Self::OrMax(0) | Self::MemoryMax(0) => f.write_str("max"),
            Self::OrMinusOne(0) | Self::MemoryLimit(0) => f.write_str("-1"),
            Self::Plain(n)
            | Self::OrMax(n)
            | Self::OrMinusOne(n)
            | Self::MemoryMax(n)
            | Self::MemoryLimit(n) => n.fmt(f),
        }
    }
}

/// The mounted hierarchies.
#[derive(Clone, Debug)]
pub(super) struct Mounts {
    pub(super) unified: PathBuf,
    v1: Vec<(Controller, PathBuf)>,
}

impl Mounts {
    /// Reads the mount table of this process.
    pub(super) fn find() -> Result<Self, CgroupError> {
        let table = Path::new("/proc/self/mountinfo");
        let text = fs::read_to_string(table).map_err(call(table, "read"))?;
        Self::parse(&text)
    }

    pub(super) fn parse(mountinfo: &str) -> Result<Self, CgroupError> {
        let mut unified = None;
        let mut partial = None;
        let mut v1 = Vec::new();
        for mount in mountinfo.lines().filter_map(Mount::parse) {
            match mount.kind {
                "cgroup2" if mount.root == "/" => {
                    unified.get_or_insert_with(|| mount.folder());
                }
                "cgroup2" => partial = Some((mount.root.to_owned(), mount.folder())),
                "cgroup" if mount.root == "/" => {
                    for controller in Controller::ALL {
                        let has = mount.options.split(',').any(|o| o == controller.name());
                        if has && !v1.iter().any(|(known, _)| *known == controller) {
                            v1.push((controller, mount.folder()));
                        }
                    }
                }
                _ => {}
            }
        }
        let Some(unified) = unified else {
            return Err(CgroupError::Mount(match partial {
                Some((root, folder)) => format!(
                    "the cgroup2 mount at {} shows only {root} of the hierarchy, but capture needs its \
                     root: give the agent the host's cgroup2 mount",
                    folder.display()
                ),
                None => {
                    "no cgroup2 file system is mounted, and capture is attached to it: mount it \
                         (`mount -t cgroup2 none /sys/fs/cgroup`, on hybrid machines \
                         /sys/fs/cgroup/unified)"
                        .to_owned()
                }
            }));
        };
        Ok(Self { unified, v1 })
    }

    pub(super) fn v1(&self, controller: Controller) -> Option<&Path> {
        let found = self.v1.iter().find(|(known, _)| *known == controller);
        found.map(|(_, mount)| mount.as_path())
    }

    pub(super) fn unified_has(&self, controller: Controller) -> Result<bool, CgroupError> {
        let file = self.unified.join("cgroup.controllers");
        let text = fs::read_to_string(&file).map_err(call(&file, "read"))?;
        Ok(text
            .split_whitespace()
            .any(|name| name == controller.name()))
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &Path> {
        let v1 = self.v1.iter().map(|(_, mount)| mount.as_path());
        std::iter::once(self.unified.as_path()).chain(v1)
    }
}

/// One line of mountinfo (proc_pid_mountinfo(5)).
struct Mount<'a> {
    root: &'a str,
    mount_point: &'a str,
    kind: &'a str,
    options: &'a str,
}

impl<'a> Mount<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let (left, right) = line.split_once(" - ")?;
        let mut left = left.split(' ').skip(3);
        let (root, mount_point) = (left.next()?, left.next()?);
        let mut right = right.split(' ');
        let kind = right.next()?;
        let options = right.nth(1)?;
        Some(Self {
            root,
            mount_point,
            kind,
            options,
        })
    }

    /// The mount point, with mountinfo's octal escapes undone.
    fn folder(&self) -> PathBuf {
        let escapes = [
            ("\\040", " "),
            ("\\011", "\t"),
            ("\\012", "\n"),
            ("\\134", "\\"),
        ];
        let mut folder = self.mount_point.to_owned();
        for (escape, plain) in escapes {
            folder = folder.replace(escape, plain);
        }
        PathBuf::from(folder)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime shared:9 - cgroup cgroup rw,memory
41 31 0:38 / /sys/fs/cgroup/my\\040unified rw,relatime - cgroup2 cgroup2 rw
";

    #[test]
    fn hybrid_hierarchies_are_told_apart() {
        let mounts = Mounts::parse(HYBRID).unwrap();
        assert_eq!(mounts.unified, Path::new("/sys/fs/cgroup/my unified"));
        assert_eq!(
            mounts.v1(Controller::Cpu),
            Some(Path::new("/sys/fs/cgroup/cpu,cpuacct"))
        );
        assert_eq!(
            mounts.v1(Controller::Memory),
            Some(Path::new("/sys/fs/cgroup/memory"))
        );
        assert_eq!(mounts.v1(Controller::Pids), None);
    }

    #[test]
    fn a_mount_of_a_part_of_the_hierarchy_is_refused_with_the_reason() {
        let line = "41 31 0:38 /docker/ab /sys/fs/cgroup rw - cgroup2 cgroup rw\n";
        let error = Mounts::parse(line).unwrap_err().to_string();
        assert!(error.contains("shows only /docker/ab"), "{error}");
        let error = Mounts::parse("").unwrap_err().to_string();
        assert!(error.contains("no cgroup2 file system"), "{error}");
    }

    #[test]
    fn budgets_translate_to_both_versions() {
        let written = |budget, unified| -> Vec<String> {
            let all = Controller::ALL.iter();
            all.flat_map(|controller| controller.settings(budget, unified))
                .map(|(file, value)| format!("{file}={value}"))
                .collect()
        };
        let budget = Budget {
            cpu_weight: 200,
            cpu_max_millicores: 1500,
            memory_max_bytes: 64 << 20,
            pids_max: 32,
        };
        assert_eq!(
            written(budget, true),
            [
                "cpu.weight=200",
                "cpu.max=150000 100000",
                "memory.max=67108864",
                "pids.max=32"
            ]
        );
        assert_eq!(
            written(budget, false),
            [
                "cpu.shares=2048",
                "cpu.cfs_quota_us=150000",
                "memory.limit_in_bytes=67108864",
                "pids.max=32"
            ]
        );
        let none = Budget::default();
        assert_eq!(
            written(none, true),
            [
                "cpu.weight=100",
                "cpu.max=max 100000",
                "memory.max=max",
                "pids.max=max"
            ]
        );
        assert_eq!(
            written(none, false),
            [
                "cpu.shares=1024",
                "cpu.cfs_quota_us=-1",
                "memory.limit_in_bytes=-1",
                "pids.max=max"
            ]
        );
    }
}
