//! Files of signers: certificates that anybody may read, keys and PINs that nobody else may.

use std::fs::{self, File, Metadata};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::fault::SignerFault;

/// Most of a file that is read, in bytes.
const MAX_FILE_LEN: u64 = 1024 * 1024;

/// A file that is not a secret.
pub(super) fn read(path: &Path) -> Result<Vec<u8>, SignerFault> {
    read_checked(path, |_| Ok(()))
}

/// A file that nobody but its owner may read, or root's own that is lent to this process.
pub(super) fn read_secret(path: &Path) -> Result<Vec<u8>, SignerFault> {
    read_checked(path, |metadata| {
        let mode = metadata.mode() & 0o7777;
        // Of `/proc/self` the owner is who this process runs as.
        let reader = fs::metadata("/proc/self").map_or(0, |own| own.uid());
        if is_private(mode, metadata.uid(), reader) {
            return Ok(());
        }
        Err(SignerFault::KeyPermissions {
            path: path.to_owned(),
            mode,
        })
    })
}

/// Whether a file of this mode and owner is for `reader` alone. Kubelet gives a pod that does not run as
/// root a Secret as root's file of mode 0440, whose group is the pod's `fsGroup`.
fn is_private(mode: u32, owner: u32, reader: u32) -> bool {
    let lent = owner == 0 && reader != 0;
    let others = if lent { 0o037 } else { 0o077 };
    mode & others == 0
}

fn read_checked(
    path: &Path,
    check: impl FnOnce(&Metadata) -> Result<(), SignerFault>,
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
    check(&metadata)?;
    let mut content = Vec::new();
    file.take(MAX_FILE_LEN)
        .read_to_end(&mut content)
        .map_err(unread)?;
    Ok(content)
}

#[cfg(test)]
mod tests {
    use super::is_private;

    #[test]
    fn a_group_may_read_what_root_lends() {
        let (root, pod, other) = (0, 65_532, 1000);
        for (mode, owner, reader, private) in [
            (0o600, pod, pod, true),
            (0o400, root, root, true),
            (0o440, root, pod, true),
            (0o440, root, root, false),
            (0o440, pod, pod, false),
            (0o440, other, pod, false),
            (0o460, root, pod, false),
            (0o444, root, pod, false),
        ] {
            let what = format!("{mode:o} of {owner}, read by {reader}");
            assert_eq!(is_private(mode, owner, reader), private, "{what}");
        }
    }
}
