//! Names of keys in tokens: PKCS#11 URIs (RFC 7512), as far as they are needed.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// What such a name begins with.
pub(super) const SCHEME: &str = "pkcs11:";
/// Where a service manager puts the credentials of a service.
const CREDENTIALS: &str = "CREDENTIALS_DIRECTORY";

/// Why a text names no key in a token.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UriFault {
    /// Not in the form of a PKCS#11 URI.
    #[error(
        "{0:?} is no part of pkcs11:token=…;object=…?module-path=/…&pin-source=file:/… (RFC 7512)"
    )]
    Malformed(String),
    /// Something is missing.
    #[error("a PKCS#11 URI needs {0}")]
    Missing(&'static str),
    /// The PIN itself.
    #[error(
        "pin-value shows the PIN to everyone who sees this process; give pin-source=file:/<file of mode 0600>, or pin-source=credential:<name>"
    )]
    PinValue,
}

/// The name of a private key in a token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pkcs11Uri {
    /// Label of the token.
    pub(super) token: Option<String>,
    /// Serial number of the token.
    pub(super) serial: Option<String>,
    /// Label of the key.
    pub(super) object: Option<String>,
    /// `CKA_ID` of the key.
    pub(super) id: Option<Vec<u8>>,
    /// The token's library.
    pub(super) module: PathBuf,
    pin: Option<PinSource>,
}

/// Where a PIN is.
#[derive(Clone, Debug, PartialEq, Eq)]
enum PinSource {
    File(PathBuf),
    /// A file in the folder that the service manager made for this service alone.
    Credential(String),
}

impl Pkcs11Uri {
    /// The file with the PIN, if one is named.
    pub(super) fn pin_file(&self) -> Option<PathBuf> {
        match self.pin.as_ref()? {
            PinSource::File(path) => Some(path.clone()),
            PinSource::Credential(name) => {
                let folder = std::env::var_os(CREDENTIALS).unwrap_or_default();
                Some(PathBuf::from(folder).join(name))
            }
        }
    }
}

impl FromStr for Pkcs11Uri {
    type Err = UriFault;

    fn from_str(text: &str) -> Result<Self, UriFault> {
        let malformed = |part: &str| UriFault::Malformed(part.to_owned());
        let rest = text.strip_prefix(SCHEME).ok_or_else(|| malformed(text))?;
        let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (mut token, mut serial, mut object, mut id) = (None, None, None, None);
        for part in path.split(';').filter(|part| !part.is_empty()) {
            let (name, value) = part.split_once('=').ok_or_else(|| malformed(part))?;
            let value = decode(value).ok_or_else(|| malformed(part))?;
            let words = |value| String::from_utf8(value).map_err(|_| malformed(part));
            match name {
                "token" => token = Some(words(value)?),
                "serial" => serial = Some(words(value)?),
                "object" => object = Some(words(value)?),
                "id" => id = Some(value),
                "type" if value == b"private" => {}
                _ => return Err(malformed(part)),
            }
        }
        let (mut module, mut pin) = (None, None);
        for part in query.split('&').filter(|part| !part.is_empty()) {
            let (name, value) = part.split_once('=').ok_or_else(|| malformed(part))?;
            let value = decode(value).and_then(|value| String::from_utf8(value).ok());
            let value = value.ok_or_else(|| malformed(part))?;
            match name {
                "module-path" if value.starts_with('/') => module = Some(value.into()),
                "pin-source" => pin = Some(pin_source(&value).ok_or_else(|| malformed(part))?),
                "pin-value" => return Err(UriFault::PinValue),
                _ => return Err(malformed(part)),
            }
        }
        if token.is_none() && serial.is_none() {
            return Err(UriFault::Missing("token=<label> or serial=<number>"));
        }
        if object.is_none() && id.is_none() {
            return Err(UriFault::Missing(
                "object=<label of the key> or id=<its CKA_ID>",
            ));
        }
        Ok(Self {
            token,
            serial,
            object,
            id,
            module: module.ok_or(UriFault::Missing("module-path=/<the token's library>"))?,
            pin,
        })
    }
}

fn pin_source(value: &str) -> Option<PinSource> {
    if let Some(name) = value.strip_prefix("credential:") {
        let plain = !name.is_empty() && !name.contains('/') && name != "." && name != "..";
        return plain.then(|| PinSource::Credential(name.to_owned()));
    }
    let path = value.strip_prefix("file:").unwrap_or(value);
    let path = path.strip_prefix("//").unwrap_or(path);
    path.starts_with('/').then(|| PinSource::File(path.into()))
}

/// Undoes percent-encoding.
fn decode(text: &str) -> Option<Vec<u8>> {
    let mut bytes = text.bytes();
    let mut decoded = Vec::with_capacity(text.len());
    while let Some(byte) = bytes.next() {
        decoded.push(match byte {
            b'%' => {
                let mut digit = || char::from(bytes.next()?).to_digit(16);
                let (high, low) = (digit()?, digit()?);
                u8::try_from(high * 16 + low).ok()?
            }
            byte => byte,
        });
    }
    Some(decoded)
}

/// As it is shown: which key, not where its PIN is.
impl fmt::Display for Pkcs11Uri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("pkcs11:")?;
        let mut separator = "";
        for (name, value) in [
            ("token", &self.token),
            ("serial", &self.serial),
            ("object", &self.object),
        ] {
            if let Some(value) = value {
                write!(f, "{separator}{name}={value}")?;
                separator = ";";
            }
        }
        if let Some(id) = &self.id {
            write!(f, "{separator}id=")?;
            id.iter().try_for_each(|byte| write!(f, "%{byte:02x}"))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_keys_say_what_they_lack() {
        let sound = "pkcs11:token=mesh%20ca;object=inter?module-path=/l.so&pin-source=file:/p";
        let uri: Pkcs11Uri = sound.parse().unwrap();
        assert_eq!(uri.token.as_deref(), Some("mesh ca"));
        assert_eq!(uri.pin_file(), Some("/p".into()));
        assert_eq!(uri.to_string(), "pkcs11:token=mesh ca;object=inter");
        let by_id: Pkcs11Uri = "pkcs11:serial=1;id=%0a?module-path=/l.so".parse().unwrap();
        assert_eq!(by_id.id.as_deref(), Some(&[10][..]));
        assert_eq!(by_id.pin_file(), None);
        for (text, part) in [
            ("pkcs11:object=a?module-path=/l.so", "token="),
            ("pkcs11:token=a?module-path=/l.so", "object="),
            ("pkcs11:token=a;object=b", "module-path="),
            (
                "pkcs11:token=a;object=b?module-path=l.so",
                "module-path=l.so",
            ),
            (
                "pkcs11:token=a;object=b?module-path=/l&pin-value=1",
                "pin-value shows",
            ),
            (
                "pkcs11:token=a;object=b?module-path=/l&pin-source=p",
                "pin-source=p",
            ),
            (
                "pkcs11:token=a;object=b?module-path=/l&pin-source=credential:../p",
                "..",
            ),
            ("pkcs11:token=%4;object=b?module-path=/l", "token=%4"),
            ("pkcs11:token=a;slot-id=1", "slot-id=1"),
            ("file:/key.pem", "file:/key.pem"),
        ] {
            let fault = text.parse::<Pkcs11Uri>().unwrap_err().to_string();
            assert!(fault.contains(part), "{text}: {fault}");
        }
    }
}
