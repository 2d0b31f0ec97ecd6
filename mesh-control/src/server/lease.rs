//! How long a connection may last: until its client's certificate or token ends.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep};

/// Between the end of a certificate, when its calls are refused, and that of its connection.
const EXPIRY_GRACE: Duration = Duration::from_secs(5);

/// The last second of a connection, since the epoch. Calls may extend it.
#[derive(Clone, Debug, Default)]
pub(super) struct Lease(Arc<AtomicI64>);

impl Lease {
    /// Lets the connection last until then, if that is later.
    pub(super) fn extend(&self, not_after_s: i64) {
        self.0.fetch_max(not_after_s, Ordering::Relaxed);
    }
}

/// Rings when a lease is over.
pub(super) struct Alarm {
    lease: Lease,
    sleep: Pin<Box<Sleep>>,
}

impl Alarm {
    /// Rings after `at_least`, or when the lease is over.
    pub(super) fn new(lease: Lease, at_least: Duration) -> Self {
        let wait = at_least.max(left(&lease));
        Self {
            lease,
            sleep: Box::pin(sleep(wait)),
        }
    }

    /// Ready once it is over.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while self.sleep.as_mut().poll(cx).is_ready() {
            let left = left(&self.lease);
            if left.is_zero() {
                return Poll::Ready(());
            }
            self.sleep.as_mut().reset(Instant::now() + left);
        }
        Poll::Pending
    }
}

fn left(lease: &Lease) -> Duration {
    let left_s = lease.0.load(Ordering::Relaxed) - crate::now_s();
    match u64::try_from(left_s) {
        Ok(left_s) if left_s > 0 => Duration::from_secs(left_s) + EXPIRY_GRACE,
        _ => Duration::ZERO,
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    #[tokio::test]
    async fn a_lease_that_was_extended_lasts_longer() {
        let lease = Lease::default();
        let mut alarm = Alarm::new(lease.clone(), Duration::ZERO);
        poll_fn(|cx| alarm.poll(cx)).await;
        lease.extend(crate::now_s() + 3600);
        lease.extend(crate::now_s() - 10);
        let pending = poll_fn(|cx| Poll::Ready(alarm.poll(cx).is_pending())).await;
        assert!(pending, "still good");
    }
}
