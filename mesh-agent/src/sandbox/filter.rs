//! Filters of system calls, of workers and of the supervisor: what their lists are written in.

use std::collections::BTreeMap;
use std::io;

use libc::c_long;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, apply_filter,
};

/// Of building a filter; what is wrong then is the list.
pub(crate) type Result<T> = std::result::Result<T, seccompiler::BackendError>;

/// System calls, each with the rules of which one must match. An empty list of rules matches
/// whatever the arguments.
pub(crate) type Rules = BTreeMap<c_long, Vec<SeccompRule>>;

/// Every call that is not on the list gets `EPERM`, in the calling thread and in what it makes.
pub(crate) fn allow_only(rules: Rules) -> io::Result<()> {
    let refused = SeccompAction::Errno(libc::EPERM.unsigned_abs());
    install(rules, refused, SeccompAction::Allow)
}

/// The calls on the list are as if the kernel did not have them.
pub(crate) fn unknown(calls: &[c_long]) -> io::Result<()> {
    let unknown = SeccompAction::Errno(libc::ENOSYS.unsigned_abs());
    install(whatever_arguments(calls), SeccompAction::Allow, unknown)
}

fn install(rules: Rules, otherwise: SeccompAction, matching: SeccompAction) -> io::Result<()> {
    let program = program(rules, otherwise, matching).map_err(io::Error::other)?;
    apply_filter(&program).map_err(io::Error::other)
}

fn program(rules: Rules, otherwise: SeccompAction, matching: SeccompAction) -> Result<BpfProgram> {
    let architecture = std::env::consts::ARCH.try_into()?;
    SeccompFilter::new(rules, otherwise, matching, architecture)?.try_into()
}

pub(crate) fn whatever_arguments(calls: &[c_long]) -> Rules {
    calls.iter().map(|nr| (*nr, Vec::new())).collect()
}

pub(crate) fn rule(conditions: &[SeccompCondition]) -> Result<SeccompRule> {
    SeccompRule::new(conditions.to_vec())
}

pub(crate) fn one_of(index: u8, values: &[u64]) -> Result<Vec<SeccompRule>> {
    values
        .iter()
        .map(|value| rule(&[equal(index, *value)?]))
        .collect()
}

pub(crate) fn of(index: u8, value: i32) -> Result<SeccompCondition> {
    equal(index, value.unsigned_abs().into())
}

/// The kernel takes these arguments as 32-bit integers, so the upper half is no way around.
pub(crate) fn equal(index: u8, value: u64) -> Result<SeccompCondition> {
    SeccompCondition::new(index, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, value)
}

pub(crate) fn within(index: u8, first: u32, last: u32) -> Result<[SeccompCondition; 2]> {
    let bound = |operator, value: u32| {
        SeccompCondition::new(index, SeccompCmpArgLen::Dword, operator, value.into())
    };
    Ok([
        bound(SeccompCmpOp::Ge, first)?,
        bound(SeccompCmpOp::Le, last)?,
    ])
}

pub(crate) fn without_bits(index: u8, bits: i32) -> Result<SeccompCondition> {
    let mask = SeccompCmpOp::MaskedEq(bits.unsigned_abs().into());
    SeccompCondition::new(index, SeccompCmpArgLen::Qword, mask, 0)
}

/// The type argument of `socket` without its two flags.
pub(crate) fn socket_type(kind: i32) -> Result<SeccompCondition> {
    let flags = u64::from((libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK).unsigned_abs());
    let mask = SeccompCmpOp::MaskedEq(u64::from(u32::MAX) & !flags);
    SeccompCondition::new(1, SeccompCmpArgLen::Dword, mask, kind.unsigned_abs().into())
}
