//! The worker of these tests: born and served exactly as in production.

use std::process::ExitCode;

use mesh_agent::sandbox::become_worker;
use mesh_agent::worker;

pub(crate) fn worker() -> ExitCode {
    let Ok(confined) = become_worker() else {
        return ExitCode::from(70);
    };
    ExitCode::from(if worker::run(confined.channel).is_ok() {
        0
    } else {
        71
    })
}
