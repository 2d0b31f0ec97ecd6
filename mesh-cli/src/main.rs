//! `meshctl`: the operator's command line.
#![forbid(unsafe_code)]

mod pki;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// EX_USAGE of sysexits.h: the command line is wrong.
const EX_USAGE: u8 = 64;

/// The operator's command line of Nodemesh.
#[derive(Parser)]
#[command(name = "meshctl", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Certificates for trying Nodemesh out
    Pki {
        #[command(subcommand)]
        command: PkiCommand,
    },
}

#[derive(Subcommand)]
enum PkiCommand {
    /// Make a demo root and the intermediate that mesh-control signs with, offline
    Init(pki::InitArgs),
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
    let Command::Pki {
        command: PkiCommand::Init(args),
    } = cli.command;
    match pki::init(&args) {
        Ok(report) => {
            print!("{report}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("meshctl pki init: {error:#}");
            ExitCode::FAILURE
        }
    }
}
