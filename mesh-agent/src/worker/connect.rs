//! One CONNECT: a stream to an endpoint, in a tunnel that is alive.

use std::cell::Cell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use h2::RecvStream;
use h2::client::ResponseFuture;
use http::{HeaderValue, Method, Request, Response, StatusCode, Uri, header::FORWARDED};
use mesh_core::reason::Reason;
use tokio::time::timeout;

use super::chunk::Chunk;
use super::context::Context;
use super::destination::Endpoint;
use super::fault::Fault;
use super::metrics::Count;
use super::pool::{Lease, Pool, Port};
use super::tunnel::fault_of_h2;

/// How long a CONNECT may go unanswered before its tunnel is asked whether it is alive.
const DOUBT_AFTER: Duration = Duration::from_millis(500);
/// How long a tunnel in doubt has to show that it is alive.
const ALIVE_WITHIN: Duration = Duration::from_secs(1);
/// How long the peer may take to answer a CONNECT: its own dial of the app and some.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);

/// A stream whose CONNECT was answered with 200.
pub(crate) struct OpenStream {
    pub(crate) receive: RecvStream,
    pub(crate) send: h2::SendStream<Chunk>,
    pub(crate) lease: Lease,
}

/// Opens a stream to `endpoint` for `client`. A tunnel that has broken, or is on its way out,
/// says nothing of the endpoint: a new one gets a second try, which is safe because nothing of
/// the app's was sent. `waits_for` becomes the reason to give where it is not given more time.
pub(crate) async fn open_stream(
    context: &Context,
    pool: &Rc<Pool>,
    endpoint: &Rc<Endpoint>,
    client: SocketAddr,
    waits_for: &Cell<Reason>,
) -> Result<OpenStream, Fault> {
    let port = match endpoint.original_port {
        true => Port::Original,
        false => Port::Hbone,
    };
    let attempt = |port| try_stream(context, pool, endpoint, port, client, waits_for);
    let outcome = match attempt(port).await {
        Err(Failure::OfTunnel(_)) => match attempt(port).await {
            // A worker of a version that knows no tunnels there, or does not know yet whose this is.
            // What can't be reached there is not tried elsewhere: the network may forbid it.
            Err(Failure::OfTunnel(fault)) if port == Port::Original && is_shaken(fault.reason) => {
                context.metrics.add(Count::OriginalPortRefused, 1);
                attempt(Port::Hbone).await
            }
            second => second,
        },
        first => first,
    };
    outcome.map_err(|(Failure::OfTunnel(fault) | Failure::OfStream(fault))| fault)
}

/// Whether a peer was reached that does not take what was said for a tunnel.
fn is_shaken(reason: Reason) -> bool {
    matches!(reason, Reason::TunnelTls | Reason::TunnelProtocol)
}

enum Failure {
    /// The stream was not looked at, or nobody knows: a new tunnel may do.
    OfTunnel(Fault),
    OfStream(Fault),
}

async fn try_stream(
    context: &Context,
    pool: &Rc<Pool>,
    endpoint: &Rc<Endpoint>,
    port: Port,
    client: SocketAddr,
    waits_for: &Cell<Reason>,
) -> Result<OpenStream, Failure> {
    let fault = |reason, detail: &dyn std::fmt::Display| {
        let detail = format!("{}: {detail}", endpoint.address);
        Fault::new(reason, detail).of_peer(&endpoint.identity)
    };
    waits_for.set(Reason::TunnelConnect);
    let lease = pool
        .lease(endpoint, port)
        .await
        .map_err(|fault| match fault.reason {
            // A worker that dies cuts its handshakes short, and the next one takes over at once.
            Reason::TunnelTls | Reason::TunnelProtocol => Failure::OfTunnel(fault),
            _ => Failure::OfStream(fault),
        })?;
    let request = connect_request(context, endpoint.address, client)
        .map_err(|e| Failure::OfStream(fault(Reason::TunnelProtocol, &e)))?;
    let (response, send) = lease
        .request(request)
        .map_err(|e| Failure::OfTunnel(fault(Reason::TunnelRefused, &e)))?;
    waits_for.set(Reason::TunnelRefused);
    let response = match answer(&lease, response).await {
        Ok(response) => response,
        Err(Unanswered::TunnelDead) => {
            lease.lost();
            let fault = fault(Reason::TunnelProtocol, &"the tunnel does not answer");
            return Err(Failure::OfTunnel(fault));
        }
        Err(Unanswered::TooLate) => {
            let detail = "no answer to CONNECT in 15 s";
            return Err(Failure::OfStream(fault(Reason::TunnelRefused, &detail)));
        }
        Err(Unanswered::Broken(error)) => {
            // One stream that was reset says nothing of the others.
            let refused = error.reason() == Some(h2::Reason::REFUSED_STREAM);
            if !error.is_reset() && !error.is_go_away() {
                lease.lost();
            }
            let why = fault_of_h2(&error);
            let fault = fault(why.reason, &why.detail);
            return Err(match error.is_reset() && !refused {
                true => Failure::OfStream(fault),
                false => Failure::OfTunnel(fault),
            });
        }
    };
    if response.status() != StatusCode::OK {
        let reason = match response.status() {
            StatusCode::UNAUTHORIZED => Reason::PeerPolicy,
            _ => Reason::TunnelRefused,
        };
        let detail = format!("the peer answered {}", response.status());
        return Err(Failure::OfStream(fault(reason, &detail)));
    }
    lease.data_sent();
    Ok(OpenStream {
        receive: response.into_body(),
        send,
        lease,
    })
}

/// Why a CONNECT has no answer.
enum Unanswered {
    /// Its stream or its tunnel has ended.
    Broken(h2::Error),
    /// Its tunnel shows no sign of life.
    TunnelDead,
    TooLate,
}

async fn answer(
    lease: &Lease,
    mut response: ResponseFuture,
) -> Result<Response<RecvStream>, Unanswered> {
    if let Ok(answered) = timeout(DOUBT_AFTER, &mut response).await {
        return answered.map_err(Unanswered::Broken);
    }
    // The peer's app may be slow to accept; or a worker that is stopped, or a node that has
    // gone, leaves tunnels behind that look open.
    let rest = async {
        let answered = timeout(ANSWER_TIMEOUT - DOUBT_AFTER, &mut response).await;
        answered
            .map_err(|_| Unanswered::TooLate)?
            .map_err(Unanswered::Broken)
    };
    let dead = async {
        if timeout(ALIVE_WITHIN, lease.doubt()).await.is_ok() {
            std::future::pending::<()>().await;
        }
    };
    tokio::select! {
        answered = rest => answered,
        () = dead => Err(Unanswered::TunnelDead),
    }
}

fn connect_request(
    context: &Context,
    to: SocketAddr,
    client: SocketAddr,
) -> Result<Request<()>, http::Error> {
    let authority = Uri::builder().authority(to.to_string()).build()?;
    let mut forwarded = HeaderValue::try_from(format!("for=\"{client}\""))?;
    // It is another one each time: kept out of HPACK's table, where it would push out the rest.
    forwarded.set_sensitive(true);
    Request::builder()
        .method(Method::CONNECT)
        .uri(authority)
        .header(FORWARDED, forwarded)
        .header("baggage", context.pod.baggage.clone())
        .body(())
}
