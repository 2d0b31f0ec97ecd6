//! Runs in a guest, as the child of its process 1: the cases that the host asks for, one
//! after the other.

use std::io::Read;
use std::os::unix::process::CommandExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use mesh_vm_tests::guest::Skip;
use mesh_vm_tests::suite::{SKIPPED, SUITES};
use mesh_vm_tests::wire::{Outcome, Said};
use mesh_vm_tests::{Guest, Suite, cases};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

/// Most of a test's output that goes into the report, in bytes from its end.
const TAIL_BYTES: usize = 6_000;

fn main() -> anyhow::Result<()> {
    let (guest, names) = Guest::connect()?;
    for name in names {
        guest.begin(&name);
        let began = Instant::now();
        let outcome = run(&guest, &name);
        guest.say(&Said::Ended {
            case: name,
            outcome,
            took: began.elapsed(),
        });
    }
    guest.say(&Said::Bye);
    Ok(())
}

fn run(guest: &Guest, name: &str) -> Outcome {
    if let Some(case) = cases::find(name) {
        return match catch_unwind(AssertUnwindSafe(|| (case.run)(guest))) {
            Ok(Ok(())) => Outcome::Passed,
            Ok(Err(e)) => match e.downcast_ref::<Skip>() {
                Some(Skip(why)) => Outcome::Skipped(why.clone()),
                None => Outcome::Failed(format!("{e:#}")),
            },
            Err(panic) => Outcome::Failed(words(panic.as_ref())),
        };
    }
    let suite = name.split_once("::").and_then(|(suite, test)| {
        let suite = SUITES.iter().find(|s| s.name == suite)?;
        Some((suite, test))
    });
    match suite {
        Some((suite, test)) => of_suite(suite, test),
        None => Outcome::Failed("there is no such case in this guest".to_owned()),
    }
}

fn words(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
    format!("panicked: {}", text.unwrap_or("without words"))
}

/// Runs one test of a test binary in a process group of its own.
fn of_suite(suite: &Suite, test: &str) -> Outcome {
    let mut command = Command::new(Path::new("/suites").join(suite.name));
    command
        .args(["--exact", test, "--nocapture", "--test-threads", "1"])
        .env("NODEMESH_BIN_DIR", "/usr/bin")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .process_group(0);
    let (mut reader, writer) = match std::io::pipe() {
        Ok(pipe) => pipe,
        Err(e) => return Outcome::Failed(format!("making a pipe: {e}")),
    };
    let both = writer.try_clone().map(|second| (writer, second));
    let child = both.and_then(|(out, err)| command.stdout(out).stderr(err).spawn());
    // The pipe's end in `command` would keep it open.
    drop(command);
    let mut child = match child {
        Ok(child) => child,
        Err(e) => return Outcome::Failed(format!("starting {}: {e}", suite.name)),
    };
    let (ended, end) = mpsc::channel();
    let reading = thread::spawn(move || {
        let mut output = Vec::new();
        let _ = reader.read_to_end(&mut output);
        let _ = ended.send(());
        String::from_utf8_lossy(&output).into_owned()
    });
    let group = Pid::from_raw(child.id().cast_signed());
    let in_time = end
        .recv_timeout(Duration::from_secs(suite.timeout_s))
        .is_ok();
    if !in_time {
        let _ = killpg(group, Signal::SIGKILL);
    }
    let status = child.wait();
    // Whatever the test left must not hold the pipe open.
    let _ = killpg(group, Signal::SIGKILL);
    let output = reading.join().unwrap_or_default();
    let passed = status.as_ref().is_ok_and(std::process::ExitStatus::success);
    if !in_time {
        return Outcome::Failed(format!(
            "no end after {} s; it said:\n{}",
            suite.timeout_s,
            tail(&output)
        ));
    }
    if !passed {
        return Outcome::Failed(tail(&output).to_owned());
    }
    if !output.contains("1 passed") {
        return Outcome::Failed(format!(
            "no such test, or it is ignored:\n{}",
            tail(&output)
        ));
    }
    match output
        .lines()
        .find_map(|line| line.trim().strip_prefix(SKIPPED))
    {
        Some(why) => Outcome::Skipped(why.to_owned()),
        None => Outcome::Passed,
    }
}

fn tail(output: &str) -> &str {
    let from = output.len().saturating_sub(TAIL_BYTES);
    let from = (from..=output.len()).find(|&at| output.is_char_boundary(at));
    &output[from.unwrap_or(output.len())..]
}
