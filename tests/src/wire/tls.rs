//! TLS records (RFC 8446 §5.1) and the hellos in the clear part of a handshake.

use std::fmt;

/// Version number of TLS 1.3.
pub(super) const TLS_1_3: u16 = 0x0304;
/// Largest record: 2^14 bytes and the 256 that encryption may add.
const MAX_RECORD: usize = 16_384 + 256;

const CHANGE_CIPHER_SPEC: u8 = 20;
const ALERT: u8 = 21;
const HANDSHAKE: u8 = 22;
const APPLICATION_DATA: u8 = 23;
const CLIENT_HELLO: u8 = 1;
const SERVER_HELLO: u8 = 2;

/// What the server chose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Handshake {
    /// Protocol version.
    pub version: u16,
    /// Named group of the key exchange; 0 if there is none.
    pub group: u16,
}

impl fmt::Display for Handshake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.version {
            TLS_1_3 => f.write_str("TLS 1.3")?,
            other => write!(f, "TLS version {other:#06x}")?,
        }
        match self.group {
            0x11ec => f.write_str(", X25519MLKEM768"),
            0x001d => f.write_str(", X25519"),
            0x0017 => f.write_str(", secp256r1"),
            other => write!(f, ", group {other:#06x}"),
        }
    }
}

/// Why a stream is no TLS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StreamFault {
    /// These bytes begin no TLS record.
    NoRecord {
        /// Where in the stream.
        offset: usize,
        /// The bytes there.
        bytes: Vec<u8>,
    },
    /// A record of another type than can stand there.
    Unexpected {
        /// Where in the stream.
        offset: usize,
        /// Its content type.
        content_type: u8,
    },
}

impl fmt::Display for StreamFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoRecord { offset, bytes } => {
                write!(
                    f,
                    "no TLS record at byte {offset}: {}",
                    bytes.escape_ascii()
                )
            }
            Self::Unexpected {
                offset,
                content_type,
            } => write!(f, "a record of type {content_type} at byte {offset}"),
        }
    }
}

/// Checks that a direction of a connection is TLS 1.3 records from its first byte on: its
/// hello (a second one after a retry), then nothing but encrypted records, the compatible
/// change-cipher-spec and alerts. The last record may be cut short, where the capture
/// ended. For a server's direction, returns what it chose.
///
/// # Errors
/// The first thing that isn't so.
pub fn check_stream(stream: &[u8], from_client: bool) -> Result<Option<Handshake>, StreamFault> {
    let hello_type = if from_client {
        CLIENT_HELLO
    } else {
        SERVER_HELLO
    };
    let mut chosen = None;
    let mut encrypted = false;
    let mut offset = 0;
    while offset < stream.len() {
        let rest = &stream[offset..];
        let no_record = || StreamFault::NoRecord {
            offset,
            bytes: rest[..rest.len().min(48)].to_vec(),
        };
        let content_type = rest[0];
        let plausible = (CHANGE_CIPHER_SPEC..=APPLICATION_DATA).contains(&content_type)
            && rest.get(1).is_none_or(|major| *major == 3)
            && rest.get(2).is_none_or(|minor| (1..=3).contains(minor));
        if !plausible {
            return Err(no_record());
        }
        let Some(header) = rest.first_chunk::<5>() else {
            break;
        };
        let len = usize::from(u16::from_be_bytes([header[3], header[4]]));
        if len == 0 || len > MAX_RECORD {
            return Err(no_record());
        }
        let body = &rest[5..rest.len().min(5 + len)];
        let fits = match content_type {
            HANDSHAKE => !encrypted && body.first().is_none_or(|t| *t == hello_type),
            APPLICATION_DATA => offset > 0,
            CHANGE_CIPHER_SPEC => offset > 0 && len == 1,
            _ => content_type == ALERT,
        };
        if !fits {
            return Err(StreamFault::Unexpected {
                offset,
                content_type,
            });
        }
        if content_type == HANDSHAKE && !from_client {
            chosen = server_choice(body).or(chosen);
        }
        encrypted |= content_type == APPLICATION_DATA;
        offset += 5 + len;
    }
    Ok(chosen)
}

/// Version and group out of a ServerHello (RFC 8446 §4.1.3).
fn server_choice(hello: &[u8]) -> Option<Handshake> {
    let legacy_version = u16::from_be_bytes(*hello.get(4..)?.first_chunk()?);
    let session_id_len = usize::from(*hello.get(38)?);
    // Session id, cipher suite (2), compression (1), length of the extensions (2).
    let mut extensions = hello.get(39 + session_id_len + 5..)?;
    let mut choice = Handshake {
        version: legacy_version,
        group: 0,
    };
    while let Some([t0, t1, l0, l1]) = extensions.first_chunk::<4>() {
        let len = usize::from(u16::from_be_bytes([*l0, *l1]));
        let value = extensions.get(4..4 + len)?;
        let number = value.first_chunk::<2>().map(|n| u16::from_be_bytes(*n));
        match u16::from_be_bytes([*t0, *t1]) {
            43 => choice.version = number?,
            51 => choice.group = number?,
            _ => {}
        }
        extensions = &extensions[4 + len..];
    }
    Some(choice)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(content_type: u8, body: &[u8]) -> Vec<u8> {
        let [high, low] = u16::try_from(body.len()).unwrap().to_be_bytes();
        [&[content_type, 3, 3, high, low], body].concat()
    }

    #[test]
    fn a_hello_and_encrypted_records_pass() {
        let stream = [
            record(HANDSHAKE, &[CLIENT_HELLO, 0, 0, 0]),
            record(CHANGE_CIPHER_SPEC, &[1]),
            record(APPLICATION_DATA, b"xxxx"),
        ]
        .concat();
        assert_eq!(check_stream(&stream, true), Ok(None));
        assert_eq!(check_stream(&stream[..stream.len() - 2], true), Ok(None));
    }

    #[test]
    fn what_is_not_tls_is_told() {
        let hello = record(HANDSHAKE, &[CLIENT_HELLO, 0, 0, 0]);
        assert!(check_stream(b"GET / HTTP/1.1", true).is_err());
        let late = [hello.clone(), b"GET /".to_vec()].concat();
        assert!(check_stream(&late, true).is_err());
        assert!(check_stream(&hello, false).is_err(), "a server's first");
        assert!(check_stream(&record(APPLICATION_DATA, b"x"), true).is_err());
        let renegotiated = [hello.clone(), record(APPLICATION_DATA, b"x"), hello].concat();
        assert!(check_stream(&renegotiated, true).is_err());
    }

    #[test]
    fn the_servers_choice_is_read() {
        let mut hello = vec![SERVER_HELLO, 0, 0, 0, 3, 3];
        hello.extend([7; 32]);
        hello.push(0);
        hello.extend([0x13, 0x02, 0, 0, 12]);
        hello.extend([0, 43, 0, 2, 3, 4]);
        hello.extend([0, 51, 0, 2, 0x11, 0xec]);
        let choice = check_stream(&record(HANDSHAKE, &hello), false)
            .unwrap()
            .unwrap();
        assert_eq!(choice.to_string(), "TLS 1.3, X25519MLKEM768");
    }
}
