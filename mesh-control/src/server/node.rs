//! How a node joins, renews, and tells of its pods.

use std::sync::Arc;
use std::time::Instant;

use mesh_api::node::node_service_server::NodeService;
use mesh_api::node::{JoinRequest, NodeCertificate, NodeReport, RenewRequest, ReportReceipt};
use mesh_core::identity::NodeIdentity;
use tonic::{Request, Response, Status};

use super::caller::Gate;
use crate::attestor::{Attestors, Evidence};
use crate::audit::{Audit, Event};
use crate::ca::{Authority, RequestedKey};
use crate::clocks::Clocks;
use crate::refusal::{Refusal, Refused};
use crate::registry::Registry;

/// The node service.
pub(super) struct Nodes {
    /// Who may renew and report.
    pub(super) gate: Arc<Gate>,
    /// Who signs.
    pub(super) authority: Arc<Authority>,
    /// Who knows what nodes join with.
    pub(super) attestors: Attestors,
    /// Where reports go.
    pub(super) registry: Arc<Registry>,
    /// What nodes' clocks say.
    pub(super) clocks: Arc<Clocks>,
    /// Where everything is recorded.
    pub(super) audit: Arc<Audit>,
}

impl Nodes {
    async fn certify(
        &self,
        node: &NodeIdentity,
        key: RequestedKey,
    ) -> Result<(NodeCertificate, String), Refused> {
        let node = node.clone();
        let issued = self
            .authority
            .apart(move |ca| Ok(ca.issue_node(&node, &key, crate::now_s())?));
        let issued = issued.await?;
        let certificate = NodeCertificate {
            cert_chain: issued.chain_pem,
            trust_bundle: self.authority.roots().pem(),
            trust_domain: self.authority.trust_domain().to_string(),
        };
        Ok((certificate, issued.leaf.serial))
    }

    async fn join(&self, request: &JoinRequest) -> Result<Joined, Refused> {
        let domain = self.authority.trust_domain().clone();
        let node = NodeIdentity::new(domain, &request.node)
            .map_err(|e| Refused::new(Refusal::NodeName, format!("node name: {e}")))?;
        // Before the token is taken: a request that can't be signed must not cost it.
        let key = RequestedKey::from_pem(&request.csr, &node.to_string())?;
        if self.authority.not_after_s() <= crate::now_s() {
            let what = "the signing chain has expired";
            return Err(Refused::new(Refusal::SignerFailed, what));
        }
        let evidence = Evidence {
            token: &request.token,
            node: Some(node.node()),
            now_s: crate::now_s(),
        };
        let by = self.attestors.join(evidence).await?.by;
        let (certificate, serial) = self.certify(&node, key).await?;
        Ok(Joined {
            certificate,
            serial,
            by,
        })
    }
}

/// What a join brings.
struct Joined {
    certificate: NodeCertificate,
    serial: String,
    /// By what the node was attested.
    by: String,
}

#[tonic::async_trait]
impl NodeService for Nodes {
    async fn join(
        &self,
        request: Request<JoinRequest>,
    ) -> Result<Response<NodeCertificate>, Status> {
        let request = request.into_inner();
        match self.join(&request).await {
            Ok(joined) => {
                let Joined { serial, by, .. } = &joined;
                let detail = format_args!("serial {serial}, by {by}");
                self.audit
                    .record(Event::NodeJoined, &request.node, "node certificate", detail);
                Ok(Response::new(joined.certificate))
            }
            Err(refused) => {
                let event = match refused.refusal {
                    Refusal::TokenWrongNode => Event::JoinWrongNode,
                    _ => Event::JoinRefused,
                };
                // The name is what an unauthenticated caller claims: quoted, and cut.
                let claimed: String = request.node.chars().take(64).collect();
                let claimed = format_args!("{claimed:?}");
                self.audit.refuse(event, &refused, claimed, "join");
                Err(refused.into())
            }
        }
    }

    async fn renew(
        &self,
        request: Request<RenewRequest>,
    ) -> Result<Response<NodeCertificate>, Status> {
        let caller = self.gate.node(&request).await?;
        let node = caller.identity.node();
        let key = RequestedKey::from_pem(&request.get_ref().csr, &caller.identity.to_string());
        let renewed = match key {
            Ok(key) => self.certify(&caller.identity, key).await,
            Err(fault) => Err(fault.into()),
        };
        let (certificate, serial) = renewed.inspect_err(|refused| {
            let event = Event::RenewalRefused;
            self.audit.refuse(event, refused, node, "node certificate");
        })?;
        let detail = format_args!("serial {serial}");
        self.audit
            .record(Event::NodeRenewed, node, "node certificate", detail);
        Ok(Response::new(certificate))
    }

    async fn report(
        &self,
        request: Request<NodeReport>,
    ) -> Result<Response<ReportReceipt>, Status> {
        let caller = self.gate.node(&request).await?;
        let node = caller.identity.node();
        self.registry
            .report(node, request.get_ref(), Instant::now())
            .map_err(|refused| {
                if refused.first {
                    self.audit
                        .record(Event::ReportRefused, node, "report", refused);
                }
                Status::resource_exhausted(refused.to_string())
            })?;
        let clock_ms = request.get_ref().clock_ms;
        self.clocks.note(node, clock_ms, crate::now_ms());
        Ok(Response::new(ReportReceipt {}))
    }
}
