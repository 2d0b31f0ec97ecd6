//! Short requests at a steady rate, each on a connection of its own, to an HTTP server. Each has to
//! be answered; what isn't is told at once.

use std::io::{self, Error, Read, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::tally::Load;

const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: server\r\nConnection: close\r\n\r\n";
/// How often it is told how far it is.
const TELL_EVERY: Duration = Duration::from_millis(100);

/// What has become of the requests so far.
#[derive(Default)]
struct Seen {
    asked: AtomicU64,
    answered: AtomicU64,
    failed: AtomicU64,
}

/// `rate` requests a second, on at most `load.at_once` connections at a time. Until it ends it says
/// in one line of JSON after the other how many were asked, answered and failed, and in a line that
/// begins with "failed" of each that did.
pub(crate) fn run(load: &Load, rate: f64) -> io::Result<()> {
    let (seen, begun) = (Seen::default(), Instant::now());
    thread::scope(|scope| {
        for _ in 0..load.at_once {
            let seen = &seen;
            let work = move || {
                while !load.over() {
                    let number = seen.asked.fetch_add(1, Ordering::Relaxed);
                    let due = begun + Duration::from_secs_f64(number as f64 / rate);
                    thread::sleep(due.saturating_duration_since(Instant::now()));
                    match request(load) {
                        Ok(()) => seen.answered.fetch_add(1, Ordering::Relaxed),
                        Err(error) => {
                            let at_s = begun.elapsed().as_secs_f64();
                            println!("failed at {at_s:.3} s: {error}");
                            seen.failed.fetch_add(1, Ordering::Relaxed)
                        }
                    };
                }
            };
            thread::Builder::new()
                .stack_size(256 << 10)
                .spawn_scoped(scope, work)?;
        }
        while !load.over() {
            thread::sleep(TELL_EVERY);
            println!("{}", seen.told(begun));
        }
        io::Result::Ok(())
    })?;
    println!("{}", seen.told(begun));
    Ok(())
}

fn request(load: &Load) -> io::Result<()> {
    let mut stream = load.connect()?;
    stream.write_all(REQUEST)?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    match answer.starts_with(b"HTTP/1.1 200 ") {
        true => Ok(()),
        false => Err(Error::other(format!(
            "{} bytes that are no answer: {:?}",
            answer.len(),
            String::from_utf8_lossy(&answer[..answer.len().min(40)])
        ))),
    }
}

impl Seen {
    fn told(&self, begun: Instant) -> serde_json::Value {
        let of = |count: &AtomicU64| count.load(Ordering::Relaxed);
        serde_json::json!({
            "answered": of(&self.answered),
            "failed": of(&self.failed),
            "seconds": begun.elapsed().as_secs_f64(),
        })
    }
}
