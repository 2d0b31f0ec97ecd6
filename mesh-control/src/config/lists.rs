//! Options of revocation lists.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime;

use super::{RunOptions, bad_time, duration_s};
use crate::ca::Authority;
use crate::trust::crl::CrlFiles;
use crate::trust::crl::fetch::{self, Fetched};

/// Folder of the lists that were fetched, in the state folder.
const FOLDER: &str = "crl";

/// The lists that are fetched.
pub struct Fetches {
    lists: Vec<Fetched>,
    refresh: Duration,
    authority: Arc<Authority>,
}

impl Fetches {
    /// Fetches them, for ever.
    ///
    /// # Panics
    /// Must be called in a tokio runtime.
    pub fn start(self) {
        for list in self.lists {
            let authority = self.authority.clone();
            tokio::spawn(list.follow(self.refresh, move || authority.authorities()));
        }
    }
}

/// Reads the lists that are given. One at a URL is read as it was fetched last; one that never was
/// is fetched now.
pub(super) fn start(
    options: &RunOptions,
    authority: &Arc<Authority>,
    now_s: i64,
) -> Result<(CrlFiles, Fetches), String> {
    let refresh = duration_s(&options.crl_refresh).and_then(|s| u64::try_from(s).ok());
    let refresh = refresh.ok_or_else(|| bad_time(&options.crl_refresh))?;
    let tls = options.crl_server_root.as_deref().map(|roots| {
        fetch::tls(roots).map_err(|e| format!("--crl-server-root {}: {e}", roots.display()))
    });
    let tls = tls.transpose()?;
    let (mut paths, mut lists) = (Vec::new(), Vec::new());
    for given in &options.crl {
        if !fetch::is_url(given) {
            paths.push(PathBuf::from(given));
            continue;
        }
        let list = Fetched::new(given, &options.state_dir.join(FOLDER), tls.as_ref());
        let list = list.map_err(|e| e.to_string())?;
        if !list.file().exists() {
            fetch_now(&list, authority)?;
        }
        paths.push(list.file().to_owned());
        lists.push(list);
    }
    let authorities = {
        let authority = authority.clone();
        move || authority.authorities()
    };
    let files = CrlFiles::start(&paths, authorities, now_s).map_err(|e| e.to_string())?;
    let fetches = Fetches {
        lists,
        refresh: Duration::from_secs(refresh),
        authority: authority.clone(),
    };
    Ok((files, fetches))
}

/// Options are checked before there is a runtime.
fn fetch_now(list: &Fetched, authority: &Authority) -> Result<(), String> {
    let runtime = runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|e| e.to_string())?;
    let fetched = runtime.block_on(list.fetch(&authority.authorities()));
    fetched.map(drop).map_err(|e| e.to_string())
}
