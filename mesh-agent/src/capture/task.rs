//! Where this kernel has what tells a process's descent, read off its BTF: three structures, whose
//! layout is the kernel build's own. All of the BTF is in memory only while it is read.

use std::fs;
use std::io::{self, ErrorKind};
use std::sync::OnceLock;

use mesh_common::TaskLayout;

use super::abi::Abi;
use super::features;

const VMLINUX: &str = "/sys/kernel/btf/vmlinux";
/// `btf_header.magic`.
const MAGIC: u16 = 0xeb9f;
/// Bytes of a `btf_type`, and of a `btf_member`.
const ENTRY: usize = 12;
const KIND_STRUCT: u32 = 4;

/// The layout for the programs: zeros where the kernel doesn't tell it, or does not let programs
/// follow it. Read once.
pub(super) fn layout() -> &'static Abi<TaskLayout> {
    static LAYOUT: OnceLock<Abi<TaskLayout>> = OnceLock::new();
    LAYOUT.get_or_init(|| {
        let known = features::descent().then(|| read().ok()).flatten();
        Abi(known.unwrap_or_default())
    })
}

/// Reads the layout of the running kernel.
///
/// # Errors
/// If the kernel has no BTF, or it lacks one of the fields.
pub(super) fn read() -> io::Result<TaskLayout> {
    let btf = fs::read(VMLINUX)?;
    parse(&btf).ok_or_else(|| {
        let what = format!("{VMLINUX} lacks a field of task_struct, pid or upid");
        io::Error::new(ErrorKind::InvalidData, what)
    })
}

fn parse(btf: &[u8]) -> Option<TaskLayout> {
    let btf = Btf::new(btf)?;
    let task = btf.structure("task_struct")?;
    let pid = btf.structure("pid")?;
    let number = btf.structure("upid")?;
    Some(TaskLayout {
        real_parent: btf.offset(&task, "real_parent")?,
        group_leader: btf.offset(&task, "group_leader")?,
        thread_pid: btf.offset(&task, "thread_pid")?,
        level: btf.offset(&pid, "level")?,
        numbers: btf.offset(&pid, "numbers")?,
        number_bytes: number.bytes,
        nr: btf.offset(&number, "nr")?,
    })
}

/// The two parts of BTF: types, one after the other, and the strings that they name.
struct Btf<'a> {
    types: &'a [u8],
    strings: &'a [u8],
}

struct Structure<'a> {
    bytes: u32,
    /// Offsets are in bits; with this, the upper byte is the width of a bit field.
    has_widths: bool,
    members: &'a [u8],
}

impl<'a> Btf<'a> {
    fn new(bytes: &'a [u8]) -> Option<Self> {
        let magic = bytes
            .first_chunk()
            .map(|magic| u16::from_ne_bytes(*magic))?;
        let header = word(bytes, 4)?;
        let section = |offset, length| {
            let start = header.checked_add(word(bytes, offset)?)?;
            bytes.get(start..start.checked_add(word(bytes, length)?)?)
        };
        (magic == MAGIC).then_some(())?;
        Some(Self {
            types: section(8, 12)?,
            strings: section(16, 20)?,
        })
    }

    fn is_named(&self, offset: usize, name: &str) -> bool {
        let rest = self.strings.get(offset..).unwrap_or_default();
        rest.strip_prefix(name.as_bytes())
            .is_some_and(|rest| rest.first() == Some(&0))
    }

    /// The first structure of that name which has members.
    fn structure(&self, name: &str) -> Option<Structure<'a>> {
        let mut at = 0;
        while at < self.types.len() {
            let info = u32::try_from(word(self.types, at + 4)?).ok()?;
            let (kind, count) = (info >> 24 & 0x1f, info as usize & 0xffff);
            let start = at + ENTRY;
            let end = start + what_follows(kind, count)?;
            if kind == KIND_STRUCT && count > 0 && self.is_named(word(self.types, at)?, name) {
                return Some(Structure {
                    bytes: u32::try_from(word(self.types, at + 8)?).ok()?,
                    has_widths: info >> 31 == 1,
                    members: self.types.get(start..end)?,
                });
            }
            at = end;
        }
        None
    }

    /// Where a structure has a member, in bytes.
    fn offset(&self, of: &Structure<'_>, name: &str) -> Option<u32> {
        let mut members = of.members.chunks_exact(ENTRY);
        let found = members.find(|m| word(m, 0).is_some_and(|at| self.is_named(at, name)))?;
        let bits = u32::try_from(word(found, 8)?).ok()?;
        let bits = if of.has_widths {
            bits & 0xff_ffff
        } else {
            bits
        };
        Some(bits / 8)
    }
}

fn word(bytes: &[u8], at: usize) -> Option<usize> {
    let word = bytes.get(at..)?.first_chunk()?;
    usize::try_from(u32::from_ne_bytes(*word)).ok()
}

/// Bytes that follow a `btf_type` of this kind (Documentation/bpf/btf.rst); `None` for a kind that
/// this code doesn't know, after which nothing can be read.
fn what_follows(kind: u32, count: usize) -> Option<usize> {
    Some(match kind {
        // INT, VAR and DECL_TAG have one number more.
        1 | 14 | 17 => 4,
        // ARRAY.
        3 => ENTRY,
        // STRUCT, UNION, DATASEC, ENUM64.
        4 | 5 | 15 | 19 => count * ENTRY,
        // ENUM, FUNC_PROTO.
        6 | 13 => count * 8,
        // PTR, FWD, TYPEDEF, VOLATILE, CONST, RESTRICT, FUNC, FLOAT, TYPE_TAG.
        2 | 7..=12 | 16 | 18 => 0,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_kernels_layout_is_read() {
        let layout = read().unwrap();
        let offsets = [layout.real_parent, layout.group_leader, layout.thread_pid];
        assert!(
            offsets.iter().all(|at| *at > 0 && *at % 8 == 0),
            "{layout:?}"
        );
        // As `include/linux/pid.h` has had it for long: a count, then the level; the namespace's
        // number first in a `upid`, and what has one for each level at the end.
        assert!(
            layout.level >= 4 && layout.numbers > layout.level,
            "{layout:?}"
        );
        assert_eq!((layout.nr, layout.number_bytes), (0, 16));
    }

    #[test]
    fn what_is_no_btf_or_ends_early_is_refused() {
        let whole = fs::read(VMLINUX).unwrap();
        assert!(parse(&whole).is_some());
        for cut in [0, 1, 23, 24, 100, whole.len() / 2] {
            assert_eq!(parse(&whole[..cut]), None, "{cut}");
        }
        let mut other = whole;
        other[0] ^= 1;
        assert_eq!(parse(&other), None);
    }
}
