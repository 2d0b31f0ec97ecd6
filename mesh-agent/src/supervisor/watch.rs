//! When to look at a pod's namespace: at once when its devices, addresses or routes change,
//! and now and then for what the kernel doesn't tell of.
//!
//! What the kernel tells is not read, only that it tells. The looks that follow are what costs: a
//! look is bounded (`netlink::DUMP_LIMIT`), and they have a pace, whatever the pod does. While it rests nothing is taken from the socket,
//! which is small; what finds no room there costs the pod, not the supervisor.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use futures_util::FutureExt as _;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::{Instant, sleep_until};

use super::netlink;
use super::netns::{Netns, NetnsError};

/// Between two looks for what nobody tells of: settings, and tampering with what was repaired.
const EVERY: Duration = Duration::from_secs(5);
/// Between two looks that were asked for, at least, and at most while they are asked for on end.
const REST: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(250));
/// Messages that are let go of before a look; those that are left lead to the next one.
const MOST_MESSAGES: usize = 1_024;

/// Why to look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Due {
    /// Something has changed.
    Changed,
    /// It is time.
    Time,
}

/// One pod's watch.
#[derive(Debug)]
pub(super) struct Watch {
    socket: Option<AsyncFd<OwnedFd>>,
    pace: Pace,
}

impl Watch {
    /// Watches a namespace. Where the kernel can't tell of changes they are found by the clock.
    pub(super) fn start(netns: &Netns, now: Instant) -> (Self, Result<(), NetnsError>) {
        let socket = netns.inside("subscribing to changes of devices", netlink::subscribe);
        let (socket, outcome) = match socket.and_then(register) {
            Ok(socket) => (Some(socket), Ok(())),
            Err(e) => (None, Err(e)),
        };
        let pace = Pace::new(now);
        (Self { socket, pace }, outcome)
    }

    /// Waits until a look is due. Dropping it loses nothing.
    pub(super) async fn due(&mut self) -> Due {
        loop {
            let rest_ends = self.pace.rest_ends();
            if self.pace.changed {
                sleep_until(rest_ends).await;
                self.drain();
                return Due::Changed;
            }
            let at = self.pace.look_at;
            match &self.socket {
                None => {
                    sleep_until(at).await;
                    return Due::Time;
                }
                Some(socket) => tokio::select! {
                    // An error is news too: that there was no room.
                    _ = socket.readable() => self.pace.changed = true,
                    () = sleep_until(at) => return Due::Time,
                },
            }
        }
    }

    /// There was a look at that time.
    pub(super) fn looked(&mut self, at: Instant) {
        self.pace.looked(at);
    }

    /// Lets go of what the kernel has told so far, unread.
    fn drain(&mut self) {
        self.pace.changed = false;
        let Some(socket) = &self.socket else {
            return;
        };
        // First, so that what comes meanwhile makes it ready again.
        let Some(Ok(mut ready)) = socket.readable().now_or_never() else {
            return;
        };
        let fd = socket.get_ref().as_raw_fd();
        for _ in 0..MOST_MESSAGES {
            let mut byte = [0u8; 1];
            // SAFETY: the buffer is as long as said.
            let got = unsafe { libc::recv(fd, byte.as_mut_ptr().cast(), 1, libc::MSG_DONTWAIT) };
            let error = (got < 0).then(io::Error::last_os_error);
            match error.and_then(|e| e.raw_os_error()) {
                // A message, or that others found no room.
                None | Some(libc::ENOBUFS | libc::EINTR) => {}
                Some(_) => return ready.clear_ready(),
            }
        }
    }
}

fn register(socket: OwnedFd) -> Result<AsyncFd<OwnedFd>, NetnsError> {
    // SAFETY: the descriptor is owned by the `AsyncFd` and never replaced or closed in it.
    let registered = unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE) };
    registered.map_err(|e| NetnsError::Inside {
        action: "waiting for changes of devices",
        source: e.into_parts().1,
    })
}

/// How soon one look follows another, over time that is given.
#[derive(Debug)]
struct Pace {
    changed: bool,
    /// When to look though nothing is told.
    look_at: Instant,
    last: Option<Instant>,
    rest: Duration,
}

impl Pace {
    fn new(now: Instant) -> Self {
        Self {
            changed: false,
            look_at: now + EVERY,
            last: None,
            rest: Duration::ZERO,
        }
    }

    fn rest_ends(&self) -> Instant {
        self.last
            .map_or(self.look_at - EVERY, |last| last + self.rest)
    }

    fn looked(&mut self, at: Instant) {
        let quiet = self.last.is_none_or(|last| at >= last + self.rest + REST.1);
        self.rest = match quiet {
            true => REST.0,
            false => (self.rest * 2).clamp(REST.0, REST.1),
        };
        self.last = Some(at);
        self.look_at = at + EVERY;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_look_is_at_once_and_a_flood_of_changes_is_looked_at_four_times_a_second() {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        assert!(pace.rest_ends() <= start);
        let (mut now, mut looks) = (start, 0);
        while now < start + Duration::from_secs(10) {
            pace.looked(now);
            now = pace.rest_ends();
            looks += 1;
        }
        assert!((40..=44).contains(&looks), "{looks}");
        // After a quiet second it is at once again.
        let later = now + Duration::from_secs(1);
        assert!(pace.rest_ends() <= later);
        pace.looked(later);
        assert_eq!(pace.rest_ends(), later + REST.0);
    }
}
