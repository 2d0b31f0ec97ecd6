//! What a load is to do, and what it has done.

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// Longest a single step may take: a load ends within this of its time.
const STEP: Duration = Duration::from_secs(2);
/// Rest after a refusal, so that a load that is refused everything does not become one on the
/// processor alone.
const REST: Duration = Duration::from_millis(1);

/// What to do.
#[derive(Debug)]
pub(crate) struct Load {
    pub(crate) to: SocketAddr,
    /// How many threads, connections or streams at once.
    pub(crate) at_once: usize,
    pub(crate) deadline: Instant,
}

/// What has been done.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    done: AtomicU64,
    refused: AtomicU64,
}

impl Tally {
    pub(crate) fn done(&self, n: u64) {
        self.done.fetch_add(n, Ordering::Relaxed);
    }

    pub(crate) fn refused(&self, n: u64) {
        self.refused.fetch_add(n, Ordering::Relaxed);
    }
}

impl Load {
    pub(crate) fn left(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }

    pub(crate) fn over(&self) -> bool {
        self.left().is_zero()
    }

    /// A connection, with time-outs on all that is done with it.
    pub(crate) fn connect(&self) -> io::Result<TcpStream> {
        self.connect_to(self.to)
    }

    pub(crate) fn connect_to(&self, to: SocketAddr) -> io::Result<TcpStream> {
        let stream = TcpStream::connect_timeout(&to, STEP)?;
        stream.set_read_timeout(Some(STEP))?;
        stream.set_write_timeout(Some(STEP))?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }

    /// Runs `body` in so many threads, each again and again until the time is over, and says
    /// what they did. What fails is counted as refused.
    pub(crate) fn run(
        &self,
        body: impl Fn(&Self, &Tally, usize) -> io::Result<()> + Sync,
    ) -> io::Result<()> {
        let tally = Tally::default();
        let begun = Instant::now();
        thread::scope(|scope| {
            for index in 0..self.at_once {
                let (body, tally) = (&body, &tally);
                let work = move || {
                    while !self.over() {
                        if body(self, tally, index).is_err() && !self.over() {
                            tally.refused(1);
                            thread::sleep(REST);
                        }
                    }
                };
                thread::Builder::new()
                    .stack_size(256 << 10)
                    .spawn_scoped(scope, work)?;
            }
            io::Result::Ok(())
        })?;
        self.tell(&tally, begun);
        Ok(())
    }

    /// Runs `body` once.
    pub(crate) fn run_once(
        &self,
        body: impl FnOnce(&Self, &Tally) -> io::Result<()>,
    ) -> io::Result<()> {
        let (tally, begun) = (Tally::default(), Instant::now());
        body(self, &tally)?;
        self.tell(&tally, begun);
        Ok(())
    }

    fn tell(&self, tally: &Tally, begun: Instant) {
        let said = serde_json::json!({
            "done": tally.done.load(Ordering::Relaxed),
            "refused": tally.refused.load(Ordering::Relaxed),
            "seconds": begun.elapsed().as_secs_f64(),
        });
        println!("{said}");
    }
}
