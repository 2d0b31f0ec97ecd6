//! Active health checks of the pod's own app, and what is told of them.
//!
//! The app is dialled as for a flow, so a check fails where flows would. It may answer what it
//! likes: a probe takes so long, reads so much and remembers a status, no more.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, header};
use http_body_util::Empty;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use mesh_api::worker::{Health as HealthMessage, to_supervisor::Message};
use mesh_core::traffic::{HealthCheck, Probe};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Notify;
use tokio::task::{AbortHandle, spawn_local};
use tokio::time::{Instant, MissedTickBehavior, interval_at, timeout};

use super::context::Context;
use super::metrics::Count;
use super::socket;

/// The port the app sees a probe come from, at the pod's own address. Any but 0 will do.
const CLIENT_PORT: u16 = 1;
/// The head of an answer may have so many bytes; the body is not read.
const MAX_HEAD: usize = 16 * 1024;

/// The checks of one pod, and what the supervisor knows of them.
pub(crate) struct Health {
    context: Rc<Context>,
    /// `None` before the first policy has said which there are.
    checks: RefCell<Option<Vec<Running>>>,
    changed: Notify,
    told: RefCell<Option<HealthMessage>>,
}

struct Running {
    watched: Rc<Watched>,
    task: AbortHandle,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// One check and how it stands.
struct Watched {
    check: HealthCheck,
    standing: Cell<Standing>,
    /// Why the app is unhealthy.
    why: RefCell<String>,
}

/// What the outcomes of one check amount to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Standing {
    /// `None` while nothing is certain.
    healthy: Option<bool>,
    /// Outcomes in a row that say otherwise.
    row: u32,
}

impl Standing {
    /// Takes in an outcome. The first success is enough where nothing was certain.
    fn after(self, success: bool, check: &HealthCheck) -> Self {
        if self.healthy == Some(success) {
            return Self { row: 0, ..self };
        }
        let row = self.row.saturating_add(1);
        let needed = match (success, self.healthy) {
            (true, None) => 1,
            (true, Some(_)) => check.healthy_threshold,
            (false, _) => check.unhealthy_threshold,
        };
        match row >= needed {
            true => Self {
                healthy: Some(success),
                row: 0,
            },
            false => Self { row, ..self },
        }
    }
}

impl Health {
    /// No checks, and nothing told, until [`Self::set_checks`] is called.
    pub(crate) fn new(context: Rc<Context>) -> Rc<Self> {
        let health = Rc::new(Self {
            context,
            checks: RefCell::default(),
            changed: Notify::new(),
            told: RefCell::default(),
        });
        spawn_local(health.clone().tell());
        health
    }

    /// Replaces the checks, whose ports are the pod's own. One that was there before goes on
    /// with what it has found out.
    pub(crate) fn set_checks(self: &Rc<Self>, checks: &[HealthCheck]) {
        let mut old = self.checks.take().unwrap_or_default();
        let checks = checks.iter().map(|check| {
            let same = old.iter().position(|old| old.watched.check == *check);
            same.map(|at| old.swap_remove(at)).unwrap_or_else(|| {
                let watched = Rc::new(Watched {
                    check: check.clone(),
                    standing: Cell::default(),
                    why: RefCell::default(),
                });
                let task = spawn_local(self.clone().watch(watched.clone()));
                Running {
                    watched,
                    task: task.abort_handle(),
                }
            })
        });
        let checks = checks.collect();
        *self.checks.borrow_mut() = Some(checks);
        self.changed.notify_one();
    }

    /// A new supervisor has been told nothing yet.
    pub(crate) fn tell_again(&self) {
        self.told.take();
        self.changed.notify_one();
    }

    async fn watch(self: Rc<Self>, watched: Rc<Watched>) {
        let check = &watched.check;
        // Not all pods of a node at the same instant.
        let share = f64::from(u16::try_from(RandomState::new().hash_one(()) >> 48).unwrap_or(0));
        let start = Instant::now() + check.interval.mul_f64(share / f64::from(u16::MAX));
        let mut due = interval_at(start, check.interval.max(Duration::from_millis(1)));
        due.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = due.tick() => {}
                // The next worker has the word now.
                () = self.context.draining() => return,
            }
            let outcome = probe(&self.context, check).await;
            let count = match outcome {
                Ok(()) => Count::HealthChecksPassed,
                Err(_) => Count::HealthChecksFailed,
            };
            self.context.metrics.add(count, 1);
            let before = watched.standing.get();
            let standing = before.after(outcome.is_ok(), check);
            watched.standing.set(standing);
            if standing.healthy != before.healthy {
                *watched.why.borrow_mut() = match outcome {
                    Ok(()) => String::new(),
                    Err(failure) => format!("{}: {failure}", Name(check)),
                };
                self.changed.notify_one();
            }
        }
    }

    /// Tells the supervisor of every change, in order.
    async fn tell(self: Rc<Self>) {
        loop {
            tokio::select! {
                () = self.changed.notified() => {}
                () = self.context.draining() => return,
            }
            let verdict = self.verdict();
            if verdict.is_none() || *self.told.borrow() == verdict {
                continue;
            }
            self.told.replace(verdict.clone());
            if let Some(verdict) = verdict {
                let outbox = &self.context.outbox;
                outbox.send(Message::Health(verdict), Vec::new()).await;
            }
        }
    }

    /// Unhealthy if any check says so; `None` while none does and some can't tell yet.
    fn verdict(&self) -> Option<HealthMessage> {
        let checks = self.checks.borrow();
        let all = checks.as_ref()?.iter();
        let (mut failing, mut uncertain) = (Vec::new(), false);
        for Running { watched, .. } in all {
            match watched.standing.get().healthy {
                Some(true) => {}
                Some(false) => failing.push(watched.why.borrow().clone()),
                None => uncertain = true,
            }
        }
        let unhealthy = !failing.is_empty();
        (unhealthy || !uncertain).then(|| HealthMessage {
            unhealthy,
            detail: failing.join("; "),
        })
    }
}

/// A check as the operator knows it.
struct Name<'a>(&'a HealthCheck);

impl fmt::Display for Name<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let port = self.0.port;
        match &self.0.probe {
            Probe::Tcp => write!(f, "TCP port {port}"),
            Probe::Http { path, .. } => write!(f, "GET {path} on port {port}"),
        }
    }
}

/// Why a probe failed. Holds nothing of what the app said but its status.
#[derive(Debug, thiserror::Error)]
pub(super) enum ProbeError {
    #[error("no answer within {0:?}")]
    TimedOut(Duration),
    #[error("{0}")]
    Dial(String),
    #[error("the check makes no request: {0}")]
    Request(#[from] http::Error),
    #[error("no HTTP answer: {0}")]
    Answer(#[from] hyper::Error),
    #[error("answered {0}")]
    Status(u16),
}

async fn probe(context: &Context, check: &HealthCheck) -> Result<(), ProbeError> {
    let late = || ProbeError::TimedOut(check.timeout);
    let outcome = timeout(check.timeout, ask(context, check)).await;
    outcome.unwrap_or_else(|_| Err(late()))
}

async fn ask(context: &Context, check: &HealthCheck) -> Result<(), ProbeError> {
    // A worker has at least one address, or it would not have started.
    let [ip, ..] = context.pod.addresses[..] else {
        return Err(ProbeError::Dial("the pod has no address".to_owned()));
    };
    let to = SocketAddr::new(ip, check.port);
    let client = SocketAddr::new(ip, CLIENT_PORT);
    let app = context.dial_app(to, client).await;
    let app = app.map_err(|fault| ProbeError::Dial(fault.detail))?;
    // Nothing is lost by ending it: the app need not take it for a cut.
    socket::close_orderly(&app);
    match &check.probe {
        Probe::Tcp => Ok(()),
        Probe::Http { path, host } if host.is_empty() => get(app, path, &to.to_string()).await,
        Probe::Http { path, host } => get(app, path, host).await,
    }
}

/// Asks an app over a connection to it.
pub(super) async fn get<IO>(app: IO, path: &str, host: &str) -> Result<(), ProbeError>
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    let request = Request::get(path)
        .header(header::HOST, host)
        .header(header::USER_AGENT, "nodemesh-health-check")
        .header(header::CONNECTION, "close")
        .body(Empty::<Bytes>::new())?;
    let mut builder = http1::Builder::new();
    builder.max_buf_size(MAX_HEAD);
    let (mut sender, connection) = builder.handshake(TokioIo::new(app)).await?;
    let mut answer = std::pin::pin!(sender.send_request(request));
    let answer = tokio::select! {
        biased;
        answer = &mut answer => answer,
        // What it has read by its end, it has passed on.
        ended = connection => match ended {
            Ok(()) => answer.await,
            Err(error) => Err(error),
        },
    };
    match answer?.status().as_u16() {
        200..=399 => Ok(()),
        status => Err(ProbeError::Status(status)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thresholds_count_outcomes_in_a_row() {
        let check = HealthCheck {
            port: 80,
            probe: Probe::Tcp,
            interval: Duration::from_secs(1),
            timeout: Duration::from_secs(1),
            unhealthy_threshold: 3,
            healthy_threshold: 2,
        };
        let run = |outcomes: &str| {
            let outcomes = outcomes.bytes().map(|outcome| outcome == b'+');
            let standing = outcomes.fold(Standing::default(), |s, ok| s.after(ok, &check));
            standing.healthy
        };
        for (outcomes, healthy) in [
            ("", None),
            ("--", None),
            ("---", Some(false)),
            ("+", Some(true)),
            ("--+", Some(true)),
            ("+--+--", Some(true)),
            ("+--+---", Some(false)),
            ("---+", Some(false)),
            ("---+-+", Some(false)),
            ("---++", Some(true)),
        ] {
            assert_eq!(run(outcomes), healthy, "{outcomes}");
        }
    }
}
