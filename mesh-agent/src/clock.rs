//! Hears of the node's wall clock being set. Certificates are judged by it; all else goes by clocks
//! that nobody sets.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::{SystemTime, UNIX_EPOCH};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Waits for steps of the wall clock: NTP that sets it, an operator, a machine that was corrected. One
/// that is only slowed or hurried takes none.
#[derive(Debug)]
pub(crate) struct ClockWatch {
    timer: AsyncFd<OwnedFd>,
    /// By how much the wall clock is ahead of the boot's, in milliseconds, as it was heard of last.
    ahead_ms: i64,
}

impl ClockWatch {
    /// Begins to listen, on this task's runtime.
    ///
    /// # Errors
    /// If the kernel makes no such timer.
    pub(crate) fn start() -> io::Result<Self> {
        let timer = timer()?;
        // SAFETY: the descriptor is owned by the `AsyncFd` and never replaced or closed in it.
        let timer = unsafe { AsyncFd::register_with_interest(timer, Interest::READABLE) };
        Ok(Self {
            timer: timer.map_err(|e| e.into_parts().1)?,
            ahead_ms: ahead_ms(),
        })
    }

    /// Waits until the clock is set; by how much, in milliseconds: more than 0 is forward. Dropping it
    /// loses nothing.
    ///
    /// # Errors
    /// If nothing can be heard any more.
    pub(crate) async fn set(&mut self) -> io::Result<i64> {
        loop {
            let mut ready = self.timer.readable().await?;
            match ready.try_io(|timer| read(timer.get_ref())) {
                // The timer itself never ends; and there was nothing to read after all.
                Ok(Ok(())) | Err(_) => {}
                Ok(Err(e)) if e.raw_os_error() == Some(libc::ECANCELED) => {
                    let now = ahead_ms();
                    let step = now - std::mem::replace(&mut self.ahead_ms, now);
                    return Ok(step);
                }
                Ok(Err(e)) => return Err(e),
            }
        }
    }
}

/// A timer that does not end, and that is cancelled when the wall clock is set (`timerfd_create(2)`):
/// again and again, for reading that makes it good again.
fn timer() -> io::Result<OwnedFd> {
    let flags = libc::TFD_NONBLOCK | libc::TFD_CLOEXEC;
    // SAFETY: flags alone.
    let fd = unsafe { libc::timerfd_create(libc::CLOCK_REALTIME, flags) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor for us.
    let timer = unsafe { OwnedFd::from_raw_fd(fd) };
    let none = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    let never = libc::itimerspec {
        it_interval: none,
        it_value: libc::timespec {
            tv_sec: libc::time_t::MAX,
            tv_nsec: 0,
        },
    };
    let flags = libc::TFD_TIMER_ABSTIME | libc::TFD_TIMER_CANCEL_ON_SET;
    // SAFETY: the descriptor is open, the new value lives on this stack, the old one is not asked for.
    let set =
        unsafe { libc::timerfd_settime(timer.as_raw_fd(), flags, &never, std::ptr::null_mut()) };
    match set {
        0 => Ok(timer),
        _ => Err(io::Error::last_os_error()),
    }
}

fn read(timer: &OwnedFd) -> io::Result<()> {
    Ok(nix::unistd::read(timer, &mut [0; 8]).map(drop)?)
}

/// By how much the wall clock is ahead of the one that counts from the boot, in milliseconds.
fn ahead_ms() -> i64 {
    let wall = SystemTime::now().duration_since(UNIX_EPOCH);
    let wall = wall.map_or(0, |d| i64::try_from(d.as_millis()).unwrap_or(i64::MAX));
    wall - since_boot_ms()
}

/// What the machine has been up for, sleep included, in milliseconds.
fn since_boot_ms() -> i64 {
    let mut now = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `now` outlives the call. Every kernel has this clock, so it can't fail.
    unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &raw mut now) };
    now.tv_sec * 1_000 + now.tv_nsec / 1_000_000
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn nothing_is_heard_of_a_clock_that_nobody_sets() {
        let mut clock = ClockWatch::start().unwrap();
        let heard = tokio::time::timeout(Duration::from_millis(50), clock.set()).await;
        assert!(heard.is_err(), "{heard:?}");
        assert!((ahead_ms() - clock.ahead_ms).abs() < 1_000);
    }
}
