//! Which cgroup is kubelet's.

use std::path::{Component, Path, PathBuf};

use super::{ConfigFault, fault};

/// Where kubelet is, by the services that distributions start it with: of the node's own package
/// manager, of EKS and Bottlerocket, and of those that have it inside of another program, whose other
/// parts are taken for it then.
const USUAL: [&str; 8] = [
    "/system.slice/kubelet.service",
    "/runtime.slice/kubelet.service",
    "/system.slice/k3s.service",
    "/system.slice/k3s-agent.service",
    "/system.slice/rke2-server.service",
    "/system.slice/rke2-agent.service",
    "/system.slice/k0scontroller.service",
    "/system.slice/k0sworker.service",
];

/// The word for nobody.
const NOBODY: &str = "none";

/// The cgroups of which the first that is there is kubelet's, from the root of the v2 hierarchy; none:
/// nobody's connections are probes.
pub(super) fn cgroups(given: Option<&str>, faults: &mut Vec<ConfigFault>) -> Vec<PathBuf> {
    match given {
        None => USUAL.iter().map(|path| below_root(path.as_ref())).collect(),
        Some(NOBODY) => Vec::new(),
        Some(text) => {
            let path = Path::new(text);
            let mut components = path.components();
            let absolute = components.next() == Some(Component::RootDir);
            let plain = components
                .clone()
                .all(|c| matches!(c, Component::Normal(_)));
            if !absolute || !plain || components.next().is_none() {
                let why = "must be a path from the root of the cgroup v2 hierarchy, such as /system.slice/kubelet.service, or \"none\"";
                faults.push(fault("--kubelet-cgroup", text, why));
            }
            vec![below_root(path)]
        }
    }
}

fn below_root(path: &Path) -> PathBuf {
    path.strip_prefix("/").unwrap_or(path).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_below_the_root_is_taken_and_nothing_else() {
        let read = |text: Option<&str>| {
            let mut faults = Vec::new();
            let cgroups = cgroups(text, &mut faults);
            (cgroups, faults.len())
        };
        let (usual, faults) = read(None);
        assert_eq!(usual[0], Path::new("system.slice/kubelet.service"));
        assert_eq!(faults, 0);
        assert_eq!(read(Some("none")), (Vec::new(), 0));
        assert_eq!(read(Some("/a/b")), (vec![PathBuf::from("a/b")], 0));
        for wrong in ["", "/", "a/b", "/a/../b", "/a/b/.."] {
            assert_eq!(read(Some(wrong)).1, 1, "{wrong:?}");
        }
    }
}
