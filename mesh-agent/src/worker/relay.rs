//! Carries one flow between the app's socket and a tunnel's stream, so that either end sees
//! what it would see of the other without the mesh: half-close, reset, backpressure.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::pin::pin;
use std::rc::Rc;
use std::task::{self, Poll};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use h2::{Reason as H2Reason, RecvStream, SendStream};
use mesh_api::worker::refusal::Outcome;
use mesh_core::reason::Reason;
use socket2::SockRef;
use tokio::io::Interest;
use tokio::net::TcpStream;

use super::chunk::{CHUNK, Chunk, InFlight, Read, read_app};
use super::context::Context;
use super::fault::{Direction, Fault};
use super::metrics::{Count, Metrics};
use super::rarely::rarely;
use super::{socket, turn};

/// How long a reset by the app waits for what the app had sent before.
const FLUSH_BEFORE_RESET: Duration = Duration::from_secs(1);
/// Slices handed to one write.
const SLICES: usize = 32;
/// Frames smaller than this are copied together while they wait for the app.
const SMALL_FRAME: usize = 4096;

/// From this much in one piece on, in bytes, a flow is a bulk one: the kernel is told how much of
/// it to hold. Others never have as much, and are spared the system calls.
const BULK: usize = 32 * 1024;

/// Bytes any flow may have waiting, however much others have.
const OWN_SHARE: usize = 64 * 1024;

/// Which counters a flow's bytes go to.
#[derive(Clone, Copy)]
pub(crate) struct ByteCounts {
    pub(crate) from_app: Count,
    pub(crate) to_app: Count,
}

impl ByteCounts {
    /// Of a flow that the app has begun.
    pub(crate) const OUTBOUND: Self = Self {
        from_app: Count::OutboundSent,
        to_app: Count::OutboundReceived,
    };
    /// Of a flow that somebody else has begun.
    pub(crate) const INBOUND: Self = Self {
        from_app: Count::InboundSent,
        to_app: Count::InboundReceived,
    };
}

/// Who ended a flow before its time.
enum Broken {
    ByApp,
    ByPeer,
    Shed,
    Cut,
}

/// Relays until both directions have ended, or either end has reset the flow; then the other
/// end is reset as well. Where `cut` ends first, both are reset at once. `app` is one that
/// [resets on close](socket::reset_on_close) until both have ended.
pub(crate) async fn relay(
    app: TcpStream,
    mut receive: RecvStream,
    send: SendStream<Chunk>,
    context: &Context,
    counts: ByteCounts,
    cut: impl Future<Output = ()> + Unpin,
) {
    let metrics = &context.metrics;
    let send = RefCell::new(send);
    let in_flight = InFlight::new(metrics.clone());
    let waiting = Cell::new(0);
    let mut queue = Queue::new(metrics.clone(), &waiting);
    let ended = {
        let up = up(&app, &send, &in_flight, context, counts.from_app);
        let down = down(&app, &mut receive, &mut queue, context, counts.to_app);
        let before_its_time = pin!(async {
            tokio::select! {
                biased;
                broken = watch(&app, &send) => broken,
                () = cut => Broken::Cut,
                () = memory_short(context, &waiting) => Broken::Shed,
            }
        });
        tokio::select! {
            biased;
            both = async { tokio::try_join!(up, down) } => both.map(|_| ()),
            broken = rarely(before_its_time) => Err(broken),
        }
    };
    match ended {
        Ok(()) => socket::close_orderly(&app),
        Err(Broken::ByPeer) => {
            deliver_rest(&app, &mut receive, &mut queue);
            socket::reset(app);
        }
        Err(Broken::Shed) => {
            metrics.add(Count::Shed, 1);
            tell_shed(context, &app, &waiting, counts);
            socket::reset(app);
            send.borrow_mut().send_reset(H2Reason::ENHANCE_YOUR_CALM);
        }
        Err(Broken::Cut) => {
            socket::reset(app);
            send.borrow_mut().send_reset(H2Reason::CANCEL);
        }
        Err(Broken::ByApp) => {
            drop(app);
            let flushed = flush(&mut receive, &in_flight);
            // Past this time the reset overtakes the data, as it may on any network.
            let _late = tokio::time::timeout(FLUSH_BEFORE_RESET, flushed).await;
            send.borrow_mut().send_reset(H2Reason::CANCEL);
        }
    }
}

/// Ends when memory is short and this flow has more waiting than its share.
async fn memory_short(context: &Context, waiting: &Cell<usize>) {
    loop {
        context.admission.memory.short().await;
        if waiting.get() > OWN_SHARE {
            return;
        }
    }
}

fn tell_shed(context: &Context, app: &TcpStream, waiting: &Cell<usize>, counts: ByteCounts) {
    let detail = format!("{} KiB waited for the app", waiting.get() / 1024);
    let fault = Fault::new(Reason::NotReading, detail);
    let app = app.peer_addr().map(socket::canonical);
    let app = app.map_or_else(|_| String::new(), |app| app.to_string());
    let nobody = String::new();
    let (direction, source, destination) = match counts.to_app {
        Count::OutboundReceived => (Direction::Outbound, app, nobody),
        _ => (Direction::Inbound, nobody, app),
    };
    let reports = &context.reports;
    reports.tell(Outcome::Cut, direction, &fault, source, destination);
}

/// App to tunnel. What the app writes is read only once the tunnel has room for it.
async fn up(
    app: &TcpStream,
    send: &RefCell<SendStream<Chunk>>,
    in_flight: &Rc<InFlight>,
    context: &Context,
    count: Count,
) -> Result<(), Broken> {
    let metrics = &context.metrics;
    let mut bulk = false;
    loop {
        app.readable().await.map_err(|_| Broken::ByApp)?;
        // Past a third of what may wait, each flow waits for its own bytes first.
        if metrics.get(Count::Buffered) > context.limits().buffered / 3 {
            in_flight.written().await;
        }
        let room = capacity(send).await?;
        match read_app(app, room).map_err(|_| Broken::ByApp)? {
            Read::NotReady => {}
            Read::Data(data) => {
                metrics.add(count, data.len() as u64);
                if data.len() >= BULK && !std::mem::replace(&mut bulk, true) {
                    socket::bound_received(app);
                }
                let chunk = Chunk::new(data, in_flight);
                let sent = send.borrow_mut().send_data(chunk, false);
                sent.map_err(|_| Broken::ByPeer)?;
            }
            Read::Eof => {
                let sent = send.borrow_mut().send_data(Chunk::empty(), true);
                return sent.map_err(|_| Broken::ByPeer);
            }
        }
    }
}

/// Room in the tunnel for at least one byte.
async fn capacity(send: &RefCell<SendStream<Chunk>>) -> Result<usize, Broken> {
    poll_fn(|cx| {
        let mut send = send.borrow_mut();
        let room = send.capacity();
        if room >= CHUNK {
            return Poll::Ready(Ok(room));
        }
        send.reserve_capacity(CHUNK);
        loop {
            let room = send.capacity();
            if room > 0 {
                return Poll::Ready(Ok(room));
            }
            match send.poll_capacity(cx) {
                Poll::Ready(Some(Ok(_))) => {}
                Poll::Ready(Some(Err(_)) | None) => return Poll::Ready(Err(Broken::ByPeer)),
                Poll::Pending => return Poll::Pending,
            }
        }
    })
    .await
}

/// Tunnel to app. Frames are taken out of HTTP/2 as they come, so that a stalled app's small
/// frames don't pile up there; the window opens again only for what the app's socket took.
async fn down(
    app: &TcpStream,
    receive: &mut RecvStream,
    queue: &mut Queue<'_>,
    context: &Context,
    count: Count,
) -> Result<(), Broken> {
    let metrics = &context.metrics;
    let (mut ended, mut bulk) = (false, false);
    poll_fn(|cx| {
        loop {
            if !ended {
                ended = queue.fill(receive, cx)?;
                let much = || metrics.get(Count::Buffered) > context.limits().buffered;
                if queue.waiting.get() > OWN_SHARE
                    && (much() || context.admission.memory.is_short())
                {
                    return Poll::Ready(Err(Broken::Shed));
                }
            }
            if queue.is_empty() {
                return if ended {
                    Poll::Ready(Ok(()))
                } else {
                    Poll::Pending
                };
            }
            if queue.waiting.get() >= BULK && !std::mem::replace(&mut bulk, true) {
                socket::bound_sent(app);
            }
            match app.poll_write_ready(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Err(_)) => return Poll::Ready(Err(Broken::ByApp)),
                Poll::Ready(Ok(())) => {}
            }
            match queue.write_to(app) {
                Ok(n) => {
                    metrics.add(count, n as u64);
                    // Fails only on a stream that is closed, where no window matters.
                    let _closed = receive.flow_control().release_capacity(n);
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => return Poll::Ready(Err(Broken::ByApp)),
            }
        }
    })
    .await?;
    socket::shutdown_write(app).map_err(|_| Broken::ByApp)
}

/// Notices a reset by either end while nobody reads or writes there.
async fn watch(app: &TcpStream, send: &RefCell<SendStream<Chunk>>) -> Broken {
    let by_app = async {
        // An error of this wait itself means the runtime is going away.
        let _ready = app.ready(Interest::ERROR).await;
        Broken::ByApp
    };
    let by_peer = poll_fn(|cx| send.borrow_mut().poll_reset(cx).map(|_| Broken::ByPeer));
    tokio::select! {
        broken = by_app => broken,
        broken = by_peer => broken,
    }
}

/// What came before the peer's reset is the app's, as far as its socket takes it at once.
fn deliver_rest(app: &TcpStream, receive: &mut RecvStream, queue: &mut Queue<'_>) {
    let mut cx = task::Context::from_waker(task::Waker::noop());
    // The reset itself is what ends this.
    let _reset = queue.fill(receive, &mut cx);
    while !queue.is_empty() && queue.write_to(app).is_ok_and(|n| n > 0) {}
}

/// Waits until what the app sent before it reset is on its way; what comes in is dropped.
async fn flush(receive: &mut RecvStream, in_flight: &InFlight) {
    let discard = async {
        while let Some(Ok(data)) = receive.data().await {
            let _closed = receive.flow_control().release_capacity(data.len());
        }
        std::future::pending::<()>().await;
    };
    tokio::select! {
        () = in_flight.written() => {}
        () = discard => {}
    }
}

/// What waits for the app.
struct Queue<'a> {
    frames: VecDeque<Bytes>,
    /// Small frames that came last, copied together.
    tail: BytesMut,
    /// Bytes in both.
    waiting: &'a Cell<usize>,
    metrics: Rc<Metrics>,
}

impl Drop for Queue<'_> {
    fn drop(&mut self) {
        self.metrics
            .subtract(Count::Buffered, self.waiting.get() as u64);
    }
}

impl<'a> Queue<'a> {
    fn new(metrics: Rc<Metrics>, waiting: &'a Cell<usize>) -> Self {
        Self {
            frames: VecDeque::new(),
            tail: BytesMut::new(),
            waiting,
            metrics,
        }
    }

    fn is_empty(&self) -> bool {
        self.waiting.get() == 0
    }

    /// Takes what is there; true when the peer has ended its direction.
    fn fill(
        &mut self,
        receive: &mut RecvStream,
        cx: &mut task::Context<'_>,
    ) -> Result<bool, Broken> {
        loop {
            match receive.poll_data(cx) {
                Poll::Ready(Some(Ok(data))) => self.push(data),
                Poll::Ready(Some(Err(_))) => return Err(Broken::ByPeer),
                Poll::Ready(None) => return Ok(true),
                Poll::Pending => return Ok(false),
            }
        }
    }

    fn push(&mut self, data: Bytes) {
        self.waiting.set(self.waiting.get() + data.len());
        self.metrics.add(Count::Buffered, data.len() as u64);
        let behind_others = !self.frames.is_empty() || !self.tail.is_empty();
        if data.len() < SMALL_FRAME && behind_others {
            self.tail.extend_from_slice(&data);
            return;
        }
        if !self.tail.is_empty() {
            self.frames.push_back(self.tail.split().freeze());
        }
        if !data.is_empty() {
            self.frames.push_back(data);
        }
    }

    /// One write; says how many bytes the socket took.
    fn write_to(&mut self, app: &TcpStream) -> io::Result<usize> {
        turn::give_way();
        let mut slices = [IoSlice::new(&[]); SLICES];
        let mut used = 0;
        let mut offered = 0;
        let tail = (!self.tail.is_empty()).then_some(&self.tail[..]);
        for data in self.frames.iter().map(|b| &b[..]).chain(tail).take(SLICES) {
            slices[used] = IoSlice::new(data);
            used += 1;
            offered += data.len();
        }
        let mut written = 0;
        let tried = app.try_io(Interest::WRITABLE, || {
            written = SockRef::from(app).send_vectored(&slices[..used])?;
            if written < offered {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            Ok(())
        });
        match tried {
            Err(e) if written == 0 => return Err(e),
            _ => {}
        }
        self.advance(written);
        Ok(written)
    }

    fn advance(&mut self, mut n: usize) {
        self.waiting.set(self.waiting.get() - n);
        self.metrics.subtract(Count::Buffered, n as u64);
        while n > 0 {
            let Some(first) = self.frames.front_mut() else {
                self.tail.advance(n);
                break;
            };
            let taken = n.min(first.len());
            first.advance(taken);
            n -= taken;
            if first.is_empty() {
                self.frames.pop_front();
            }
        }
        if self.is_empty() {
            // An idle flow holds no memory.
            self.frames = VecDeque::new();
            self.tail = BytesMut::new();
        }
    }
}
