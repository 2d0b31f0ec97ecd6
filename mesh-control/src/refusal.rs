//! Why control refuses a caller: stable codes, in the audit log, in metrics, in docs/IDENTITY.md.

use tonic::{Code, Status};

macro_rules! refusals {
    ($($(#[doc = $doc:literal])+ $variant:ident => $code:literal, $status:ident;)+) => {
        /// Why a caller is refused.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Refusal {
            $($(#[doc = $doc])+ $variant,)+
        }

        impl Refusal {
            /// All there are.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The stable name.
            #[must_use]
            pub const fn code(self) -> &'static str {
                match self {
                    $(Self::$variant => $code,)+
                }
            }

            const fn status(self) -> Code {
                match self {
                    $(Self::$variant => Code::$status,)+
                }
            }
        }
    };
}

refusals! {
    /// Neither a client certificate nor a bearer token.
    NoCredential => "no-credential", Unauthenticated;
    /// The client certificate can't be read.
    CertificateUnusable => "certificate-unusable", Unauthenticated;
    /// The client certificate has expired.
    CertificateExpired => "certificate-expired", Unauthenticated;
    /// The client certificate is not a node's.
    CertificateNotNode => "certificate-not-node", PermissionDenied;
    /// The client certificate is revoked.
    CertificateRevoked => "certificate-revoked", PermissionDenied;
    /// The node is revoked.
    NodeRevoked => "node-revoked", PermissionDenied;
    /// Not in the form of any token that is taken here.
    TokenMalformed => "token-malformed", Unauthenticated;
    /// No such token.
    TokenUnknown => "token-unknown", Unauthenticated;
    /// A single-use token was used before.
    TokenUsed => "token-used", Unauthenticated;
    /// The token has expired.
    TokenExpired => "token-expired", Unauthenticated;
    /// The token is another node's.
    TokenWrongNode => "token-wrong-node", PermissionDenied;
    /// The API server does not vouch for the token.
    TokenRejected => "token-rejected", Unauthenticated;
    /// The token is for another audience.
    TokenAudience => "token-audience", Unauthenticated;
    /// The token's service account may not speak for nodes.
    TokenAccount => "token-account", PermissionDenied;
    /// The token is not bound to a pod on a node.
    TokenUnbound => "token-unbound", PermissionDenied;
    /// Whether the token is good could not be found out.
    AttestorFailed => "attestor-failed", Unavailable;
    /// Not a name that a node can have.
    NodeName => "node-name", InvalidArgument;
    /// The request names no identity.
    IdentityMissing => "identity-missing", InvalidArgument;
    /// What it names is no workload's SPIFFE ID.
    IdentityMalformed => "identity-malformed", InvalidArgument;
    /// The identity is of another trust domain.
    IdentityTrustDomain => "identity-trust-domain", PermissionDenied;
    /// No pod of the identity is on the node.
    IdentityNotOnNode => "identity-not-on-node", PermissionDenied;
    /// Its pods on the node are not enrolled.
    IdentityNotEnrolled => "identity-not-enrolled", PermissionDenied;
    /// The identity is revoked.
    IdentityRevoked => "identity-revoked", PermissionDenied;
    /// The signing request is too long.
    CsrTooLong => "csr-too-long", InvalidArgument;
    /// The signing request is no PKCS#10.
    CsrMalformed => "csr-malformed", InvalidArgument;
    /// The signing request's signature is not its key's.
    CsrSignature => "csr-signature", InvalidArgument;
    /// The signing request's key is too weak, or of a kind that the mesh does not use.
    CsrKey => "csr-key", InvalidArgument;
    /// The signing request asks for other names than the one that is granted.
    CsrNames => "csr-names", InvalidArgument;
    /// The signing request asks for a signing certificate.
    CsrCa => "csr-ca", InvalidArgument;
    /// The lifetime that is asked for is none.
    Lifetime => "lifetime", InvalidArgument;
    /// There is nothing to sign with now.
    SignerFailed => "signer-failed", Unavailable;
    /// The node asks too often.
    RateNode => "rate-node", ResourceExhausted;
    /// Certificates for the identity are asked for too often.
    RateIdentity => "rate-identity", ResourceExhausted;
    /// The address shows bearer tokens too often.
    RateCaller => "rate-caller", ResourceExhausted;
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.code())
    }
}

/// A refusal, as its caller is told.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Refused {
    /// The stable reason.
    pub refusal: Refusal,
    /// The same for people, with what to do.
    pub message: String,
}

impl Refused {
    /// A refusal with what to tell the caller.
    pub fn new(refusal: Refusal, message: impl Into<String>) -> Self {
        let message = message.into();
        Self { refusal, message }
    }
}

impl From<Refused> for Status {
    fn from(refused: Refused) -> Self {
        Self::new(refused.refusal.status(), refused.message)
    }
}
