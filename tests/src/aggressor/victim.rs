//! The neighbour that must not notice: steady calls of one app to another.

use std::net::SocketAddr;
use std::ops::Range;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::{number, seconds, told};
use crate::app::App;
use crate::pod::Pod;

/// How long answers may take after the last request.
const MAY_END_IN: Duration = Duration::from_secs(20);

/// What a victim calls.
#[derive(Clone, Debug)]
pub struct Calls {
    /// A `mesh-lab-app serve`.
    pub to: SocketAddr,
    /// Connections that are kept, and used in turn.
    pub connections: usize,
    /// Requests a second, asked when they are due.
    pub rate: f64,
    /// For how long.
    pub time: Duration,
    /// From when on its requests count for percentiles, and until when.
    pub counts: Range<Duration>,
}

/// A pod's app that calls at a fixed rate.
#[derive(Debug)]
pub struct Victim {
    app: App,
    time: Duration,
}

/// What a victim has seen. Latency counts from when a request was due.
#[derive(Clone, Debug)]
pub struct Measured {
    /// Requests that were due.
    pub asked: u64,
    /// Requests that were answered, and rightly.
    pub answered: u64,
    /// Requests that were not: connections lost, wrong answers, none in 2 s.
    pub errors: u64,
    /// The last of them.
    pub last_error: String,
    /// From the first request to the last answer.
    pub seconds: f64,
    /// Answers that the percentiles are of.
    pub measured: u64,
    /// Median latency, in µs.
    pub p50_us: u64,
    /// 99th percentile, in µs.
    pub p99_us: u64,
    /// 99.9th percentile, in µs.
    pub p999_us: u64,
    /// 99th percentile of each 100 ms from the start, in µs.
    pub course_us: Vec<u64>,
}

impl Victim {
    /// Starts it, and waits until its connections are open.
    ///
    /// # Errors
    /// If it can't be started, or can't connect.
    pub fn start(pod: &Pod, calls: &Calls) -> Result<Self> {
        let command = pod.command("mesh-lab-load").arg("open-loop");
        let command = command.args([calls.to.to_string(), calls.connections.to_string()]);
        let numbers = [
            calls.time.as_secs_f64(),
            calls.rate,
            calls.counts.start.as_secs_f64(),
            calls.counts.end.as_secs_f64(),
        ];
        let command = command.args(numbers.map(|number| number.to_string()));
        let app = command.spawn()?;
        app.wait_line("open")?;
        Ok(Self {
            app,
            time: calls.time,
        })
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// If it failed, or does not end.
    pub fn finish(mut self) -> Result<Measured> {
        let status = self
            .app
            .wait(self.time + MAY_END_IN)
            .context("the victim")?;
        ensure!(status.success(), "the victim: {}", self.app.stderr());
        let said = told(&self.app).context("the victim")?;
        let course = said["p99_us_by_window"].as_array();
        let course = course.context("no course of the victim")?;
        Ok(Measured {
            asked: number(&said, "asked")?,
            answered: number(&said, "answered")?,
            errors: number(&said, "errors")?,
            last_error: said["last_error"].as_str().unwrap_or_default().to_owned(),
            seconds: seconds(&said)?,
            measured: number(&said, "measured")?,
            p50_us: number(&said, "p50_us")?,
            p99_us: number(&said, "p99_us")?,
            p999_us: number(&said, "p999_us")?,
            course_us: course
                .iter()
                .filter_map(serde_json::Value::as_u64)
                .collect(),
        })
    }
}

impl Measured {
    /// That every request was answered, and rightly.
    ///
    /// # Errors
    /// If one was not.
    pub fn unharmed(&self) -> Result<()> {
        ensure!(
            self.errors == 0 && self.asked > 0 && self.answered == self.asked,
            "of {} requests of the victim {} were answered and {} failed: {}",
            self.asked,
            self.answered,
            self.errors,
            self.last_error
        );
        Ok(())
    }
}
