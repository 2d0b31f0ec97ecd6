//! The cases: the victim alone, and beside each aggressor.

use std::time::{Duration, Instant};

use anyhow::Result;
use mesh_lab::aggressor::fault::Fault;
use mesh_lab::aggressor::stage::NOISY;
use mesh_lab::aggressor::{Load, churn};

use super::columns::{Kind, Stage};

/// The unit of what lasts from the first to the last.
pub(super) const THROUGHOUT: &str = "throughout";

/// The loads that are limited by the processor alone.
const PRESSING: [Load; 4] = [
    Load::BulkStreams,
    Load::SmallRequests,
    Load::Churn,
    Load::GoodHandshakes,
];

/// What the victim has beside it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Case {
    /// Nothing.
    Alone,
    /// A load, this much at once.
    Load(Load, usize),
    /// What befalls the proxy of the aggressor's server.
    Fault(Fault),
    /// A large policy of the aggressor's namespace, written again and again.
    PolicyChurn,
    /// The aggressor's client leaves the mesh and comes back, with a new certificate each time.
    Certificates,
}

/// What an aggressor has achieved.
#[derive(Clone, Debug)]
pub(super) struct Aggression {
    pub(super) done: u64,
    pub(super) refused: u64,
    pub(super) unit: &'static str,
    pub(super) seconds: f64,
}

impl Case {
    pub(super) fn all() -> Vec<Self> {
        let loads = Load::ALL.map(|load| Self::Load(load, at_once(load)));
        let faults = Fault::ALL.map(Self::Fault);
        let all = [Self::Alone].into_iter().chain(loads).chain(faults);
        all.chain([Self::PolicyChurn, Self::Certificates]).collect()
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Alone => "alone",
            Self::Load(load, _) => load.title().0,
            Self::Fault(fault) => fault.title(),
            Self::PolicyChurn => "policy churn, 2,000 rules",
            Self::Certificates => "certificates: the pod re-enrols",
        }
    }

    /// Whether it is part of the short form: one of each kind.
    pub(super) fn is_quick(self) -> bool {
        let quick = [Load::Churn, Load::GoodHandshakes, Load::RapidReset];
        match self {
            Self::Load(load, _) => quick.contains(&load),
            Self::Fault(fault) => fault == Fault::Stop,
            Self::Alone | Self::PolicyChurn => true,
            Self::Certificates => false,
        }
    }

    /// Whether it presses on the processor, so that the victim's rate matters.
    pub(super) fn presses(self) -> bool {
        match self {
            Self::Alone => true,
            Self::Load(load, _) => PRESSING.contains(&load),
            Self::Fault(fault) => fault == Fault::Spin,
            Self::PolicyChurn | Self::Certificates => false,
        }
    }

    /// Whether there is such a thing in a column.
    pub(super) fn concerns(self, kind: Kind) -> bool {
        match (self, kind) {
            (Self::Alone, _) | (_, Kind::Nodemesh) => true,
            // Nobody is asked: it is all written down before, or sent by xDS.
            (Self::Load(Load::Lookups, _), _) => false,
            (Self::Load(..), Kind::Ztunnel) => true,
            (Self::Load(load, _), Kind::Nothing) => !load.is_at_the_door(),
            // It terminates TLS and carries bytes: there is no HTTP/2 of its own to flood.
            (Self::Load(load, _), Kind::SharedProxy) => !load.is_http2(),
            // A proxy that ended would have to be started again by whoever runs it.
            (Self::Fault(fault), Kind::SharedProxy | Kind::Ztunnel) => lasts(fault),
            _ => false,
        }
    }

    /// Does it, for that long.
    pub(super) fn aggress(
        self,
        stage: &Stage,
        kind: Kind,
        time: Duration,
    ) -> Result<Option<Aggression>> {
        let begun = Instant::now();
        let end = begun + time;
        let told = |done: u64, unit: &'static str| {
            Some(Aggression {
                done,
                refused: 0,
                unit,
                seconds: begun.elapsed().as_secs_f64(),
            })
        };
        Ok(match self {
            Self::Alone => {
                std::thread::sleep(time);
                None
            }
            Self::Load(load, at_once) => {
                let done = load.start(&stage.site(kind)?, at_once, time)?.finish()?;
                Some(Aggression {
                    done: done.done,
                    refused: done.refused,
                    unit: load.title().1,
                    seconds: done.seconds,
                })
            }
            Self::Fault(fault) => {
                let unit = if lasts(fault) { THROUGHOUT } else { "workers" };
                told(befall(stage, kind, fault, end)?, unit)
            }
            Self::PolicyChurn => told(churn::policies(&stage.lab, NOISY, end)?, "policies written"),
            Self::Certificates => {
                let pod = stage.lab.pod(&format!("{NOISY}/client"));
                told(churn::enrolments(&stage.lab, pod, end)?, "enrolments")
            }
        })
    }
}

fn lasts(fault: Fault) -> bool {
    matches!(fault, Fault::Stop | Fault::Spin)
}

/// Enough of each to be at its limit, or at a processor's.
fn at_once(load: Load) -> usize {
    match load {
        Load::BulkStreams | Load::GoodHandshakes | Load::BadHandshakes | Load::Lookups => 8,
        Load::SmallRequests | Load::Churn => 32,
        Load::SlowLoris | Load::HalfOpen => 400,
        Load::ZeroWindow | Load::RapidReset | Load::Continuation => 4,
        Load::Pings | Load::Settings => 4,
        Load::IdleConnections => 2_000,
        Load::UnreadData => 200,
        Load::BegunConnections => 6_000,
    }
}

/// What ends a worker befalls each next one; what lasts lasts to the end.
fn befall(stage: &Stage, kind: Kind, fault: Fault, end: Instant) -> Result<u64> {
    let mut times = 0;
    while Instant::now() < end {
        let Some((pid, lasting)) = stage.befall(kind, fault)? else {
            break;
        };
        times += 1;
        if lasts(fault) {
            std::thread::sleep(end.saturating_duration_since(Instant::now()));
            drop(lasting);
            break;
        }
        let pod = stage.lab.pod(&format!("{NOISY}/server"));
        let agent = stage.lab.agent(pod.node());
        agent.wait_new_worker(pod, pid, Duration::from_secs(60))?;
    }
    Ok(times)
}
