//! Records of an earlier boot are of no use, and dangerous: the namespaces they name are gone,
//! and the kernel gives their inode numbers and cookies out again, in the same order.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::Path;

/// What this boot is called (random(4)).
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
/// Where a run folder says which boot it is of. Most are on a tmpfs and go with the boot.
const FILE: &str = "boot_id";

/// Empties `records`, a folder in `run_dir`, if `run_dir` is of another boot. Says how many
/// records there were.
pub(super) fn forget_others(run_dir: &Path, records: &Path) -> io::Result<usize> {
    forget_all_but(&fs::read_to_string(BOOT_ID)?, run_dir, records)
}

fn forget_all_but(boot: &str, run_dir: &Path, records: &Path) -> io::Result<usize> {
    let file = run_dir.join(FILE);
    let of = match fs::read_to_string(&file) {
        Ok(of) => Some(of),
        Err(e) if e.kind() == ErrorKind::NotFound => None,
        Err(e) => return Err(e),
    };
    if of.as_deref() == Some(boot) {
        return Ok(0);
    }
    let mut forgotten = 0;
    // Without the file it was an agent that wrote none, on this boot or on a tmpfs.
    if of.is_some() {
        for entry in fs::read_dir(records)? {
            fs::remove_file(entry?.path())?;
            forgotten += 1;
        }
    }
    // Last: whoever dies before begins again.
    fs::write(file, boot)?;
    Ok(forgotten)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_live_as_long_as_the_boot() {
        let folder = tempfile::tempdir().unwrap();
        let records = folder.path().join("pods");
        fs::create_dir(&records).unwrap();
        let forgotten = |boot| {
            fs::write(records.join("shop_cart.json"), "{}").unwrap();
            forget_all_but(boot, folder.path(), &records).unwrap()
        };
        assert_eq!(forgotten("one"), 0, "of an agent that wrote no boot");
        assert_eq!(forgotten("one"), 0, "the same boot");
        assert_eq!(forgotten("two"), 1);
        assert_eq!(fs::read_dir(&records).unwrap().count(), 0);
        assert_eq!(forgotten("two"), 0, "this boot now");
    }
}
