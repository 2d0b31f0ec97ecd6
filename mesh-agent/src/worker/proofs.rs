//! New certificates, proven in tunnels that stand: so a flow that lasts for days never rides on an
//! identity that has ended, and is not cut when a certificate is replaced.
//!
//! Where both ends say so in ALPN, the client opens one stream of the tunnel for it, at once: after a
//! GOAWAY, which each rotation brings, it could not. Either end sends a proof there whenever it
//! has another certificate: its chain, and a signature by its key over a value that only the two ends
//! of this very connection have (RFC 5705), who the sender is in it, and a number that grows. It is
//! built like an exported authenticator (RFC 9261), and like it is worth nothing in another
//! connection.

use std::rc::Rc;

use aws_lc_rs::digest;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1, ECDSA_P384_SHA384_ASN1, UnparsedPublicKey};
use bytes::{Buf, Bytes, BytesMut};
use h2::{RecvStream, SendStream};
use http::{Method, Request};
use mesh_api::tunnel::Proof;
use mesh_core::rate::TokenBucket;
use mesh_core::reason::Reason;
use prost::Message;
use rustls::SignatureScheme;
use rustls::pki_types::CertificateDer;
use tokio::time::Instant;

use super::chunk::Chunk;
use super::context::Context;
use super::fault::{Direction, Fault};
use super::metrics::Count;
use super::standing::{Binding, Standing, side_of_peer};
use super::tls::{Credentials, now_s};

const URI: &str = "https://tunnel/nodemesh.tunnel.v1/proofs";
const PATH: &str = "/nodemesh.tunnel.v1/proofs";
/// Largest proof, in bytes. One with two intermediates has 3,000.
const MAX_PROOF: usize = 64 * 1024;
/// Length before each proof.
const PREFIX: usize = 4;
/// Proofs a peer may send: a second, and at once.
const PROOFS: (u32, u32) = (1, 8);

/// The request for the stream of a tunnel.
pub(crate) fn request() -> Request<()> {
    let mut request = Request::new(());
    *request.method_mut() = Method::POST;
    *request.uri_mut() = http::Uri::from_static(URI);
    request
}

/// Whether it is that request.
pub(crate) fn is_request<B>(request: &Request<B>) -> bool {
    request.method() == Method::POST && request.uri().path() == PATH
}

/// Proves each new certificate to the peer, and hears its proofs, until either end of the stream is
/// closed. A proof that is none ends the tunnel.
pub(crate) async fn exchange(
    context: Rc<Context>,
    standing: Rc<Standing>,
    send: SendStream<Chunk>,
    receive: RecvStream,
) {
    tokio::select! {
        () = prove(&context, &standing, send) => {}
        outcome = hear(&context, &standing, receive) => {
            if let Err(fault) = outcome {
                standing.fail(fault);
            }
        }
    }
}

async fn prove(context: &Context, standing: &Standing, mut send: SendStream<Chunk>) {
    let mut epoch = context.epoch.subscribe();
    let mut sequence = 0;
    loop {
        let current = context.credentials();
        let current = current.filter(|current| {
            !standing.own().same_certificate(current) && current.valid(now_s()).is_ok()
        });
        if let Some(current) = current {
            sequence += 1;
            let made = make(standing.binding(), standing.direction(), sequence, &current);
            match made {
                Ok(proof) => {
                    let message = framed(&proof);
                    if send.send_data(Chunk::of_worker(message), false).is_err() {
                        return;
                    }
                    context.metrics.add(Count::ProofsSent, 1);
                    standing.shown(current);
                }
                Err(error) => {
                    tracing::error!(%error, "the new certificate can't be proven in a tunnel");
                }
            }
        }
        // The sender lives as long as `context`.
        let _changed = epoch.changed().await;
    }
}

async fn hear(
    context: &Context,
    standing: &Standing,
    mut receive: RecvStream,
) -> Result<(), Fault> {
    let mut unread = BytesMut::new();
    let mut last = 0;
    let now = || Instant::now().into_std();
    let mut budget = TokenBucket::new(PROOFS.0, PROOFS.1, now());
    // A stream that breaks does so with its tunnel, which says why.
    while let Some(Ok(piece)) = receive.data().await {
        // It can be given back: it has just been received.
        let _given = receive.flow_control().release_capacity(piece.len());
        unread.extend_from_slice(&piece);
        while let Some(proof) = next(&mut unread)? {
            if !budget.take(now()) {
                return Err(wrong("more proofs than one a second"));
            }
            standing.proven(context, check(standing, &proof, &mut last)?);
        }
    }
    Ok(())
}

fn wrong(why: impl std::fmt::Display) -> Fault {
    Fault::new(Reason::PeerProof, why)
}

/// A proof as it goes over the wire.
pub(super) fn framed(proof: &Proof) -> Bytes {
    let body = proof.encode_to_vec();
    let len = u32::try_from(body.len()).unwrap_or(u32::MAX);
    [&len.to_be_bytes()[..], &body].concat().into()
}

/// Takes the first whole proof off what has come in.
fn next(unread: &mut BytesMut) -> Result<Option<Proof>, Fault> {
    let Some(prefix) = unread.first_chunk::<PREFIX>() else {
        return Ok(None);
    };
    let len = u32::from_be_bytes(*prefix) as usize;
    if len > MAX_PROOF {
        return Err(wrong(format_args!("one of {len} bytes")));
    }
    if unread.len() < PREFIX + len {
        return Ok(None);
    }
    unread.advance(PREFIX);
    let body = unread.split_to(len);
    Proof::decode(body.freeze()).map(Some).map_err(wrong)
}

/// What is signed, in the form that TLS 1.3 signs: nothing that is signed elsewhere looks like it.
pub(super) fn message(
    binding: &Binding,
    sender: Direction,
    sequence: u64,
    chain: &[&[u8]],
) -> Vec<u8> {
    let mut hash = digest::Context::new(&digest::SHA256);
    hash.update(binding);
    hash.update(&sequence.to_be_bytes());
    for certificate in chain {
        hash.update(&(certificate.len() as u64).to_be_bytes());
        hash.update(certificate);
    }
    let of: &[u8] = match sender {
        Direction::Outbound => b"Nodemesh tunnel, proof of the client",
        Direction::Inbound => b"Nodemesh tunnel, proof of the server",
    };
    [&[0x20; 64], of, &[0], hash.finish().as_ref()].concat()
}

/// Proves these credentials by the end of a tunnel that has this direction.
fn make(
    binding: &Binding,
    sender: Direction,
    sequence: u64,
    credentials: &Credentials,
) -> Result<Proof, rustls::Error> {
    let certified = credentials.certified();
    let chain: Vec<&[u8]> = certified.cert.iter().map(AsRef::as_ref).collect();
    let schemes = [
        SignatureScheme::ECDSA_NISTP256_SHA256,
        SignatureScheme::ECDSA_NISTP384_SHA384,
    ];
    let signer = certified.key.choose_scheme(&schemes).ok_or_else(|| {
        rustls::Error::General("the key is of no kind that the mesh signs with".to_owned())
    })?;
    let signature = signer.sign(&message(binding, sender, sequence, &chain))?;
    Ok(Proof {
        sequence,
        chain: chain.into_iter().map(<[u8]>::to_vec).collect(),
        scheme: u16::from(signer.scheme()).into(),
        signature,
    })
}

/// The chain that a proof proves, in this tunnel, for the identity that was proven before. Whether it
/// is trusted is not asked here.
fn check(
    standing: &Standing,
    proof: &Proof,
    last: &mut u64,
) -> Result<Vec<CertificateDer<'static>>, Fault> {
    if proof.sequence <= *last {
        let sequence = proof.sequence;
        return Err(wrong(format_args!("number {sequence} after number {last}")));
    }
    let chain: Vec<_> = proof
        .chain
        .iter()
        .cloned()
        .map(CertificateDer::from)
        .collect();
    let trust = standing.own();
    let read = trust
        .trust()
        .read(side_of_peer(standing.direction()), &chain)?;
    if read.identity != **standing.identity() {
        let detail = format!(
            "in a tunnel it was {}, now {}",
            standing.identity(),
            read.identity
        );
        return Err(Fault::new(Reason::PeerIdentity, detail));
    }
    let algorithm = match u16::try_from(proof.scheme).map(SignatureScheme::from) {
        Ok(SignatureScheme::ECDSA_NISTP256_SHA256) => &ECDSA_P256_SHA256_ASN1,
        Ok(SignatureScheme::ECDSA_NISTP384_SHA384) => &ECDSA_P384_SHA384_ASN1,
        _ => {
            return Err(wrong(format_args!(
                "signed by scheme {:#06x}",
                proof.scheme
            )));
        }
    };
    let sender = match standing.direction() {
        Direction::Inbound => Direction::Outbound,
        Direction::Outbound => Direction::Inbound,
    };
    let chain_der: Vec<&[u8]> = proof.chain.iter().map(Vec::as_slice).collect();
    let signed = message(standing.binding(), sender, proof.sequence, &chain_der);
    UnparsedPublicKey::new(algorithm, &read.public_key)
        .verify(&signed, &proof.signature)
        .map_err(|_| wrong("its signature is not one by that certificate's key for this tunnel"))?;
    *last = proof.sequence;
    Ok(chain)
}
