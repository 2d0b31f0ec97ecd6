//! The control component as it is, with a source that changes pods at a rate.

use std::collections::BTreeMap;
use std::fs;
use std::io::stdin;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;
use mesh_control::audit::Audit;
use mesh_control::ca::{Authority, SignerFiles};
use mesh_control::registry::{Change, Directory, Registry, Resource};
use mesh_control::server::{Limits, Server, listen};
use mesh_control::tokens::TokenStore;
use mesh_control::trust::Served;
use mesh_core::revocation::Revocations;
use serde_json::json;
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;

use crate::mesh::{Size, TRUST_DOMAIN, uid};
use crate::{now_ns, runtime};

/// How often the source tells of what has changed since.
const TICK: Duration = Duration::from_millis(50);

#[derive(Args)]
pub(crate) struct ControlArgs {
    /// Folder of the PKI, as `meshctl pki init` makes it
    #[arg(long)]
    pki: PathBuf,
    /// Folder for its state
    #[arg(long)]
    state_dir: PathBuf,
    #[command(flatten)]
    size: Size,
}

/// Serves until standard input ends. Each line on it, `churn <pods a second> <seconds> <file>`,
/// changes pods and is answered by a line; which pod was last changed when goes to the file.
pub(crate) fn run(args: &ControlArgs) -> Result<()> {
    runtime()?.block_on(serve(args))
}

async fn serve(args: &ControlArgs) -> Result<()> {
    let started = Instant::now();
    let domain = TRUST_DOMAIN.parse()?;
    let file = |name: &str| args.pki.join(name);
    let files = SignerFiles {
        ca_cert: &file("ca-cert.pem"),
        ca_key: &file("ca-key.pem"),
        root: &file("root.pem"),
    };
    let authority = Authority::load(&files, &domain, mesh_control::now_s())?;
    let authority = Arc::new(authority);
    // Nothing is ever revoked.
    let served = Served::new(authority.roots().roots(), Revocations::default());
    let (_trusted, trust) = watch::channel(Arc::new(served));
    let registry = Arc::new(Registry::new(Directory::new(args.size.mesh()?)));
    let listener = listen(([127, 0, 0, 1], 0).into()).await?;
    let address = listener.local_addr()?;
    let server = Server {
        authority,
        attestors: TokenStore::open(&args.state_dir)?.into(),
        limits: Limits::default(),
        clocks: Arc::default(),
        registry: registry.clone(),
        audit: Arc::new(Audit::default()),
        trust,
    };
    let (stop, stopping) = watch::channel(false);
    let served = tokio::spawn(server.serve(listener, stopping));
    let loaded_s = started.elapsed().as_secs_f64();
    println!("{}", json!({ "listening": address, "loaded_s": loaded_s }));
    let source = Source {
        size: args.size,
        registry,
    };
    while let Some(line) = next_line().await? {
        let words: Vec<&str> = line.split(' ').collect();
        let ["churn", rate, seconds, file] = words[..] else {
            bail!("no command: {line:?}");
        };
        let told = source.churn(rate.parse()?, seconds.parse()?).await?;
        fs::write(file, serde_json::to_vec(&told.last)?).with_context(|| file.to_owned())?;
        println!("{}", told.line);
    }
    stop.send_replace(true);
    served.await?
}

/// The next command; `None` when there are no more.
async fn next_line() -> Result<Option<String>> {
    let read = tokio::task::spawn_blocking(|| stdin().lines().next());
    Ok(read.await?.transpose()?)
}

struct Source {
    size: Size,
    registry: Arc<Registry>,
}

struct Churned {
    /// When each pod was last changed.
    last: BTreeMap<String, u64>,
    line: serde_json::Value,
}

impl Source {
    async fn churn(&self, rate: f64, seconds: f64) -> Result<Churned> {
        let mut last = BTreeMap::new();
        let (mut done, mut ticks, mut busy) = (0u64, 0u64, Duration::ZERO);
        let started = Instant::now();
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while started.elapsed().as_secs_f64() < seconds {
            tick.tick().await;
            ticks += 1;
            let due = started.elapsed().as_secs_f64() * rate;
            let begun = Instant::now();
            let mut changes = Vec::new();
            while (done as f64) < due {
                let n = fastrand::usize(..self.size.workloads);
                let changed_ns = now_ns();
                let workload = self.size.workload(n, changed_ns)?;
                changes.push(Change::Put(Arc::new(Resource::workload(workload))));
                last.insert(uid(self.size, n), changed_ns);
                done += 1;
            }
            self.registry.apply(changes, Instant::now());
            busy += begun.elapsed();
        }
        let seconds = started.elapsed().as_secs_f64();
        let line = json!({
            "changes": done, "seconds": seconds, "publications": ticks,
            "publishing_share": busy.as_secs_f64() / seconds,
        });
        Ok(Churned { last, line })
    }
}
