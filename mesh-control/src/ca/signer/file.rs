//! A key in a PEM file.

use std::path::Path;

use rcgen::{KeyPair, PublicKeyData, SignatureAlgorithm, SigningKey};
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject;

use super::{SignError, Signer};
use crate::ca::fault::SignerFault;
use crate::ca::files::read_secret;

/// A key that is in this process's memory.
pub(super) struct FileSigner(KeyPair);

impl FileSigner {
    pub(super) fn open(path: &Path) -> Result<Self, SignerFault> {
        let content = read_secret(path)?;
        let malformed = |e: &dyn std::fmt::Display| SignerFault::malformed(path, e);
        let der = PrivateKeyDer::from_pem_slice(&content).map_err(|e| malformed(&e))?;
        Ok(Self(KeyPair::try_from(&der).map_err(|e| malformed(&e))?))
    }
}

impl Signer for FileSigner {
    fn public_key(&self) -> &[u8] {
        self.0.der_bytes()
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        PublicKeyData::algorithm(&self.0)
    }

    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, SignError> {
        SigningKey::sign(&self.0, message).map_err(|e| SignError(e.to_string()))
    }
}
