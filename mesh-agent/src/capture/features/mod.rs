//! The eBPF features that the embedded programs need. What they are and what they call is read
//! off the object itself, so this asks for no more and no less than what will be loaded.

mod clsact;
mod table;

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use aya::sys::is_map_supported;
use aya_obj::generated::{bpf_attach_type, bpf_prog_type};

use super::bpf::{self, AttachType, Target};
use super::inventory::{self, Program};
use super::load::{self, Level, Load};
use crate::features::{Feature, Need};
use table::{HELPERS, HOOKS, MAPS};

const GPL: &CStr = c"GPL";
/// `bpf_skc_to_mptcp_sock`, which is called only on kernels that have it.
const MPTCP_HELPER: u32 = 196;
/// `bpf_get_current_task` and `bpf_probe_read_kernel`, the same.
const DESCENT_HELPERS: [u32; 2] = [35, 113];

/// Asks the kernel for each.
pub(crate) fn probe() -> Vec<Feature> {
    let programs = match inventory::programs() {
        Ok(programs) => programs,
        Err(e) => {
            return vec![required(
                "eBPF programs",
                "captures pods' traffic",
                "",
                "",
                Some(e.to_string()),
            )];
        }
    };
    let call = smallest(bpf_prog_type::BPF_PROG_TYPE_SCHED_CLS, None);
    let refused = call.err().map(|e| match e.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => format!(
            "{e}: run the agent as root with every capability, under no filter that denies bpf(2)"
        ),
        _ => e.to_string(),
    });
    let denied = refused.is_some();
    let mut features = vec![required(
        "bpf(2)",
        "loads programs",
        "4.1",
        "CONFIG_BPF_SYSCALL, CONFIG_NET_CLS_ACT",
        refused,
    )];
    // What else there is can't be asked without it.
    if !denied {
        features.push(optional(
            "layout of processes in BTF",
            "without it processes that are put into a container (exec) are not noticed",
            "5.2",
            "CONFIG_DEBUG_INFO_BTF",
            super::task::read().err().map(|e| e.to_string()),
        ));
        features.extend(hooks(&programs));
        features.extend(helpers(&programs));
        features.extend(maps());
        features.extend(attaching());
    }
    features
}

/// Whether programs may ask a socket for its MPTCP connection.
pub(super) fn mptcp() -> bool {
    let kind = bpf_prog_type::BPF_PROG_TYPE_SOCK_OPS;
    let attach_type = Some(bpf_attach_type::BPF_CGROUP_SOCK_OPS);
    std::path::Path::new("/proc/sys/net/mptcp").exists()
        && unknown_helper(kind, attach_type, MPTCP_HELPER).is_none()
}

/// Whether programs that see a process connect may follow its descent.
pub(super) fn descent() -> bool {
    let kind = bpf_prog_type::BPF_PROG_TYPE_CGROUP_SOCK_ADDR;
    let attach_type = Some(bpf_attach_type::BPF_CGROUP_INET4_CONNECT);
    let known = |helper| unknown_helper(kind, attach_type, helper).is_none();
    DESCENT_HELPERS.into_iter().all(known)
}

fn required(
    name: impl Into<String>,
    purpose: &'static str,
    since: &'static str,
    config: &'static str,
    lack: Option<String>,
) -> Feature {
    Feature {
        name: name.into(),
        need: Need::Required,
        purpose,
        since,
        config,
        lack,
    }
}

fn optional(
    name: impl Into<String>,
    purpose: &'static str,
    since: &'static str,
    config: &'static str,
    lack: Option<String>,
) -> Feature {
    Feature {
        need: Need::Optional,
        ..required(name, purpose, since, config, lack)
    }
}

fn hooks(programs: &[Program]) -> impl Iterator<Item = Feature> {
    HOOKS.iter().map(|hook| {
        let ours = programs
            .iter()
            .filter(|p| hook.programs.contains(&p.name.as_str()));
        let mut lacks = ours.filter_map(|program| {
            let refused = smallest(program.kind, program.attach_type).err()?;
            Some(format!(
                "the smallest program for {} is refused: {refused}",
                program.name
            ))
        });
        let name = hook.programs.join(", ");
        required(name, hook.purpose, hook.since, hook.config, lacks.next())
    })
}

fn helpers(programs: &[Program]) -> impl Iterator<Item = Feature> {
    HELPERS.iter().filter_map(|helper| {
        let number = helper.number as u32;
        let callers = programs.iter().filter(|p| p.helpers.contains(&number));
        let callers: Vec<&Program> = callers.collect();
        if callers.is_empty() {
            return None;
        }
        let lack = callers.iter().find_map(|program| {
            let line = unknown_helper(program.kind, program.attach_type, number)?;
            Some(format!("for {}: {line}", program.name))
        });
        let names: Vec<_> = callers.iter().map(|p| p.name.as_str()).collect();
        let name = format!("{} in {}", helper.name, names.join(", "));
        let feature = required(name, helper.purpose, helper.since, helper.config, lack);
        let spared = number == MPTCP_HELPER || DESCENT_HELPERS.contains(&number);
        Some(if spared {
            Feature {
                need: Need::Optional,
                ..feature
            }
        } else {
            feature
        })
    })
}

fn maps() -> impl Iterator<Item = Feature> {
    MAPS.iter().map(|map| {
        let lack = match is_map_supported(map.kind) {
            Ok(true) => None,
            Ok(false) => Some("the kernel does not know it".to_owned()),
            Err(e) => Some(format!("{e}: {}", e.io_error)),
        };
        required(map.name, map.purpose, map.since, map.config, lack)
    })
}

/// Ways of attaching and of writing that a load does not show.
fn attaching() -> Vec<Feature> {
    let tcx = tcx().err();
    let walls = match &tcx {
        None => None,
        Some(_) => clsact::probe().err(),
    };
    vec![
        required(
            "links of cgroup programs",
            "programs are attached beside others' and stay while no agent runs",
            "5.7",
            "CONFIG_CGROUP_BPF",
            cgroup_link().err().map(|e| e.to_string()),
        ),
        required(
            "batched updates of tries and arrays of maps",
            "policies of many pods are swapped at once",
            "5.19",
            "CONFIG_BPF_SYSCALL",
            batches().err().map(|e| e.to_string()),
        ),
        optional(
            "tcx",
            "without it the walls are filters on the clsact qdisc",
            "6.6",
            "CONFIG_NET_XGRESS",
            tcx.map(|e| e.to_string()),
        ),
        required(
            "tcx, or clsact with bpf filters",
            "the walls on the host's side of pods' devices",
            "4.5",
            "CONFIG_NET_SCH_INGRESS, CONFIG_NET_CLS_BPF, CONFIG_NET_CLS_ACT",
            walls,
        ),
    ]
}

fn smallest(kind: bpf_prog_type, attach_type: Option<bpf_attach_type>) -> io::Result<OwnedFd> {
    let what = Load {
        kind,
        attach_type,
        instructions: &load::smallest(),
        license: GPL,
    };
    load::load(&what, Level::Refusal, &mut vec![0; 4096])
}

/// What the verifier says of a helper that it does not know, or not for such programs.
fn unknown_helper(
    kind: bpf_prog_type,
    attach_type: Option<bpf_attach_type>,
    helper: u32,
) -> Option<String> {
    const UNKNOWN: [&str; 3] = ["unknown func ", "invalid func ", "cannot use helper "];
    let what = Load {
        kind,
        attach_type,
        instructions: &load::calling(helper),
        license: GPL,
    };
    let mut log = vec![0; 4096];
    let refused = load::load(&what, Level::Refusal, &mut log).err()?;
    if log.is_empty() {
        return Some(refused.to_string());
    }
    let log = String::from_utf8_lossy(&log);
    let mut lines = log.lines();
    let line = lines.find(|line| UNKNOWN.iter().any(|unknown| line.contains(unknown)))?;
    Some(line.to_owned())
}

/// Tells a kernel that lacks a command from one that minds its arguments.
fn expect<T>(result: io::Result<T>, error: i32) -> io::Result<()> {
    match result {
        Err(e) if e.raw_os_error() == Some(error) => Ok(()),
        other => other.map(drop),
    }
}

fn cgroup_link() -> io::Result<()> {
    let kind = bpf_prog_type::BPF_PROG_TYPE_CGROUP_SOCK_ADDR;
    let program = smallest(kind, Some(bpf_attach_type::BPF_CGROUP_INET4_CONNECT))?;
    let no_cgroup = File::open("/proc/self/stat")?;
    let target = Target::Fd(no_cgroup.as_fd());
    let made = bpf::link_create(program.as_fd(), &target, AttachType::Inet4Connect, 0);
    expect(made, libc::EBADF)
}

fn batches() -> io::Result<()> {
    let trie = bpf::create_trie::<u64, u32>(1)?;
    let array = bpf::create_array_of_maps("batches", 1, trie.as_fd())?;
    bpf::update_batch::<u64, u32>(trie.as_fd(), &[], &[])?;
    bpf::update_batch::<u32, u32>(array.as_fd(), &[], &[])
}

fn tcx() -> io::Result<()> {
    let program = smallest(bpf_prog_type::BPF_PROG_TYPE_SCHED_CLS, None)?;
    // No device has this index.
    let nowhere = Target::Ifindex(i32::MAX.unsigned_abs());
    let made = bpf::link_create(program.as_fd(), &nowhere, AttachType::TcxIngress, 0);
    expect(made, libc::ENODEV)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_the_programs_use_is_asked_for() {
        for program in inventory::programs().unwrap() {
            let name = program.name.as_str();
            assert!(
                HOOKS.iter().any(|hook| hook.programs.contains(&name)),
                "{name}"
            );
            for helper in program.helpers {
                let known = HELPERS.iter().any(|known| known.number as u32 == helper);
                assert!(
                    known,
                    "{name} calls helper {helper}, which features/table.rs lacks"
                );
            }
        }
        let object = inventory::parse().unwrap();
        for (name, map) in &object.maps {
            let known = MAPS.iter().any(|known| known.kind as u32 == map.map_type());
            assert!(known, "map {name} is of type {}", map.map_type());
        }
    }

    #[test]
    fn the_table_names_nothing_that_no_program_uses() {
        let programs = inventory::programs().unwrap();
        for name in HOOKS.iter().flat_map(|hook| hook.programs) {
            assert!(
                programs.iter().any(|program| program.name == *name),
                "{name}"
            );
        }
        for helper in HELPERS {
            let number = helper.number as u32;
            assert!(
                programs.iter().any(|p| p.helpers.contains(&number)),
                "{}",
                helper.name
            );
        }
    }
}
