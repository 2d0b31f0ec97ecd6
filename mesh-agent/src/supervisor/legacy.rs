//! What outlives a pod's worker and is handed to the next: duplicates of its listeners, so
//! that no caller is refused, its key, which is held and never mapped, and its certificate.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use mesh_api::worker::FdKind;
use mesh_common::{PORT_HBONE, PORT_OUTBOUND, PORT_PLAINTEXT};
use nix::sys::socket::{
    AddressFamily, SockaddrLike, SockaddrStorage, getsockname, getsockopt, sockopt,
};
use nix::sys::stat::fstat;

use super::csr::Svid;
use crate::capture::socket_netns_cookie;
use crate::handed::Handed;

/// What a worker leaves to the next.
#[derive(Debug, Default)]
pub(super) struct Legacy {
    listeners: BTreeMap<FdKind, Handed>,
    key: Option<Handed>,
    pub(super) svid: Option<Svid>,
}

impl Legacy {
    /// Takes a worker's listeners in place of those held so far, unless one is not what it
    /// should be. A kind that is not among them is closed here too: a listener that was
    /// killed keeps its port until the last duplicate is gone. One that was killed and that the
    /// worker doesn't know of yet is none.
    pub(super) fn take_listeners(
        &mut self,
        kinds: &[i32],
        fds: Vec<Handed>,
        netns_cookie: u64,
    ) -> Result<(), String> {
        if kinds.len() != fds.len() {
            return Err(format!(
                "{} kinds with {} descriptors",
                kinds.len(),
                fds.len()
            ));
        }
        let mut taken = BTreeMap::new();
        for (&kind, fd) in kinds.iter().zip(fds) {
            let kind = FdKind::try_from(kind).map_err(|e| e.to_string())?;
            let expected = expected(kind).ok_or_else(|| format!("{kind:?} is no listener"))?;
            if getsockopt(&fd, sockopt::AcceptConn) == Ok(false) {
                continue;
            }
            check_listener(fd.as_fd(), expected, netns_cookie)
                .map_err(|why| format!("its {kind:?} is {why}"))?;
            if taken.insert(kind, fd).is_some() {
                return Err(format!("{kind:?} twice"));
            }
        }
        self.listeners = taken;
        Ok(())
    }

    /// Takes the key. Its contents are none of the supervisor's business.
    pub(super) fn take_key(&mut self, mut fds: Vec<Handed>) -> Result<(), String> {
        match (fds.pop(), fds.len()) {
            (Some(key), 0) if !is_file(&key) => Err("a key that is no memory".to_owned()),
            (Some(key), 0) => {
                self.key = Some(key);
                Ok(())
            }
            (_, rest) => Err(format!("a key with {} descriptors", rest + 1)),
        }
    }

    /// Takes over what another worker has brought along, in place of what there is of the same.
    pub(super) fn take_over(&mut self, next: Self) {
        if next.has_listeners() {
            self.listeners = next.listeners;
        }
        self.key = next.key.or_else(|| self.key.take());
        self.svid = next.svid.or_else(|| self.svid.take());
    }

    /// The listeners there are: which socket of each kind, by its inode number.
    pub(super) fn sockets(&self) -> BTreeMap<FdKind, u64> {
        let inode = |fd: &Handed| fstat(fd).map_or(0, |stat| stat.st_ino);
        let listeners = self.listeners.iter();
        listeners.map(|(kind, fd)| (*kind, inode(fd))).collect()
    }

    pub(super) fn has_listeners(&self) -> bool {
        !self.listeners.is_empty()
    }

    /// Lets go of listeners that were killed meanwhile: they keep their ports from the next worker.
    pub(super) fn drop_dead(&mut self) {
        self.listeners
            .retain(|_, fd| getsockopt(fd, sockopt::AcceptConn).unwrap_or(false));
    }

    /// Lets go of everything. When this returns, the pod's ports are free: a worker that has ended
    /// can't make a listener linger, so those needn't be closed [elsewhere](Handed).
    pub(super) fn close_after_worker(self) {
        for fd in self.listeners.into_values() {
            if getsockopt(&fd, sockopt::AcceptConn) == Ok(true) {
                drop(fd.into_inner());
            }
        }
    }

    /// A listener, if there is one of that kind.
    pub(super) fn listener(&self, kind: FdKind) -> Option<BorrowedFd<'_>> {
        self.listeners.get(&kind).map(AsFd::as_fd)
    }

    /// Duplicates for a new worker, with what they are.
    pub(super) fn hand_over(&self) -> io::Result<(Vec<i32>, Vec<OwnedFd>)> {
        let key = self.key.iter().map(|key| (FdKind::PrivateKey, key));
        let all = self
            .listeners
            .iter()
            .map(|(kind, fd)| (*kind, fd))
            .chain(key);
        let mut handed = (Vec::new(), Vec::new());
        for (kind, fd) in all {
            handed.0.push(kind as i32);
            handed.1.push(fd.as_fd().try_clone_to_owned()?);
        }
        Ok(handed)
    }

    /// The certificate, if it is good for longer than `now_s`, and there is its key.
    pub(super) fn valid_svid(&self, now_s: i64) -> Option<&Svid> {
        let svid = self.svid.as_ref().filter(|svid| svid.not_after_s > now_s);
        svid.filter(|_| self.key.is_some())
    }
}

/// As memory that has a descriptor is.
fn is_file(fd: &Handed) -> bool {
    fstat(fd).is_ok_and(|stat| stat.st_mode & libc::S_IFMT == libc::S_IFREG)
}

fn expected(kind: FdKind) -> Option<(AddressFamily, u16)> {
    use AddressFamily::{Inet, Inet6};
    Some(match kind {
        FdKind::OutboundV4 => (Inet, PORT_OUTBOUND),
        FdKind::OutboundV6 => (Inet6, PORT_OUTBOUND),
        FdKind::PlaintextV4 => (Inet, PORT_PLAINTEXT),
        FdKind::PlaintextV6 => (Inet6, PORT_PLAINTEXT),
        FdKind::HboneV4 => (Inet, PORT_HBONE),
        FdKind::HboneV6 => (Inet6, PORT_HBONE),
        FdKind::PrivateKey | FdKind::MemoryUsed | FdKind::Unspecified => return None,
    })
}

/// A worker may be seized, and what it hands over goes to the pod's next worker and to the
/// kernel's listener map: it must be this pod's, and what it says it is.
fn check_listener(
    fd: BorrowedFd<'_>,
    (family, port): (AddressFamily, u16),
    netns_cookie: u64,
) -> Result<(), String> {
    let listens = getsockopt(&fd, sockopt::AcceptConn).map_err(|e| format!("no socket: {e}"))?;
    let address: SockaddrStorage =
        getsockname(fd.as_raw_fd()).map_err(|e| format!("no socket: {e}"))?;
    let bound = match (address.as_sockaddr_in(), address.as_sockaddr_in6()) {
        (Some(v4), _) => Some(v4.port()),
        (_, Some(v6)) => Some(v6.port()),
        _ => None,
    };
    if !listens || address.family() != Some(family) || bound != Some(port) {
        return Err(format!("no listener on port {port} ({family:?})"));
    }
    let cookie = socket_netns_cookie(fd).map_err(|e| format!("without a namespace: {e}"))?;
    if cookie != netns_cookie {
        return Err("of another network namespace".to_owned());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    fn listener(port: u16) -> (OwnedFd, u64) {
        let listener = TcpListener::bind(("127.0.0.1", port)).unwrap();
        let fd = OwnedFd::from(listener);
        let cookie = socket_netns_cookie(fd.as_fd()).unwrap();
        (fd, cookie)
    }

    fn file(path: &str) -> Handed {
        OwnedFd::from(std::fs::File::open(path).unwrap()).into()
    }

    #[test]
    fn only_a_listener_of_the_pod_on_the_right_port_is_taken() {
        let (fd, cookie) = listener(0);
        let kinds = [FdKind::OutboundV4 as i32];
        let mut legacy = Legacy::default();
        let fds = vec![fd.into()];
        let why = legacy.take_listeners(&kinds, fds, cookie).unwrap_err();
        assert!(why.contains("no listener on port 15001"), "{why}");
        let why = legacy
            .take_listeners(&kinds, Vec::new(), cookie)
            .unwrap_err();
        assert!(why.contains("1 kinds with 0"), "{why}");
        let file = vec![file("/dev/null")];
        assert!(legacy.take_listeners(&kinds, file, cookie).is_err());
        let dead = nix::sys::socket::socket(
            AddressFamily::Inet,
            nix::sys::socket::SockType::Stream,
            nix::sys::socket::SockFlag::empty(),
            None,
        );
        legacy
            .take_listeners(&kinds, vec![dead.unwrap().into()], cookie)
            .unwrap();
        assert!(!legacy.has_listeners());
        let (fd, _) = listener(0);
        assert!(check_listener(fd.as_fd(), (AddressFamily::Inet6, 1), cookie).is_err());
        let address: SockaddrStorage = getsockname(fd.as_raw_fd()).unwrap();
        let port = address.as_sockaddr_in().unwrap().port();
        let ours = (AddressFamily::Inet, port);
        assert_eq!(check_listener(fd.as_fd(), ours, cookie), Ok(()));
        let why = check_listener(fd.as_fd(), ours, cookie + 1).unwrap_err();
        assert!(why.contains("another network namespace"), "{why}");
    }

    #[test]
    fn a_port_is_free_as_soon_as_its_listener_is_let_go() {
        let mut port = 0;
        for round in 0..200 {
            let listener = TcpListener::bind(("127.0.0.1", port));
            let listener = listener.unwrap_or_else(|e| panic!("round {round}: {e}"));
            port = listener.local_addr().unwrap().port();
            let fd = Handed::from(OwnedFd::from(listener));
            let listeners = BTreeMap::from([(FdKind::PlaintextV4, fd)]);
            let legacy = Legacy {
                listeners,
                ..Legacy::default()
            };
            legacy.close_after_worker();
        }
    }

    #[test]
    fn a_certificate_is_handed_on_only_with_its_key_and_in_its_validity() {
        let mut legacy = Legacy {
            svid: Some(Svid {
                chain: vec![vec![1]],
                not_after_s: 100,
            }),
            ..Legacy::default()
        };
        assert_eq!(legacy.valid_svid(50), None);
        let why = legacy.take_key(vec![file("/dev/null")]).unwrap_err();
        assert!(why.contains("no memory"), "{why}");
        legacy.take_key(vec![file("/proc/self/exe")]).unwrap();
        assert!(legacy.valid_svid(50).is_some());
        assert_eq!(legacy.valid_svid(100), None);
        assert_eq!(legacy.hand_over().unwrap().0, [FdKind::PrivateKey as i32]);
        assert!(legacy.take_key(Vec::new()).is_err());
    }
}
