//! Removal of everything that carries a lab's prefix, whoever made it.

use std::fs;
use std::path::{Path, PathBuf};

use crate::{cgroup, netns, runtime};

/// Name of the cgroup that holds a lab's processes.
pub(crate) fn cgroup_name(prefix: &str) -> String {
    format!("nmlab-{prefix}")
}

/// What the agents of a lab name after their instance starts with this.
pub(crate) fn instance_name(prefix: &str) -> String {
    format!("nodemesh-{prefix}")
}

/// The lab's folder.
pub(crate) fn scratch(prefix: &str) -> PathBuf {
    std::env::temp_dir().join(prefix)
}

/// Where bpffs is looked for.
pub const BPFFS: &str = "/sys/fs/bpf";

/// Removes whatever carries the prefix: processes first (so that no supervisor starts a
/// worker anew), then pins, cgroups, namespaces, mounts, files.
pub(crate) fn remove(prefix: &str) {
    // The one with the processes first: others are empty then.
    let mut groups: Vec<PathBuf> = cgroup::mount_point().into_iter().collect();
    groups.extend(cgroup::mount_points().unwrap_or_default());
    for root in groups {
        report(cgroup::remove(&root.join(cgroup_name(prefix))));
        for path in named_like(&root, &instance_name(prefix)) {
            report(cgroup::remove(&path));
        }
    }
    for path in named_like(Path::new(BPFFS), &instance_name(prefix)) {
        report(fs::remove_dir_all(&path).map_err(Into::into));
    }
    for path in named_like(Path::new(netns::FOLDER), &format!("{prefix}-")) {
        netns::remove(&path);
    }
    let folder = scratch(prefix);
    runtime::release(&folder);
    if folder.exists() {
        report(fs::remove_dir_all(&folder).map_err(Into::into));
    }
}

/// Takes away what an agent's kernel has of it, as the end of the machine does.
pub(crate) fn power_off(instance: &str) -> anyhow::Result<()> {
    let name = format!("nodemesh-{instance}");
    for root in cgroup::mount_points()? {
        cgroup::remove(&root.join(&name))?;
    }
    match fs::remove_dir_all(Path::new(BPFFS).join(&name)) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
        _ => Ok(()),
    }
}

fn report(result: anyhow::Result<()>) {
    if let Err(error) = result {
        eprintln!("cleaning up: {error:#}");
    }
}

/// Names of everything that carries the prefix and is still there.
#[must_use]
pub fn leftovers(prefix: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for root in cgroup::mount_points().unwrap_or_default() {
        found.extend(named_like(&root, &cgroup_name(prefix)));
        found.extend(named_like(&root, &instance_name(prefix)));
    }
    found.extend(named_like(Path::new(BPFFS), &instance_name(prefix)));
    found.extend(named_like(Path::new(netns::FOLDER), &format!("{prefix}-")));
    found
}

/// Removes what labs left whose process is gone (killed by SIGKILL).
pub(crate) fn remove_stale() {
    let mut prefixes = Vec::new();
    let mut look = |folder: &Path, lead: &str| {
        for path in named_like(folder, &format!("{lead}nm")) {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            prefixes.extend(prefix_in(&name[lead.len()..]));
        }
    };
    look(Path::new(netns::FOLDER), "");
    look(Path::new(BPFFS), "nodemesh-");
    look(&std::env::temp_dir(), "");
    for root in cgroup::mount_points().unwrap_or_default() {
        look(&root, "nmlab-");
        look(&root, "nodemesh-");
    }
    prefixes.sort();
    prefixes.dedup();
    for (pid, prefix) in prefixes {
        if !Path::new(&format!("/proc/{pid}")).exists() {
            eprintln!("removing what a killed lab left: {prefix}");
            remove(&prefix);
        }
    }
}

/// `nm<pid>x<n>` at the start of a name: the pid and the prefix.
fn prefix_in(name: &str) -> Option<(u32, String)> {
    let (pid, rest) = name.strip_prefix("nm")?.split_once('x')?;
    let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
    if digits.is_empty() {
        return None;
    }
    let pid = pid.parse().ok()?;
    Some((pid, format!("nm{pid}x{digits}")))
}

fn named_like(folder: &Path, start: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .map(|entry| entry.path())
        .filter(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            // `nm1x1` is no prefix of `nm1x12`'s things.
            name.strip_prefix(start)
                .is_some_and(|rest| start.ends_with("nm") || !rest.starts_with(char::is_numeric))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_is_told_from_longer_ones_and_from_foreign_names() {
        assert_eq!(prefix_in("nm12x3-n-a"), Some((12, "nm12x3".to_owned())));
        assert_eq!(prefix_in("nm12x34a"), Some((12, "nm12x34".to_owned())));
        assert_eq!(prefix_in("nmap"), None);
        assert_eq!(prefix_in("nm12x"), None);
        let folder = std::env::temp_dir().join(format!("lab-names-{}", std::process::id()));
        fs::create_dir_all(folder.join("nm1x1-a")).unwrap();
        fs::create_dir_all(folder.join("nm1x12-a")).unwrap();
        let found = named_like(&folder, "nm1x1");
        fs::remove_dir_all(&folder).unwrap();
        assert_eq!(found, [folder.join("nm1x1-a")]);
    }
}
