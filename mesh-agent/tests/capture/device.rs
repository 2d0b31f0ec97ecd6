//! What stands at the host's side of the first pod's veth: links where the kernel has tcx
//! (since 6.6), filters of the clsact qdisc where it hasn't.

use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::process::Command;

use aya::programs::{SchedClassifier, TcAttachType};
use aya::util::KernelVersion;
use mesh_common::ABI_VERSION;

use crate::lab::{Lab, in_netns};
use crate::program;

/// The walls, in the words of `tc`.
pub(crate) const WALLS: [(&str, &str); 2] = [("wall", "ingress"), ("wall_in", "egress")];
/// Where the agent puts its filters.
const FIRST: &str = "protocol all pref 1 handle 0x4e4d";

/// The program that one of the walls runs.
pub(crate) fn program_of(lab: &Lab, wall: &str) -> OwnedFd {
    match link(lab, wall) {
        Some(link) => program::of_link(program::pinned(&link).as_fd()),
        None => program::by_id(filters(lab, direction(wall))[0].id),
    }
}

/// Puts another program in the place of a wall's.
pub(crate) fn put(lab: &Lab, wall: &str, program: &OwnedFd) {
    match link(lab, wall) {
        Some(link) => program::replace(program::pinned(&link).as_fd(), program.as_fd()),
        None => filter(lab, "replace", wall, FIRST, program),
    }
}

/// Takes a wall down, and leaves no trace of it.
pub(crate) fn take_down(lab: &Lab, wall: &str) {
    match link(lab, wall) {
        Some(link) => {
            program::detach(program::pinned(&link).as_fd());
            std::fs::remove_file(link).unwrap();
        }
        None => drop(tc(
            &lab.node_netns(),
            &format!("filter del dev veth0 {} {FIRST} bpf", direction(wall)),
        )),
    }
}

/// Another's program of that direction; with tcx it goes when the link is dropped.
pub(crate) fn attach_foreign(lab: &Lab, wall: &str, program: &OwnedFd) -> Option<OwnedFd> {
    if !has_tcx() {
        // Fails where there is one.
        let _ = run(&lab.node_netns(), "qdisc add dev veth0 clsact");
        filter(lab, "add", wall, "", program);
        return None;
    }
    let kind = match direction(wall) {
        "ingress" => program::ATTACH_TCX_INGRESS,
        _ => program::ATTACH_TCX_EGRESS,
    };
    Some(lab.in_node(|| program::attach_tcx(program.as_fd(), lab.pod().ifindex, kind)))
}

/// A program for what leaves by the pod's own end of the veth, attached inside the pod; with tcx
/// it goes when the link is dropped.
pub(crate) fn attach_inside(lab: &Lab, program: &OwnedFd) -> Option<OwnedFd> {
    let netns = &lab.pod().netns;
    if !has_tcx() {
        let pin = pin(lab, program);
        tc(netns, "qdisc add dev eth0 clsact");
        let bpf = format!("bpf direct-action object-pinned {}", pin.display());
        tc(netns, &format!("filter add dev eth0 egress {bpf}"));
        std::fs::remove_file(pin).unwrap();
        return None;
    }
    let attach = || {
        let ifindex = nix::net::if_::if_nametoindex("eth0").unwrap();
        program::attach_tcx(program.as_fd(), ifindex, program::ATTACH_TCX_EGRESS)
    };
    Some(lab.in_pod(attach))
}

/// Names of the programs of that wall's direction, in the order they run.
pub(crate) fn order(lab: &Lab, wall: &str) -> Vec<String> {
    if !has_tcx() {
        let filters = filters(lab, direction(wall));
        return filters.into_iter().map(|filter| filter.name).collect();
    }
    let attach_type = match direction(wall) {
        "ingress" => TcAttachType::Ingress,
        _ => TcAttachType::Egress,
    };
    let (_, programs) = lab
        .in_node(|| SchedClassifier::query_tcx("veth0", attach_type))
        .unwrap();
    let names = programs.iter().map(|p| p.name_as_str().unwrap_or_default());
    names.map(str::to_owned).collect()
}

/// Whether the kernel has tcx.
fn has_tcx() -> bool {
    KernelVersion::current().unwrap() >= KernelVersion::new(6, 6, 0)
}

fn direction(wall: &str) -> &'static str {
    let (_, direction) = WALLS.iter().find(|(name, _)| *name == wall).unwrap();
    direction
}

fn link(lab: &Lab, wall: &str) -> Option<PathBuf> {
    let links = format!("nodemesh-{}/v{ABI_VERSION}/links", lab.prefix);
    let link = format!("{wall}-{}", lab.pod().ifindex);
    let path = lab.options.bpffs.join(links).join(link);
    assert_eq!(path.exists(), has_tcx(), "{}", path.display());
    path.exists().then_some(path)
}

struct Filter {
    id: u32,
    name: String,
}

/// The eBPF filters, in the order they run.
fn filters(lab: &Lab, direction: &str) -> Vec<Filter> {
    let shown = tc(
        &lab.node_netns(),
        &format!("filter show dev veth0 {direction}"),
    );
    let word_after = |line: &str, key: &str| {
        let mut words = line.split_whitespace().skip_while(|word| *word != key);
        words.nth(1).map(str::to_owned)
    };
    let filters = shown.lines().filter_map(|line| {
        Some(Filter {
            id: word_after(line, "id")?.parse().unwrap(),
            name: word_after(line, "name")
                .filter(|name| name != "tag")
                .unwrap_or_default(),
        })
    });
    filters.collect()
}

fn filter(lab: &Lab, command: &str, wall: &str, place: &str, program: &OwnedFd) {
    let pin = pin(lab, program);
    let direction = direction(wall);
    let bpf = format!("bpf direct-action object-pinned {}", pin.display());
    tc(
        &lab.node_netns(),
        &format!("filter {command} dev veth0 {direction} {place} {bpf}"),
    );
    std::fs::remove_file(pin).unwrap();
}

fn pin(lab: &Lab, program: &OwnedFd) -> PathBuf {
    let pin = lab.options.bpffs.join(format!("{}-foreign", lab.prefix));
    program::pin(program.as_fd(), &pin);
    pin
}

fn tc(netns: &str, arguments: &str) -> String {
    run(netns, arguments).unwrap_or_else(|stderr| panic!("tc {arguments}: {stderr}"))
}

/// Not by `tc -n`, which hides the bpf file system.
fn run(netns: &str, arguments: &str) -> Result<String, String> {
    let mut tc = Command::new("tc");
    tc.args(arguments.split_whitespace());
    let output = in_netns(netns, || tc.output()).unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if output.status.success() {
        Ok(text(&output.stdout))
    } else {
        Err(text(&output.stderr))
    }
}
