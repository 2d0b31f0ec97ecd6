//! Relays a worker's signing request. The identity asked for is the one the *supervisor*
//! has for the pod, whatever the request says.

use std::time::Duration;

use mesh_api::ca::IstioCertificateRequest;
use mesh_api::ca::istio_certificate_service_client::IstioCertificateServiceClient;
use mesh_core::certificate::{Leaf, Side};
use mesh_core::identity::Identity;
use metrics::counter;
use prost_types::value::Kind;
use prost_types::{Struct, Value};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use tokio::time::sleep;
use tonic::Code;

use super::backoff::{Backoff, random};
use super::control::Control;
use super::join::explain;
use super::trust::TrustStore;

const CALL_TIMEOUT: Duration = Duration::from_secs(10);
const FIRST_RETRY: Duration = Duration::from_millis(100);
const LONGEST_RETRY: Duration = Duration::from_secs(10);
/// Longest signing request that is relayed, in bytes of DER.
const MAX_CSR: usize = 16 * 1024;

/// A certificate with its chain, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Svid {
    /// DER, leaf first, without roots.
    pub(super) chain: Vec<Vec<u8>>,
    /// Seconds since the epoch.
    pub(super) not_after_s: i64,
}

/// Why there is no certificate (yet).
#[derive(Debug, thiserror::Error)]
pub(super) enum CsrError {
    #[error("the signing request has {0} bytes, more than {MAX_CSR}")]
    TooLong(usize),
    #[error("control refused to sign: {0}")]
    Refused(String),
    /// Of this request, whenever it is asked again.
    #[error("control does not sign such a request: {0}")]
    Unsignable(String),
    #[error("control could not be asked: {0}")]
    Unreachable(String),
    #[error("the certificate that control signed can't be used: {0}")]
    Unusable(String),
}

/// What is asked of control.
pub(super) struct Asked<'a> {
    /// The pod's.
    pub(super) identity: &'a Identity,
    /// DER.
    pub(super) csr: &'a [u8],
    /// In seconds; 0 leaves it to control.
    pub(super) lifetime_s: i64,
}

impl CsrError {
    /// Whether the same request can never be signed: what is wrong is in it.
    fn is_final(&self) -> bool {
        matches!(self, Self::TooLong(_) | Self::Unsignable(_))
    }
}

/// Has a request signed, trying until it is. `trouble` hears of every failure.
///
/// # Errors
/// What is wrong with the request, if it is the request.
pub(super) async fn relay(
    control: &Control,
    trust: &TrustStore,
    asked: &Asked<'_>,
    mut trouble: impl FnMut(&CsrError),
) -> Result<Svid, CsrError> {
    let mut backoff = Backoff::new(FIRST_RETRY, LONGEST_RETRY);
    loop {
        match ask(control, trust, asked).await {
            Ok(svid) => {
                counter!("nodemesh_certificates_signed_total").increment(1);
                return Ok(svid);
            }
            Err(e) => {
                counter!("nodemesh_certificate_failures_total").increment(1);
                if e.is_final() {
                    return Err(e);
                }
                trouble(&e);
                sleep(backoff.next(random())).await;
            }
        }
    }
}

async fn ask(control: &Control, trust: &TrustStore, asked: &Asked<'_>) -> Result<Svid, CsrError> {
    let Asked { identity, csr, .. } = asked;
    if csr.len() > MAX_CSR {
        return Err(CsrError::TooLong(csr.len()));
    }
    let mut request = tonic::Request::new(IstioCertificateRequest {
        csr: to_pem("CERTIFICATE REQUEST", csr),
        validity_duration: asked.lifetime_s,
        metadata: Some(impersonating(identity)),
    });
    request.set_timeout(CALL_TIMEOUT);
    let replica = control.replica().await;
    let mut client = IstioCertificateServiceClient::new(replica.channel);
    let answer = client.create_certificate(request).await;
    let answer = answer.map_err(|status| {
        let refused = refusal(&status);
        if matches!(refused, CsrError::Unreachable(_)) {
            // Its signer may be the one that fails.
            control.leave_in_time(replica.address);
        }
        refused
    });
    let chain = answer?.into_inner().cert_chain;
    read_chain(&chain, identity, &trust.bundle().roots).map_err(CsrError::Unusable)
}

fn refusal(status: &tonic::Status) -> CsrError {
    match status.code() {
        Code::InvalidArgument => CsrError::Unsignable(status.message().to_owned()),
        // Of the node or the pod, as control knows them now.
        Code::PermissionDenied
        | Code::Unauthenticated
        | Code::NotFound
        | Code::FailedPrecondition => CsrError::Refused(status.message().to_owned()),
        _ => CsrError::Unreachable(explain(status)),
    }
}

fn impersonating(identity: &Identity) -> Struct {
    let value = Value {
        kind: Some(Kind::StringValue(identity.to_string())),
    };
    Struct {
        fields: [("ImpersonatedIdentity".to_owned(), value)].into(),
    }
}

pub(super) fn read_chain(
    pems: &[String],
    identity: &Identity,
    roots: &[CertificateDer<'static>],
) -> Result<Svid, String> {
    let mut chain = Vec::new();
    for text in pems {
        for certificate in CertificateDer::pem_slice_iter(text.as_bytes()) {
            let certificate = certificate.map_err(|e| e.to_string())?;
            if !roots.contains(&certificate) {
                chain.push(certificate.to_vec());
            }
        }
    }
    let leaf = chain.first().ok_or("it holds no certificate")?;
    let leaf = Leaf::from_der(leaf).map_err(|e| e.to_string())?;
    for side in [Side::Server, Side::Client] {
        let named = leaf
            .workload(side, identity.trust_domain())
            .map_err(|e| e.to_string())?;
        if named != *identity {
            return Err(format!("it names {named}, asked for was {identity}"));
        }
    }
    Ok(Svid {
        not_after_s: leaf.not_after_s,
        chain,
    })
}

/// RFC 7468 text of some DER.
fn to_pem(label: &str, der: &[u8]) -> String {
    pem::encode(&pem::Pem::new(label, der))
}

/// Certificates of a pod's record.
pub(super) fn chain_to_pem(chain: &[Vec<u8>]) -> Vec<String> {
    chain.iter().map(|der| to_pem("CERTIFICATE", der)).collect()
}

/// The other way.
pub(super) fn chain_from_pem(
    pems: &[String],
    identity: &Identity,
    roots: &[CertificateDer<'static>],
) -> Option<Svid> {
    (!pems.is_empty()).then(|| read_chain(pems, identity, roots).ok())?
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, KeyPair, KeyUsagePurpose, SanType};

    fn identity(account: &str) -> Identity {
        Identity::new("cluster.local".parse().unwrap(), "shop", account).unwrap()
    }

    fn svid(account: &str) -> String {
        let mut params = CertificateParams::default();
        let uri = identity(account).to_string();
        params.subject_alt_names = vec![SanType::URI(uri.try_into().unwrap())];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        params
            .self_signed(&KeyPair::generate().unwrap())
            .unwrap()
            .pem()
    }

    #[test]
    fn roots_are_left_out_of_the_chain() {
        let root = svid("root");
        let roots = [CertificateDer::from_pem_slice(root.as_bytes()).unwrap()];
        let given = [svid("cart") + &svid("intermediate"), root.clone()];
        let svid = read_chain(&given, &identity("cart"), &roots).unwrap();
        assert_eq!(svid.chain.len(), 2);
        let kept = chain_from_pem(&chain_to_pem(&svid.chain), &identity("cart"), &roots);
        assert_eq!(kept, Some(svid));
    }

    #[test]
    fn a_certificate_for_another_identity_is_refused() {
        let why = read_chain(&[svid("pay")], &identity("cart"), &[]).unwrap_err();
        assert!(why.contains("sa/pay"), "{why}");
        assert!(read_chain(&[], &identity("cart"), &[]).is_err());
    }
}
