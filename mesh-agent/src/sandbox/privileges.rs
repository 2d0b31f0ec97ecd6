//! Ids, capabilities, landlock: giving up for good what root has, and checking that it is gone.

use std::io;

use landlock::{ABI, Access, AccessFs, CompatLevel, Compatible, Ruleset, RulesetAttr, Scope};
use nix::unistd::{Gid, Uid, getresgid, getresuid, setgroups, setresgid, setresuid};

use super::SandboxError;
use super::image::check;

/// Gives up ids, groups, keyrings and every capability, bounding set and securebits included.
pub(super) fn drop_all(uid: u32, gid: u32) -> Result<(), SandboxError> {
    let step = |step| move |source| SandboxError::Confine { step, source };
    let nix = |name| move |errno: nix::Error| step(name)(errno.into());
    drop_bounding_set(0).map_err(step("dropping the bounding set"))?;
    prctl(
        libc::PR_CAP_AMBIENT,
        libc::PR_CAP_AMBIENT_CLEAR_ALL.unsigned_abs().into(),
    )
    .map_err(step("clearing ambient capabilities"))?;
    prctl(libc::PR_SET_SECUREBITS, SECUREBITS).map_err(step("locking the securebits"))?;
    setgroups(&[]).map_err(nix("dropping groups"))?;
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    setresgid(gid, gid, gid).map_err(nix("taking its gid"))?;
    setresuid(uid, uid, uid).map_err(nix("taking its uid"))?;
    set_capabilities([0; 6]).map_err(step("dropping capabilities"))?;
    own_keyring().map_err(step("leaving the supervisor's keyring"))?;
    prctl(libc::PR_SET_DUMPABLE, 0).map_err(step("becoming non-dumpable"))?;
    prctl(libc::PR_SET_NO_NEW_PRIVS, 1).map_err(step("setting no_new_privs"))
}

/// Checks what the kernel says about this process instead of trusting the calls above.
pub(super) fn verify(uid: u32, gid: u32) -> Result<(), SandboxError> {
    let failed = |source: io::Error| SandboxError::Confine {
        step: "verifying the confinement",
        source,
    };
    let (uids, gids) = (
        getresuid().map_err(|e| failed(e.into()))?,
        getresgid().map_err(|e| failed(e.into()))?,
    );
    let ids_ok = [uids.real, uids.effective, uids.saved] == [Uid::from_raw(uid); 3]
        && [gids.real, gids.effective, gids.saved] == [Gid::from_raw(gid); 3];
    if !ids_ok {
        return Err(SandboxError::Unconfined(format!(
            "ids are {uids:?} {gids:?}"
        )));
    }
    let capabilities = capabilities().map_err(failed)?;
    if capabilities != [0; 6] {
        return Err(SandboxError::Unconfined(format!(
            "capabilities are {capabilities:x?}"
        )));
    }
    if setresuid(Uid::from_raw(0), Uid::from_raw(0), Uid::from_raw(0)).is_ok() {
        return Err(SandboxError::Unconfined(
            "it could become root again".into(),
        ));
    }
    Ok(())
}

/// The version of landlock that the kernel has; 0 or less: none.
pub(super) fn landlock_version() -> libc::c_long {
    let version: libc::c_ulong = 1;
    // SAFETY: with this flag the kernel only says its version.
    unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, 0, 0, version) }
}

/// Whether the kernel has what [`refuse_new_code`] asks for.
pub(super) fn no_new_code() -> io::Result<()> {
    prctl(PR_GET_MDWE, 0)
}

/// No file system access at all, and no signal or abstract socket out of the sandbox, as far
/// as the kernel has it.
pub(super) fn landlock() -> Result<(), SandboxError> {
    let restricted = || {
        Ruleset::default()
            .set_compatibility(CompatLevel::BestEffort)
            .handle_access(AccessFs::from_all(ABI::V6))?
            .scope(Scope::AbstractUnixSocket | Scope::Signal)?
            .create()?
            .restrict_self()
    };
    restricted()
        .map(drop)
        .map_err(|error| SandboxError::Confine {
            step: "restricting itself by landlock",
            source: io::Error::other(error),
        })
}

/// No page becomes executable from here on (Linux 6.3). The system call filter refuses
/// `PROT_EXEC` too; this holds for what the filter can't see.
pub(crate) fn refuse_new_code() -> io::Result<()> {
    match prctl(PR_SET_MDWE, PR_MDWE_REFUSE_EXEC_GAIN) {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(()),
        other => other,
    }
}

/// `linux/prctl.h`.
const PR_SET_MDWE: libc::c_int = 65;
const PR_GET_MDWE: libc::c_int = 66;
const PR_MDWE_REFUSE_EXEC_GAIN: libc::c_ulong = 1;

/// NOROOT, its lock, the locks of NO_SETUID_FIXUP and KEEP_CAPS (both off), NO_CAP_AMBIENT_RAISE
/// and its lock (`linux/securebits.h`).
const SECUREBITS: libc::c_ulong = 0b1110_1011;

fn prctl(option: libc::c_int, argument: libc::c_ulong) -> io::Result<()> {
    let zero: libc::c_ulong = 0;
    // SAFETY: every option used here takes integers only.
    check(unsafe { libc::prctl(option, argument, zero, zero, zero) }).map(drop)
}

/// Keeps these capabilities (bits, as in `CapEff`), for the calling thread and for what it makes
/// or becomes; the others are gone for good. No program that is exec'd gets more.
///
/// # Errors
/// `EPERM` where a capability is to be kept that isn't there, or `CAP_SETPCAP` isn't.
pub(crate) fn keep_only(kept: u64) -> io::Result<()> {
    drop_bounding_set(kept)?;
    prctl(
        libc::PR_CAP_AMBIENT,
        libc::PR_CAP_AMBIENT_CLEAR_ALL.unsigned_abs().into(),
    )?;
    let (low, high) = halves(kept);
    set_capabilities([low, low, 0, high, high, 0])?;
    prctl(libc::PR_SET_NO_NEW_PRIVS, 1)
}

/// The capabilities that the calling thread may use.
pub(crate) fn permitted() -> io::Result<u64> {
    let sets = capabilities()?;
    Ok(u64::from(sets[1]) | u64::from(sets[4]) << 32)
}

fn halves(set: u64) -> (u32, u32) {
    let low = u32::try_from(set & u64::from(u32::MAX)).expect("the low half");
    let high = u32::try_from(set >> 32).expect("the high half");
    (low, high)
}

fn drop_bounding_set(kept: u64) -> io::Result<()> {
    for capability in 0..64 {
        if kept & (1 << capability) != 0 {
            continue;
        }
        match prctl(libc::PR_CAPBSET_DROP, capability) {
            // Past the last capability that this kernel knows.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) && capability > 0 => break,
            result => result?,
        }
    }
    Ok(())
}

/// `linux/capability.h`: version 3, sets of 64 bits in two halves.
#[repr(C)]
struct CapabilityHeader {
    version: u32,
    pid: i32,
}
const CAPABILITY_VERSION_3: u32 = 0x2008_0522;
/// Effective, permitted, inheritable: the low half of each, then the high one.
type CapabilitySets = [u32; 6];

fn set_capabilities(sets: CapabilitySets) -> io::Result<()> {
    let header = CapabilityHeader {
        version: CAPABILITY_VERSION_3,
        pid: 0,
    };
    // SAFETY: a header of version 3 and two data structs of three u32 each, both live.
    let result = unsafe { libc::syscall(libc::SYS_capset, &raw const header, sets.as_ptr()) };
    check(i32::try_from(result).unwrap_or(-1)).map(drop)
}

fn capabilities() -> io::Result<CapabilitySets> {
    let mut header = CapabilityHeader {
        version: CAPABILITY_VERSION_3,
        pid: 0,
    };
    let mut sets: CapabilitySets = [u32::MAX; 6];
    // SAFETY: as in `set_capabilities`, with data to write to.
    let result = unsafe { libc::syscall(libc::SYS_capget, &raw mut header, sets.as_mut_ptr()) };
    check(i32::try_from(result).unwrap_or(-1))?;
    Ok(sets)
}

/// An empty session keyring: to possess the supervisor's would be to read its keys.
fn own_keyring() -> io::Result<()> {
    let anonymous = std::ptr::null::<libc::c_char>();
    // SAFETY: a null name asks for a new anonymous keyring.
    let result = unsafe {
        libc::syscall(
            libc::SYS_keyctl,
            libc::KEYCTL_JOIN_SESSION_KEYRING,
            anonymous,
        )
    };
    match check(i32::try_from(result).unwrap_or(-1)) {
        // A kernel without keys, or a runtime's filter that denies them all the same.
        Err(e) if [Some(libc::ENOSYS), Some(libc::EPERM)].contains(&e.raw_os_error()) => Ok(()),
        other => other.map(drop),
    }
}
