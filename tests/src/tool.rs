//! What the lab's own programs have in common: a mode and its words, an error in one line.

use std::io::{self, Error};
use std::process::ExitCode;
use std::str::FromStr;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Runs a program with the words that it was called with, and with as many descriptors as it may
/// have.
pub fn main(name: &str, run: impl FnOnce(&[&str]) -> io::Result<()>) -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match raise_descriptor_limit().and_then(|()| run(&words)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{name} {}: {error}", words.join(" "));
            ExitCode::FAILURE
        }
    }
}

/// Lets this process, and what it starts from now on, have as many descriptors as it may.
///
/// # Errors
/// If the kernel refuses.
pub fn raise_descriptor_limit() -> io::Result<()> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    Ok(setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?)
}

/// Reads a word as a number, an address or whatever is asked for.
///
/// # Errors
/// Names the word.
pub fn parse<T: FromStr>(word: &str) -> io::Result<T> {
    let bad = |_| Error::other(format!("can't be read: {word:?}"));
    word.parse().map_err(bad)
}
