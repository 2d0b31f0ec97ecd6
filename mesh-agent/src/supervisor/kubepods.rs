//! Which pod a process is of: kubelet puts each pod's processes below a cgroup of the pod's UID.
//!
//! | driver | path |
//! |---|---|
//! | cgroupfs | `/kubepods/burstable/pod<uid>/<container>` |
//! | systemd | `/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod<uid>.slice/…`, the UID with `_` for `-` |
//!
//! In cgroup v1 each hierarchy has that path, in v2 there is one.

use std::collections::BTreeMap;
use std::fs;
use std::io;

use super::processes;

/// What the paths of all pods have in common, whatever root kubelet is given.
const PODS: &str = "kubepods";

/// The UID in `/proc/<pid>/cgroup`. The outermost counts: what is further in can be made by the pod.
pub(super) fn pod_uid(cgroups: &str) -> Option<String> {
    let paths = cgroups
        .lines()
        .filter_map(|line| line.splitn(3, ':').nth(2));
    let mut of_pods = paths.filter(|path| path.contains(PODS));
    of_pods.find_map(|path| path.split('/').find_map(uid_in_name))
}

/// The path of the pod's own cgroup in cgroup v2, by `/proc/<pid>/cgroup` of one of its processes.
/// On a hybrid node the pod may be in cgroup v1 alone.
pub(super) fn own_cgroup<'a>(cgroups: &'a str, uid: &str) -> Option<&'a str> {
    let path = cgroups.lines().find_map(|line| line.strip_prefix("0::"))?;
    path.contains(PODS).then_some(())?;
    let mut end = 0;
    for name in path.split('/') {
        end += name.len();
        if let Some(found) = uid_in_name(name) {
            // The outermost, as above.
            return (found == uid).then(|| &path[..end]);
        }
        end += 1;
    }
    None
}

fn uid_in_name(name: &str) -> Option<String> {
    let name = name.strip_suffix(".slice").unwrap_or(name);
    let uid = match name.strip_prefix("pod") {
        Some(uid) => uid,
        None => name.rsplit_once("-pod")?.1,
    };
    let is_uid = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    let sound = !uid.is_empty() && uid.chars().all(is_uid);
    sound.then(|| uid.replace('_', "-"))
}

/// The processes of pods, by the pods' UIDs.
pub(super) fn processes_by_pod() -> io::Result<BTreeMap<String, Vec<i32>>> {
    let mut found = BTreeMap::<String, Vec<i32>>::new();
    for pid in processes::all()? {
        // One that has ended meanwhile is of no pod.
        let cgroups = fs::read_to_string(format!("/proc/{pid}/cgroup"));
        if let Some(uid) = cgroups.ok().and_then(|cgroups| pod_uid(&cgroups)) {
            found.entry(uid).or_default().push(pid);
        }
    }
    Ok(found)
}

/// A runtime whose pods have a kernel of their own, in which no program of ours sees a socket.
pub(super) fn sandbox_of(pids: &[i32]) -> Option<&'static str> {
    pids.iter().find_map(|pid| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        own_kernel(&line)
    })
}

/// By the first argument.
fn own_kernel(command_line: &[u8]) -> Option<&'static str> {
    let first = command_line.split(|byte| *byte == 0).next()?;
    let name = first.rsplit(|byte| *byte == b'/').next()?;
    let begins = |with: &str| name.starts_with(with.as_bytes());
    if begins("runsc") {
        return Some("gVisor");
    }
    let machines = [
        "qemu-system-",
        "cloud-hypervisor",
        "firecracker",
        "stratovirt",
    ];
    let machine = machines.into_iter().any(begins);
    machine.then_some("a virtual machine, as Kata's")
}

#[cfg(test)]
mod tests {
    use super::*;

    const UID: &str = "6e3c1d5a-7b1f-4c55-9f0e-0d9f7c1b2a3d";

    #[test]
    fn a_pods_uid_is_in_its_processes_cgroup() {
        let under = UID.replace('-', "_");
        for path in [
            format!("0::/kubepods/burstable/pod{UID}/0123abc"),
            format!("0::/kubepods/pod{UID}"),
            format!(
                "0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{under}.slice/cri-containerd-0123.scope"
            ),
            format!("0::/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod{under}.slice/x"),
            format!("12:cpu,cpuacct:/kubepods/besteffort/pod{UID}/0123\n0::/system.slice/x"),
            format!("2:name=systemd:/a:b\n1:memory:/kubepods/pod{UID}/init.scope"),
            // What the pod has made inside of its own says nothing.
            format!("0::/kubepods/pod{UID}/0123/kubepods/podother/x"),
        ] {
            assert_eq!(pod_uid(&path).as_deref(), Some(UID), "{path}");
        }
        // A static pod's.
        let fixed = "0::/kubepods/burstable/pod0123456789abcdef0123456789abcdef/x";
        assert_eq!(
            pod_uid(fixed).as_deref(),
            Some("0123456789abcdef0123456789abcdef")
        );
    }

    #[test]
    fn a_pods_own_cgroup_is_the_one_that_has_its_uid() {
        let own = format!("/kubepods/burstable/pod{UID}");
        for below in ["", "/0123abc", "/0123abc/podother/x"] {
            let cgroups = format!("12:cpu:/elsewhere\n0::{own}{below}\n");
            assert_eq!(own_cgroup(&cgroups, UID), Some(own.as_str()), "{cgroups}");
            assert_eq!(own_cgroup(&cgroups, "other"), None);
        }
        let slice = format!(
            "/kubepods.slice/kubepods-pod{}.slice",
            UID.replace('-', "_")
        );
        let cgroups = format!("0::{slice}/cri-containerd-0123.scope");
        assert_eq!(own_cgroup(&cgroups, UID), Some(slice.as_str()));
        let v1_alone = format!("12:cpu:/kubepods/pod{UID}/0123\n0::/system.slice/x");
        assert_eq!(own_cgroup(&v1_alone, UID), None);
    }

    #[test]
    fn other_cgroups_are_of_no_pod() {
        for path in [
            "0::/",
            "0::/system.slice/kubelet.service",
            "0::/kubepods.slice/kubepods-burstable.slice",
            "0::/user.slice/pod1234",
            "0::/machine.slice/libpod-0123.scope",
            "nonsense",
            "",
        ] {
            assert_eq!(pod_uid(path), None, "{path}");
        }
    }

    #[test]
    fn runtimes_with_a_kernel_of_their_own_are_told_apart() {
        for (line, runtime) in [
            (&b"runsc-sandbox\0--root=/run\0"[..], Some("gVisor")),
            (b"/usr/local/bin/runsc-gofer\0", Some("gVisor")),
            (
                b"/usr/bin/qemu-system-x86_64\0-name\0",
                Some("a virtual machine, as Kata's"),
            ),
            (b"/pause\0", None),
            (b"", None),
        ] {
            assert_eq!(own_kernel(line), runtime);
        }
    }
}
