//! Traffic that goes on while other things happen, to the lab's own server.

use std::io::{self, BufRead, BufReader, Error, ErrorKind, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, setns};

use crate::{Pod, wait};

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// Between two words, and between two calls: there are other tests on the machine.
const PACE: Duration = Duration::from_millis(2);

/// A connection to the lab's server, which echoes.
#[derive(Debug)]
pub struct Conversation(BufReader<TcpStream>);

impl Conversation {
    /// Connects, from the namespace of the calling thread.
    ///
    /// # Errors
    /// As `connect`.
    pub fn open(to: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect_timeout(&to, wait::scaled(PATIENCE))?;
        stream.set_read_timeout(Some(wait::scaled(PATIENCE)))?;
        Ok(Self(BufReader::new(stream)))
    }

    /// Waits for the server's first line, which says who it takes the client for.
    ///
    /// # Errors
    /// If the connection fails, or the line is another.
    pub fn greeted(&mut self) -> io::Result<()> {
        let mut line = String::new();
        self.0.read_line(&mut line)?;
        let [own, to] = self.names()?;
        let expected = format!("accept={own} peer={own} local={to}\n");
        match line == expected {
            true => Ok(()),
            false => Err(Error::other(format!("{expected:?} was due, got {line:?}"))),
        }
    }

    /// Both ends' addresses, as the client sees them.
    ///
    /// # Errors
    /// If the connection is gone.
    pub fn names(&self) -> io::Result<[SocketAddr; 2]> {
        let stream = self.0.get_ref();
        let peer = stream.peer_addr().map_err(|error| match error.kind() {
            // It had one until it was reset.
            ErrorKind::NotConnected => Error::from_raw_os_error(libc::ECONNRESET),
            _ => error,
        });
        Ok([stream.local_addr()?, peer?])
    }

    /// Sends a number and has it echoed.
    ///
    /// # Errors
    /// If the connection fails, or something else comes back.
    pub fn say(&mut self, number: u64) -> io::Result<()> {
        let word = format!("{number}\n");
        self.0.get_mut().write_all(word.as_bytes())?;
        let mut line = String::new();
        self.0.read_line(&mut line)?;
        match line == word {
            true => Ok(()),
            false => Err(Error::other(format!("{word:?} came back as {line:?}"))),
        }
    }
}

/// One call: a new connection, used.
///
/// # Errors
/// As [`Conversation`]'s.
pub fn call(to: SocketAddr) -> io::Result<()> {
    let mut conversation = Conversation::open(to)?;
    conversation.greeted()?;
    conversation.say(1)
}

/// What a background client has seen.
#[derive(Debug, Default)]
pub struct Seen {
    /// Words exchanged, or calls answered.
    pub done: u64,
    /// The longest that one of them took.
    pub longest: Duration,
    /// What went wrong.
    pub failed: Vec<String>,
}

/// A client on a thread of its own.
#[derive(Debug)]
pub struct Traffic {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
    thread: JoinHandle<Seen>,
}

impl Traffic {
    /// One connection from a pod that is used all the time. Returns when it is.
    ///
    /// # Panics
    /// If it isn't in time.
    #[must_use]
    pub fn stream(from: &Pod, to: SocketAddr) -> Self {
        let traffic = Self::start(from, move || {
            let mut conversation = None;
            move |number| {
                let (conversation, names) = match &mut conversation {
                    Some(open) => open,
                    none => {
                        let mut new = Conversation::open(to)?;
                        new.greeted()?;
                        let names = new.names()?;
                        none.insert((new, names))
                    }
                };
                conversation.say(number)?;
                match conversation.names()? {
                    now if now == *names => Ok(()),
                    now => Err(Error::other(format!("{names:?} are called {now:?} now"))),
                }
            }
        });
        traffic.wait(10);
        traffic
    }

    /// One new connection after the other. Returns when there were some.
    ///
    /// # Panics
    /// If there are none in time.
    #[must_use]
    pub fn calls(from: &Pod, to: SocketAddr) -> Self {
        let traffic = Self::start(from, move || move |_| call(to));
        traffic.wait(10);
        traffic
    }

    /// Anything, time and again, from the pod's namespace: `client` is made there and gets the
    /// number of each time.
    ///
    /// # Panics
    /// If the pod's namespace can't be entered.
    pub fn start<F: FnMut(u64) -> io::Result<()>>(
        from: &Pod,
        client: impl FnOnce() -> F + Send + 'static,
    ) -> Self {
        let netns = from.netns.as_fd().try_clone_to_owned().unwrap();
        let (stop, done) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicU64::new(0)),
        );
        let (stopped, counted) = (stop.clone(), done.clone());
        let thread = thread::spawn(move || {
            setns(netns, CloneFlags::CLONE_NEWNET).unwrap();
            let mut step = client();
            let mut seen = Seen::default();
            for number in 0.. {
                let begun = Instant::now();
                match step(number) {
                    Ok(()) => seen.done = counted.fetch_add(1, Ordering::Release) + 1,
                    Err(error) => seen.failed.push(format!("at {number}: {error}")),
                }
                seen.longest = seen.longest.max(begun.elapsed());
                if stopped.load(Ordering::Acquire) {
                    break;
                }
                thread::sleep(PACE);
            }
            seen
        });
        Self { stop, done, thread }
    }

    /// Waits until so many more are done.
    ///
    /// # Panics
    /// If they aren't in time.
    pub fn wait(&self, more: u64) {
        let goal = self.done.load(Ordering::Acquire) + more;
        wait::until_true("traffic to go on", PATIENCE, || {
            Ok(self.done.load(Ordering::Acquire) >= goal)
        })
        .unwrap();
    }

    /// Ends it.
    ///
    /// # Panics
    /// If it has panicked.
    #[must_use]
    pub fn finish(self) -> Seen {
        self.stop.store(true, Ordering::Release);
        self.thread.join().unwrap()
    }

    /// Ends it; nothing must have gone wrong.
    ///
    /// # Panics
    /// If something has.
    pub fn finish_unharmed(self, what: &str) -> Seen {
        let seen = self.finish();
        assert!(seen.failed.is_empty(), "{what}: {:?}", seen.failed);
        println!(
            "{what}: {} done, the longest took {:?}",
            seen.done, seen.longest
        );
        seen
    }
}
