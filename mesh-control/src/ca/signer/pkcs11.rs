//! A key in a token behind PKCS#11: a hardware security module, or what stands for one. The
//! private key is made in the token and never leaves it; what is sent there is a digest.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use cryptoki::error::{Error, RvError};
use cryptoki::object::{Attribute, AttributeType, ObjectClass, ObjectHandle};
use cryptoki::session::{Session, UserType};
use cryptoki::slot::Slot;
use cryptoki::types::AuthPin;
use rcgen::SignatureAlgorithm;
use x509_parser::prelude::X509Certificate;

use super::kind::KeyKind;
use super::{Pkcs11Uri, SignError, Signer};
use crate::ca::fault::SignerFault;
use crate::ca::load::read_secret;

/// Libraries of tokens, which a process may set up only once.
static MODULES: Mutex<BTreeMap<PathBuf, Pkcs11>> = Mutex::new(BTreeMap::new());

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

/// Why a session was not opened.
struct Unopened {
    why: String,
    pin_refused: bool,
}

impl From<String> for Unopened {
    fn from(why: String) -> Self {
        let pin_refused = false;
        Self { why, pin_refused }
    }
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
    let (_, logged_in) = login(uri, true).map_err(|unopened| fault(unopened.why))?;
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

fn module(path: &Path) -> Result<Pkcs11, String> {
    let mut modules = MODULES.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(module) = modules.get(path) {
        return Ok(module.clone());
    }
    let shown = path.display();
    let module = Pkcs11::new(path)
        .map_err(|e| format!("loading {shown}: {e}; is the token's library installed there?"))?;
    let flags = CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK);
    match module.initialize(flags) {
        Ok(()) | Err(Error::Pkcs11(RvError::CryptokiAlreadyInitialized, _)) => {}
        Err(e) => return Err(format!("setting up {shown}: {e}")),
    }
    modules.insert(path.to_owned(), module.clone());
    Ok(module)
}

fn slot(module: &Pkcs11, uri: &Pkcs11Uri) -> Result<Slot, String> {
    let slots = module.get_slots_with_token();
    let slots = slots.map_err(|e| format!("listing tokens: {e}"))?;
    let mut seen = Vec::new();
    for slot in slots {
        let Ok(info) = module.get_token_info(slot) else {
            continue;
        };
        let (label, serial) = (info.label().trim_end(), info.serial_number().trim_end());
        let fits = |wanted: &Option<String>, found| wanted.as_deref().is_none_or(|w| w == found);
        if fits(&uri.token, label) && fits(&uri.serial, serial) {
            return Ok(slot);
        }
        seen.push(format!("{label:?} (serial {serial})"));
    }
    Err(format!(
        "there is no such token; there are: {}",
        seen.join(", ")
    ))
}

/// A session that is logged in.
fn login(uri: &Pkcs11Uri, write: bool) -> Result<(Slot, Session), Unopened> {
    let module = module(&uri.module)?;
    let slot = slot(&module, uri)?;
    let session = match write {
        true => module.open_rw_session(slot),
        false => module.open_ro_session(slot),
    };
    let session = session.map_err(|e| format!("opening a session: {e}"))?;
    let Some(path) = uri.pin_file() else {
        return Ok((slot, session));
    };
    let pin = read_secret(&path).map_err(|e| format!("its PIN: {e}"))?;
    let pin = String::from_utf8(pin).map_err(|_| format!("no text in {}", path.display()))?;
    let pin = AuthPin::new(pin.trim_end_matches(['\r', '\n']).into());
    match session.login(UserType::User, Some(&pin)) {
        // Sessions of a process are logged in together.
        Ok(()) | Err(Error::Pkcs11(RvError::UserAlreadyLoggedIn, _)) => Ok((slot, session)),
        Err(error) => Err(Unopened {
            pin_refused: matches!(
                error,
                Error::Pkcs11(
                    RvError::PinIncorrect
                        | RvError::PinLocked
                        | RvError::PinExpired
                        | RvError::PinInvalid
                        | RvError::PinLenRange,
                    _
                )
            ),
            why: format!("logging in with the PIN in {}: {error}", path.display()),
        }),
    }
}

fn session(uri: &Pkcs11Uri) -> Result<(Session, ObjectHandle), Unopened> {
    let (_, session) = login(uri, false)?;
    let key = usable_key(&session, uri)?;
    Ok((session, key))
}

/// What objects of this name have in common.
fn names(uri: &Pkcs11Uri) -> Vec<Attribute> {
    let label = uri.object.iter();
    let label = label.map(|label| Attribute::Label(label.clone().into_bytes()));
    let id = uri.id.iter().map(|id| Attribute::Id(id.clone()));
    label.chain(id).collect()
}

/// The one object of this class and name.
fn find(session: &Session, uri: &Pkcs11Uri, class: ObjectClass) -> Result<ObjectHandle, String> {
    let mut template = names(uri);
    template.push(Attribute::Class(class));
    let found = session.find_objects(&template);
    let found = found.map_err(|e| format!("looking for it: {e}"))?;
    match found.as_slice() {
        [object] => Ok(*object),
        [] => Err(
            "the token has no such key (or hides it: name its PIN with pin-source); \
             make one with: mesh-control signer request --create p256"
                .to_owned(),
        ),
        several => Err(format!(
            "the token has {} such keys; name one by its id",
            several.len()
        )),
    }
}

/// The private key, if it signs and can't leave the token.
fn usable_key(session: &Session, uri: &Pkcs11Uri) -> Result<ObjectHandle, String> {
    let key = find(session, uri, ObjectClass::PRIVATE_KEY)?;
    let asked = [
        AttributeType::Sensitive,
        AttributeType::Extractable,
        AttributeType::Sign,
    ];
    let said = session.get_attributes(key, &asked);
    let said = said.map_err(|e| format!("reading its attributes: {e}"))?;
    for (wanted, what) in [
        (
            Attribute::Sensitive(true),
            "can be read in clear (CKA_SENSITIVE is not set)",
        ),
        (
            Attribute::Extractable(false),
            "can leave the token (CKA_EXTRACTABLE is set)",
        ),
        (
            Attribute::Sign(true),
            "is not for signing (CKA_SIGN is not set)",
        ),
    ] {
        if !said.contains(&wanted) {
            return Err(format!("it {what}; make a new one, in the token"));
        }
    }
    Ok(key)
}

fn generate(session: &Session, uri: &Pkcs11Uri, kind: KeyKind) -> Result<(), String> {
    if find(session, uri, ObjectClass::PRIVATE_KEY).is_ok() {
        return Err("the token has a key of this name already".to_owned());
    }
    let curve = kind
        .curve()
        .ok_or("keys are made on P-256 and P-384 only")?;
    let mut public = names(uri);
    let mut private = public.clone();
    public.extend([
        Attribute::Token(true),
        Attribute::Verify(true),
        Attribute::EcParams(curve.to_vec()),
    ]);
    private.extend([
        Attribute::Token(true),
        Attribute::Private(true),
        Attribute::Sensitive(true),
        Attribute::Extractable(false),
        Attribute::Sign(true),
    ]);
    let mechanism = cryptoki::mechanism::Mechanism::EccKeyPairGen;
    session
        .generate_key_pair(&mechanism, &public, &private)
        .map(|_| ())
        .map_err(|e| format!("making it failed: {e}"))
}

/// What is in a DER OCTET STRING of less than 128 bytes; some tokens leave the wrapping out.
fn unwrap_octets(bytes: &[u8]) -> &[u8] {
    match bytes {
        [4, len, rest @ ..] if usize::from(*len) == rest.len() => rest,
        bare => bare,
    }
}
