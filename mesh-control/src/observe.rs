//! What is seen of control from outside: its series, and whether it lives.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use metrics::{describe_counter, describe_gauge};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::time::timeout;

/// How often the recorder tidies its histograms.
const UPKEEP: Duration = Duration::from_secs(5);
/// How long a client may take for its request.
const HEADER_PATIENCE: Duration = Duration::from_secs(5);
/// How long a connection may stay.
const CONNECTION_PATIENCE: Duration = Duration::from_secs(30);
/// Connections at a time.
const MAX_CONNECTIONS: usize = 32;
/// After `accept` fails for want of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The component's own series.
#[derive(Clone)]
pub struct Series(PrometheusHandle);

impl Series {
    /// Makes the process's recorder.
    ///
    /// # Errors
    /// If there is one already.
    pub fn install() -> anyhow::Result<Self> {
        let handle = PrometheusBuilder::new()
            .install_recorder()
            .context("setting up the recorder of series")?;
        describe();
        Ok(Self(handle))
    }

    /// A recorder that nothing records in.
    #[must_use]
    pub fn detached() -> Self {
        Self(PrometheusBuilder::new().build_recorder().handle())
    }

    /// All of them, as Prometheus reads them.
    #[must_use]
    pub fn render(&self) -> String {
        self.0.render()
    }

    /// Keeps the recorder tidy, for ever.
    pub async fn upkeep(self) {
        loop {
            tokio::time::sleep(UPKEEP).await;
            self.0.run_upkeep();
        }
    }
}

fn describe() {
    describe_counter!(
        "nodemesh_control_crl_fetch_failures_total",
        "Revocation lists at URLs that could not be fetched or were not taken"
    );
    describe_counter!(
        "nodemesh_control_audit_total",
        "Lines of the audit log, by event, and refusals by their reason"
    );
    describe_counter!(
        "nodemesh_control_signer_loads_total",
        "Times that the signers' files were read, by what became of it"
    );
    describe_gauge!(
        "nodemesh_control_signer_stale",
        "Whether the signers' files are not usable, and the last good ones sign"
    );
    describe_gauge!(
        "nodemesh_control_signer_held_back",
        "Whether an intermediate waits until its root is known everywhere"
    );
    describe_gauge!(
        "nodemesh_control_signer_not_after_seconds",
        "End of the signing chain, in seconds since the epoch"
    );
    describe_counter!(
        "nodemesh_control_addresses_refused_total",
        "Pods' addresses by their nodes' word that are somebody else's"
    );
    describe_counter!(
        "nodemesh_control_status_writes_total",
        "Statuses of objects that were written to the Kubernetes API, by what became of it"
    );
    describe_gauge!(
        "nodemesh_control_startup_tainted_nodes",
        "Nodes that bear the start-up taint"
    );
    describe_counter!(
        "nodemesh_control_startup_taints_total",
        "Tries to take the start-up taint off a node whose agent is ready, by what became of it"
    );
    describe_gauge!(
        "nodemesh_control_nodes_with_wrong_clock",
        "Nodes whose clock and control's are 30 s or more apart"
    );
    describe_gauge!(
        "nodemesh_control_namespaces_on_default",
        "Namespaces with several enrolled pods that all run as the account default"
    );
}

/// Binds the listener of [`liveness`].
///
/// # Errors
/// An address that can't be bound.
pub async fn listen(address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address)
        .await
        .with_context(|| format!("listening on {address} for --health-listen"))
}

/// Answers `/livez`, over plain HTTP and to anybody, for ever. It says that this process serves,
/// and nothing else.
pub async fn liveness(listener: TcpListener) {
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(permit) = slots.clone().acquire_owned().await else {
            return;
        };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::debug!(%error, "liveness: accept failed");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        tokio::spawn(async move {
            let mut builder = hyper::server::conn::http1::Builder::new();
            builder
                .timer(TokioTimer::new())
                .header_read_timeout(HEADER_PATIENCE);
            let connection = builder.serve_connection(TokioIo::new(stream), service_fn(answer));
            if let Ok(Err(error)) = timeout(CONNECTION_PATIENCE, connection).await {
                tracing::debug!(%error, "liveness: connection ended");
            }
            drop(permit);
        });
    }
}

async fn answer(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let (status, text) = match (request.method(), request.uri().path()) {
        (&Method::GET | &Method::HEAD, "/livez") => (StatusCode::OK, "ok\n"),
        _ => (StatusCode::NOT_FOUND, "GET /livez, and nothing else\n"),
    };
    let mut response = Response::new(Full::new(Bytes::from_static(text.as_bytes())));
    *response.status_mut() = status;
    Ok(response)
}
