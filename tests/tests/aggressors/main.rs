//! Aggressors beside a victim: another tenant of the same nodes does its worst, each way in
//! turn. The victim is answered rightly throughout, the aggressor meets a limit, and the
//! limit is counted under its reason where it refuses something.

mod app;
mod churn;
mod door;
mod faults;
mod http2;
mod turns;

use std::time::Duration;

use mesh_lab::aggressor::stage::{self, NOISY, SERVE, VICTIM};
use mesh_lab::aggressor::{Achieved, Calls, Load, Site, Victim};
use mesh_lab::{App, Lab, Pod, wait};

/// How long each load lasts. The victim calls a little longer.
const TIME: Duration = Duration::from_millis(1_500);
const LONGER: Duration = Duration::from_millis(500);
/// Calls of the victim in a second.
const RATE: f64 = 100.0;

/// Both tenants, with their servers running.
struct Stage {
    lab: Lab,
    _servers: Vec<[App; 2]>,
}

impl Stage {
    fn new() -> Self {
        let lab = Lab::with_mesh(stage::plan()).unwrap();
        let servers = [VICTIM, NOISY].map(|t| stage::serve(lab.pod(&format!("{t}/server"))));
        let servers = servers.into_iter().collect::<Result<_, _>>().unwrap();
        Self {
            lab,
            _servers: servers,
        }
    }

    fn pod(&self, tenant: &str, name: &str) -> &Pod {
        self.lab.pod(&format!("{tenant}/{name}"))
    }

    fn site(&self) -> Site<'_> {
        stage::site(&self.lab, NOISY).unwrap()
    }

    /// Process ids of the workers of both tenants.
    fn workers(&self) -> Vec<i32> {
        let pods = [VICTIM, NOISY].map(|t| ["client", "server"].map(|name| self.pod(t, name)));
        let pid = |pod: &Pod| self.lab.agent(pod.node()).worker_pid(pod).unwrap();
        pods.iter().flatten().map(|pod| pid(pod)).collect()
    }

    /// The victim's calls go on while something happens, and every one is answered.
    fn beside<T>(&self, time: Duration, happens: impl FnOnce() -> T) -> T {
        let calls = Calls {
            to: (self.pod(VICTIM, "server").v4(), SERVE).into(),
            connections: 4,
            rate: RATE,
            time: time + LONGER,
            counts: Duration::ZERO..time,
        };
        let victim = Victim::start(self.pod(VICTIM, "client"), &calls).unwrap();
        let happened = happens();
        let measured = victim.finish().unwrap();
        let unharmed = measured.unharmed();
        unharmed.unwrap_or_else(|e| panic!("{e:#}\n{}", self.lab.log_tails()));
        happened
    }

    /// A load beside the victim. It costs nobody a worker.
    fn load(&self, load: Load, at_once: usize) -> Achieved {
        self.load_for(TIME, load, at_once)
    }

    fn load_for(&self, time: Duration, load: Load, at_once: usize) -> Achieved {
        let before = self.workers();
        let achieved = self.beside(time, || {
            let running = load.start(&self.site(), at_once, time).unwrap();
            running.finish()
        });
        let achieved = achieved.unwrap_or_else(|e| panic!("{e:#}\n{}", self.lab.log_tails()));
        println!("{achieved:?}");
        assert_eq!(self.workers(), before, "workers ended: {achieved:?}");
        achieved
    }

    /// How often a pod of the noisy tenant was refused something for this reason.
    fn refused(&self, name: &str, reason: &str) -> u64 {
        let pod = self.pod(NOISY, name);
        let agent = self.lab.agent(pod.node());
        agent
            .refused(self.lab.node(pod.node()), pod, reason)
            .unwrap()
    }

    /// Waits until so many more are counted than there were `before`.
    fn wait_refused(&self, name: &str, reason: &str, before: u64) {
        let what = format!("refusals of {NOISY}/{name} for {reason} beyond {before}");
        let counted = wait::until_true(&what, wait::PATIENCE, || {
            Ok(self.refused(name, reason) > before)
        });
        counted.unwrap_or_else(|e| panic!("{e:#}\n{}", self.lab.log_tails()));
        // Nothing of it is put down to the victim.
        for name in ["client", "server"] {
            let pod = self.pod(VICTIM, name);
            let (agent, node) = (self.lab.agent(pod.node()), self.lab.node(pod.node()));
            assert_eq!(agent.refused(node, pod, reason).unwrap(), 0, "{reason}");
        }
    }
}
