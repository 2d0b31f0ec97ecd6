//! The guest as its cases see it.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::wire::{Asked, PORT, Said};

/// What the kernel does at once when this letter is written to it (sysrq).
const BOOT: &str = "b";

/// How long the other node may take to tell something, on machines that are emulated.
const PATIENCE: Duration = Duration::from_secs(180);

/// The machine a case runs on, and its line to the host.
#[derive(Debug)]
pub struct Guest {
    node: u8,
    boot: u32,
    /// The case that runs: what is told is told within it, for cases share a boot and the words.
    case: Mutex<String>,
    port: Mutex<File>,
    told: Arc<(Mutex<BTreeMap<String, String>>, Condvar)>,
}

/// The error of a case that does not apply here; made by [`Guest::skip`].
#[derive(Debug)]
pub struct Skip(pub String);

impl std::fmt::Display for Skip {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Skip {}

impl Guest {
    /// Opens the line to the host; returns the guest and the cases that the host asks for.
    ///
    /// # Errors
    /// If there is no such port, or the host says something else.
    pub fn connect() -> Result<(Self, Vec<String>)> {
        let path = port()?;
        let port = OpenOptions::new().read(true).write(true).open(&path)?;
        let mut lines = BufReader::new(port.try_clone()?).lines();
        let kernel = fs::read_to_string("/proc/sys/kernel/osrelease")?;
        let hello = Said::Hello {
            kernel: kernel.trim().to_owned(),
        };
        write_line(&port, &hello)?;
        let first = lines.next().context("the host closed the line")??;
        let Asked::Run { node, boot, cases } = serde_json::from_str(&first)? else {
            bail!("the host said {first} first");
        };
        let told = Arc::new((Mutex::default(), Condvar::new()));
        let guest = Self {
            node,
            boot,
            case: Mutex::default(),
            port: Mutex::new(port),
            told: told.clone(),
        };
        thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                if let Ok(Asked::Told { key, value }) = serde_json::from_str(&line) {
                    let (map, changed) = &*told;
                    let mut map = map.lock().unwrap_or_else(PoisonError::into_inner);
                    map.insert(key, value);
                    changed.notify_all();
                }
            }
        });
        Ok((guest, cases))
    }

    /// Which of the nodes this is: 0 or 1.
    #[must_use]
    pub fn node(&self) -> u8 {
        self.node
    }

    /// How often the machine has booted again, of itself: 0 at first.
    #[must_use]
    pub fn boot(&self) -> u32 {
        self.boot
    }

    /// Boots the machine again, with everything running as it is: what is on its disk stays, and what
    /// was told. The case begins once more then.
    ///
    /// # Errors
    /// If the kernel does not do it.
    pub fn reboot(&self) -> Result<()> {
        self.say(&Said::Reboots);
        // An orderly system writes out what it has; nothing is ended or unmounted.
        nix::unistd::sync();
        fs::write("/proc/sysrq-trigger", BOOT)?;
        bail!("the kernel did not boot the machine");
    }

    /// Says that a case begins: what it waits for is not what an earlier one was told.
    pub fn begin(&self, case: &str) {
        case.clone_into(&mut self.case.lock().unwrap_or_else(PoisonError::into_inner));
        self.say(&Said::Began { case: case.into() });
    }

    /// The key under which the host keeps what this case tells.
    fn within(&self, key: &str) -> String {
        let case = self.case.lock().unwrap_or_else(PoisonError::into_inner);
        format!("{case}: {key}")
    }

    /// Says what happens, for the log.
    pub fn step(&self, text: impl Into<String>) {
        self.say(&Said::Step { text: text.into() });
    }

    /// Tells both nodes something, in the case that runs.
    pub fn tell(&self, key: impl AsRef<str>, value: impl Into<String>) {
        self.say(&Said::Tell {
            key: self.within(key.as_ref()),
            value: value.into(),
        });
    }

    /// Puts something into the host's report of this kernel.
    pub fn report(&self, key: &str, value: impl Into<String>) {
        self.say(&Said::Tell {
            key: format!("report/{key}"),
            value: value.into(),
        });
    }

    /// Waits until either node has told this, in the case that runs.
    ///
    /// # Errors
    /// If nobody does in three minutes.
    pub fn wait_for(&self, key: &str) -> Result<String> {
        let within = self.within(key);
        let (map, changed) = &*self.told;
        let deadline = Instant::now() + PATIENCE;
        let mut map = map.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(value) = map.get(&within) {
                return Ok(value.clone());
            }
            let Some(left) = deadline.checked_duration_since(Instant::now()) else {
                bail!("no node told {key:?} in {} s", PATIENCE.as_secs());
            };
            let waited = changed.wait_timeout(map, left);
            map = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// The result of a case that does not apply on this kernel.
    ///
    /// # Errors
    /// Always: the reason.
    pub fn skip(&self, why: impl Into<String>) -> Result<()> {
        Err(Skip(why.into()).into())
    }

    /// Says something to the host.
    ///
    /// # Panics
    /// If the host is gone.
    pub fn say(&self, said: &Said) {
        let port = self.port.lock().unwrap_or_else(PoisonError::into_inner);
        write_line(&port, said).expect("the host listens");
    }
}

fn write_line(mut port: &File, said: &Said) -> Result<()> {
    let mut line = serde_json::to_string(said)?;
    line.push('\n');
    port.write_all(line.as_bytes())?;
    Ok(())
}

/// The port's device: the kernel numbers them, and tells their names in sysfs.
fn port() -> Result<std::path::PathBuf> {
    let folder = Path::new("/sys/class/virtio-ports");
    for entry in fs::read_dir(folder).with_context(|| format!("reading {}", folder.display()))? {
        let entry = entry?;
        if fs::read_to_string(entry.path().join("name")).is_ok_and(|name| name.trim() == PORT) {
            return Ok(Path::new("/dev").join(entry.file_name()));
        }
    }
    bail!("no virtio port is called {PORT}")
}
