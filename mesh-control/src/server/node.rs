//! How a node joins, renews, and tells of its pods.

use std::sync::Arc;
use std::time::Instant;

use mesh_api::node::node_service_server::NodeService;
use mesh_api::node::{JoinRequest, NodeCertificate, NodeReport, RenewRequest, ReportReceipt};
use mesh_core::identity::NodeIdentity;
use tonic::{Request, Response, Status};

use super::caller::Gate;
use crate::audit::{Audit, Event};
use crate::ca::{Authority, IssueFault, RequestedKey};
use crate::registry::Registry;
use crate::tokens::{TokenFault, TokenStore};

/// The node service.
pub(super) struct Nodes {
    /// Who may renew and report.
    pub(super) gate: Arc<Gate>,
    /// Who signs.
    pub(super) authority: Arc<Authority>,
    /// The join tokens.
    pub(super) tokens: TokenStore,
    /// Where reports go.
    pub(super) registry: Arc<Registry>,
    /// Where everything is recorded.
    pub(super) audit: Arc<Audit>,
}

impl Nodes {
    fn certify(
        &self,
        node: &NodeIdentity,
        key: &RequestedKey,
    ) -> Result<(NodeCertificate, String), IssueFault> {
        let issued = self.authority.issue_node(node, key, crate::now_s())?;
        let certificate = NodeCertificate {
            cert_chain: issued.chain_pem,
            trust_bundle: self.authority.roots_pem(),
            trust_domain: self.authority.trust_domain().to_string(),
        };
        Ok((certificate, issued.leaf.serial))
    }

    fn join(&self, request: &JoinRequest) -> Result<(NodeCertificate, String), (Event, Status)> {
        let refused = |status| (Event::JoinRefused, status);
        let domain = self.authority.trust_domain().clone();
        let node = NodeIdentity::new(domain, &request.node)
            .map_err(|e| refused(Status::invalid_argument(format!("node name: {e}"))))?;
        // Before the token is taken: a request that can't be signed must not cost it.
        let key = RequestedKey::from_pem(&request.csr)
            .map_err(|e| refused(Status::invalid_argument(e.to_string())))?;
        if self.authority.not_after_s() <= crate::now_s() {
            return Err(refused(Status::unavailable(
                "the signing chain has expired",
            )));
        }
        self.tokens
            .consume(&request.token, node.node(), crate::now_s())
            .map_err(|fault| match fault {
                TokenFault::WrongNode(_) => (
                    Event::JoinWrongNode,
                    Status::permission_denied(fault.to_string()),
                ),
                TokenFault::Malformed | TokenFault::Unknown | TokenFault::Expired => {
                    refused(Status::unauthenticated(fault.to_string()))
                }
                TokenFault::Store { .. } | TokenFault::Permissions { .. } | TokenFault::Random => {
                    tracing::error!(error = %fault, "a join failed here");
                    refused(Status::internal(
                        "the token store failed; see the log of the control component",
                    ))
                }
            })?;
        self.certify(&node, &key)
            .map_err(|e| refused(Status::unavailable(e.to_string())))
    }
}

#[tonic::async_trait]
impl NodeService for Nodes {
    async fn join(
        &self,
        request: Request<JoinRequest>,
    ) -> Result<Response<NodeCertificate>, Status> {
        let request = request.into_inner();
        match self.join(&request) {
            Ok((certificate, serial)) => {
                let detail = format_args!("serial {serial}");
                self.audit
                    .record(Event::NodeJoined, &request.node, "node certificate", detail);
                Ok(Response::new(certificate))
            }
            Err((event, status)) => {
                // The name is what an unauthenticated caller claims: quoted, and cut.
                let claimed: String = request.node.chars().take(64).collect();
                self.audit
                    .record(event, format_args!("{claimed:?}"), "join", status.message());
                Err(status)
            }
        }
    }

    async fn renew(
        &self,
        request: Request<RenewRequest>,
    ) -> Result<Response<NodeCertificate>, Status> {
        let caller = self.gate.node(&request)?;
        let key = RequestedKey::from_pem(&request.get_ref().csr)
            .map_err(|e| Status::invalid_argument(e.to_string()))?;
        let (certificate, serial) = self
            .certify(&caller.identity, &key)
            .map_err(|e| Status::unavailable(e.to_string()))?;
        let node = caller.identity.node();
        let detail = format_args!("serial {serial}");
        self.audit
            .record(Event::NodeRenewed, node, "node certificate", detail);
        Ok(Response::new(certificate))
    }

    async fn report(
        &self,
        request: Request<NodeReport>,
    ) -> Result<Response<ReportReceipt>, Status> {
        let caller = self.gate.node(&request)?;
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
        Ok(Response::new(ReportReceipt {}))
    }
}
