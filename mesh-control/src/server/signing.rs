//! Signs workloads' certificates, for the nodes their pods are bound to.

use std::sync::Arc;
use std::time::Instant;

use mesh_api::ca::istio_certificate_service_server::IstioCertificateService;
use mesh_api::ca::{IstioCertificateRequest, IstioCertificateResponse};
use mesh_core::attestation::{AttestationRefusal, attest};
use mesh_core::identity::{Identity, NodeIdentity};
use mesh_core::model::Mesh;
use prost_types::value::Kind;
use tonic::{Request, Response, Status};

use super::caller::Gate;
use super::meter::{Meter, TooMany};
use crate::audit::{Audit, Event};
use crate::ca::{Authority, Issued, RequestedKey};
use crate::refusal::{Refusal, Refused};
use crate::registry::Registry;

/// Key of the metadata that names the identity a node asks for.
const IMPERSONATED: &str = "ImpersonatedIdentity";

/// The certificate service.
pub(super) struct Signing {
    /// Who may ask.
    pub(super) gate: Arc<Gate>,
    /// Who signs.
    pub(super) authority: Arc<Authority>,
    /// Which pods are where.
    pub(super) registry: Arc<Registry>,
    /// Where everything is recorded.
    pub(super) audit: Arc<Audit>,
    /// How often each node may ask.
    pub(super) nodes: Meter,
    /// How often each identity may be asked for.
    pub(super) identities: Meter,
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
) -> Result<Issued, Refused> {
    let identity = entitled(mesh, node, request)?;
    issue(authority, node, &identity, request)
}

/// The identity that is asked for, if the node may have certificates for it.
fn entitled(
    mesh: &Mesh,
    node: &NodeIdentity,
    request: &IstioCertificateRequest,
) -> Result<Identity, Refused> {
    let asked = impersonated(request).ok_or_else(|| {
        let what = format!("metadata has no {IMPERSONATED}: name the pod's SPIFFE ID there");
        Refused::new(Refusal::IdentityMissing, what)
    })?;
    let identity: Identity = asked
        .parse()
        .map_err(|e| Refused::new(Refusal::IdentityMalformed, format!("{IMPERSONATED}: {e}")))?;
    attest(mesh, node, &identity).map_err(|e| {
        let refusal = match &e {
            AttestationRefusal::TrustDomain { .. } => Refusal::IdentityTrustDomain,
            AttestationRefusal::NoPodOnNode { .. } => Refusal::IdentityNotOnNode,
            AttestationRefusal::NotEnrolled { .. } => Refusal::IdentityNotEnrolled,
        };
        Refused::new(refusal, e.to_string())
    })?;
    Ok(identity)
}

fn issue(
    authority: &Authority,
    node: &NodeIdentity,
    identity: &Identity,
    request: &IstioCertificateRequest,
) -> Result<Issued, Refused> {
    let key = RequestedKey::from_pem(&request.csr, &identity.to_string())?;
    let lifetime_s = request.validity_duration;
    Ok(authority.issue_workload(identity, node, &key, lifetime_s, crate::now_s())?)
}

impl Signing {
    /// Lets in who asks seldom enough. Who doesn't is told of once, until it asks less.
    fn metered(
        &self,
        admitted: Result<(), TooMany>,
        refusal: Refusal,
        node: &NodeIdentity,
        subject: &str,
    ) -> Result<(), Status> {
        admitted.map_err(|many| {
            let refused = Refused::new(refusal, many.to_string());
            if many.first {
                let subject = format!("{subject:?}");
                self.audit
                    .refuse(Event::WorkloadRefused, &refused, node.node(), subject);
            }
            refused.into()
        })
    }
}

#[tonic::async_trait]
impl IstioCertificateService for Signing {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        let caller = self.gate.node(&request).await?;
        let request = request.into_inner();
        let node = &caller.identity;
        let asked = impersonated(&request).unwrap_or("-");
        let subject: String = asked.chars().take(256).collect();
        let now = Instant::now();
        let often = self.nodes.admit(node.node(), now);
        self.metered(often, Refusal::RateNode, node, &subject)?;
        let entitled = entitled(self.registry.current().mesh(), node, &request)
            .and_then(|identity| self.gate.issuable(&identity).map(|()| identity));
        if let Ok(identity) = &entitled {
            // Only now: a node uses up nothing of identities that it has no pods of.
            let often = self.identities.admit(&identity.to_string(), now);
            self.metered(often, Refusal::RateIdentity, node, &subject)?;
        }
        let signed = match entitled {
            Ok(identity) => {
                let through = node.clone();
                let issue = move |ca: &Authority| issue(ca, &through, &identity, &request);
                self.authority.apart(issue).await
            }
            Err(refused) => Err(refused),
        };
        match signed {
            Ok(issued) => {
                let detail = format_args!("serial {}", issued.leaf.serial);
                self.audit
                    .record(Event::WorkloadSigned, node.node(), &subject, detail);
                let mut cert_chain = issued.chain_pem;
                cert_chain.push(self.authority.roots().pem().concat());
                Ok(Response::new(IstioCertificateResponse { cert_chain }))
            }
            Err(refused) => {
                let subject = format!("{subject:?}");
                self.audit
                    .refuse(Event::WorkloadRefused, &refused, node.node(), subject);
                Err(refused.into())
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
