//! `mesh-agent` whose workers end at once, for tests of what a supervisor does about new workers
//! that fail.

use std::process::ExitCode;

#[path = "../main.rs"]
mod agent;

fn main() -> ExitCode {
    if mesh_agent::sandbox::is_worker() {
        return ExitCode::FAILURE;
    }
    agent::main()
}
