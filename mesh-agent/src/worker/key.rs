//! The pod's private key, in memory that outlives this worker but no worker of this pod.

use std::io;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;

use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair};
use mesh_core::identity::Identity;
use rcgen::{CertificateParams, DistinguishedName, KeyPair, PKCS_ECDSA_P256_SHA256, SanType};
use rustls::pki_types::PrivatePkcs8KeyDer;

/// Bytes of the memory the key lives in.
const SIZE: NonZeroUsize = NonZeroUsize::new(4096).unwrap();
/// Bytes of the length (u32, little-endian) that stands before the PKCS#8 document.
const PREFIX: usize = 4;

/// Why there is no key, or no request for it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum KeyError {
    #[error("the cryptographic library could not make a P-256 key")]
    Generate,
    #[error("{0} for the private key's memory failed: {1}")]
    Memory(&'static str, #[source] io::Error),
    #[error("the key that was handed over is not one: {0}")]
    Foreign(&'static str),
    #[error("the signing request could not be made: {0}")]
    Request(#[from] rcgen::Error),
}

/// An ECDSA P-256 key and the descriptor it lives in.
pub(crate) struct PodKey {
    fd: OwnedFd,
    memory: Mapping,
}

impl PodKey {
    /// A new key in `memfd_secret`, or in a sealed memfd on a kernel without it.
    pub(crate) fn generate() -> Result<Self, KeyError> {
        let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING)
            .map_err(|_| KeyError::Generate)?;
        let pkcs8 = pair.to_pkcs8v1().map_err(|_| KeyError::Generate)?;
        Self::take(store(pkcs8.as_ref())?)
    }

    /// The key that an earlier worker of this pod made.
    pub(crate) fn take(fd: OwnedFd) -> Result<Self, KeyError> {
        let memory = Mapping::readable(fd.as_fd())?;
        let key = Self { fd, memory };
        EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, key.pkcs8()?)
            .map_err(|_| KeyError::Foreign("not a PKCS#8 ECDSA P-256 key"))?;
        Ok(key)
    }

    /// The PKCS#8 document.
    pub(crate) fn pkcs8(&self) -> Result<&[u8], KeyError> {
        let bytes = self.memory.bytes();
        let prefix = [bytes[0], bytes[1], bytes[2], bytes[3]];
        usize::try_from(u32::from_le_bytes(prefix))
            .ok()
            .and_then(|len| bytes[PREFIX..].get(..len))
            .ok_or(KeyError::Foreign("its length is not that of a key"))
    }

    /// The key's memory, for the pod's next worker.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// A PKCS#10 request (DER) for a certificate of `identity`.
    pub(crate) fn signing_request(&self, identity: &Identity) -> Result<Vec<u8>, KeyError> {
        let pkcs8 = PrivatePkcs8KeyDer::from(self.pkcs8()?);
        let pair = KeyPair::from_pkcs8_der_and_sign_algo(&pkcs8, &PKCS_ECDSA_P256_SHA256)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = vec![SanType::URI(identity.to_string().try_into()?)];
        Ok(params.serialize_request(&pair)?.der().to_vec())
    }
}

/// A descriptor that holds `pkcs8` after its length.
fn store(pkcs8: &[u8]) -> Result<OwnedFd, KeyError> {
    let len = u32::try_from(pkcs8.len()).map_err(|_| KeyError::Generate)?;
    if PREFIX + pkcs8.len() > SIZE.get() {
        return Err(KeyError::Generate);
    }
    let (fd, secret) = match memfd_secret() {
        Ok(fd) => (fd, true),
        // No such call, or switched off at boot.
        Err(e) if matches!(e.raw_os_error(), Some(libc::ENOSYS | libc::EPERM)) => {
            (memfd_sealable()?, false)
        }
        Err(e) => return Err(KeyError::Memory("memfd_secret", e)),
    };
    // SAFETY: the descriptor is open.
    let rc = unsafe { libc::ftruncate(fd.as_raw_fd(), 4096) };
    check(rc, "ftruncate")?;
    {
        let mut memory = Mapping::writable(fd.as_fd())?;
        let bytes = memory.bytes_mut();
        bytes[..PREFIX].copy_from_slice(&len.to_le_bytes());
        bytes[PREFIX..PREFIX + pkcs8.len()].copy_from_slice(pkcs8);
    }
    if !secret {
        let seals =
            libc::F_SEAL_SEAL | libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_WRITE;
        // SAFETY: the descriptor is open; the call takes an int.
        let rc = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_ADD_SEALS, seals) };
        check(rc, "sealing (F_ADD_SEALS)")?;
    }
    Ok(fd)
}

fn check(rc: libc::c_int, what: &'static str) -> Result<(), KeyError> {
    if rc < 0 {
        return Err(KeyError::Memory(what, io::Error::last_os_error()));
    }
    Ok(())
}

fn memfd_secret() -> io::Result<OwnedFd> {
    // SAFETY: the call takes flags only.
    let fd = unsafe { libc::syscall(libc::SYS_memfd_secret, libc::O_CLOEXEC) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    let fd = RawFd::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn memfd_sealable() -> Result<OwnedFd, KeyError> {
    let flags = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING;
    // SAFETY: the name is a C string.
    let fd = unsafe { libc::memfd_create(c"nodemesh-key".as_ptr(), flags) };
    check(fd, "memfd_create")?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// `SIZE` bytes of a descriptor.
struct Mapping(ptr::NonNull<u8>);

impl Mapping {
    fn writable(fd: BorrowedFd<'_>) -> Result<Self, KeyError> {
        Self::new(fd, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED)
    }

    fn readable(fd: BorrowedFd<'_>) -> Result<Self, KeyError> {
        // SAFETY: zeroes are a valid `stat`.
        let mut stat: libc::stat = unsafe { std::mem::zeroed() };
        // SAFETY: `stat` is valid for writes and the descriptor is open.
        let rc = unsafe { libc::fstat(fd.as_raw_fd(), &raw mut stat) };
        check(rc, "fstat")?;
        if usize::try_from(stat.st_size).ok() != Some(SIZE.get()) {
            return Err(KeyError::Foreign(
                "its memory is not of the size of a key's",
            ));
        }
        // memfd_secret maps shared only; a write-sealed memfd did so only from Linux 6.7.
        Self::new(fd, libc::PROT_READ, libc::MAP_SHARED)
            .or_else(|_| Self::new(fd, libc::PROT_READ, libc::MAP_PRIVATE))
    }

    fn new(fd: BorrowedFd<'_>, protection: i32, flags: i32) -> Result<Self, KeyError> {
        // SAFETY: a new mapping at an address of the kernel's choice; the descriptor is open.
        let address = unsafe {
            libc::mmap(
                ptr::null_mut(),
                SIZE.get(),
                protection,
                flags,
                fd.as_raw_fd(),
                0,
            )
        };
        if address == libc::MAP_FAILED {
            return Err(KeyError::Memory("mmap", io::Error::last_os_error()));
        }
        ptr::NonNull::new(address.cast())
            .map(Self)
            .ok_or(KeyError::Foreign("it maps to nothing"))
    }

    fn bytes(&self) -> &[u8] {
        // SAFETY: the mapping has `SIZE` readable bytes, and they are never written again once
        // a descriptor has left `store`; its size can't change (secret or sealed).
        unsafe { std::slice::from_raw_parts(self.0.as_ptr(), SIZE.get()) }
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: the mapping has `SIZE` writable bytes (only `writable` mappings are held
        // mutably), and nobody else has the descriptor yet.
        unsafe { std::slice::from_raw_parts_mut(self.0.as_ptr(), SIZE.get()) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and no slice of it outlives `self`.
        unsafe { libc::munmap(self.0.as_ptr().cast(), SIZE.get()) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_survives_its_first_holder_and_signs_requests_for_its_identity() {
        let identity: Identity = "spiffe://cluster.local/ns/a/sa/b".parse().unwrap();
        let first = PodKey::generate().unwrap();
        let handed_over = first.fd().try_clone_to_owned().unwrap();
        let document = first.pkcs8().unwrap().to_vec();
        drop(first);
        let second = PodKey::take(handed_over).unwrap();
        assert_eq!(second.pkcs8().unwrap(), document);
        let request = second.signing_request(&identity).unwrap();
        let parsed = rcgen::CertificateSigningRequestParams::from_der(&request.into()).unwrap();
        assert_eq!(
            parsed.params.subject_alt_names,
            [SanType::URI(identity.to_string().try_into().unwrap())]
        );
    }

    #[test]
    fn what_is_no_key_is_refused() {
        let fd = memfd_sealable().unwrap();
        assert!(matches!(PodKey::take(fd), Err(KeyError::Foreign(_))));
        let fd = memfd_sealable().unwrap();
        // SAFETY: the descriptor is open.
        assert_eq!(unsafe { libc::ftruncate(fd.as_raw_fd(), 4096) }, 0);
        let other = fd.try_clone().unwrap();
        assert!(matches!(PodKey::take(fd), Err(KeyError::Foreign(_))));
        Mapping::writable(other.as_fd()).unwrap().bytes_mut()[..4].fill(0xff);
        assert!(matches!(PodKey::take(other), Err(KeyError::Foreign(_))));
    }
}
