//! Proof of what a worker can't do: real workers, spawned, confined and served as in
//! production, are made to issue the system calls themselves, and each must be refused.
//!
//! Needs root, a cgroup2 mount and a kernel with namespaces; without them it fails.

mod life;
mod place;
mod refusals;
mod serve;
mod standing;
mod supervise;

use std::panic;
use std::process::ExitCode;

type Case = (&'static str, fn());

const CASES: [Case; 8] = [
    ("a_confined_worker_serves", life::a_confined_worker_serves),
    (
        "a_supervisor_adopts_its_workers_and_no_others",
        life::a_supervisor_adopts_its_workers_and_no_others,
    ),
    (
        "a_birth_that_fails_says_why",
        life::a_birth_that_fails_says_why,
    ),
    (
        "the_kernel_shows_a_worker_as_confined",
        standing::the_kernel_shows_a_worker_as_confined,
    ),
    (
        "every_attempt_is_refused",
        refusals::every_attempt_is_refused,
    ),
    (
        "the_same_attempts_work_where_nothing_confines",
        refusals::the_same_attempts_work_where_nothing_confines,
    ),
    (
        "without_its_filter_a_worker_is_still_confined",
        refusals::without_its_filter_a_worker_is_still_confined,
    ),
    (
        "workers_of_one_pod_are_out_of_each_others_reach",
        refusals::workers_of_one_pod_are_out_of_each_others_reach,
    ),
];

fn main() -> ExitCode {
    if mesh_agent::sandbox::is_worker() {
        return serve::worker();
    }
    let filters: Vec<String> = std::env::args()
        .skip(1)
        .filter(|a| !a.starts_with('-'))
        .collect();
    let listed = std::env::args().any(|argument| argument == "--list");
    let chosen = CASES.into_iter().filter(|(name, _)| {
        filters.is_empty() || filters.iter().any(|filter| name.contains(filter.as_str()))
    });
    let (mut passed, mut failed) = (0, 0);
    for (name, case) in chosen {
        if listed {
            println!("{name}: test");
            continue;
        }
        let ok = panic::catch_unwind(case).is_ok();
        println!("test {name} ... {}", if ok { "ok" } else { "FAILED" });
        *if ok { &mut passed } else { &mut failed } += 1;
    }
    if !listed {
        let result = if failed == 0 { "ok" } else { "FAILED" };
        println!("\ntest result: {result}. {passed} passed; {failed} failed; 0 ignored");
    }
    ExitCode::from(u8::from(failed > 0))
}
