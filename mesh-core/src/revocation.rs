//! What has been revoked, and whether it meets a peer's certificates.
//!
//! An identity is revoked by its SPIFFE ID; a certificate by its serial number, whoever issued it,
//! or by issuer and serial number, as CRLs name it; a node by the mark that all serial numbers of
//! certificates have that were issued through it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use x509_parser::prelude::{FromDer, X509Certificate};

use crate::certificate::LeafFault;
use crate::identity::Identity;

/// Length of a node's mark, in bytes.
pub const NODE_MARK_LEN: usize = 8;
/// What the serial numbers of all certificates begin with that were issued through one node.
pub type NodeMark = [u8; NODE_MARK_LEN];

/// A certificate as revocation names it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct CertificateId {
    /// The issuer's name, DER.
    pub issuer: Vec<u8>,
    /// The serial number, big-endian, without leading zeros.
    pub serial: Vec<u8>,
}

impl CertificateId {
    /// Of a DER certificate.
    ///
    /// # Errors
    /// [`LeafFault::Malformed`] for what is not a certificate.
    pub fn from_der(der: &[u8]) -> Result<Self, LeafFault> {
        let (_, certificate) =
            X509Certificate::from_der(der).map_err(|e| LeafFault::Malformed(e.to_string()))?;
        Ok(Self::of(&certificate))
    }

    pub(crate) fn of(certificate: &X509Certificate<'_>) -> Self {
        Self {
            issuer: certificate.issuer().as_raw().to_vec(),
            serial: significant(certificate.raw_serial()).to_vec(),
        }
    }
}

/// A serial number without leading zeros.
#[must_use]
pub fn significant(serial: &[u8]) -> &[u8] {
    let zeros = serial.iter().take_while(|byte| **byte == 0).count();
    &serial[zeros..]
}

/// A serial number as people write it: hex, upper or lower case, with or without colons.
#[must_use]
pub fn parse_serial(text: &str) -> Option<Vec<u8>> {
    let digits: Vec<u8> = text
        .chars()
        .filter(|c| *c != ':')
        .map(|c| c.to_digit(16).and_then(|digit| u8::try_from(digit).ok()))
        .collect::<Option<_>>()?;
    // The first of an odd number of digits is a byte of its own.
    let (first, pairs) = digits.split_at(digits.len() % 2);
    let mut serial = first.to_vec();
    serial.extend(pairs.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]));
    let serial = significant(&serial).to_vec();
    (!serial.is_empty()).then_some(serial)
}

/// Everything that has been revoked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Revocations {
    /// Workloads' identities.
    pub identities: BTreeSet<Identity>,
    /// Names of nodes.
    pub nodes: BTreeSet<String>,
    /// The marks of those nodes.
    pub marks: BTreeSet<NodeMark>,
    /// Serial numbers, whoever issued them, without leading zeros.
    pub serials: BTreeSet<Vec<u8>>,
    /// Serial numbers without leading zeros, by the DER name of who issued them.
    pub listed: BTreeMap<Vec<u8>, BTreeSet<Vec<u8>>>,
}

/// What of a peer has been revoked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Revoked {
    /// Its identity.
    Identity(Identity),
    /// The node that its certificate was issued through.
    Node,
    /// A certificate of its chain, by serial number.
    Certificate(Vec<u8>),
}

impl fmt::Display for Revoked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Identity(identity) => write!(f, "the identity {identity} is revoked"),
            Self::Node => {
                f.write_str("the node that its certificate was issued through is revoked")
            }
            Self::Certificate(serial) => {
                f.write_str("the certificate with serial number ")?;
                for byte in serial {
                    write!(f, "{byte:02x}")?;
                }
                f.write_str(" is revoked")
            }
        }
    }
}

impl Revocations {
    /// Whether nothing is revoked.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// What is revoked of a peer that proves `identity`, if it proves one, by a chain of
    /// certificates, its own first.
    #[must_use]
    pub fn find(&self, identity: Option<&Identity>, chain: &[CertificateId]) -> Option<Revoked> {
        if let Some(identity) = identity.filter(|identity| self.identities.contains(identity)) {
            return Some(Revoked::Identity(identity.clone()));
        }
        let mark = chain
            .first()
            .and_then(|own| own.serial.first_chunk::<NODE_MARK_LEN>());
        if mark.is_some_and(|mark| self.marks.contains(mark)) {
            return Some(Revoked::Node);
        }
        let revoked = chain.iter().find(|CertificateId { issuer, serial }| {
            self.serials.contains(serial)
                || self
                    .listed
                    .get(issuer)
                    .is_some_and(|serials| serials.contains(serial))
        });
        revoked.map(|certificate| Revoked::Certificate(certificate.serial.clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(issuer: &[u8], serial: &[u8]) -> CertificateId {
        CertificateId {
            issuer: issuer.to_vec(),
            serial: serial.to_vec(),
        }
    }

    fn identity(account: &str) -> Identity {
        Identity::new("cluster.local".parse().unwrap(), "shop", account).unwrap()
    }

    #[test]
    fn each_kind_of_revocation_meets_what_it_names_and_nothing_else() {
        let leaf = [&[0x41; NODE_MARK_LEN][..], &[7; 12]].concat();
        let chain = [id(b"intermediate", &leaf), id(b"root", &[9])];
        let cart = identity("cart");
        let none = Revocations::default();
        assert_eq!(none.find(Some(&cart), &chain), None);
        let with = |change: &dyn Fn(&mut Revocations)| {
            let mut revocations = none.clone();
            change(&mut revocations);
            revocations.find(Some(&cart), &chain)
        };
        let found = with(&|r| r.identities.extend([identity("cart")]));
        assert_eq!(found, Some(Revoked::Identity(cart.clone())));
        assert_eq!(with(&|r| r.identities.extend([identity("pay")])), None);
        let found = with(&|r| r.marks.extend([[0x41; NODE_MARK_LEN]]));
        assert_eq!(found, Some(Revoked::Node));
        assert_eq!(with(&|r| r.marks.extend([[0x42; NODE_MARK_LEN]])), None);
        let found = with(&|r| r.serials.extend([leaf.clone()]));
        assert_eq!(found, Some(Revoked::Certificate(leaf.clone())));
        // An intermediate takes all below it along; another issuer's certificate does not.
        let listed = |issuer: &'static [u8]| {
            with(&|r| drop(r.listed.insert(issuer.to_vec(), [vec![9]].into())))
        };
        assert_eq!(listed(b"root"), Some(Revoked::Certificate(vec![9])));
        assert_eq!(listed(b"intermediate"), None);
    }

    #[test]
    fn serial_numbers_are_read_as_people_write_them() {
        for (text, expected) in [
            ("4F:00:a1", Some(vec![0x4f, 0, 0xa1])),
            ("004f00A1", Some(vec![0x4f, 0, 0xa1])),
            ("f01", Some(vec![0xf, 1])),
            ("0", None),
            ("", None),
            ("xyz", None),
        ] {
            assert_eq!(parse_serial(text), expected, "{text:?}");
        }
    }
}
