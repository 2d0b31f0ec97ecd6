//! `mesh-control`: the control component.
#![forbid(unsafe_code)]

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use clap::{Parser, Subcommand};
use mesh_control::admin::{self, Admin};
use mesh_control::ca::signer;
use mesh_control::clocks::Clocks;
use mesh_control::config::{
    LogFormat, Mistakes, RunConfig, RunOptions, SignerOptions, TokenConfig, TokenOptions,
};
use mesh_control::observe::Series;
use mesh_control::server::{Limits, Server, listen};
use mesh_control::sources::kubernetes::definitions;
use mesh_control::tokens::TokenStore;
use mesh_control::{granularity, observe};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tracing_subscriber::EnvFilter;

/// EX_USAGE of sysexits.h: the options, or files they name, are wrong.
const EX_USAGE: u8 = 64;
const PURGE_INTERVAL: Duration = Duration::from_secs(3600);

/// The control component of Nodemesh: certificate authority and discovery.
#[derive(Parser)]
#[command(
    name = "mesh-control",
    version,
    after_help = "\
It signs with an intermediate CA that you give it, and makes no self-signed certificate.
To try it out, make a demo PKI first, then a token for each node:

  meshctl pki init --dir pki --trust-domain cluster.local
  mesh-control run --manifests manifests --state-dir state --trust-domain cluster.local \\
      --ca-cert pki/ca-cert.pem --ca-key pki/ca-key.pem --root pki/root.pem \\
      --listen 10.0.0.1:15012
  mesh-control token create --state-dir state --node node-a

`meshctl status` and `meshctl why` ask it, as root, by control.sock in its --state-dir.

Exit status: 0 stopped by SIGTERM or SIGINT, 64 wrong options or files they name, 1 failed
while running. The level of the log is set by RUST_LOG (default: info); grants and refusals
are logged with target \"audit\"."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve: joins, certificates and discovery, gRPC over TLS
    #[command(after_help = "\
Refused at start, each with its reason: a signer that is self-signed, expired, not yet valid,
no CA, without a chain to the root, whose key is another's or readable by others; manifests
with mistakes (all are listed, with file, line and field).")]
    Run(Box<RunOptions>),
    /// Print what a cluster must know of the mesh's own kinds, for kubectl apply -f -
    Definitions,
    /// Signing keys
    Signer {
        #[command(subcommand)]
        command: SignerCommand,
    },
    /// Tokens of nodes
    Token {
        #[command(subcommand)]
        command: TokenCommand,
    },
}

#[derive(Subcommand)]
enum SignerCommand {
    /// Print a signing request for an intermediate whose key is in a token, for your root to sign
    Request(SignerOptions),
}

#[derive(Subcommand)]
enum TokenCommand {
    /// Make a token for one node, to join with once (or with --reusable to make calls with); it is
    /// printed once and kept as a hash
    Create(TokenOptions),
}

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // A failure to print leaves nothing else to do.
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { EX_USAGE } else { 0 });
        }
    };
    match cli.command {
        Command::Run(options) => run(&options),
        Command::Definitions => {
            print!("{}", definitions::manifest());
            ExitCode::SUCCESS
        }
        Command::Signer {
            command: SignerCommand::Request(options),
        } => request_intermediate(&options),
        Command::Token {
            command: TokenCommand::Create(options),
        } => create_token(&options),
    }
}

fn misused(what: &str, mistakes: &Mistakes) -> ExitCode {
    eprint!("{what}: can't start:\n{mistakes}");
    ExitCode::from(EX_USAGE)
}

fn request_intermediate(options: &SignerOptions) -> ExitCode {
    let create = options.create.map(Into::into);
    let key = signer::bare_key(&options.key, create).map_err(anyhow::Error::from);
    let made = key.and_then(|key| Ok(signer::intermediate_request(key, &options.trust_domain)?));
    match made {
        Ok(request) => {
            print!("{request}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("mesh-control signer request: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn create_token(options: &TokenOptions) -> ExitCode {
    let config = match TokenConfig::validate(options, mesh_control::now_s()) {
        Ok(config) => config,
        Err(mistakes) => return misused("mesh-control token create", &mistakes),
    };
    let made = config
        .tokens
        .create_for(config.purpose, &config.node, config.not_after_s);
    match made {
        Ok(token) => {
            println!("{token}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("mesh-control token create: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &RunOptions) -> ExitCode {
    start_log(options.log_format);
    let series = match Series::install() {
        Ok(series) => series,
        Err(error) => {
            tracing::error!("{error:#}");
            return ExitCode::FAILURE;
        }
    };
    let config = match RunConfig::validate(options, mesh_control::now_s()) {
        Ok(config) => config,
        Err(mistakes) => return misused("mesh-control run", &mistakes),
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let served = runtime
        .context("starting the runtime")
        .and_then(|runtime| runtime.block_on(serve(config, series)));
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn start_log(format: LogFormat) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        // Who reads the log may end. Saying so on the same stream would end the call at hand.
        .log_internal_errors(false)
        .with_writer(std::io::stderr);
    match format {
        LogFormat::Text => log.with_ansi(false).init(),
        LogFormat::Json => log.json().init(),
    }
}

async fn serve(config: RunConfig, series: Series) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("taking SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("taking SIGINT")?;
    let (stop, mut stopping) = watch::channel(false);
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("stopping");
        // The server may have ended by itself.
        let _ = stop.send(true);
    });
    let (registry, following) = tokio::select! {
        started = config.source.start() => started?,
        _ = stopping.wait_for(|stop| *stop) => return Ok(()),
    };
    let listener = listen(config.listen).await?;
    let address = listener
        .local_addr()
        .context("reading the listener's address")?;
    let admin = admin::listen(&config.state_dir).with_context(|| {
        let folder = config.state_dir.display();
        format!("making the admin socket in {folder}")
    })?;
    tracing::info!(
        %address,
        trust_domain = %config.authority.trust_domain(),
        signer_not_after_s = config.authority.not_after_s(),
        "serving"
    );
    let clocks = Arc::new(Clocks::default());
    let answers = Arc::new(Admin {
        registry: registry.clone(),
        resolvers: config.resolvers,
        clocks: clocks.clone(),
        series: series.clone(),
    });
    if let Some(address) = config.health_listen {
        let listener = observe::listen(address).await?;
        let address = listener.local_addr().context("reading its address")?;
        tracing::info!(%address, "answering liveness");
        tokio::spawn(observe::liveness(listener));
    }
    tokio::spawn(series.upkeep());
    tokio::spawn(granularity::follow(Arc::downgrade(&registry)));
    tokio::spawn(admin::serve(admin, answers));
    tokio::spawn(config.reloader.run());
    tokio::spawn(config.crls.run());
    config.fetched.start();
    tokio::spawn(purge(config.tokens.clone()));
    let server = Server {
        authority: config.authority,
        attestors: config.attestors,
        limits: Limits::default(),
        clocks,
        registry,
        audit: config.audit,
        trust: config.trust.follow(),
    };
    tokio::select! {
        served = server.serve(listener, stopping) => served,
        ended = following => ended.context("following the source")?.context("the source of the mesh's state ended"),
    }
}

async fn purge(tokens: TokenStore) {
    loop {
        match tokens.purge(mesh_control::now_s()) {
            Ok(0) => {}
            Ok(removed) => tracing::info!(removed, "expired join tokens removed"),
            Err(error) => tracing::warn!(%error, "expired join tokens not removed"),
        }
        tokio::time::sleep(PURGE_INTERVAL).await;
    }
}
