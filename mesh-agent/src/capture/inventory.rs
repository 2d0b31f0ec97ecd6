//! What is in the embedded object: its programs, whole, as the kernel gets them.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::ffi::CString;

use aya_obj::generated::{BPF_CALL, BPF_JMP, bpf_attach_type, bpf_insn, bpf_prog_type};
use aya_obj::{Object, ProgramSection};

use super::error::{CaptureError, Result};
use super::object::OBJECT;

/// A program with every function it calls.
pub(super) struct Program {
    pub(super) name: String,
    pub(super) kind: bpf_prog_type,
    /// Where it may be attached, for the kinds of which the kernel wants to know it.
    pub(super) attach_type: Option<bpf_attach_type>,
    pub(super) instructions: Vec<bpf_insn>,
    /// Numbers of the kernel's helpers that it calls.
    pub(super) helpers: BTreeSet<u32>,
    pub(super) license: CString,
}

/// The programs of the embedded object, by name.
pub(super) fn programs() -> Result<Vec<Program>> {
    programs_of(parse()?)
}

/// The embedded object, as its file has it.
pub(super) fn parse() -> Result<Object> {
    if OBJECT.is_empty() {
        return Err(CaptureError::NoObject);
    }
    Object::parse(OBJECT).map_err(|e| CaptureError::Load(Box::new(e.into())))
}

/// The programs of an object, each linked with what it calls. References to maps are as `object`
/// has them.
pub(super) fn programs_of(mut object: Object) -> Result<Vec<Program>> {
    let sections: HashSet<usize> = object
        .functions
        .keys()
        .map(|(section, _)| *section)
        .collect();
    object
        .relocate_calls(&sections)
        .map_err(|e| CaptureError::Load(Box::new(e.into())))?;
    let functions: HashMap<_, _> = object.functions.into_iter().collect();
    let mut programs = Vec::new();
    for (name, program) in object.programs {
        let lacks = |what| CaptureError::ObjectLacks {
            what,
            name: name.clone(),
        };
        let function = functions
            .get(&program.function_key())
            .ok_or_else(|| lacks("code"))?;
        let (kind, attach_type) =
            kind_of(&program.section).ok_or_else(|| lacks("program of the expected type"))?;
        programs.push(Program {
            kind,
            attach_type,
            helpers: function.instructions.iter().filter_map(helper).collect(),
            instructions: function.instructions.clone(),
            license: program.license.clone(),
            name,
        });
    }
    programs.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(programs)
}

fn kind_of(section: &ProgramSection) -> Option<(bpf_prog_type, Option<bpf_attach_type>)> {
    use bpf_prog_type as kind;
    Some(match section {
        ProgramSection::CgroupSockAddr { attach_type } => (
            kind::BPF_PROG_TYPE_CGROUP_SOCK_ADDR,
            Some((*attach_type).into()),
        ),
        ProgramSection::CgroupSock { attach_type } => {
            (kind::BPF_PROG_TYPE_CGROUP_SOCK, Some((*attach_type).into()))
        }
        ProgramSection::CgroupSockopt { attach_type } => (
            kind::BPF_PROG_TYPE_CGROUP_SOCKOPT,
            Some((*attach_type).into()),
        ),
        ProgramSection::SockOps => (
            kind::BPF_PROG_TYPE_SOCK_OPS,
            Some(bpf_attach_type::BPF_CGROUP_SOCK_OPS),
        ),
        ProgramSection::SkLookup => (
            kind::BPF_PROG_TYPE_SK_LOOKUP,
            Some(bpf_attach_type::BPF_SK_LOOKUP),
        ),
        ProgramSection::SchedClassifier => (kind::BPF_PROG_TYPE_SCHED_CLS, None),
        _ => return None,
    })
}

/// The helper that an instruction calls: calls of other functions have a source register.
fn helper(instruction: &bpf_insn) -> Option<u32> {
    let call = u32::from(instruction.code) == (BPF_JMP | BPF_CALL) && instruction.src_reg() == 0;
    call.then(|| u32::try_from(instruction.imm).ok()).flatten()
}
