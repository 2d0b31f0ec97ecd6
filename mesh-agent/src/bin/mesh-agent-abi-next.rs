//! `mesh-agent` with the ABI of what might be the next version (`mesh_common`'s feature
//! `abi-next`), for tests that replace an agent by a newer one and back.

use std::process::ExitCode;

#[path = "../main.rs"]
mod agent;

fn main() -> ExitCode {
    agent::main()
}
