//! One HBONE tunnel to another workload: connect, prove, and keep it driven.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use h2::client::{Connection, ResponseFuture, SendRequest};
use h2::{Ping, PingPong, SendStream};
use http::Request;
use mesh_common::PORT_HBONE;
use mesh_core::reason::Reason;
use rustls::pki_types::ServerName;
use tokio::sync::{Notify, oneshot};
use tokio::task::spawn_local;
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::chunk::Chunk;
use super::context::Context;
use super::discovery::Endpoint;
use super::fault::{Direction, Fault};
use super::metrics::{Count, OpenGuard};
use super::peer_settings::{Observed, PeerSettings};
use super::standing::Standing;
use super::tls::{self, ReadAhead};
use super::{original_port, proofs};

/// Receive window of one stream, in bytes. Every stream has its own room in the connection's
/// window, so one that is not read holds up no other.
pub(crate) const STREAM_WINDOW: u32 = 1 << 20;
/// Largest frame that is taken, in bytes.
pub(crate) const MAX_FRAME: u32 = 1 << 20;
/// Bytes one stream may have waiting for the tunnel's socket.
pub(crate) const SEND_BUFFER: usize = 256 * 1024;
/// Largest header list that is taken, in bytes.
pub(crate) const MAX_HEADERS: u32 = 16 * 1024;
/// Streams that were reset and whose late frames are still known, and for how long.
pub(crate) const RESET_STREAMS: usize = 1024;
const PING_EVERY: Duration = Duration::from_secs(10);
const PONG_WITHIN: Duration = Duration::from_secs(20);
/// A tunnel without streams is closed after this time.
const IDLE: Duration = Duration::from_secs(300);

type Io = Observed<TlsStream<ReadAhead>>;

/// Window of a whole connection with room for every stream's.
pub(crate) fn connection_window(streams: u32) -> u32 {
    const MAX: u32 = (1 << 31) - 1;
    streams.saturating_mul(STREAM_WINDOW).min(MAX)
}

/// A tunnel that streams can be opened in.
pub(crate) struct Tunnel {
    sender: RefCell<Option<SendRequest<Chunk>>>,
    settings: Rc<PeerSettings>,
    own_limit: u64,
    address: SocketAddr,
    parameters: String,
    streams: Cell<u64>,
    idle_since: Cell<Instant>,
    retired: Cell<bool>,
    doubted: Cell<bool>,
    doubt_changed: Notify,
    standing: Rc<Standing>,
    /// It has no stream left, and takes none.
    done: Notify,
}

/// Drives a tunnel until it ends.
pub(crate) struct Driver {
    connection: Connection<Io, Chunk>,
    ping: PingPong,
    tunnel: Rc<Tunnel>,
    ready: Option<oneshot::Sender<()>>,
    _open: OpenGuard,
}

impl Tunnel {
    /// Connects to the worker of `endpoint`, at `to`, and does the handshakes. The tunnel is usable
    /// once the driver, which must be run, sends on the receiver.
    pub(crate) async fn connect(
        context: &Rc<Context>,
        endpoint: &Endpoint,
        to: SocketAddr,
    ) -> Result<(Rc<Self>, Driver, oneshot::Receiver<()>), Fault> {
        let credentials = context.valid_credentials()?;
        let config = credentials
            .client(&endpoint.identity)
            .map_err(|e| Fault::new(Reason::TunnelTls, e))?;
        let stream = match to.port() {
            PORT_HBONE => context.dial(to).await,
            _ => original_port::dial(context, to).await,
        };
        let stream = stream.map_err(|e| Fault::new(Reason::TunnelConnect, format!("{to}: {e}")))?;
        let name = ServerName::IpAddress(to.ip().into());
        let handshake = TlsConnector::from(config).connect(name, ReadAhead::new(stream));
        let mut tls = timeout(context.limits().handshake_timeout, handshake)
            .await
            .map_err(|_| Fault::new(Reason::HandshakeTimeout, format!("with {to}")))
            .and_then(|done| done.map_err(|error| tls::fault_of(&error)))
            .inspect_err(|fault| {
                context
                    .metrics
                    .handshake_failed(Direction::Outbound, fault.reason);
            })?;
        context.metrics.add(Count::HandshakesOutbound, 1);
        tls.get_mut().1.set_buffer_limit(Some(tls::WRITE_BUFFER));
        let (direction, metrics) = (Direction::Outbound, &context.metrics);
        let standing = Standing::new(direction, tls.get_ref().1, credentials, metrics)?;
        let parameters = tls::parameters(tls.get_ref().1);
        let settings = PeerSettings::new();
        let limit = context.limits().streams_per_tunnel;
        let (sender, mut connection) = h2::client::Builder::new()
            .initial_window_size(STREAM_WINDOW)
            .initial_connection_window_size(connection_window(limit))
            .max_frame_size(MAX_FRAME)
            .max_header_list_size(MAX_HEADERS)
            .max_send_buffer_size(SEND_BUFFER)
            .max_concurrent_reset_streams(RESET_STREAMS)
            .enable_push(false)
            .handshake(Observed::new(tls, settings.clone()))
            .await
            .map_err(|e| Fault::new(Reason::TunnelProtocol, e))?;
        let ping = connection
            .ping_pong()
            .ok_or_else(|| Fault::new(Reason::TunnelProtocol, "no ping on a new connection"))?;
        let tunnel = Rc::new(Self {
            sender: RefCell::new(Some(sender)),
            settings,
            own_limit: limit.into(),
            address: to,
            parameters,
            streams: Cell::new(0),
            idle_since: Cell::new(Instant::now()),
            retired: Cell::new(false),
            doubted: Cell::new(false),
            doubt_changed: Notify::new(),
            standing,
            done: Notify::new(),
        });
        if tunnel.standing.proves_anew() {
            let asked = tunnel.request(proofs::request());
            let (answer, send) = asked.map_err(|e| Fault::new(Reason::TunnelProtocol, e))?;
            spawn_local(tunnel.clone().prove_anew(context.clone(), answer, send));
        }
        let (ready, is_ready) = oneshot::channel();
        let driver = Driver {
            connection,
            ping,
            tunnel: tunnel.clone(),
            ready: Some(ready),
            _open: context.metrics.open(Count::TunnelsOutbound),
        };
        Ok((tunnel, driver, is_ready))
    }

    /// Streams this tunnel can carry without one holding up another.
    pub(crate) fn limit(&self) -> u64 {
        // The stream for proofs has room of its own.
        let others = u64::from(self.standing.proves_anew());
        let streams = self.settings.independent_streams().saturating_sub(others);
        streams.max(1).min(self.own_limit)
    }

    /// Keeps the stream for proofs for as long as the tunnel has others, or takes them.
    async fn prove_anew(
        self: Rc<Self>,
        context: Rc<Context>,
        answer: ResponseFuture,
        send: SendStream<Chunk>,
    ) {
        let exchange = async {
            // Without an answer the tunnel ends with what has been proven in it.
            if let Ok(answer) = answer.await
                && answer.status().is_success()
            {
                let standing = self.standing.clone();
                proofs::exchange(context, standing, send, answer.into_body()).await;
            }
        };
        tokio::select! {
            () = exchange => {}
            () = self.done() => {}
        }
    }

    /// Ends when it has no stream left and takes none.
    async fn done(&self) {
        loop {
            let mut done = pin!(self.done.notified());
            done.as_mut().enable();
            if self.sender.borrow().is_none() {
                return;
            }
            done.await;
        }
    }

    fn close(&self) {
        self.sender.borrow_mut().take();
        self.done.notify_waiters();
    }

    /// Whether one more stream may be opened.
    pub(crate) fn has_room(&self) -> bool {
        self.is_usable() && !self.doubted.get() && self.streams.get() < self.limit()
    }

    /// Whether new streams may be opened at all.
    pub(crate) fn is_usable(&self) -> bool {
        !self.retired.get() && !self.settings.leaving() && self.sender.borrow().is_some()
    }

    /// Protocol version, cipher suite and key exchange.
    pub(crate) fn parameters(&self) -> &str {
        &self.parameters
    }

    pub(crate) fn streams(&self) -> u64 {
        self.streams.get()
    }

    /// When its last stream ended.
    pub(crate) fn idle_since(&self) -> Instant {
        self.idle_since.get()
    }

    /// Takes a stream's place.
    pub(crate) fn enter(&self) {
        self.streams.set(self.streams.get() + 1);
    }

    /// Gives a stream's place back.
    pub(crate) fn leave(&self) {
        self.streams.set(self.streams.get() - 1);
        self.idle_since.set(Instant::now());
        if self.retired.get() && self.streams.get() == 0 {
            self.close();
        }
    }

    /// No new streams from now on; closed once the last one ends.
    pub(crate) fn retire(&self) {
        self.retired.set(true);
        if self.streams.get() == 0 {
            self.close();
        }
    }

    /// Takes no new streams until a ping, sent at once, is answered.
    pub(crate) fn doubt(&self) {
        self.doubted.set(true);
        self.doubt_changed.notify_waiters();
    }

    /// Ends when the tunnel is in no doubt.
    pub(crate) async fn trusted(&self) {
        self.doubt_is(false).await;
    }

    async fn doubt_is(&self, wanted: bool) {
        loop {
            let mut changed = pin!(self.doubt_changed.notified());
            changed.as_mut().enable();
            if self.doubted.get() == wanted {
                return;
            }
            changed.await;
        }
    }

    /// Opens a stream.
    pub(crate) fn request(
        &self,
        request: Request<()>,
    ) -> Result<(ResponseFuture, SendStream<Chunk>), h2::Error> {
        let mut sender = self
            .sender
            .borrow()
            .clone()
            .ok_or(h2::Error::from(h2::Reason::REFUSED_STREAM))?;
        sender.send_request(request, false)
    }

    /// From here on windows are replenished, not opened.
    pub(crate) fn data_sent(&self) {
        self.settings.data_sent();
    }
}

impl Driver {
    /// Drives the connection until it ends; `changed` is called when room may have appeared.
    pub(crate) async fn run(self, context: &Context, changed: impl Fn()) -> Result<(), Fault> {
        let Self {
            mut connection,
            ping,
            tunnel,
            mut ready,
            _open,
        } = self;
        let settings = tunnel.settings.clone();
        let driven = poll_fn(|cx| {
            let polled = Future::poll(pin!(&mut connection), cx);
            // Before it is heard out the peer seems to allow next to nothing.
            if settings.take_changed() && settings.heard() {
                if let Some(ready) = ready.take() {
                    // Nobody waits any more: the tunnel serves whoever comes.
                    let _gone = ready.send(());
                }
                // Those who have streams in it keep them; without any it is closed.
                if settings.leaving() {
                    tunnel.retire();
                }
                changed();
            }
            polled
        });
        let result = tokio::select! {
            ended = driven => ended.map_err(|error| fault_of_h2(&error)),
            fault = keep_alive(ping, &tunnel, &changed) => Err(fault),
            fault = tunnel.standing.kept(context) => {
                let (to, streams) = (tunnel.address, tunnel.streams.get());
                context.reports.tunnel_cut(Direction::Outbound, &fault, to, streams);
                Err(fault)
            }
        };
        // What is left of it gets no room, and nobody waits for it.
        tunnel.retired.set(true);
        tunnel.close();
        result
    }
}

/// Pings; lets go of a tunnel that has been idle for long. Returns when the peer is silent.
async fn keep_alive(mut ping: PingPong, tunnel: &Tunnel, changed: impl Fn()) -> Fault {
    loop {
        // A doubt that came up while the last ping was out gets one of its own.
        let doubted = timeout(PING_EVERY, tunnel.doubt_is(true)).await.is_ok();
        match timeout(PONG_WITHIN, ping.ping(Ping::opaque())).await {
            Ok(Ok(_)) if doubted => {
                tunnel.doubted.set(false);
                tunnel.doubt_changed.notify_waiters();
                changed();
            }
            Ok(Ok(_)) => {}
            Ok(Err(error)) => return fault_of_h2(&error),
            Err(_) => return Fault::new(Reason::TunnelProtocol, "no answer to a ping in 20 s"),
        }
        if tunnel.streams.get() == 0 && tunnel.idle_since.get().elapsed() >= IDLE {
            tunnel.retire();
        }
    }
}

/// The same for tunnels of others: returns when the peer is silent.
pub(crate) async fn keep_alive_inbound(mut ping: PingPong) {
    loop {
        tokio::time::sleep(PING_EVERY).await;
        match timeout(PONG_WITHIN, ping.ping(Ping::opaque())).await {
            Ok(Ok(_)) => {}
            Ok(Err(_)) | Err(_) => return,
        }
    }
}

/// Why a tunnel broke; a TLS alert of the peer comes out as that.
pub(crate) fn fault_of_h2(error: &h2::Error) -> Fault {
    match error.get_io() {
        Some(io) => tls::fault_of(io),
        None => Fault::new(Reason::TunnelProtocol, error),
    }
}
