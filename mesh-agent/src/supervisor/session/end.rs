//! A worker's end: asked for, or found.

use std::time::Duration;

use futures_util::FutureExt as _;
use mesh_api::worker::to_supervisor::Message as FromWorker;
use nix::sys::signal::Signal;
use tokio::time::timeout;

use super::{END_PATIENCE, Link, OUTBOX_LIMIT, STEP_PATIENCE, send_first};
use crate::sandbox::Exit;

impl Link {
    /// Asks the worker to finish and sees to it that it is gone.
    pub(in crate::supervisor) async fn finish(&mut self, drain: Duration) {
        if !drain.is_zero() {
            self.post_drain(drain);
            let flush_and_wait = async {
                while !self.outbox.is_empty() {
                    tokio::select! {
                        sent = send_first(&self.channel, &self.outbox) => match sent {
                            Ok(()) => drop(self.outbox.pop_front()),
                            Err(_) => break,
                        },
                        _ = self.death.readable() => return,
                    }
                }
                let _ = self.death.readable().await;
            };
            let _ = timeout(drain + END_PATIENCE, flush_and_wait).await;
        }
        let _how = self.bury(Duration::ZERO).await;
    }

    /// Waits for the worker's end, and hastens it after `patience`.
    pub(in crate::supervisor) async fn bury(&mut self, patience: Duration) -> String {
        if timeout(patience, self.death.readable()).await.is_err() {
            // ESRCH: it has ended meanwhile.
            let sent = self.worker.signal(Signal::SIGKILL);
            if timeout(STEP_PATIENCE, self.death.readable()).await.is_err() {
                let error = sent.err().map(tracing::field::display);
                tracing::error!(pod = %self.pod, pid = self.worker.pid, error, "the worker doesn't end on SIGKILL (a stuck device or debugger?)");
            }
        }
        self.listen_to_last_words();
        let exit = match self.worker.exited() {
            Ok(Some(Exit::Code(code))) => format!("exit code {code}"),
            Ok(Some(Exit::Signal(signal))) => format!("signal {signal}"),
            Ok(Some(Exit::Unknown)) => "end unknown, it was adopted".to_owned(),
            Ok(None) => "still there".to_owned(),
            Err(e) => format!("end unknown: {e}"),
        };
        match self.last_words.take() {
            Some(words) => format!("{words} ({exit})"),
            None => exit,
        }
    }

    /// What a dead worker had sent: its reason, most of all. All of it is read, or what rides
    /// along would be closed with the channel, where closing it may wait.
    fn listen_to_last_words(&mut self) {
        for _ in 0..OUTBOX_LIMIT {
            match self.channel.recv_from_anybody().now_or_never() {
                None => return,
                Some(Ok(Some((message, _)))) => match message.message {
                    Some(FromWorker::StartFailed(failed)) => self.last_words = Some(failed.why),
                    Some(FromWorker::Metrics(metrics)) => self.last_counts = metrics.counters,
                    _ => {}
                },
                // An empty packet, or one that is none; or nothing more, again and again.
                Some(_) => {}
            }
        }
    }
}
