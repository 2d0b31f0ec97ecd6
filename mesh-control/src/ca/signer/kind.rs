//! Kinds of keys that a token signs with, and what each wants to be given.

use aws_lc_rs::{digest, signature};
use cryptoki::mechanism::Mechanism;
use rcgen::SignatureAlgorithm;
use x509_parser::public_key::PublicKey;
use x509_parser::x509::SubjectPublicKeyInfo;

/// DER of the curves' object identifiers.
const P256: &[u8] = &[6, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 3, 1, 7];
const P384: &[u8] = &[6, 5, 0x2b, 0x81, 4, 0, 0x22];

/// A kind of key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyKind {
    /// ECDSA on P-256, with SHA-256.
    P256,
    /// ECDSA on P-384, with SHA-384.
    P384,
    /// RSA, PKCS#1 v1.5 with SHA-256.
    Rsa,
}

impl KeyKind {
    /// The kind of a public key; None if it is another.
    pub(super) fn of(spki: &SubjectPublicKeyInfo<'_>) -> Option<Self> {
        match spki.parsed().ok()? {
            PublicKey::RSA(_) => Some(Self::Rsa),
            PublicKey::EC(point) => Self::of_point(point.data()),
            _ => None,
        }
    }

    /// The kind of an uncompressed point.
    pub(super) fn of_point(point: &[u8]) -> Option<Self> {
        match point {
            [4, xy @ ..] if xy.len() == 64 => Some(Self::P256),
            [4, xy @ ..] if xy.len() == 96 => Some(Self::P384),
            _ => None,
        }
    }

    /// Its curve, as a token is told of it.
    pub(super) fn curve(self) -> Option<&'static [u8]> {
        match self {
            Self::P256 => Some(P256),
            Self::P384 => Some(P384),
            Self::Rsa => None,
        }
    }

    pub(super) fn algorithm(self) -> &'static SignatureAlgorithm {
        match self {
            Self::P256 => &rcgen::PKCS_ECDSA_P256_SHA256,
            Self::P384 => &rcgen::PKCS_ECDSA_P384_SHA384,
            Self::Rsa => &rcgen::PKCS_RSA_SHA256,
        }
    }

    pub(super) fn mechanism(self) -> Mechanism<'static> {
        match self {
            Self::P256 | Self::P384 => Mechanism::Ecdsa,
            Self::Rsa => Mechanism::Sha256RsaPkcs,
        }
    }

    /// What the mechanism is given for a message: tokens that hash for ECDSA are rare.
    pub(super) fn data(self, message: &[u8]) -> Vec<u8> {
        let hash = match self {
            Self::P256 => &digest::SHA256,
            Self::P384 => &digest::SHA384,
            Self::Rsa => return message.to_vec(),
        };
        digest::digest(hash, message).as_ref().to_vec()
    }

    /// A certificate's form of what the mechanism gave.
    pub(super) fn signature(self, made: &[u8]) -> Option<Vec<u8>> {
        let number = match self {
            Self::P256 => 32,
            Self::P384 => 48,
            Self::Rsa => return Some(made.to_vec()),
        };
        let (r, s) = made.split_at_checked(number)?;
        (s.len() == number).then(|| sequence(&[integer(r), integer(s)].concat()))
    }

    pub(super) fn verifies(self, public: &[u8], message: &[u8], made: &[u8]) -> bool {
        let algorithm: &dyn signature::VerificationAlgorithm = match self {
            Self::P256 => &signature::ECDSA_P256_SHA256_ASN1,
            Self::P384 => &signature::ECDSA_P384_SHA384_ASN1,
            Self::Rsa => &signature::RSA_PKCS1_2048_8192_SHA256,
        };
        let public = signature::UnparsedPublicKey::new(algorithm, public);
        public.verify(message, made).is_ok()
    }
}

/// A DER INTEGER of an unsigned big-endian number of less than 127 bytes.
fn integer(number: &[u8]) -> Vec<u8> {
    let zeros = number.iter().take_while(|byte| **byte == 0).count();
    let digits = &number[zeros.min(number.len().saturating_sub(1))..];
    let sign: &[u8] = match digits.first() {
        Some(0x80..) => &[0],
        _ => &[],
    };
    tagged(2, &[sign, digits].concat())
}

fn sequence(content: &[u8]) -> Vec<u8> {
    tagged(0x30, content)
}

/// Two numbers of 48 bytes and their heads have 102 at most: one byte of length.
fn tagged(tag: u8, content: &[u8]) -> Vec<u8> {
    let len = u8::try_from(content.len()).unwrap_or(u8::MAX);
    [&[tag, len], content].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_positive_and_as_short_as_they_can_be() {
        assert_eq!(integer(&[0, 0, 0x80]), [2, 2, 0, 0x80]);
        assert_eq!(integer(&[0, 0x7f]), [2, 1, 0x7f]);
        assert_eq!(integer(&[0, 0]), [2, 1, 0]);
        let made = KeyKind::P256.signature(&[0xff; 64]).unwrap();
        assert_eq!(made.len(), 2 + 2 * (2 + 33));
        assert_eq!(made[..5], [0x30, 70, 2, 33, 0]);
        assert_eq!(KeyKind::P256.signature(&[1; 63]), None);
        assert_eq!(
            KeyKind::P384.signature(&[0xff; 96]).unwrap().len(),
            2 + 2 * 51
        );
    }
}
