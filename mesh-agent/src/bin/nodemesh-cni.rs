//! `nodemesh-cni`: the chained CNI plugin. Runs for a moment, asks the agent, and ends.

use std::process::ExitCode;

use mesh_agent::cni::{Call, run};

fn main() -> ExitCode {
    let call = Call::from_env(|name| std::env::var(name).ok());
    match run(&call, std::io::stdin(), std::io::stdout()) {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}
