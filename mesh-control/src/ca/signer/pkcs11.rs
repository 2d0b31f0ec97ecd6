//! A key in a token behind PKCS#11: a hardware security module, or what stands for one. The
//! private key is made in the token and never leaves it; what is sent there is a digest.

use std::sync::{Mutex, PoisonError};

use cryptoki::object::{Attribute, AttributeType, ObjectClass, ObjectHandle};
use cryptoki::session::Session;
use rcgen::SignatureAlgorithm;
use x509_parser::prelude::X509Certificate;

use super::kind::KeyKind;
use super::token::{find, generate, login, session, usable_key};
use super::{Pkcs11Uri, SignError, Signer};
use crate::ca::fault::SignerFault;

/// A key in a token.
pub(super) struct TokenSigner {
    uri: Pkcs11Uri,
    kind: KeyKind,
    public: Vec<u8>,
    state: Mutex<State>,
}

/// A session of its own: sessions are not for two at a time.
enum State {
    Open(Session, ObjectHandle),
    Closed,
    /// The token refused the PIN. Trying on would lock it for good.
    Refused(String),
}

impl TokenSigner {
    /// Opens the key of a certificate, and sees that it is that one.
    pub(super) fn open(
        uri: &Pkcs11Uri,
        certificate: &X509Certificate<'_>,
    ) -> Result<Self, SignerFault> {
        let fault = |why: String| fault(uri, why);
        let spki = certificate.public_key();
        let kind = KeyKind::of(spki).ok_or_else(|| {
            fault("the certificate's key is neither ECDSA P-256 or P-384 nor RSA".to_owned())
        })?;
        let (session, key) = session(uri).map_err(|unopened| fault(unopened.why))?;
        let signer = Self::new(
            uri,
            kind,
            spki.subject_public_key.data.to_vec(),
            session,
            key,
        );
        let message = b"nodemesh: whose key is this?";
        let signature = signer.sign(message).map_err(|e| fault(e.0))?;
        if !kind.verifies(&signer.public, message, &signature) {
            return Err(SignerFault::KeyMismatch {
                key: uri.to_string(),
                cert: certificate.subject().to_string().into(),
            });
        }
        Ok(signer)
    }

    fn new(
        uri: &Pkcs11Uri,
        kind: KeyKind,
        public: Vec<u8>,
        session: Session,
        key: ObjectHandle,
    ) -> Self {
        Self {
            uri: uri.clone(),
            kind,
            public,
            state: Mutex::new(State::Open(session, key)),
        }
    }

    fn sign_once(
        &self,
        session: &Session,
        key: ObjectHandle,
        message: &[u8],
    ) -> Result<Vec<u8>, String> {
        let data = self.kind.data(message);
        let made = session.sign(&self.kind.mechanism(), key, &data);
        let made = made.map_err(|e| format!("signing failed: {e}"))?;
        self.kind
            .signature(&made)
            .ok_or_else(|| format!("the token made a signature of {} bytes", made.len()))
    }
}

impl Signer for TokenSigner {
    fn public_key(&self) -> &[u8] {
        &self.public
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        self.kind.algorithm()
    }

    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, SignError> {
        let told = |why: &str| SignError(format!("{}: {why}", self.uri));
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        match &*state {
            State::Open(session, key) => match self.sign_once(session, *key, message) {
                Ok(signature) => return Ok(signature),
                // Sessions end when a token is reset or was out: once more with a new one.
                Err(error) => tracing::warn!(key = %self.uri, error, "opening another session"),
            },
            State::Closed => {}
            State::Refused(why) => return Err(told(why)),
        }
        *state = State::Closed;
        match session(&self.uri) {
            Ok((session, key)) => {
                let signed = self.sign_once(&session, key, message);
                *state = State::Open(session, key);
                signed.map_err(|why| told(&why))
            }
            Err(unopened) => {
                let error = told(&unopened.why);
                if unopened.pin_refused {
                    *state = State::Refused(unopened.why);
                }
                Err(error)
            }
        }
    }
}

/// A key in a token that has no certificate yet: made there, or found.
///
/// # Errors
/// A token that can't be used, or that has (or has not) a key of this name.
pub fn bare_key(uri: &Pkcs11Uri, create: Option<KeyKind>) -> Result<Box<dyn Signer>, SignerFault> {
    let fault = |why: String| fault(uri, why);
    let logged_in = login(uri, true).map_err(|unopened| fault(unopened.why))?;
    if let Some(kind) = create {
        generate(&logged_in, uri, kind).map_err(fault)?;
    }
    let public = find(&logged_in, uri, ObjectClass::PUBLIC_KEY).map_err(fault)?;
    let point = logged_in
        .get_attributes(public, &[AttributeType::EcPoint])
        .map_err(|e| fault(format!("reading its public key failed: {e}")))?;
    let point = point.into_iter().find_map(|attribute| match attribute {
        Attribute::EcPoint(point) => Some(point),
        _ => None,
    });
    let public = point.map(|point| unwrap_octets(&point).to_vec());
    let public = public.unwrap_or_default();
    let kind = KeyKind::of_point(&public)
        .ok_or_else(|| fault("it is no ECDSA key on P-256 or P-384".to_owned()))?;
    let key = usable_key(&logged_in, uri).map_err(fault)?;
    Ok(Box::new(TokenSigner::new(
        uri, kind, public, logged_in, key,
    )))
}

fn fault(uri: &Pkcs11Uri, why: String) -> SignerFault {
    SignerFault::Token {
        key: uri.to_string(),
        why,
    }
}

/// What is in a DER OCTET STRING of less than 128 bytes; some tokens leave the wrapping out.
fn unwrap_octets(bytes: &[u8]) -> &[u8] {
    match bytes {
        [4, len, rest @ ..] if usize::from(*len) == rest.len() => rest,
        bare => bare,
    }
}
