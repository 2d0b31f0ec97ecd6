//! What the demo says while it goes.

use std::io::{self, BufRead, IsTerminal, Write};
use std::time::Instant;

/// Writes the demo's story to standard output.
pub(crate) struct Narrator {
    steps: usize,
    current: usize,
    started: Instant,
    pauses: bool,
    colour: bool,
}

impl Narrator {
    /// For this many steps; with `attended` and a terminal, it waits for Enter between them.
    pub(crate) fn new(steps: usize, attended: bool) -> Self {
        Self {
            steps,
            current: 0,
            started: Instant::now(),
            pauses: attended && io::stdin().is_terminal() && io::stdout().is_terminal(),
            colour: io::stdout().is_terminal(),
        }
    }

    /// The next step begins.
    pub(crate) fn step(&mut self, title: &str) {
        if self.pauses && self.current > 0 {
            print!("\n   Enter for the next step ");
            let _ = io::stdout().flush();
            let _ = io::stdin().lock().read_line(&mut String::new());
        }
        self.current += 1;
        let at = self.started.elapsed().as_secs_f64();
        let line = format!("{}/{}  {title}", self.current, self.steps);
        println!(
            "\n{}  {}",
            self.paint("1", &line),
            self.paint("2", &format!("[{at:.1} s]"))
        );
    }

    /// The current step, for messages.
    pub(crate) fn position(&self) -> String {
        format!("{}/{}", self.current, self.steps)
    }

    /// What is being done.
    pub(crate) fn say(&self, text: &str) {
        for line in text.lines() {
            println!("   {line}");
        }
    }

    /// Something real that was read or printed, as it was.
    pub(crate) fn show(&self, source: &str, text: &str) {
        for line in text.lines() {
            println!("   {} {line}", self.paint("36", &format!("{source} │")));
        }
    }

    /// A claim that was checked and holds.
    pub(crate) fn holds(&self, claim: &str) {
        println!("   {} {claim}", self.paint("32", "✔"));
    }

    fn paint(&self, code: &str, text: &str) -> String {
        if self.colour {
            format!("\x1b[{code}m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }
}
