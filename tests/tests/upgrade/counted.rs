//! Long-lived connections that count: each end numbers what it sends and checks the numbers of what
//! it gets, so that a byte that is lost, doubled or out of place shows at either end.

use std::io::{self, Error, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use mesh_lab::{Pod, wait};

/// Bytes of one piece: the number, time and again.
const PIECE: usize = 1_024;
/// Between two pieces of one connection.
const PACE: Duration = Duration::from_millis(20);
/// How long the other end's next piece may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// What one end has done: pieces sent, pieces got.
type Ended = io::Result<(u64, u64)>;

/// So many connections between two pods.
pub(crate) struct Counted {
    stop: Arc<AtomicBool>,
    pieces: Arc<AtomicU64>,
    ends: Vec<[JoinHandle<Ended>; 2]>,
}

fn piece(number: u64) -> [u8; PIECE] {
    let mut bytes = [0; PIECE];
    for word in bytes.chunks_exact_mut(8) {
        word.copy_from_slice(&number.to_be_bytes());
    }
    bytes
}

/// Reads the piece of that number; false at an end of file in its place.
fn expect(stream: &mut TcpStream, number: u64) -> io::Result<bool> {
    let mut got = [0; PIECE];
    let mut len = 0;
    while len < PIECE {
        match stream.read(&mut got[len..])? {
            0 if len == 0 => return Ok(false),
            0 => return Err(Error::new(ErrorKind::UnexpectedEof, "within a piece")),
            n => len += n,
        }
    }
    match got == piece(number) {
        true => Ok(true),
        false => Err(Error::other(format!("piece {number} is another"))),
    }
}

fn client(mut stream: TcpStream, stop: &AtomicBool, pieces: &AtomicU64) -> Ended {
    let mut number = 0;
    while !stop.load(Ordering::Acquire) {
        stream.write_all(&piece(number))?;
        if !expect(&mut stream, !number)? {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        number += 1;
        pieces.fetch_add(1, Ordering::Relaxed);
        thread::sleep(PACE);
    }
    stream.shutdown(std::net::Shutdown::Write)?;
    match stream.read(&mut [0])? {
        0 => Ok((number, number)),
        _ => Err(Error::other("more than was sent")),
    }
}

fn server(mut stream: TcpStream) -> Ended {
    let mut number = 0;
    while expect(&mut stream, number)? {
        stream.write_all(&piece(!number))?;
        number += 1;
    }
    Ok((number, number))
}

fn spawn(work: impl FnOnce() -> Ended + Send + 'static) -> JoinHandle<Ended> {
    let thread = thread::Builder::new().stack_size(128 << 10);
    thread.spawn(work).unwrap()
}

impl Counted {
    /// Opens them all; each has carried something when it returns.
    pub(crate) fn open(from: &Pod, to: &Pod, port: u16, connections: usize) -> Self {
        let at = SocketAddr::new(to.v4().into(), port);
        let listener = to.netns.run(|| TcpListener::bind(at)).unwrap();
        let (stop, pieces) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicU64::new(0)),
        );
        let patient = |stream: TcpStream| {
            stream
                .set_read_timeout(Some(wait::scaled(PATIENCE)))
                .unwrap();
            stream.set_nodelay(true).unwrap();
            stream
        };
        let open = |_| {
            let near = from.netns.run(|| TcpStream::connect(at)).unwrap();
            let near = patient(near);
            let far = patient(listener.accept().unwrap().0);
            let (stop, pieces) = (stop.clone(), pieces.clone());
            [
                spawn(move || client(near, &stop, &pieces)),
                spawn(move || server(far)),
            ]
        };
        let ends = (0..connections).map(open).collect();
        let counted = Self { stop, pieces, ends };
        counted.wait(connections as u64);
        counted
    }

    /// Waits until so many more pieces have gone there and back.
    pub(crate) fn wait(&self, more: u64) {
        let goal = self.pieces.load(Ordering::Relaxed) + more;
        wait::until_true("counted connections to go on", PATIENCE, || {
            Ok(self.pieces.load(Ordering::Relaxed) >= goal)
        })
        .unwrap_or_else(|e| {
            self.assert_open();
            panic!("{e:#}")
        });
    }

    /// None has ended.
    pub(crate) fn assert_open(&self) {
        let ended = |ends: &[JoinHandle<Ended>; 2]| ends.iter().any(JoinHandle::is_finished);
        let ended = self.ends.iter().filter(|ends| ended(ends)).count();
        assert_eq!(
            ended,
            0,
            "connections of {} that have ended",
            self.ends.len()
        );
    }

    /// Ends them; both ends of each must have seen everything, in order.
    pub(crate) fn finish_unharmed(self) -> u64 {
        self.stop.store(true, Ordering::Release);
        let mut faults = Vec::new();
        for (index, ends) in self.ends.into_iter().enumerate() {
            let [near, far] = ends.map(|end| end.join().unwrap());
            match (near, far) {
                (Ok(near), Ok(far)) if near == far && near.0 > 0 => {}
                (near, far) => faults.push(format!("{index}: {near:?}, {far:?}")),
            }
        }
        assert!(
            faults.is_empty(),
            "{} connections: {faults:#?}",
            faults.len()
        );
        self.pieces.load(Ordering::Relaxed)
    }
}
