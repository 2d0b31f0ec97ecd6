//! How much memory the worker has in use, as the kernel counts it against the limit at which it
//! would end the worker: its own, its kernel memory, and on cgroup v2 its socket buffers.

use std::cell::Cell;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use super::metrics::Metrics;

/// How old a measurement may be. In that time a core can make some 20 MiB of buffers.
const FRESH: Duration = Duration::from_millis(10);
/// How often it is looked whether flows are to be reset.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// The measurement, and who waits for memory to get short.
pub(crate) struct Memory {
    /// `memory.current` of the worker's cgroup.
    used: Option<File>,
    max: Cell<u64>,
    last: Cell<Option<(Instant, u64)>>,
    short: Notify,
}

impl Memory {
    /// Without a file or a maximum, in bytes, there is always room.
    pub(crate) fn new(used: Option<OwnedFd>, max: u64) -> Self {
        Self {
            used: used.map(File::from),
            max: Cell::new(max),
            last: Cell::new(None),
            short: Notify::new(),
        }
    }

    pub(crate) fn set_max(&self, max: u64) {
        self.max.set(max);
    }

    /// Bytes in use, and their limit; 0 and 0 where there is none.
    pub(crate) fn used(&self) -> (u64, u64) {
        let (Some(file), max @ 1..) = (&self.used, self.max.get()) else {
            return (0, 0);
        };
        let now = Instant::now();
        match self.last.get() {
            Some((at, used)) if now - at < FRESH => (used, max),
            _ => {
                // What can't be read says nothing: the kernel's own limit is left.
                let used = read(file).unwrap_or(0);
                self.last.set(Some((now, used)));
                (used, max)
            }
        }
    }

    /// Whether nine tenths are in use.
    pub(crate) fn is_short(&self) -> bool {
        let (used, max) = self.used();
        max > 0 && used >= max / 10 * 9
    }

    /// Looks for ever whether memory is short while flows are open, and tells who waits for that.
    /// A worker without a flow is not woken for it.
    pub(crate) async fn watch(&self, metrics: &Metrics) {
        loop {
            metrics.busy().await;
            tokio::time::sleep(LOOK_EVERY).await;
            if self.is_short() {
                self.short.notify_waiters();
            }
        }
    }

    /// Ends when memory is short.
    pub(crate) async fn short(&self) {
        self.short.notified().await;
    }
}

fn read(file: &File) -> Option<u64> {
    let mut text = [0; 24];
    let len = file.read_at(&mut text, 0).ok()?;
    let text = std::str::from_utf8(&text[..len]).ok()?;
    text.trim().parse().ok()
}
