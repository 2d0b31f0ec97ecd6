//! Tokens: their libraries, sessions, and the objects in them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use cryptoki::error::{Error, RvError};
use cryptoki::mechanism::Mechanism;
use cryptoki::object::{Attribute, AttributeType, ObjectClass, ObjectHandle};
use cryptoki::session::{Session, UserType};
use cryptoki::slot::Slot;
use cryptoki::types::AuthPin;

use super::Pkcs11Uri;
use super::kind::KeyKind;
use crate::ca::files::read_secret;

/// Libraries of tokens, which a process may set up only once.
static MODULES: Mutex<BTreeMap<PathBuf, Pkcs11>> = Mutex::new(BTreeMap::new());

/// Why a session was not opened.
pub(super) struct Unopened {
    /// What was tried, and why it failed.
    pub(super) why: String,
    /// Trying on would lock the token.
    pub(super) pin_refused: bool,
}

impl From<String> for Unopened {
    fn from(why: String) -> Self {
        let pin_refused = false;
        Self { why, pin_refused }
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
pub(super) fn login(uri: &Pkcs11Uri, write: bool) -> Result<Session, Unopened> {
    let module = module(&uri.module)?;
    let slot = slot(&module, uri)?;
    let session = match write {
        true => module.open_rw_session(slot),
        false => module.open_ro_session(slot),
    };
    let session = session.map_err(|e| format!("opening a session: {e}"))?;
    let Some(path) = uri.pin_file() else {
        return Ok(session);
    };
    let pin = read_secret(&path).map_err(|e| format!("its PIN: {e}"))?;
    let pin = String::from_utf8(pin).map_err(|_| format!("no text in {}", path.display()))?;
    let pin = AuthPin::new(pin.trim_end_matches(['\r', '\n']).into());
    match session.login(UserType::User, Some(&pin)) {
        // Sessions of a process are logged in together.
        Ok(()) | Err(Error::Pkcs11(RvError::UserAlreadyLoggedIn, _)) => Ok(session),
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

/// A session that is logged in, and the key in it.
pub(super) fn session(uri: &Pkcs11Uri) -> Result<(Session, ObjectHandle), Unopened> {
    let session = login(uri, false)?;
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
pub(super) fn find(
    session: &Session,
    uri: &Pkcs11Uri,
    class: ObjectClass,
) -> Result<ObjectHandle, String> {
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
pub(super) fn usable_key(session: &Session, uri: &Pkcs11Uri) -> Result<ObjectHandle, String> {
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

/// Makes a key on a curve, which can't leave the token.
pub(super) fn generate(session: &Session, uri: &Pkcs11Uri, kind: KeyKind) -> Result<(), String> {
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
    session
        .generate_key_pair(&Mechanism::EccKeyPairGen, &public, &private)
        .map(|_| ())
        .map_err(|e| format!("making it failed: {e}"))
}
