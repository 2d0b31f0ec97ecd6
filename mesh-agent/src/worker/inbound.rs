//! Tunnels of others: handshake, CONNECT, and the pod's app.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use h2::RecvStream;
use h2::server::{Connection, SendResponse};
use http::header::FORWARDED;
use http::{HeaderMap, Method, Request, Response, StatusCode};
use mesh_common::RESERVED_PORTS;
use mesh_core::identity::Identity;
use mesh_core::reason::Reason;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::spawn_local;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::admission::{Newcomer, Place, Places};
use super::chunk::Chunk;
use super::context::Context;
use super::fault::{Direction, Fault};
use super::flow::Flow;
use super::metrics::{Count, OpenGuard};
use super::proofs;
use super::relay::{ByteCounts, relay};
use super::socket;
use super::sources::Source;
use super::standing::Standing;
use super::tls::{self, ReadAhead};
use super::tunnel::{
    MAX_FRAME, MAX_HEADERS, RESET_STREAMS, SEND_BUFFER, STREAM_WINDOW, connection_window,
    fault_of_h2, keep_alive_inbound,
};
use super::turn;

/// How long an alert may take, and how many bytes are thrown away meanwhile.
const ALERT_MAY_TAKE: Duration = Duration::from_secs(1);
const MOST_DISCARDED: usize = 64 * 1024;
/// How long a tunnel takes streams at least, also when the worker drains: whoever has made it
/// has a flow that waits for it, and may not be able to try anew.
const SERVES_AT_LEAST: Duration = Duration::from_secs(1);

type Tunnel = Connection<TlsStream<ReadAhead>, Chunk>;

/// Serves one connection from accept to its end: on the HBONE port, or a tunnel on the port of an
/// app, which then is the only one that its streams lead to.
pub(crate) async fn serve(
    context: Rc<Context>,
    stream: TcpStream,
    peer: SocketAddr,
    only_port: Option<u16>,
) {
    let peer = socket::canonical(peer);
    let local = stream.local_addr().map(socket::canonical);
    let local = local.map_or_else(|_| String::new(), |local| local.to_string());
    let place = match admit(&context) {
        Ok(place) => place,
        Err(fault) => {
            let reports = &context.reports;
            reports.refusal(Direction::Inbound, &fault, peer, local);
            return socket::reset(stream);
        }
    };
    let shaken = Box::pin(timeout(
        context.limits().handshake_timeout,
        handshake(&context, stream),
    ));
    let shaken = shaken
        .await
        .unwrap_or_else(|_| Err(Fault::new(Reason::HandshakeTimeout, "it was dropped")));
    drop(place);
    match shaken {
        Ok((tunnel, standing, parameters)) => {
            context.metrics.add(Count::HandshakesInbound, 1);
            let source = context.sources.look_up(peer.ip());
            context.sources.note_tunnel(&source);
            let reports = &context.reports;
            let identity = standing.identity().clone();
            reports.tunnel_opened(Direction::Inbound, &identity, peer, parameters);
            let caller = Caller {
                address: peer,
                identity,
                source,
                only_port,
            };
            drive(context, tunnel, caller, standing).await;
        }
        Err(fault) => {
            let (metrics, reports) = (&context.metrics, &context.reports);
            metrics.handshake_failed(Direction::Inbound, fault.reason);
            reports.refusal(Direction::Inbound, &fault, peer, local);
        }
    }
}

/// Who is at the other end of a tunnel.
#[derive(Clone)]
struct Caller {
    address: SocketAddr,
    /// What it has proven.
    identity: Rc<Identity>,
    source: Rc<Source>,
    /// The port that the tunnel came to, where it is an app's.
    only_port: Option<u16>,
}

fn admit(context: &Context) -> Result<Place, Fault> {
    context.admission.memory_for(Newcomer::Connection)?;
    let (limits, handshakes) = (context.limits(), &context.handshakes);
    let under_way = handshakes.taken();
    if under_way >= limits.handshakes {
        let detail = format!("{under_way} handshakes are under way");
        return Err(Fault::new(Reason::HandshakeLimit, detail));
    }
    let tunnels = context.metrics.get(Count::TunnelsInbound);
    if tunnels + under_way >= limits.tunnels {
        let detail = format!("{tunnels} are open, {under_way} are being opened");
        return Err(Fault::new(Reason::TunnelLimit, detail));
    }
    Ok(handshakes.take())
}

async fn handshake(
    context: &Context,
    stream: TcpStream,
) -> Result<(Tunnel, Rc<Standing>, String), Fault> {
    let credentials = context.valid_credentials()?;
    let mut tls = TlsAcceptor::from(credentials.server())
        .accept(ReadAhead::new(stream))
        .into_fallible()
        .await
        .map_err(|(error, stream)| {
            spawn_local(let_alert_arrive(stream));
            tls::fault_of(&error)
        })?;
    tls.get_mut().1.set_buffer_limit(Some(tls::WRITE_BUFFER));
    let (direction, metrics) = (Direction::Inbound, &context.metrics);
    let standing = Standing::new(direction, tls.get_ref().1, credentials, metrics)?;
    let parameters = tls::parameters(tls.get_ref().1);
    // One more where proofs have a stream of their own.
    let streams = context.limits().streams_per_tunnel + u32::from(standing.proves_anew());
    let tunnel = h2::server::Builder::new()
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(connection_window(streams))
        .max_concurrent_streams(streams)
        .max_frame_size(MAX_FRAME)
        .max_header_list_size(MAX_HEADERS)
        .max_send_buffer_size(SEND_BUFFER)
        .max_concurrent_reset_streams(RESET_STREAMS)
        .max_pending_accept_reset_streams(RESET_STREAMS)
        .handshake(tls)
        .await
        .map_err(|error| fault_of_h2(&error).of_peer(standing.identity()))?;
    Ok((tunnel, standing, parameters))
}

/// Closes a connection whose handshake failed so that the alert, which says why, arrives: with
/// bytes left unread the kernel would send RST after it, which discards it.
async fn let_alert_arrive(mut stream: ReadAhead) {
    let drained = async {
        stream.shutdown().await?;
        let mut discarded = [0; 1024];
        let mut left = MOST_DISCARDED;
        while left > 0 {
            match stream.read(&mut discarded).await? {
                0 => break,
                n => left = left.saturating_sub(n),
            }
        }
        Ok::<_, std::io::Error>(())
    };
    // However it ends, the connection is closed.
    let _closed = timeout(ALERT_MAY_TAKE, drained).await;
}

/// Drives one tunnel: accepts streams, cycles it when the certificate changes or the worker
/// drains, ends it when it may not go on.
async fn drive(context: Rc<Context>, mut tunnel: Tunnel, caller: Caller, standing: Rc<Standing>) {
    let _open = context.metrics.open(Count::TunnelsInbound);
    let streams = Places::default();
    let kept = standing.kept(&context);
    tokio::pin!(kept);
    let mut proves_anew = standing.proves_anew();
    let mut epoch = context.epoch.subscribe();
    let mut leaving = false;
    let young = sleep(SERVES_AT_LEAST);
    tokio::pin!(young);
    let ping = tunnel.ping_pong();
    let keep_alive = async {
        match ping {
            Some(ping) => keep_alive_inbound(ping).await,
            None => std::future::pending().await,
        }
    };
    tokio::pin!(keep_alive);
    loop {
        let next = tokio::select! {
            next = tunnel.accept() => next,
            _ = epoch.changed(), if !leaving => {
                leaving = true;
                tunnel.graceful_shutdown();
                continue;
            }
            () = async { context.draining().await; young.as_mut().await }, if !leaving => {
                leaving = true;
                tunnel.graceful_shutdown();
                continue;
            }
            () = &mut keep_alive => return,
            fault = &mut kept => {
                let (from, streams) = (caller.address, streams.taken());
                let reports = &context.reports;
                return reports.tunnel_cut(Direction::Inbound, &fault, from, streams);
            }
        };
        match next {
            None => return,
            Some(Err(error)) => {
                // A peer that just goes away is nothing to report.
                if error.get_io().is_none() {
                    let fault = fault_of_h2(&error).of_peer(&caller.identity);
                    context
                        .reports
                        .refusal(Direction::Inbound, &fault, caller.address, "");
                }
                return;
            }
            Some(Ok((request, mut respond))) => {
                turn::give_way();
                if proves_anew && proofs::is_request(&request) {
                    // There is one.
                    proves_anew = false;
                    if let Ok(send) = respond.send_response(Response::new(()), false) {
                        let (context, standing) = (context.clone(), standing.clone());
                        let receive = request.into_body();
                        spawn_local(proofs::exchange(context, standing, send, receive));
                    }
                    continue;
                }
                if let Err(fault) = context.admit_stream() {
                    let to = authority(&request).unwrap_or_default();
                    let fault = fault.of_peer(&caller.identity);
                    let reports = &context.reports;
                    reports.refusal(Direction::Inbound, &fault, caller.address, to);
                    answer_refusal(&mut respond, StatusCode::SERVICE_UNAVAILABLE);
                    continue;
                }
                let open = [Count::StreamsInbound, Count::InboundOpen];
                let open = open.map(|gauge| context.metrics.open(gauge));
                let open = (open, streams.take());
                let (context, caller) = (context.clone(), caller.clone());
                spawn_local(serve_stream(context, request, respond, caller, open));
            }
        }
    }
}

async fn serve_stream(
    context: Rc<Context>,
    request: Request<RecvStream>,
    mut respond: SendResponse<Chunk>,
    caller: Caller,
    _open: ([OpenGuard; 2], Place),
) {
    let opened = Box::pin(open(&context, &request, &mut respond, &caller)).await;
    let (app, mut flow) = match opened {
        Ok(Some(opened)) => opened,
        // The caller has gone meanwhile.
        Ok(None) => return,
        Err((status, fault)) => {
            let to = authority(&request).unwrap_or_default();
            let fault = fault.of_peer(&caller.identity);
            context
                .reports
                .refusal(Direction::Inbound, &fault, caller.address, to);
            return answer_refusal(&mut respond, status);
        }
    };
    let mut response = Response::new(());
    response
        .headers_mut()
        .insert("baggage", context.pod.baggage.clone());
    let Ok(send) = respond.send_response(response, false) else {
        return socket::reset(app);
    };
    context.metrics.add(Count::InboundConnections, 1);
    let (counts, cut) = (ByteCounts::INBOUND, pin!(flow.cut(&context)));
    relay(app, request.into_body(), send, &context, counts, cut).await;
}

fn answer_refusal(respond: &mut SendResponse<Chunk>, status: StatusCode) {
    let mut response = Response::new(());
    *response.status_mut() = status;
    // Fails when the caller has gone, who then needs no answer.
    let _gone = respond.send_response(response, true);
}

fn authority<B>(request: &Request<B>) -> Option<&str> {
    request.uri().authority().map(http::uri::Authority::as_str)
}

async fn open(
    context: &Context,
    request: &Request<RecvStream>,
    respond: &mut SendResponse<Chunk>,
    caller: &Caller,
) -> Result<Option<(TcpStream, Flow)>, (StatusCode, Fault)> {
    let to = target(context, request, caller.only_port)?;
    let client = client(request.headers(), caller.address);
    let (identity, source) = (caller.identity.clone(), caller.source.clone());
    let mut flow = Flow::inbound(context, client, to, Some(identity), Some(source));
    let opening = async {
        flow.admit(context).await?;
        let app = context.dial_app(to, client).await?;
        flow.confirm(context).await?;
        Ok(app)
    };
    let reset = poll_fn(|cx| match respond.poll_reset(cx) {
        Poll::Ready(_) => Poll::Ready(()),
        Poll::Pending => Poll::Pending,
    });
    tokio::select! {
        opened = opening => match opened {
            Ok(app) => Ok(Some((app, flow))),
            Err(fault) => Err((status_of(&fault), fault)),
        },
        () = reset => Ok(None),
    }
}

/// What the caller is told: by 401 that policy refuses it, so that trying elsewhere is no use.
fn status_of(fault: &Fault) -> StatusCode {
    if fault.is_policy() {
        StatusCode::UNAUTHORIZED
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    }
}

/// Where the caller wants to go, if it may.
pub(super) fn target<B>(
    context: &Context,
    request: &Request<B>,
    only_port: Option<u16>,
) -> Result<SocketAddr, (StatusCode, Fault)> {
    let bad = |reason, detail: String| (StatusCode::BAD_REQUEST, Fault::new(reason, detail));
    if request.method() != Method::CONNECT {
        let detail = format!("the method is {}, not CONNECT", request.method());
        return Err(bad(Reason::TunnelProtocol, detail));
    }
    let authority = authority(request).ok_or_else(|| {
        bad(
            Reason::TunnelProtocol,
            "CONNECT without an authority".to_owned(),
        )
    })?;
    let to: SocketAddr = authority.parse().map(socket::canonical).map_err(|_| {
        let detail = format!("the authority {authority:?} is not address:port");
        bad(Reason::TunnelProtocol, detail)
    })?;
    if !context.pod.has(to.ip()) {
        return Err(bad(Reason::AuthorityNotThisPod, to.to_string()));
    }
    if to.port() == 0 || RESERVED_PORTS.contains(&to.port()) {
        let fault = Fault::new(Reason::AuthorityReservedPort, to);
        return Err((StatusCode::SERVICE_UNAVAILABLE, fault));
    }
    if let Some(port) = only_port.filter(|port| *port != to.port()) {
        let detail = format!("{to}, in a tunnel to port {port}");
        return Err(bad(Reason::AuthorityOtherPort, detail));
    }
    Ok(to)
}

/// The client as the app shall see it. The address is the tunnel's, which is proven; the port
/// is what the caller's worker says for that address, or the tunnel's.
pub(super) fn client(headers: &HeaderMap, peer: SocketAddr) -> SocketAddr {
    let forwarded = headers.get(FORWARDED).and_then(|value| value.to_str().ok());
    let said = forwarded.and_then(forwarded_for).map(socket::canonical);
    match said {
        Some(said) if said.ip() == peer.ip() && said.port() != 0 => said,
        _ => peer,
    }
}

/// `for=` of a `Forwarded` header (RFC 7239 §4), where it is an address with a port.
fn forwarded_for(value: &str) -> Option<SocketAddr> {
    let first = value.split(',').next()?;
    first.split(';').find_map(|pair| {
        let (name, value) = pair.split_once('=')?;
        let value = value.trim().trim_matches('"');
        let is_for = name.trim().eq_ignore_ascii_case("for");
        is_for.then(|| value.parse().ok()).flatten()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_client_is_the_peer_whatever_a_header_says() {
        let peer: SocketAddr = "10.0.0.7:40000".parse().unwrap();
        for (value, expected) in [
            ("for=\"10.0.0.7:1234\"", "10.0.0.7:1234"),
            ("for=\"10.0.0.7:1234\";host=a", "10.0.0.7:1234"),
            ("For=\"[::ffff:10.0.0.7]:1234\"", "10.0.0.7:1234"),
            ("for=\"10.0.0.8:1234\"", "10.0.0.7:40000"),
            ("for=\"10.0.0.7:0\"", "10.0.0.7:40000"),
            ("for=10.0.0.7", "10.0.0.7:40000"),
            ("", "10.0.0.7:40000"),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(FORWARDED, value.parse().unwrap());
            assert_eq!(client(&headers, peer), expected.parse().unwrap(), "{value}");
        }
    }
}
