//! Files of signers: certificates that anybody may read, keys and PINs that nobody else may.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::fault::SignerFault;

/// Most of a file that is read, in bytes.
const MAX_FILE_LEN: u64 = 1024 * 1024;

/// A file that is not a secret.
pub(super) fn read(path: &Path) -> Result<Vec<u8>, SignerFault> {
    read_checked(path, |_| Ok(()))
}

/// A file that nobody but its owner may read.
pub(super) fn read_secret(path: &Path) -> Result<Vec<u8>, SignerFault> {
    read_checked(path, |mode| {
        if mode & 0o077 == 0 {
            return Ok(());
        }
        Err(SignerFault::KeyPermissions {
            path: path.to_owned(),
            mode,
        })
    })
}

fn read_checked(
    path: &Path,
    check: impl FnOnce(u32) -> Result<(), SignerFault>,
) -> Result<Vec<u8>, SignerFault> {
    let unread = |error| SignerFault::Read {
        path: path.to_owned(),
        error,
    };
    let file = File::open(path).map_err(unread)?;
    let metadata = file.metadata().map_err(unread)?;
    if !metadata.is_file() {
        return Err(SignerFault::malformed(path, &"it is not a regular file"));
    }
    check(metadata.permissions().mode() & 0o7777)?;
    let mut content = Vec::new();
    file.take(MAX_FILE_LEN)
        .read_to_end(&mut content)
        .map_err(unread)?;
    Ok(content)
}
