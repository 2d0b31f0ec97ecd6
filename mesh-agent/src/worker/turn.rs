//! Takes turns with the node's other workers on a busy processor.
//!
//! The scheduler chooses anew when a process sleeps or wakes, but looks at one that just runs
//! on only each tick: every 4 ms at 250 Hz. A worker that always has something to do would make
//! others wait for that long, time and again. So it gives way by itself. With nobody else there
//! this is a system call that comes straight back.

use std::cell::Cell;
use std::time::{Duration, Instant};

/// How long a worker runs before it lets others have their turn. Shorter turns made a neighbour's
/// waits no shorter, and cost throughput.
const TURN: Duration = Duration::from_micros(300);
/// A wait that took longer than this was one: others could run meanwhile.
const SLEPT: Duration = Duration::from_micros(5);

thread_local! {
    static TURN_OF_THREAD: Turn = Turn::new(Instant::now());
}

/// The thread is about to wait for something to do.
pub(super) fn wait_begins() {
    TURN_OF_THREAD.with(|turn| turn.wait_begins(Instant::now()));
}

/// It has something to do again.
pub(super) fn wait_ends() {
    TURN_OF_THREAD.with(|turn| turn.wait_ends(Instant::now()));
}

/// Gives way if this thread has run for long enough. To be called often, where nothing waits
/// for the thread: before system calls that move data.
pub(crate) fn give_way() {
    TURN_OF_THREAD.with(|turn| {
        if turn.is_over(Instant::now()) {
            std::thread::yield_now();
            turn.begins(Instant::now());
        }
    });
}

/// Since when a thread runs.
struct Turn {
    begun: Cell<Instant>,
    waiting_since: Cell<Option<Instant>>,
}

impl Turn {
    fn new(now: Instant) -> Self {
        Self {
            begun: Cell::new(now),
            waiting_since: Cell::new(None),
        }
    }

    fn begins(&self, now: Instant) {
        self.begun.set(now);
    }

    fn is_over(&self, now: Instant) -> bool {
        now.duration_since(self.begun.get()) >= TURN
    }

    fn wait_begins(&self, now: Instant) {
        self.waiting_since.set(Some(now));
    }

    fn wait_ends(&self, now: Instant) {
        let since = self.waiting_since.take();
        if since.is_some_and(|since| now.duration_since(since) > SLEPT) {
            self.begins(now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const US: Duration = Duration::from_micros(1);

    #[test]
    fn a_turn_is_over_after_its_time_and_begins_anew_after_a_wait() {
        let start = Instant::now();
        let turn = Turn::new(start);
        assert!(!turn.is_over(start + TURN - US));
        assert!(turn.is_over(start + TURN));

        // There was something to do at once: nobody else has had the processor.
        turn.wait_begins(start + TURN);
        turn.wait_ends(start + TURN + US);
        assert!(turn.is_over(start + TURN + US));

        turn.wait_begins(start + TURN);
        turn.wait_ends(start + 2 * TURN);
        assert!(!turn.is_over(start + 3 * TURN - US));
        assert!(turn.is_over(start + 3 * TURN));
    }
}
