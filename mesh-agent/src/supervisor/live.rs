//! The enrolment of a pod that is running: its connections go on, bounded in time and by policy,
//! while everything new goes through the mesh.
//!
//! Such a pod gets its wall last. Before, its worker has to be ready and new connections have to
//! go to it, both ways; the wall is then told of every connection that is older. What was on its
//! way into a socket meanwhile is found by looking again, and is bounded: nothing that begins after
//! capture can be among it.

use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;

use mesh_core::explain::unproven;
use mesh_core::policy::PolicyKey;
use mesh_core::reason::Reason;
use tokio::time::Instant;

use super::discovery::View;
use super::events::{self, Ended};
use super::grandfather::{Grandfather, connection_of, from_kernel, to_kernel};
use super::join::now_s;
use super::netns::{Netns, NetnsError};
use super::sock_diag::{self, Connection};
use super::unserved::Unserved;
use super::workers::PodTask;
use crate::capture::kernel_clock_ns;

/// When what a busy processor had kept from being found is in its socket.
const SETTLE: Duration = Duration::from_millis(250);
/// Most connections of a pod that go on; those beyond end at its wall.
const MOST: usize = mesh_common::GRANDFATHERED_PER_POD as usize;

/// Whether apps of the pod use its network: then it is not one that is about to start.
pub(super) fn is_in_use(netns: &Netns) -> Result<bool, NetnsError> {
    netns.inside("looking for sockets in use", || {
        let v4 = fs::read_to_string("/proc/thread-self/net/sockstat")?;
        // Absent where the kernel has no IPv6.
        let v6 = fs::read_to_string("/proc/thread-self/net/sockstat6").unwrap_or_default();
        Ok(says_in_use(&v4) || says_in_use(&v6))
    })
}

/// TCP in any state, and UDP.
fn says_in_use(sockstat: &str) -> bool {
    let mut lines = sockstat.lines().map(str::split_ascii_whitespace);
    lines.any(|mut words| {
        let protocol = words.next().unwrap_or_default();
        let words: Vec<&str> = words.collect();
        let counts = words.chunks_exact(2).any(|pair| {
            let counted = matches!(pair[0], "inuse" | "tw" | "orphan");
            counted && pair[1].parse::<u64>().is_ok_and(|count| count > 0)
        });
        counts && matches!(protocol, "TCP:" | "TCP6:" | "UDP:" | "UDP6:")
    })
}

impl PodTask {
    /// It is being enrolled while it runs, and its wall is not up yet.
    pub(super) fn is_unwalled(&self) -> bool {
        self.record.placed.as_ref().is_some_and(|p| p.unwalled)
    }

    /// Takes up what an earlier supervisor let go on.
    pub(super) fn restore_grandfathers(&mut self) {
        let found = self.shared.capture().grandfathered(self.record.slot);
        let found = found.unwrap_or_else(|e| {
            tracing::error!(pod = %self.record.key, error = %e, "the pod's connections from before its enrolment can't be listed; the kernel ends them in time");
            Vec::new()
        });
        let (now, clock_ns) = (Instant::now(), kernel_clock_ns());
        for (cookie, older) in found {
            let older = from_kernel(&older, now, clock_ns);
            self.grandfathers.all.insert(cookie, older);
        }
        self.report_grandfathers();
    }

    /// Connections that apps are about to accept. To be asked for before inbound is steered: later
    /// they are the worker's.
    pub(super) fn requests(&self) -> Result<Vec<Connection>, NetnsError> {
        let found = self.older_connections()?;
        Ok(found.into_iter().filter(|c| c.is_request).collect())
    }

    /// Puts up the walls around a pod whose new connections are captured.
    pub(super) fn wall_in(&mut self, requests: Vec<Connection>) -> Result<(), String> {
        let until = Instant::now() + self.shared.config.grandfather_for;
        let mut found = self.established().map_err(|e| e.to_string())?;
        found.extend(requests);
        self.grandfather(found, until)?;
        // What policy refuses, or no time is given, is reset before the wall is in the way.
        self.tend_grandfathers();
        let walls = self.record.placed.as_ref().map(|p| p.walls.clone());
        for ifindex in walls.unwrap_or_default() {
            if let Err(e) = self.put_wall(ifindex, 0) {
                self.unserved(Unserved::Wall(e.to_string()), None);
                return Err(e.to_string());
            }
        }
        let found = self.established().map_err(|e| e.to_string())?;
        self.grandfather(found, until)?;
        if let Some(placed) = &mut self.record.placed {
            placed.unwalled = false;
        }
        self.save();
        self.grandfathers.settle_at = Some(Instant::now() + SETTLE);
        self.report_grandfathers();
        let connections = self.grandfathers.all.len();
        tracing::info!(pod = %self.record.key, connections, "enrolled while it runs: what is older than that goes on for now");
        Ok(())
    }

    fn established(&self) -> Result<Vec<Connection>, NetnsError> {
        let found = self.older_connections()?;
        Ok(found.into_iter().filter(|c| c.cgroup.is_some()).collect())
    }

    /// Connections of the pod's apps that leave the pod.
    fn older_connections(&self) -> Result<Vec<Connection>, NetnsError> {
        let found = self
            .netns
            .inside("listing connections", sock_diag::connections)?;
        let worker = self.cgroup_id();
        let own = &self.goal.addresses;
        let leaves = |c: &Connection| {
            let inside = |ip: std::net::IpAddr| ip.is_loopback() || own.contains(&ip);
            !inside(c.remote.ip()) && !c.local.ip().is_loopback()
        };
        let others = found.into_iter().filter(|c| c.cgroup != Some(worker));
        Ok(others.filter(leaves).collect())
    }

    /// Lets those of the connections go on that don't yet.
    fn grandfather(&mut self, found: Vec<Connection>, until: Instant) -> Result<(), String> {
        let known = &self.grandfathers.all;
        let mut new: Vec<Connection> = found
            .into_iter()
            .filter(|c| !known.contains_key(&c.cookie))
            .collect();
        let room = MOST.saturating_sub(known.len());
        if new.len() > room {
            let (pod, too_many) = (&self.record.key, new.len() - room);
            tracing::error!(%pod, too_many, "the pod has more connections from before its enrolment than the {MOST} that may go on: these end");
            new.truncate(room);
        }
        if new.is_empty() {
            return Ok(());
        }
        let listening = self
            .netns
            .inside("listing listeners", sock_diag::listening)
            .map_err(|e| e.to_string())?;
        let (now, clock_ns) = (Instant::now(), kernel_clock_ns());
        let asked = self.shared.discovery.asked().clone();
        let mut told = Vec::new();
        for socket in new {
            let older = Grandfather {
                connection: connection_of(&socket, &listening),
                until,
                cut: false,
                audited: None,
                _asking: asked.ask(socket.remote.ip()),
            };
            told.push((socket.cookie, to_kernel(&older, now, clock_ns)));
            self.grandfathers.all.insert(socket.cookie, older);
        }
        let told = self.shared.capture().grandfather(self.record.slot, &told);
        told.map_err(|e| e.to_string())
    }

    /// Does what is due: looks once more for what was on its way, ends what had its time, judges
    /// the rest.
    pub(super) fn tend_grandfathers(&mut self) {
        let now = Instant::now();
        if self
            .grandfathers
            .settle_at
            .take_if(|at| *at <= now)
            .is_some()
        {
            let until = now + self.shared.config.grandfather_for;
            let settled = self.established().map_err(|e| e.to_string());
            if let Err(e) = settled.and_then(|found| self.grandfather(found, until)) {
                tracing::error!(pod = %self.record.key, error = e, "connections that began while the pod was enrolled may be missed");
            }
        }
        let ended = self.grandfathers.ended(now).into_iter();
        let ended: Vec<_> = ended
            .map(|cookie| (cookie, Reason::GrandfatherEnded, None))
            .collect();
        self.cut(&ended);
        let discovery = self.shared.discovery.clone();
        if let Some(view) = discovery.known() {
            self.judge_grandfathers(&view);
        }
        self.report_grandfathers();
    }

    /// Cuts, or in audit counts, what policy would refuse if it were asked for now.
    pub(super) fn judge_grandfathers(&mut self, view: &View) {
        let (Some(policy), Some(audit)) = (self.rules.policy(), self.rules.audit()) else {
            return;
        };
        let mut refused = Vec::new();
        for (cookie, older) in self.grandfathers.all.iter_mut().filter(|(_, o)| !o.cut) {
            let nobody = view.answered.contains(&older.connection.remote.ip());
            let decision = unproven(&view.mesh, policy, &older.connection, nobody);
            let Some(decision) = decision else {
                if older._asking.is_none() {
                    let asked = self.shared.discovery.asked();
                    older._asking = asked.ask(older.connection.remote.ip());
                }
                continue;
            };
            let news = older.audited != decision.refused;
            if audit {
                older.audited = decision.refused;
            }
            if let Some(reason) = decision.refused.filter(|_| news || !audit) {
                refused.push((*cookie, reason, decision.policy.cloned()));
            }
        }
        if !audit {
            self.cut(&refused);
            return;
        }
        for (cookie, reason, policy) in refused {
            self.counters.count(
                "nodemesh_supervisor_grandfathered_audited_total",
                reason.code(),
            );
            self.tell_ended(cookie, Ended::Audited, reason, policy.as_ref());
        }
    }

    /// Resets connections, for both ends.
    fn cut(&mut self, refused: &[(u64, Reason, Option<PolicyKey>)]) {
        if refused.is_empty() {
            return;
        }
        let cookies: BTreeSet<u64> = refused.iter().map(|(cookie, ..)| *cookie).collect();
        let destroyed = self.netns.inside("resetting connections", || {
            let found = sock_diag::connections()?;
            let mut of_these = found.iter().filter(|c| cookies.contains(&c.cookie));
            of_these.try_for_each(sock_diag::destroy)
        });
        let slot = self.record.slot;
        if let Err(e) = destroyed {
            tracing::warn!(pod = %self.record.key, error = %e, "connections can't be reset (CONFIG_INET_DIAG_DESTROY): the wall ends them in silence");
            let cookies: Vec<u64> = cookies.into_iter().collect();
            let forgotten = self.shared.capture().forget_grandfathered(slot, &cookies);
            if let Err(e) = forgotten {
                tracing::error!(pod = %self.record.key, error = %e, "connections that are to end go on; trying again");
            }
        }
        // The kernel forgets them when they are gone: their resets have yet to pass the wall.
        for (cookie, reason, policy) in refused {
            if let Some(older) = self.grandfathers.all.get_mut(cookie) {
                older.cut = true;
            }
            self.counters
                .count("nodemesh_supervisor_grandfathered_cut_total", reason.code());
            self.tell_ended(*cookie, Ended::Cut, *reason, policy.as_ref());
        }
        self.report_grandfathers();
    }

    fn tell_ended(&self, cookie: u64, how: Ended, reason: Reason, policy: Option<&PolicyKey>) {
        if let Some(older) = self.grandfathers.all.get(&cookie) {
            events::log_grandfather(&self.record.key, &older.connection, how, reason, policy);
        }
    }

    /// Forgets those that are over.
    pub(super) fn look_at_grandfathers(&mut self) {
        if self.grandfathers.all.is_empty() {
            return;
        }
        let found = self
            .netns
            .inside("listing connections", sock_diag::connections);
        let found = match found {
            Ok(found) => found,
            Err(e) => {
                tracing::warn!(pod = %self.record.key, error = %e, "can't look at the pod's connections; trying again");
                return;
            }
        };
        let there = found.iter().map(|c| c.cookie).collect();
        let mut gone = self.grandfathers.keep_only(&there);
        // By now its reset would be through: whatever it is, it ends.
        let all = self.grandfathers.all.iter();
        gone.extend(all.filter(|(_, o)| o.cut).map(|(cookie, _)| *cookie));
        let slot = self.record.slot;
        let forgotten = match self.grandfathers.all.is_empty() {
            true => self.shared.capture().end_grandfathering(slot),
            false => self.shared.capture().forget_grandfathered(slot, &gone),
        };
        if let Err(e) = forgotten {
            tracing::warn!(pod = %self.record.key, error = %e, "the kernel remembers connections that are over");
        }
        self.tend_grandfathers();
    }

    pub(super) fn report_grandfathers(&self) {
        let older = self.grandfathers.report(Instant::now(), now_s());
        self.report.send_if_modified(|report| {
            let news = report.older.connections != older.connections;
            report.older = older;
            news
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_in_use_is_told_by_the_kernels_counts() {
        let fresh = "sockets: used 3\nTCP: inuse 0 orphan 0 tw 0 alloc 25 mem 3\n\
                     UDP: inuse 0 mem 1\nUDPLITE: inuse 0\nRAW: inuse 1\nFRAG: inuse 0 memory 0\n";
        assert!(!says_in_use(fresh));
        for used in ["TCP: inuse 1", "orphan 1", "tw 7"] {
            let (word, count) = used.rsplit_once(' ').unwrap();
            let used = fresh.replacen(&format!("{word} 0"), &format!("{word} {count}"), 1);
            assert!(used != fresh && says_in_use(&used), "{used}");
        }
        assert!(says_in_use("TCP6: inuse 2\nUDP6: inuse 0\n"));
        assert!(says_in_use("TCP6: inuse 0\nUDP6: inuse 1\n"));
        assert!(!says_in_use("RAW6: inuse 1\n") && !says_in_use(""));
    }
}
