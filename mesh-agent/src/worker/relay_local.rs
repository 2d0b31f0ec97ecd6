//! Carries a flow between two sockets: an app that calls its own pod's address, and whatever
//! passes in plain.

use std::io;
use std::net::Shutdown;

use bytes::{Buf, Bytes};
use socket2::SockRef;
use tokio::io::Interest;
use tokio::net::TcpStream;

use super::chunk::{CHUNK, Read, read_app};
use super::metrics::{Count, Metrics};
use super::relay::ByteCounts;
use super::socket;

/// Chunks one direction carries before the other tasks of the worker get their turn.
const TURN: usize = 16;

/// Relays until both directions have ended; a reset of one end resets the other, and the end
/// of `cut` resets both. Both [reset on close](socket::reset_on_close) until then.
pub(crate) async fn relay_local(
    app: TcpStream,
    other: TcpStream,
    metrics: &Metrics,
    counts: ByteCounts,
    cut: impl Future<Output = ()> + Unpin,
) {
    let ended = tokio::select! {
        biased;
        both = async {
            tokio::try_join!(
                one_way(&app, &other, metrics, counts.from_app),
                one_way(&other, &app, metrics, counts.to_app),
            )
        } => both.map(|_| ()),
        // Which of the two failed does not matter: both get reset.
        _ = app.ready(Interest::ERROR) => Err(io::ErrorKind::ConnectionReset.into()),
        _ = other.ready(Interest::ERROR) => Err(io::ErrorKind::ConnectionReset.into()),
        () = cut => Err(io::ErrorKind::ConnectionAborted.into()),
    };
    if ended.is_ok() {
        socket::close_orderly(&app);
        socket::close_orderly(&other);
    }
}

async fn one_way(
    from: &TcpStream,
    to: &TcpStream,
    metrics: &Metrics,
    count: Count,
) -> io::Result<()> {
    let mut turn = 0;
    loop {
        from.readable().await?;
        // Room first, so that a stalled reader makes its writer wait in the kernel.
        to.writable().await?;
        match read_app(from, CHUNK)? {
            Read::NotReady => {}
            Read::Data(data) => {
                metrics.add(count, data.len() as u64);
                write_all(to, data).await?;
            }
            Read::Eof => return SockRef::from(to).shutdown(Shutdown::Write),
        }
        turn += 1;
        if turn % TURN == 0 {
            tokio::task::yield_now().await;
        }
    }
}

async fn write_all(to: &TcpStream, mut data: Bytes) -> io::Result<()> {
    while data.has_remaining() {
        match to.try_write(&data) {
            Ok(n) => data.advance(n),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => to.writable().await?,
            Err(e) => return Err(e),
        }
    }
    Ok(())
}
