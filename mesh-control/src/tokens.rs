//! Tokens of nodes: 256 random bits, printed once, kept as their SHA-256 only, bound to one node
//! and to a time. A join token is good for one join; a node token for any number of calls.
//!
//! A token is a file `<folder>/<sha256>`. Taking a join token is renaming it into `used/` there:
//! of several that try, the file system lets one succeed, also across restarts and across all
//! replicas that share the folder. A node token is taken back by removing its file.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use aws_lc_rs::digest;
use serde::{Deserialize, Serialize};

/// What every join token begins with, so that scanners for leaked secrets can know it.
pub const JOIN_PREFIX: &str = "nodemesh-join-";
/// What every node token begins with.
pub const NODE_PREFIX: &str = "nodemesh-node-";
/// Random bytes in a token.
const SECRET_LEN: usize = 32;

/// Why a token is not taken.
#[derive(Debug, thiserror::Error)]
pub enum TokenFault {
    /// Not in the form of a token.
    #[error(
        "not a join token or node token; make one with: mesh-control token create --node <name>"
    )]
    Malformed,
    /// No such token.
    #[error("the token is unknown; make a new one for this node")]
    Unknown,
    /// A join token that was used before.
    #[error("the join token was used before; make a new one for this node")]
    Used,
    /// Past its end.
    #[error("the token has expired; make a new one for this node")]
    Expired,
    /// Made for another node.
    #[error("the token was made for another node than {0}")]
    WrongNode(String),
    /// The store failed.
    #[error("token store {path}: {error}")]
    Store {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// The store is open to others.
    #[error("{path} has mode {mode:04o}: others can read or add tokens; run: chmod 700 {path}")]
    Permissions {
        /// The folder.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The system's random numbers failed.
    #[error("the system gave no random numbers")]
    Random,
}

/// What a token is good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// One join.
    Join,
    /// Any number of calls.
    Calls,
}

impl Use {
    const fn prefix(self) -> &'static str {
        match self {
            Self::Join => JOIN_PREFIX,
            Self::Calls => NODE_PREFIX,
        }
    }
}

#[derive(Serialize, Deserialize)]
struct Record {
    node: String,
    not_after_s: i64,
}

/// The tokens that were made and not yet used.
#[derive(Clone, Debug)]
pub struct TokenStore {
    unused: PathBuf,
    used: PathBuf,
}

impl TokenStore {
    /// Opens the store in a state folder, making what is missing (mode 0700).
    ///
    /// # Errors
    /// A folder that can't be made, or that others can read or write.
    pub fn open(state_dir: &Path) -> Result<Self, TokenFault> {
        Self::open_folder(state_dir.join("tokens"))
    }

    /// Opens the store in a folder of its own, as [`Self::open`].
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_folder(unused: PathBuf) -> Result<Self, TokenFault> {
        let used = unused.join("used");
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&used)
            .map_err(|e| store(&used, e))?;
        for path in [&unused, &used] {
            let metadata = fs::metadata(path).map_err(|e| store(path, e))?;
            let mode = metadata.permissions().mode() & 0o7777;
            if mode & 0o077 != 0 {
                let path = path.clone();
                return Err(TokenFault::Permissions { path, mode });
            }
        }
        Ok(Self { unused, used })
    }

    /// Makes a join token for `node`. The text returned is its only copy.
    ///
    /// # Errors
    /// A store that can't be written.
    pub fn create(&self, node: &str, not_after_s: i64) -> Result<String, TokenFault> {
        self.create_for(Use::Join, node, not_after_s)
    }

    /// Makes a token of either kind.
    ///
    /// # Errors
    /// A store that can't be written.
    pub fn create_for(
        &self,
        purpose: Use,
        node: &str,
        not_after_s: i64,
    ) -> Result<String, TokenFault> {
        let mut secret = [0; SECRET_LEN];
        aws_lc_rs::rand::fill(&mut secret).map_err(|_| TokenFault::Random)?;
        let token = format!("{}{}", purpose.prefix(), hex(&secret));
        let record = Record {
            node: node.to_owned(),
            not_after_s,
        };
        let name = file_name(&token);
        let (draft, path) = (
            self.unused.join(format!(".{name}")),
            self.unused.join(&name),
        );
        let write = || {
            let mut file = OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(&draft)?;
            file.write_all(&serde_json::to_vec(&record)?)?;
            file.sync_all()?;
            fs::rename(&draft, &path)?;
            sync(&self.unused)
        };
        write().map_err(|e| store(&path, e))?;
        Ok(token)
    }

    /// Takes the token for good, if it is `node`'s and has not expired.
    ///
    /// # Errors
    /// Why it is not taken. A token shown for the wrong node stays what it was.
    pub fn consume(&self, token: &str, node: &str, now_s: i64) -> Result<(), TokenFault> {
        let (name, record) = self.find(token, Use::Join)?;
        let path = self.unused.join(&name);
        if record.node != node {
            return Err(TokenFault::WrongNode(node.to_owned()));
        }
        if record.not_after_s <= now_s {
            return Err(TokenFault::Expired);
        }
        match fs::rename(&path, self.used.join(&name)) {
            Ok(()) => {}
            // Another took it meanwhile.
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Err(TokenFault::Used),
            Err(e) => return Err(store(&path, e)),
        }
        // Durable before the certificate goes out: a power cut must not revive the token.
        for folder in [&self.used, &self.unused] {
            sync(folder).map_err(|e| store(folder, e))?;
        }
        Ok(())
    }

    /// The node that a node token was made for, and until when, in seconds since the epoch.
    ///
    /// # Errors
    /// Why it is not taken.
    pub fn bearer(&self, token: &str, now_s: i64) -> Result<(String, i64), TokenFault> {
        let (_, record) = self.find(token, Use::Calls)?;
        if record.not_after_s <= now_s {
            return Err(TokenFault::Expired);
        }
        Ok((record.node, record.not_after_s))
    }

    /// The file name and record of a token that was not used yet. Whoever shows one has its
    /// secret, and may be told what became of it.
    fn find(&self, token: &str, purpose: Use) -> Result<(String, Record), TokenFault> {
        let digits = token.strip_prefix(purpose.prefix());
        let digits = digits.ok_or(TokenFault::Malformed)?;
        if digits.len() != 2 * SECRET_LEN || !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(TokenFault::Malformed);
        }
        let name = file_name(token);
        let path = self.unused.join(&name);
        match read(&path) {
            Ok(record) => Ok((name, record)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                match self.used.join(&name).try_exists() {
                    Ok(true) => Err(TokenFault::Used),
                    Ok(false) => Err(TokenFault::Unknown),
                    Err(e) => Err(store(&self.used.join(&name), e)),
                }
            }
            Err(e) => Err(store(&path, e)),
        }
    }

    /// Removes what has expired, used or not. Returns how many files that were.
    ///
    /// # Errors
    /// A store that can't be read or changed.
    pub fn purge(&self, now_s: i64) -> Result<usize, TokenFault> {
        let mut removed = 0;
        for folder in [&self.unused, &self.used] {
            for entry in fs::read_dir(folder).map_err(|e| store(folder, e))? {
                let path = entry.map_err(|e| store(folder, e))?.path();
                let hidden = path
                    .file_name()
                    .is_some_and(|n| n.as_encoded_bytes()[0] == b'.');
                if hidden || !path.is_file() {
                    continue;
                }
                let expired = read(&path).is_ok_and(|record| record.not_after_s <= now_s);
                if expired {
                    match fs::remove_file(&path) {
                        Ok(()) => removed += 1,
                        // Another replica does the same.
                        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                        Err(e) => return Err(store(&path, e)),
                    }
                }
            }
        }
        Ok(removed)
    }
}

fn store(path: &Path, error: io::Error) -> TokenFault {
    let path = path.to_owned();
    TokenFault::Store { path, error }
}

fn read(path: &Path) -> io::Result<Record> {
    Ok(serde_json::from_slice(&fs::read(path)?)?)
}

fn sync(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

fn file_name(token: &str) -> String {
    hex(digest::digest(&digest::SHA256, token.as_bytes()).as_ref())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}
