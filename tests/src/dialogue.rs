//! A program that is talked to: a line to its standard input, a line from its standard output.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

/// It runs as long as this is there, and ends by itself when its input does.
#[derive(Debug)]
pub struct Dialogue {
    name: String,
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl Dialogue {
    /// Starts a program. What it says on standard error goes to that of this process.
    ///
    /// # Errors
    /// If it can't be started.
    pub fn start(command: &mut Command) -> Result<Self> {
        let name = command.get_program().display().to_string();
        let started = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let mut child = started.with_context(|| format!("starting {name}"))?;
        Ok(Self {
            input: child.stdin.take(),
            output: BufReader::new(child.stdout.take().context("its output is a pipe")?),
            name,
            child,
        })
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Says a line to it.
    ///
    /// # Errors
    /// If it takes nothing any more.
    pub fn say(&mut self, line: &str) -> Result<()> {
        let input = self.input.as_mut().context("its input is open")?;
        let said = writeln!(input, "{line}").and_then(|()| input.flush());
        said.with_context(|| format!("{} has ended: see what it said above", self.name))
    }

    /// Waits for the next line from it, without its end.
    ///
    /// # Errors
    /// If it says none.
    pub fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        if self.output.read_line(&mut line)? == 0 {
            let status = self.child.wait()?;
            bail!("{} said no more: {status}", self.name);
        }
        Ok(line.trim_end().to_owned())
    }

    /// Says a line and waits for one.
    ///
    /// # Errors
    /// As [`Self::say`] and [`Self::line`].
    pub fn ask(&mut self, line: &str) -> Result<String> {
        self.say(line)?;
        self.line()
    }

    /// Ends its input and waits for its end.
    ///
    /// # Errors
    /// If that is no success.
    pub fn finish(mut self) -> Result<()> {
        self.input = None;
        let status = self.child.wait()?;
        ensure!(status.success(), "{}: {status}", self.name);
        Ok(())
    }
}

impl Drop for Dialogue {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
