//! One supervisor per run folder.

use std::fs::File;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

/// Why the run folder is not ours.
#[derive(Debug, thiserror::Error)]
pub(super) enum LockError {
    #[error(
        "another supervisor runs with {0}: one per instance; end it first, or give this one its own --instance and --run-dir"
    )]
    Taken(PathBuf),
    #[error("locking {path}: {source}")]
    File { path: PathBuf, source: io::Error },
}

/// Held for as long as the supervisor lives; the kernel lets go of it in any case.
#[derive(Debug)]
pub(super) struct RunLock {
    _file: Flock<File>,
}

impl RunLock {
    /// Takes the lock without waiting.
    pub(super) fn take(run_dir: &Path) -> Result<Self, LockError> {
        let path = run_dir.join("lock");
        let failed = |source| LockError::File {
            path: path.clone(),
            source,
        };
        let mut options = File::options();
        options.write(true).create(true).truncate(false).mode(0o600);
        let file = options.open(&path).map_err(failed)?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(file) => Ok(Self { _file: file }),
            Err((_, Errno::EAGAIN)) => Err(LockError::Taken(run_dir.to_owned())),
            Err((_, errno)) => Err(failed(errno.into())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_supervisor_is_refused_until_the_first_has_ended() {
        let folder = tempfile::tempdir().unwrap();
        let first = RunLock::take(folder.path()).unwrap();
        assert!(matches!(
            RunLock::take(folder.path()),
            Err(LockError::Taken(_))
        ));
        drop(first);
        RunLock::take(folder.path()).unwrap();
    }
}
