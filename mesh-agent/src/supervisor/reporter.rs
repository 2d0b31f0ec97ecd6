//! The pods' reports: written by their tasks, read by `status`, `pod add`, metrics and the
//! reports to control.

use std::sync::Arc;

use tokio::sync::watch;

use super::report::PodReport;

/// One pod's report, with a signal for changes of any pod's.
#[derive(Debug)]
pub(super) struct Reporter {
    report: watch::Sender<PodReport>,
    news: Arc<watch::Sender<()>>,
}

impl Reporter {
    pub(super) fn new(report: PodReport, news: Arc<watch::Sender<()>>) -> Self {
        Self {
            report: watch::Sender::new(report),
            news,
        }
    }

    /// Changes the report.
    pub(super) fn send_modify(&self, change: impl FnOnce(&mut PodReport)) {
        self.report.send_modify(change);
        self.news.send_replace(());
    }

    /// Changes the report if `change` says that it did.
    pub(super) fn send_if_modified(&self, change: impl FnOnce(&mut PodReport) -> bool) -> bool {
        let modified = self.report.send_if_modified(change);
        if modified {
            self.news.send_replace(());
        }
        modified
    }

    pub(super) fn borrow(&self) -> watch::Ref<'_, PodReport> {
        self.report.borrow()
    }

    pub(super) fn subscribe(&self) -> watch::Receiver<PodReport> {
        self.report.subscribe()
    }
}
