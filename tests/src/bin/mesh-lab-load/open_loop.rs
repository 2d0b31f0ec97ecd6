//! A steady rate of requests, sent when they are due whatever became of those before. Latency
//! counts from when a request was due, so one that could not be sent in time shows as late:
//! nothing is left out that a slow answer kept from being asked (coordinated omission).

use std::collections::VecDeque;
use std::io::{self, Error, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::ops::Range;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::time::TimeSpec;

use crate::app::{REQUEST, greeted};
use crate::tally::Load;

/// How long answers are waited for after the last request was due.
const AFTER: Duration = Duration::from_secs(2);
/// Length of the windows that the course over time is told in.
const WINDOW: Duration = Duration::from_millis(100);
/// Pause before a broken connection is opened again.
const REOPEN: Duration = Duration::from_millis(10);

/// One request after the other, round robin on so many connections. Percentiles are of those
/// that were due from the second `from_s` on, before `to_s`.
pub(crate) fn run(load: &Load, rate: f64, from_s: f64, to_s: f64) -> io::Result<()> {
    let mut lines = Vec::new();
    for _ in 0..load.at_once {
        lines.push(Line::open(load)?);
    }
    println!("open");
    let mut seen = Seen::default();
    let begun = Instant::now();
    let mut next = 0u64;
    loop {
        let now = Instant::now();
        let due = begun + Duration::from_secs_f64(next as f64 / rate);
        if due <= now && due < load.deadline {
            let index = usize::try_from(next).unwrap_or_default() % lines.len();
            lines[index].ask(load, next, due, &mut seen);
            next += 1;
            continue;
        }
        let waiting = lines.iter().any(|line| !line.asked.is_empty());
        let end = load.deadline + AFTER;
        if due >= load.deadline && (!waiting || now >= end) {
            break;
        }
        let until = if due < load.deadline { due } else { end };
        wait(&mut lines, until, &mut seen)?;
    }
    seen.errors += lines
        .iter()
        .map(|line| line.asked.len() as u64)
        .sum::<u64>();
    println!("{}", seen.told(begun, next, from_s..to_s));
    Ok(())
}

/// Waits for answers until then, and takes what there is.
fn wait(lines: &mut [Line], until: Instant, seen: &mut Seen) -> io::Result<()> {
    let timeout = until.saturating_duration_since(Instant::now());
    let ready: Vec<usize> = {
        let open = lines.iter().enumerate();
        let open: Vec<(usize, &Line)> = open.filter(|(_, l)| l.stream.is_some()).collect();
        let streams = open.iter().filter_map(|(_, line)| line.stream.as_ref());
        let mut fds: Vec<PollFd<'_>> = streams
            .map(|stream| PollFd::new(stream.as_fd(), PollFlags::POLLIN))
            .collect();
        ppoll(&mut fds, Some(TimeSpec::from_duration(timeout)), None)?;
        let answered = open.iter().zip(&fds);
        let answered = answered.filter(|(_, fd)| fd.any().unwrap_or(true));
        answered.map(|((index, _), _)| *index).collect()
    };
    for index in ready {
        lines[index].take(seen);
    }
    Ok(())
}

/// One connection.
struct Line {
    stream: Option<TcpStream>,
    /// Number and due time of each request that is not answered.
    asked: VecDeque<(u64, Instant)>,
    come: Vec<u8>,
    reopen_at: Instant,
}

impl Line {
    fn open(load: &Load) -> io::Result<Self> {
        Ok(Self {
            stream: Some(connect(load)?),
            asked: VecDeque::new(),
            come: Vec::new(),
            reopen_at: Instant::now(),
        })
    }

    fn ask(&mut self, load: &Load, number: u64, due: Instant, seen: &mut Seen) {
        if self.stream.is_none() && Instant::now() >= self.reopen_at {
            self.stream = connect(load).ok();
            self.reopen_at = Instant::now() + REOPEN;
            seen.reopened += u64::from(self.stream.is_some());
        }
        let sent = match &mut self.stream {
            None => Err(ErrorKind::NotConnected.into()),
            Some(stream) => stream.write_all(&request(number)),
        };
        self.asked.push_back((number, due));
        if let Err(error) = sent {
            self.fail(&error, seen);
        }
    }

    /// Takes the answers that have come.
    fn take(&mut self, seen: &mut Seen) {
        let mut chunk = [0; 16 << 10];
        let read = match &mut self.stream {
            None => return,
            Some(stream) => stream.read(&mut chunk),
        };
        match read {
            Ok(0) => self.fail(&ErrorKind::UnexpectedEof.into(), seen),
            Ok(n) => self.come.extend(&chunk[..n]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => self.fail(&error, seen),
        }
        let now = Instant::now();
        while let Some(answer) = self.come.first_chunk::<REQUEST>().copied() {
            let asked = self.asked.pop_front();
            match asked.filter(|(number, _)| answer == request(*number)) {
                Some((_, due)) => seen.answers.push((due, now)),
                None => {
                    self.asked.extend(asked);
                    return self.fail(&Error::other("a wrong answer"), seen);
                }
            }
            self.come.drain(..REQUEST);
        }
    }

    /// What was asked and not answered here is lost.
    fn fail(&mut self, error: &Error, seen: &mut Seen) {
        seen.errors += self.asked.len() as u64;
        seen.last_error = error.to_string();
        self.asked.clear();
        self.come.clear();
        self.stream = None;
    }
}

fn connect(load: &Load) -> io::Result<TcpStream> {
    let stream = greeted(load)?;
    stream.set_nonblocking(true)?;
    Ok(stream)
}

/// The request of that number, which is also its answer.
fn request(number: u64) -> [u8; REQUEST] {
    let mut bytes = [b'.'; REQUEST];
    bytes[..8].copy_from_slice(&number.to_be_bytes());
    bytes
}

/// What became of the requests.
#[derive(Default)]
struct Seen {
    /// When each was due, and when its answer came.
    answers: Vec<(Instant, Instant)>,
    errors: u64,
    reopened: u64,
    last_error: String,
}

impl Seen {
    fn told(&self, begun: Instant, asked: u64, measured: Range<f64>) -> serde_json::Value {
        let us = |(due, come): &(Instant, Instant)| {
            u64::try_from(come.duration_since(*due).as_micros()).unwrap_or(u64::MAX)
        };
        let counts = |(due, _): &&(Instant, Instant)| {
            measured.contains(&due.duration_since(begun).as_secs_f64())
        };
        let mut all: Vec<u64> = self.answers.iter().filter(counts).map(us).collect();
        all.sort_unstable();
        let last = self.answers.iter().map(|(_, come)| *come).max();
        let seconds = last.map_or(0.0, |last| last.duration_since(begun).as_secs_f64());
        let mut windows: Vec<Vec<u64>> = Vec::new();
        for answer in &self.answers {
            let at = answer.0.duration_since(begun).as_nanos() / WINDOW.as_nanos();
            let at = usize::try_from(at).unwrap_or_default();
            windows.resize(windows.len().max(at + 1), Vec::new());
            windows[at].push(us(answer));
        }
        let course: Vec<u64> = windows
            .iter_mut()
            .map(|window| {
                window.sort_unstable();
                percentile(window, 990)
            })
            .collect();
        serde_json::json!({
            "asked": asked,
            "answered": self.answers.len(),
            "measured": all.len(),
            "errors": self.errors,
            "reopened": self.reopened,
            "last_error": self.last_error,
            "seconds": seconds,
            "p50_us": percentile(&all, 500),
            "p99_us": percentile(&all, 990),
            "p999_us": percentile(&all, 999),
            "max_us": all.last().copied().unwrap_or_default(),
            "window_ms": WINDOW.as_millis(),
            "p99_us_by_window": course,
        })
    }
}

/// The smallest value that so many of a thousand of the sorted values don't exceed; 0 of none.
pub(crate) fn percentile(sorted: &[u64], of_1000: usize) -> u64 {
    let rank = (sorted.len() * of_1000).div_ceil(1000);
    let value = sorted.get(rank.saturating_sub(1));
    value.copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::percentile;

    #[test]
    fn percentiles_are_by_rank() {
        let hundred: Vec<u64> = (1..=100).collect();
        assert_eq!(percentile(&hundred, 500), 50);
        assert_eq!(percentile(&hundred, 990), 99);
        assert_eq!(percentile(&hundred, 999), 100);
        assert_eq!(percentile(&[7], 500), 7);
        assert_eq!(percentile(&[], 990), 0);
    }
}
