//! Descriptors that came from somebody who may be seized.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::thread;

use nix::sys::socket::{getsockopt, setsockopt, sockopt};

/// A descriptor that another process handed over.
///
/// Closing it must not hold up whoever does: a TCP socket that lingers keeps the closing thread
/// for as long as its peer takes no data, non-blocking or not, and the other process can make
/// it linger at any time.
#[derive(Debug)]
pub(crate) struct Handed(Option<OwnedFd>);

impl From<OwnedFd> for Handed {
    fn from(fd: OwnedFd) -> Self {
        Self(Some(fd))
    }
}

impl Handed {
    /// For somebody who may wait when it is closed.
    pub(crate) fn into_inner(mut self) -> OwnedFd {
        self.0.take().expect("open until it is dropped")
    }
}

impl AsFd for Handed {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_ref().expect("open until it is dropped").as_fd()
    }
}

impl Drop for Handed {
    fn drop(&mut self) {
        let Some(fd) = self.0.take() else { return };
        let Ok(listens) = getsockopt(&fd, sockopt::AcceptConn) else {
            return; // No socket.
        };
        if !listens {
            let off = libc::linger {
                l_onoff: 0,
                l_linger: 0,
            };
            let _ = setsockopt(&fd, sockopt::Linger, &off);
        }
        // Not a listener's: it closes at once, and what it accepts for those who have duplicates
        // of it inherits the option. Where there is no thread to be had, this one closes.
        let _ = thread::Builder::new().spawn(move || drop(fd));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{ErrorKind, Write};
    use std::net::{TcpListener, TcpStream};
    use std::time::{Duration, Instant};

    /// A connection whose peer takes nothing more, and that lingers.
    fn lingering() -> (OwnedFd, TcpListener) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        stream.set_nonblocking(true).unwrap();
        let full = (0..100_000).find_map(|_| stream.write(&[0; 64 * 1024]).err());
        assert_eq!(full.expect("full").kind(), ErrorKind::WouldBlock);
        let on = libc::linger {
            l_onoff: 1,
            l_linger: 30,
        };
        setsockopt(&stream, sockopt::Linger, &on).unwrap();
        (stream.into(), listener)
    }

    #[test]
    fn a_listener_that_others_have_keeps_its_options() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let reset = libc::linger {
            l_onoff: 1,
            l_linger: 0,
        };
        setsockopt(&listener, sockopt::Linger, &reset).unwrap();
        drop(Handed::from(OwnedFd::from(listener.try_clone().unwrap())));
        let kept = getsockopt(&listener, sockopt::Linger).unwrap();
        assert_eq!((kept.l_onoff, kept.l_linger), (1, 0));
    }

    #[test]
    fn closing_what_lingers_holds_nobody_up() {
        let (fd, _listener) = lingering();
        let began = Instant::now();
        drop(Handed::from(fd));
        assert!(began.elapsed() < Duration::from_secs(5));
    }
}
