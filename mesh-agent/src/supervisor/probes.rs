//! The ports of a pod that kubelet's connections pass to, as the kernel has them.

use std::collections::BTreeSet;

use mesh_common::{PROBE_PORTS_PER_POD, RESERVED_PORTS};

use super::discovery::View;
use super::workers::PodTask;

/// Those of the ports that a pod declares which kubelet gets, and how many others there are.
fn passing(declared: &BTreeSet<u16>) -> (BTreeSet<u16>, usize) {
    let own = declared
        .iter()
        .filter(|port| !RESERVED_PORTS.contains(port));
    let ports: BTreeSet<u16> = own.take(PROBE_PORTS_PER_POD as usize).copied().collect();
    let left_out = declared.len() - ports.len();
    (ports, left_out)
}

impl PodTask {
    /// Kubelet's connections pass to the ports that the pod declares now.
    pub(super) fn follow_probes(&mut self, view: &View) {
        let Some(workload) = view.mesh.workload(&self.goal.uid) else {
            return;
        };
        let (ports, left_out) = passing(&workload.probe_ports);
        if self.probe_ports.as_ref() == Some(&ports) {
            return;
        }
        let pod = &self.record.key;
        if left_out > 0 {
            tracing::warn!(%pod, left_out, most = PROBE_PORTS_PER_POD, "some ports that the pod declares for probes are the mesh's own, or too many: kubelet gets to those by policy only");
        }
        let (slot, addresses) = (self.record.slot, &self.goal.addresses);
        let set = self
            .shared
            .capture()
            .set_probe_ports(slot, addresses, &ports);
        match set {
            Ok(()) => {
                self.report_probes(&ports);
                self.probe_ports = Some(ports);
            }
            Err(e) => {
                tracing::error!(%pod, error = %e, "the kernel did not take the pod's ports for probes: kubelet may be refused; tried again when the mesh changes");
            }
        }
    }

    /// The kernel has none of the pod's ports any more.
    pub(super) fn forget_probes(&mut self) {
        self.probe_ports = None;
        self.report_probes(&BTreeSet::new());
    }

    fn report_probes(&self, ports: &BTreeSet<u16>) {
        let ports: Vec<u16> = ports.iter().copied().collect();
        self.report.send_if_modified(|report| {
            let news = report.probe_ports != ports;
            report.probe_ports = ports;
            news
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_meshs_own_ports_and_those_beyond_the_limit_are_left_out() {
        let (ports, left_out) = passing(&[8080, 15006, 15008].into());
        assert_eq!((ports, left_out), ([8080].into(), 2));
        let many: BTreeSet<u16> = (1..=20).collect();
        let (ports, left_out) = passing(&many);
        assert_eq!((ports, left_out), ((1..=16).collect(), 4));
    }
}
