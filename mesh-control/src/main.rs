//! `mesh-control`: the control component.
#![forbid(unsafe_code)]

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use clap::{Parser, Subcommand};
use mesh_control::admin::{self, Admin};
use mesh_control::audit::Audit;
use mesh_control::config::{LogFormat, Mistakes, RunConfig, RunOptions, TokenConfig, TokenOptions};
use mesh_control::server::{Server, listen};
use mesh_control::tokens::TokenStore;
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
    Run(RunOptions),
    /// Join tokens
    Token {
        #[command(subcommand)]
        command: TokenCommand,
    },
}

#[derive(Subcommand)]
enum TokenCommand {
    /// Make a token with which one node can join, once; it is printed once and kept as a hash
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
        Command::Token {
            command: TokenCommand::Create(options),
        } => create_token(&options),
    }
}

fn misused(what: &str, mistakes: &Mistakes) -> ExitCode {
    eprint!("{what}: can't start:\n{mistakes}");
    ExitCode::from(EX_USAGE)
}

fn create_token(options: &TokenOptions) -> ExitCode {
    let config = match TokenConfig::validate(options, mesh_control::now_s()) {
        Ok(config) => config,
        Err(mistakes) => return misused("mesh-control token create", &mistakes),
    };
    match config.tokens.create(&config.node, config.not_after_s) {
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
    let config = match RunConfig::validate(options, mesh_control::now_s()) {
        Ok(config) => config,
        Err(mistakes) => return misused("mesh-control run", &mistakes),
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let served = runtime
        .context("starting the runtime")
        .and_then(|runtime| runtime.block_on(serve(config)));
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
        .with_writer(std::io::stderr);
    match format {
        LogFormat::Text => log.with_ansi(false).init(),
        LogFormat::Json => log.json().init(),
    }
}

async fn serve(config: RunConfig) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("taking SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("taking SIGINT")?;
    let (stop, stopping) = watch::channel(false);
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("stopping");
        // The server may have ended by itself.
        let _ = stop.send(true);
    });
    let listener = listen(config.listen).await?;
    let address = listener
        .local_addr()
        .context("reading the listener's address")?;
    tracing::info!(
        %address,
        trust_domain = %config.authority.trust_domain(),
        signer_not_after_s = config.authority.not_after_s(),
        "serving"
    );
    let admin = admin::listen(&config.state_dir).with_context(|| {
        let folder = config.state_dir.display();
        format!("making the admin socket in {folder}")
    })?;
    let answers = Arc::new(Admin {
        registry: config.registry.clone(),
        resolvers: config.resolvers,
    });
    tokio::spawn(admin::serve(admin, answers));
    tokio::spawn(config.watcher.run());
    tokio::spawn(purge(config.tokens.clone()));
    let server = Server {
        authority: config.authority,
        tokens: config.tokens,
        registry: config.registry,
        audit: Arc::new(Audit::default()),
    };
    server.serve(listener, stopping).await
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
