//! spec of a Revocation: what is not to be believed any more.

use mesh_core::revocation::parse_serial;
use serde::{Deserialize, Deserializer};

use super::values::{SpiffeId, given};
use super::{Name, checked, text};

text! {
    /// A certificate's serial number, hex.
    Serial(Vec<u8>) = serial;
}

fn serial(text: &str) -> Result<Vec<u8>, String> {
    parse_serial(text).ok_or_else(|| {
        format!("{text:?} is not a serial number: hex digits, as openssl x509 -serial prints them")
    })
}

/// spec of a Revocation.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Revocation {
    #[serde(default, deserialize_with = "given")]
    pub(crate) identities: Option<Vec<SpiffeId>>,
    #[serde(default, deserialize_with = "given")]
    pub(crate) nodes: Option<Vec<Name>>,
    #[serde(default, deserialize_with = "given")]
    pub(crate) serials: Option<Vec<Serial>>,
}

impl Revocation {
    /// Whether it names nothing.
    pub(crate) fn is_empty(&self) -> bool {
        fn none<T>(list: Option<&Vec<T>>) -> bool {
            list.is_none_or(Vec::is_empty)
        }
        none(self.identities.as_ref()) && none(self.nodes.as_ref()) && none(self.serials.as_ref())
    }
}
