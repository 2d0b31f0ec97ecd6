//! Load that runs in the cluster while something is done to it: short requests, and one connection that
//! is kept. Both are containers of `deployment/client`, whose logs are read.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail, ensure};

use crate::k8s_test::session::Session;

/// A line of `requests`: its number, the answer's status, and what curl has to say.
#[derive(Debug, PartialEq, Eq)]
struct Request {
    number: u64,
    status: u32,
    words: String,
}

/// A line of `stream`: connections that this request took (0: the one that was there), and the status.
#[derive(Debug, PartialEq, Eq)]
struct Kept {
    connections: u64,
    status: u32,
}

/// What has been so far, when the load of a case begins.
pub(in crate::k8s_test) struct Load {
    requests: u64,
    kept: usize,
}

impl Load {
    /// Begins to count.
    pub(in crate::k8s_test) fn begin(session: &Session<'_>) -> Result<Self> {
        let began = Self {
            requests: requests(session)?.last().map_or(0, |last| last.number),
            kept: kept(session)?.len(),
        };
        session.let_load_run();
        Ok(began)
    }

    /// Counts: every request was answered, and the connection that was kept is the same.
    pub(in crate::k8s_test) fn nothing_lost(&self, session: &Session<'_>) -> Result<()> {
        self.requests_lost(session)?;
        let all = kept(session)?;
        let since = all.get(self.kept..).unwrap_or_default();
        ensure!(
            !since.is_empty(),
            "the connection that is kept carried nothing meanwhile"
        );
        let again: u64 = since.iter().map(|kept| kept.connections).sum();
        ensure!(
            again == 0,
            "the connection that was kept was lost {again} times"
        );
        let bad = since.iter().find(|kept| kept.status != 200);
        ensure!(bad.is_none(), "on the connection that is kept: {bad:?}");
        Ok(())
    }

    /// Counts requests alone: connections to pods that end, end.
    pub(in crate::k8s_test) fn requests_lost(&self, session: &Session<'_>) -> Result<()> {
        session.let_load_run();
        let all = requests(session)?;
        let since: Vec<&Request> = all.iter().filter(|r| r.number > self.requests).collect();
        ensure!(
            since.len() >= 10,
            "only {} requests were made meanwhile",
            since.len()
        );
        let mut failed: BTreeMap<String, usize> = BTreeMap::new();
        for request in since.iter().filter(|request| request.status != 200) {
            *failed
                .entry(format!("{} {}", request.status, request.words))
                .or_default() += 1;
        }
        if !failed.is_empty() {
            let sum: usize = failed.values().sum();
            bail!("{sum} of {} requests failed: {failed:?}", since.len());
        }
        Ok(())
    }
}

fn log(session: &Session<'_>, container: &str) -> Result<String> {
    let shop = session.shop();
    session.kubectl(&[
        "-n",
        &shop,
        "logs",
        "deployment/client",
        "-c",
        container,
        "--tail=-1",
    ])
}

fn requests(session: &Session<'_>) -> Result<Vec<Request>> {
    log(session, "requests")?.lines().map(request).collect()
}

fn kept(session: &Session<'_>) -> Result<Vec<Kept>> {
    log(session, "stream")?.lines().map(kept_line).collect()
}

fn request(line: &str) -> Result<Request> {
    let mut words = line.splitn(3, ' ');
    let mut next = || words.next().unwrap_or_default();
    let request = (|| {
        Some(Request {
            number: next().parse().ok()?,
            status: next().parse().ok()?,
            words: next().to_owned(),
        })
    })();
    request.with_context(|| format!("a line of the log of requests is no request: {line:?}"))
}

fn kept_line(line: &str) -> Result<Kept> {
    let kept = line.split_once(' ').and_then(|(connections, status)| {
        Some(Kept {
            connections: connections.parse().ok()?,
            status: status.trim().parse().ok()?,
        })
    });
    kept.with_context(|| format!("a line of the log of the stream is none of its: {line:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_as_curl_writes_them() {
        let well = request("7 200 ").unwrap();
        assert_eq!(
            (well.number, well.status, well.words.as_str()),
            (7, 200, "")
        );
        let lost = request("8 000 Recv failure: Connection reset by peer").unwrap();
        assert_eq!(
            (lost.status, lost.words.as_str()),
            (0, "Recv failure: Connection reset by peer")
        );
        assert!(request("standard_init_linux.go: exec format error").is_err());
        assert_eq!(
            kept_line("1 200").unwrap(),
            Kept {
                connections: 1,
                status: 200
            }
        );
        assert!(kept_line("200").is_err());
    }
}
