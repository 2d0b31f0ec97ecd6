//! Features of the machine that have nothing to do with eBPF: processes, sockets, mounts.

use std::net::UdpSocket;
use std::os::fd::AsFd;
use std::path::Path;
use std::{fs, io};

use super::{Feature, Need};
use crate::capture::socket_netns_cookie;
use crate::supervisor::sock_diag::can_destroy;

pub(super) fn probe() -> Vec<Feature> {
    vec![
        Feature {
            name: "pidfd_getfd".to_owned(),
            need: Need::Required,
            purpose: "a new supervisor takes the channel out of a running worker",
            since: "5.6",
            config: "",
            lack: refused(pidfd_getfd(), libc::EBADF),
        },
        Feature {
            name: "close_range".to_owned(),
            need: Need::Required,
            purpose: "a worker gives up what it inherited",
            since: "5.9",
            config: "",
            lack: refused(close_range(), libc::EINVAL),
        },
        Feature {
            name: "SO_NETNS_COOKIE".to_owned(),
            need: Need::Required,
            purpose: "pods are told apart by the cookie of their network namespace",
            since: "5.14",
            config: "CONFIG_NET_NS",
            lack: netns_cookie().err().map(|e| e.to_string()),
        },
        Feature {
            name: "bpffs".to_owned(),
            need: Need::Required,
            purpose: "capture and walls stand while no agent runs",
            since: "4.4",
            config: "CONFIG_BPF_SYSCALL",
            lack: bpffs().err().map(|e| e.to_string()),
        },
        Feature {
            name: "IPv6".to_owned(),
            need: Need::Optional,
            purpose: "without it pods have IPv4 only",
            since: "2.6",
            config: "CONFIG_IPV6",
            lack: (!Path::new("/proc/net/if_inet6").exists())
                .then(|| "it is switched off, or not built".to_owned()),
        },
        Feature {
            name: "the eBPF compiler".to_owned(),
            need: Need::Optional,
            purpose: "without it programs are interpreted, some times slower",
            since: "3.16",
            config: "CONFIG_BPF_JIT (and net.core.bpf_jit_enable not 0)",
            lack: jit().err().map(|e| e.to_string()),
        },
        Feature {
            name: "memfd_secret".to_owned(),
            need: Need::Optional,
            purpose: "without it private keys lie in memory that root can map",
            since: "5.14",
            config: "CONFIG_SECRETMEM (before 6.5 also secretmem.enable=1 at boot)",
            // A flag that there isn't tells the call from one that is switched off.
            lack: refused(memfd_secret(), libc::EINVAL),
        },
        Feature {
            name: "SOCK_DESTROY".to_owned(),
            need: Need::Optional,
            purpose: "without it connections that are older than their pod's enrolment are not reset at their end: the wall drops what they send",
            since: "4.5",
            config: "CONFIG_INET_DIAG, CONFIG_INET_DIAG_DESTROY",
            lack: can_destroy().err().map(|e| e.to_string()),
        },
    ]
}

/// Whether a call that can't succeed was refused for the reason given, so that it is there.
fn refused(result: io::Result<()>, by: i32) -> Option<String> {
    match result {
        Err(e) if e.raw_os_error() == Some(by) => None,
        Err(e) => Some(e.to_string()),
        Ok(()) => None,
    }
}

fn syscall(result: libc::c_long) -> io::Result<()> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

fn pidfd_getfd() -> io::Result<()> {
    // SAFETY: takes integers; there is no descriptor -1.
    syscall(unsafe { libc::syscall(libc::SYS_pidfd_getfd, -1, 0, 0) })
}

fn close_range() -> io::Result<()> {
    // SAFETY: takes integers; a range that ends before it begins is refused.
    syscall(unsafe { libc::syscall(libc::SYS_close_range, 1u32, 0u32, 0u32) })
}

fn memfd_secret() -> io::Result<()> {
    // SAFETY: takes flags; this one there isn't.
    syscall(unsafe { libc::syscall(libc::SYS_memfd_secret, 1u32) })
}

fn bpffs() -> io::Result<()> {
    let known = fs::read_to_string("/proc/filesystems")?;
    if known
        .lines()
        .any(|line| line.trim_start_matches("nodev").trim() == "bpf")
    {
        return Ok(());
    }
    Err(io::Error::other("the kernel does not know it"))
}

fn jit() -> io::Result<()> {
    let enabled = match fs::read_to_string("/proc/sys/net/core/bpf_jit_enable") {
        // It is shown in the machine's first network namespace only: nothing is known here.
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        read => read?,
    };
    if enabled.trim() != "0" {
        return Ok(());
    }
    Err(io::Error::other("net.core.bpf_jit_enable is 0"))
}

fn netns_cookie() -> io::Result<()> {
    let socket = UdpSocket::bind("127.0.0.1:0").or_else(|_| UdpSocket::bind("[::1]:0"))?;
    socket_netns_cookie(socket.as_fd()).map(drop)
}
