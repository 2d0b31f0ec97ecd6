//! Signs workloads' certificates, for the nodes their pods are bound to.

use std::sync::Arc;
use std::time::Instant;

use mesh_api::ca::istio_certificate_service_server::IstioCertificateService;
use mesh_api::ca::{IstioCertificateRequest, IstioCertificateResponse};
use mesh_core::attestation::attest;
use mesh_core::identity::{Identity, NodeIdentity};
use mesh_core::model::Mesh;
use prost_types::value::Kind;
use tokio::sync::watch;
use tonic::{Request, Response, Status};

use super::caller::Gate;
use super::meter::Meter;
use crate::audit::{Audit, Event};
use crate::ca::{Authority, IssueFault, Issued, RequestedKey};
use crate::registry::Directory;

/// Key of the metadata that names the identity a node asks for.
const IMPERSONATED: &str = "ImpersonatedIdentity";

/// The certificate service.
pub(super) struct Signing {
    /// Who may ask.
    pub(super) gate: Arc<Gate>,
    /// Who signs.
    pub(super) authority: Arc<Authority>,
    /// Which pods are where.
    pub(super) directory: watch::Receiver<Arc<Directory>>,
    /// Where everything is recorded.
    pub(super) audit: Arc<Audit>,
    /// How often each node may ask.
    pub(super) meter: Meter,
}

/// What a node gets for a request: a certificate for the identity that it names, if a pod of that
/// identity is bound to the node.
///
/// # Errors
/// What the request lacks, or why it is refused.
pub fn sign(
    authority: &Authority,
    mesh: &Mesh,
    node: &NodeIdentity,
    request: &IstioCertificateRequest,
) -> Result<Issued, Status> {
    let asked = impersonated(request).ok_or_else(|| {
        Status::invalid_argument(format!(
            "metadata has no {IMPERSONATED}: name the pod's SPIFFE ID there"
        ))
    })?;
    let identity: Identity = asked
        .parse()
        .map_err(|e| Status::invalid_argument(format!("{IMPERSONATED}: {e}")))?;
    attest(mesh, node, &identity).map_err(|e| Status::permission_denied(e.to_string()))?;
    let key = RequestedKey::from_pem(&request.csr)
        .map_err(|e| Status::invalid_argument(e.to_string()))?;
    authority
        .issue_workload(&identity, &key, request.validity_duration, crate::now_s())
        .map_err(|fault| match fault {
            IssueFault::Lifetime(_) => Status::invalid_argument(fault.to_string()),
            _ => Status::unavailable(fault.to_string()),
        })
}

#[tonic::async_trait]
impl IstioCertificateService for Signing {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        let caller = self.gate.node(&request)?;
        let request = request.into_inner();
        let node = &caller.identity;
        let asked = impersonated(&request).unwrap_or("-");
        let subject: String = asked.chars().take(256).collect();
        if let Err(refused) = self.meter.admit(node.node(), Instant::now()) {
            // Once, until the node has asked less.
            if refused.first {
                let subject = format!("{subject:?}");
                self.audit
                    .record(Event::WorkloadRefused, node.node(), subject, refused);
            }
            return Err(Status::resource_exhausted(refused.to_string()));
        }
        let directory = self.directory.borrow().clone();
        match sign(&self.authority, directory.mesh(), node, &request) {
            Ok(issued) => {
                let detail = format_args!("serial {}", issued.leaf.serial);
                self.audit
                    .record(Event::WorkloadSigned, node.node(), &subject, detail);
                let mut cert_chain = issued.chain_pem;
                cert_chain.push(self.authority.roots_pem().concat());
                Ok(Response::new(IstioCertificateResponse { cert_chain }))
            }
            Err(status) => {
                let subject = format!("{subject:?}");
                self.audit.record(
                    Event::WorkloadRefused,
                    node.node(),
                    subject,
                    status.message(),
                );
                Err(status)
            }
        }
    }
}

fn impersonated(request: &IstioCertificateRequest) -> Option<&str> {
    let value = request.metadata.as_ref()?.fields.get(IMPERSONATED)?;
    match value.kind.as_ref()? {
        Kind::StringValue(text) => Some(text),
        _ => None,
    }
}
