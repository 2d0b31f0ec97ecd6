//! The gRPC server: four services over TLS, and the server's own certificate kept fresh.

pub mod caller;
mod lease;
mod meter;
mod node;
mod signing;
mod tls;
mod trust;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use mesh_api::ads::aggregated_discovery_service_server::AggregatedDiscoveryServiceServer;
use mesh_api::ca::istio_certificate_service_server::IstioCertificateServiceServer;
use mesh_api::node::node_service_server::NodeServiceServer;
use mesh_api::trust::trust_service_server::TrustServiceServer;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;

use crate::attestor::Attestors;
use crate::audit::Audit;
use crate::ca::{Authority, Issued};
use crate::clocks::Clocks;
use crate::registry::Registry;
use crate::trust::Served;
use crate::xds::Discovery;
use caller::Gate;
use meter::Meter;
pub use meter::{Limits, Rate};
pub use signing::sign;
use tls::OwnCertificate;

/// Largest request of a node that is not a discovery request, in bytes.
const MAX_REQUEST_LEN: usize = 64 * 1024;
/// Largest report of a node, in bytes: room for some 500 pods.
const MAX_REPORT_LEN: usize = 256 * 1024;
/// Largest discovery request, in bytes: a node that connects again names all that it holds.
const MAX_DISCOVERY_LEN: usize = 64 * 1024 * 1024;
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(20);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(20);
/// Calls at a time on one connection.
const MAX_STREAMS: u32 = 256;
/// How long calls may take to end when the server stops.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);
/// After an own certificate could not be made; and how often it is seen by the clock whether it is due.
const RENEWAL_RETRY: Duration = Duration::from_secs(60);

/// What the server serves.
pub struct Server {
    /// Who signs.
    pub authority: Arc<Authority>,
    /// Who finds out which node a caller is that has no certificate of a node's.
    pub attestors: Attestors,
    /// How often callers may ask.
    pub limits: Limits,
    /// The state of the mesh.
    pub registry: Arc<Registry>,
    /// What nodes' clocks say.
    pub clocks: Arc<Clocks>,
    /// Where refusals and grants are recorded.
    pub audit: Arc<Audit>,
    /// What is trusted, and what is revoked.
    pub trust: watch::Receiver<Arc<Served>>,
}

/// Binds the listener.
///
/// # Errors
/// An address that can't be bound.
pub async fn listen(address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address)
        .await
        .with_context(|| format!("listening on {address}"))
}

impl Server {
    /// Serves until `stopping` turns true.
    ///
    /// # Errors
    /// A certificate of its own that can't be made, or a transport that fails.
    pub async fn serve(
        self,
        listener: TcpListener,
        stopping: watch::Receiver<bool>,
    ) -> anyhow::Result<()> {
        let (issued, certified) = self
            .authority
            .issue_server(crate::now_s())
            .context("making the server's own certificate")?;
        let own = Arc::new(OwnCertificate::new(certified));
        let (trust, follow) = tls::following(self.authority.bundle(), own.clone())?;
        let following = tokio::spawn(follow);
        let renewal = tokio::spawn(renew(self.authority.clone(), own, issued));
        let (ready, connections) = mpsc::channel(64);
        let accepting = tokio::spawn(tls::accept(listener, trust, ready));
        let served = self.route(connections, stopping).await;
        for task in [accepting, renewal, following] {
            task.abort();
        }
        served
    }

    async fn route(
        self,
        connections: mpsc::Receiver<std::io::Result<tls::Connection>>,
        stopping: watch::Receiver<bool>,
    ) -> anyhow::Result<()> {
        let gate = Arc::new(Gate::new(
            self.authority.trust_domain().clone(),
            self.attestors.clone(),
            Meter::new(self.limits.bearer),
            self.audit.clone(),
            self.trust.clone(),
        ));
        let trusted = trust::Trusted {
            gate: gate.clone(),
            trust: self.trust,
            stopping: stopping.clone(),
        };
        let nodes = node::Nodes {
            gate: gate.clone(),
            authority: self.authority.clone(),
            attestors: self.attestors,
            clocks: self.clocks,
            registry: self.registry.clone(),
            audit: self.audit.clone(),
        };
        let signing = signing::Signing {
            gate: gate.clone(),
            authority: self.authority,
            registry: self.registry.clone(),
            audit: self.audit.clone(),
            nodes: Meter::new(self.limits.node),
            identities: Meter::new(self.limits.identity),
        };
        let discovery = Discovery {
            gate,
            registry: self.registry,
            audit: self.audit,
            stopping: stopping.clone(),
        };
        let router = tonic::transport::Server::builder()
            .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
            .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
            .max_concurrent_streams(MAX_STREAMS)
            .add_service(NodeServiceServer::new(nodes).max_decoding_message_size(MAX_REPORT_LEN))
            .add_service(
                IstioCertificateServiceServer::new(signing)
                    .max_decoding_message_size(MAX_REQUEST_LEN),
            )
            .add_service(
                TrustServiceServer::new(trusted).max_decoding_message_size(MAX_REQUEST_LEN),
            )
            .add_service(
                AggregatedDiscoveryServiceServer::new(discovery)
                    .max_decoding_message_size(MAX_DISCOVERY_LEN),
            );
        let stop = |mut stopping: watch::Receiver<bool>| async move {
            // A dropped sender stops the server as well.
            let _ = stopping.wait_for(|stop| *stop).await;
        };
        let serving = router
            .serve_with_incoming_shutdown(ReceiverStream::new(connections), stop(stopping.clone()));
        tokio::select! {
            served = serving => served.context("serving"),
            () = async { stop(stopping).await; tokio::time::sleep(STOP_TIMEOUT).await } => {
                tracing::warn!("some calls did not end in time and were cut");
                Ok(())
            }
        }
    }
}

/// Whether a certificate is to be replaced: two thirds of its life are over, or it has not begun by a
/// clock that was set back. All in seconds since the epoch.
fn is_due(from_s: i64, until_s: i64, now_s: i64) -> bool {
    now_s < from_s || now_s >= until_s - (until_s - from_s) / 3
}

/// Replaces the server's certificate when two thirds of its life are over, or when another
/// intermediate signs: the root of the one before may be about to go.
async fn renew(authority: Arc<Authority>, own: Arc<OwnCertificate>, mut current: Issued) {
    loop {
        let due = |now_s| is_due(current.leaf.not_before_s, current.leaf.not_after_s, now_s);
        // Never in a tight loop, also when the signing chain is about to end; and never to the end by a
        // clock that may be set meanwhile.
        while timeout(RENEWAL_RETRY, authority.changed()).await.is_err() {
            if due(crate::now_s()) {
                break;
            }
        }
        match authority.issue_server(crate::now_s()) {
            Ok((issued, certified)) => {
                tracing::info!(serial = issued.leaf.serial, "own certificate renewed");
                own.replace(certified);
                current = issued;
            }
            Err(error) => tracing::error!(%error, "own certificate not renewed; trying again"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_own_certificate_is_due_by_the_clock_as_it_is_now() {
        for (now_s, due) in [
            (99, true),
            (100, false),
            (299, false),
            (300, true),
            (900, true),
        ] {
            assert_eq!(is_due(100, 400, now_s), due, "{now_s}");
        }
    }
}
