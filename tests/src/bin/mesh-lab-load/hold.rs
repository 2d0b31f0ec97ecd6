//! Many connections to an HTTP server. Each asks once and is then kept: how long the first
//! answers take when all come at once, and what connections cost that stand idle.

use std::io::{self, Error, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use socket2::{Domain, Socket, Type};

use crate::open_loop::percentile;
use crate::tally::Load;

const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: server\r\n\r\n";
/// How long answers are waited for, at most.
const PATIENCE: Duration = Duration::from_secs(20);

/// Opens `total` connections, at most `load.at_once` of them unanswered at a time; says what
/// came of it in a line of JSON; and keeps them until the load's time is over.
pub(crate) fn run(load: &Load, total: usize) -> io::Result<()> {
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    let mut lines: Vec<Line> = Vec::with_capacity(total);
    let mut seen = Seen::default();
    let begun = Instant::now();
    while seen.all() < total && begun.elapsed() < PATIENCE {
        while lines.len() < total && lines.len() - seen.all() < load.at_once {
            match Line::begin(load.to, &epoll, lines.len()) {
                Ok(line) => lines.push(line),
                // Out of ports or descriptors: what is not begun fails too.
                Err(error) => return Err(told(lines.len(), &error)),
            }
        }
        let mut events = [EpollEvent::empty(); 64];
        let ready = epoll.wait(&mut events, EpollTimeout::from(100u8))?;
        for event in &events[..ready] {
            let index = usize::try_from(event.data()).map_err(Error::other)?;
            match lines[index].go_on(&epoll, index) {
                Ok(None) => {}
                Ok(Some(latency)) => seen.answered.push(latency),
                Err(error) => {
                    epoll.delete(&lines[index].stream)?;
                    seen.failed += 1;
                    seen.last_error = told(index, &error).to_string();
                }
            }
        }
    }
    println!("{}", seen.told(total, begun.elapsed()));
    thread::sleep(load.left());
    Ok(())
}

fn told(index: usize, error: &Error) -> Error {
    Error::new(error.kind(), format!("connection {index}: {error}"))
}

/// One connection.
struct Line {
    stream: TcpStream,
    begun: Instant,
    asked: bool,
}

impl Line {
    fn begin(to: SocketAddr, epoll: &Epoll, index: usize) -> io::Result<Self> {
        let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
        socket.set_nonblocking(true)?;
        let begun = Instant::now();
        match socket.connect(&to.into()) {
            Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => return Err(error),
            _ => {}
        }
        let stream = TcpStream::from(socket);
        epoll.add(&stream, event(EpollFlags::EPOLLOUT, index))?;
        Ok(Self {
            stream,
            begun,
            asked: false,
        })
    }

    /// Asks once it is connected; then, the time from its beginning to the first answer.
    fn go_on(&mut self, epoll: &Epoll, index: usize) -> io::Result<Option<Duration>> {
        if !self.asked {
            if let Some(error) = self.stream.take_error()? {
                return Err(error);
            }
            self.stream.write_all(REQUEST)?;
            self.asked = true;
            epoll.modify(&self.stream, &mut event(EpollFlags::EPOLLIN, index))?;
            return Ok(None);
        }
        match self.stream.read(&mut [0; 4 << 10])? {
            0 => Err(ErrorKind::UnexpectedEof.into()),
            _ => {
                epoll.delete(&self.stream)?;
                Ok(Some(self.begun.elapsed()))
            }
        }
    }
}

fn event(what: EpollFlags, index: usize) -> EpollEvent {
    EpollEvent::new(what, index as u64)
}

/// What became of the connections.
#[derive(Default)]
struct Seen {
    answered: Vec<Duration>,
    failed: usize,
    last_error: String,
}

impl Seen {
    fn all(&self) -> usize {
        self.answered.len() + self.failed
    }

    fn told(&self, total: usize, took: Duration) -> serde_json::Value {
        let us = |time: &Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        let mut all: Vec<u64> = self.answered.iter().map(us).collect();
        all.sort_unstable();
        serde_json::json!({
            "answered": all.len(),
            "errors": total - all.len(),
            "last_error": self.last_error,
            "seconds": took.as_secs_f64(),
            "p50_us": percentile(&all, 500),
            "p99_us": percentile(&all, 990),
            "max_us": all.last().copied().unwrap_or_default(),
        })
    }
}
