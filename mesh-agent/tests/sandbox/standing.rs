//! What the kernel itself says of a confined worker.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;

use crate::place::{Pod, entries};

#[test]
fn the_kernel_shows_a_worker_as_confined() {
    let pod = Pod::born();
    let status = fs::read_to_string(pod.proc("status")).expect("its status");
    let field = |name: &str| {
        let line = status
            .lines()
            .find(|line| line.split(':').next() == Some(name));
        let line = line.unwrap_or_else(|| panic!("no {name} in its status"));
        line.split_whitespace()
            .skip(1)
            .collect::<Vec<_>>()
            .join(" ")
    };
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(field(set), "0000000000000000", "{set}");
    }
    let ids = vec![pod.place.uid.to_string(); 4].join(" ");
    assert_eq!(
        [field("Uid"), field("Gid"), field("Groups")],
        [ids.clone(), ids, String::new()]
    );
    assert_eq!([field("NoNewPrivs"), field("Seccomp")], ["1", "2"]);
    assert_eq!([field("Seccomp_filters"), field("Threads")], ["1", "1"]);
    assert_eq!(
        [field("SigBlk"), field("TracerPid")],
        ["0000000000000000", "0"]
    );

    assert_eq!(
        entries(&pod.proc("root")),
        Vec::<String>::new(),
        "its root is empty"
    );
    let mounts = fs::read_to_string(pod.proc("mountinfo")).expect("its mounts");
    let mounts: Vec<&str> = mounts.lines().collect();
    assert_eq!(mounts.len(), 1, "{mounts:#?}");
    for option in [" / / ro,nosuid,nodev,noexec", "- tmpfs "] {
        assert!(mounts[0].contains(option), "{}", mounts[0]);
    }

    for (namespace, own) in [
        ("mnt", true),
        ("ipc", true),
        ("uts", true),
        ("cgroup", true),
        ("net", true),
        ("pid", false),
        ("user", false),
    ] {
        let link = format!("ns/{namespace}");
        let theirs = fs::read_link(pod.proc(&link)).expect("its namespace");
        let ours = fs::read_link(format!("/proc/self/{link}")).expect("ours");
        assert_eq!(theirs != ours, own, "{namespace}: {}", theirs.display());
    }
    let net = fs::metadata(pod.proc("ns/net")).expect("its network namespace");
    assert_eq!(
        net.ino(),
        pod.place.netns.metadata().expect("the pod's").ino()
    );

    // What root alone may look at, /proc shows as root's: the process is not dumpable.
    assert_eq!(fs::metadata(pod.proc("fd")).expect("its fds").uid(), 0);
    let limits = fs::read_to_string(pod.proc("limits")).expect("its limits");
    for (limit, value) in [("Max core file size", "0"), ("Max processes", "1")] {
        let line = limits
            .lines()
            .find(|line| line.starts_with(limit))
            .expect("a limit");
        let values: Vec<&str> = line[limit.len()..].split_whitespace().take(2).collect();
        assert_eq!(values, [value, value], "{limit}");
    }
    descriptors(&pod);
    let session = nix::unistd::getsid(Some(nix::unistd::Pid::from_raw(pod.worker.pid)));
    assert_eq!(session.expect("its session").as_raw(), pod.worker.pid);
    let arguments = fs::read(pod.proc("cmdline")).expect("its arguments");
    assert!(arguments.starts_with(b"nodemesh-worker:default/web\0worker\0"));
    let environment = fs::read(pod.proc("environ")).expect("its environment");
    assert_eq!(environment, b"", "nothing of the supervisor's environment");
}

/// Nothing but its own null device, the channel, and what it made itself.
fn descriptors(pod: &Pod) {
    let link = |fd: &str| {
        let link = fs::read_link(pod.proc(&format!("fd/{fd}"))).expect("a descriptor");
        link.to_string_lossy().into_owned()
    };
    for stream in ["0", "1", "2"] {
        assert_eq!(link(stream), "/null (deleted)");
    }
    let mut kinds = BTreeMap::new();
    for fd in entries(&pod.proc("fd")) {
        let link = link(&fd);
        let kind = link.split(['[', ' ']).next().expect("a kind").to_owned();
        let kind = if kind == "anon_inode:" { link } else { kind };
        *kinds.entry(kind).or_insert(0) += 1;
    }
    let listeners = if fs::exists("/proc/net/if_inet6").expect("/proc") {
        6
    } else {
        3
    };
    // The runtime's: two epolls, a waker, three ends of a pair for signals; and a timer that tells when
    // the clock is set.
    let expected = [
        ("/null", 3),
        ("/secretmem", 1),
        ("anon_inode:[eventfd]", 1),
        ("anon_inode:[eventpoll]", 2),
        ("anon_inode:[timerfd]", 1),
        ("socket:", 2 + 3 + listeners),
    ];
    assert_eq!(
        kinds,
        expected
            .map(|(kind, count)| (kind.to_owned(), count))
            .into()
    );
}
