//! One run: what happens, and in which order, is drawn from the seed and nothing else.

use std::time::{Duration, Instant};

use fastrand::Rng;
use mesh_core::model::Mesh;

use crate::bugs::Bug;
use crate::node::Node;
use crate::oracle::Oracle;
use crate::replica::Replica;
use crate::sources::{self, NODES};

/// Things that happen in a run, before all settles.
const STEPS: usize = 700;
/// Rounds in which all has to settle.
const ROUNDS: usize = 2_000;
/// What is told of a run that fails.
const TOLD: usize = 40;

/// How a run went.
pub(crate) struct Report {
    /// What happened, a line each.
    pub(crate) trace: Vec<String>,
    /// What should not have.
    pub(crate) violation: Option<String>,
}

struct Run {
    rng: Rng,
    bug: Option<Bug>,
    start: Instant,
    now_ms: u64,
    sources: Mesh,
    oracle: Oracle,
    replicas: Vec<Replica>,
    nodes: Vec<Node>,
    trace: Vec<String>,
}

/// Runs a seed, with a bug in it or without.
pub(crate) fn run(seed: u64, bug: Option<Bug>) -> Report {
    let mut run = Run::new(seed, bug);
    let outcome = run.all();
    let told = run.trace.len().saturating_sub(TOLD);
    let violation = outcome.err().map(|why| {
        let last = run.trace[told..].join("\n");
        format!("seed {seed}, bug {bug:?}\n{last}\n{why}\nagain: SEED={seed} cargo test ... --test simulation")
    });
    Report {
        trace: run.trace,
        violation,
    }
}

impl Run {
    fn new(seed: u64, bug: Option<Bug>) -> Self {
        let mut rng = Rng::with_seed(seed);
        let mut oracle = Oracle::default();
        let mut sources = Mesh::default();
        for _ in 0..10 {
            sources = sources::changed(&sources, &mut rng);
        }
        let at = oracle.push(sources.clone());
        let count = rng.usize(1..=2);
        let replicas = (0..count).map(|_| Replica::new(&sources, at)).collect();
        let nodes = NODES.map(|name| Node::new(name, rng.u8(..3) == 0));
        Self {
            rng,
            bug,
            start: Instant::now(),
            now_ms: 0,
            sources,
            oracle,
            replicas,
            nodes: nodes.into(),
            trace: Vec::new(),
        }
    }

    fn all(&mut self) -> Result<(), String> {
        for _ in 0..STEPS {
            self.now_ms += self.rng.u64(1..20);
            self.step()?;
        }
        self.settle()
    }

    fn now(&self) -> Instant {
        self.start + Duration::from_millis(self.now_ms)
    }

    fn tell(&mut self, what: &str) {
        self.trace.push(format!("{} ms: {what}", self.now_ms));
    }

    fn step(&mut self) -> Result<(), String> {
        match self.rng.u8(0..100) {
            0..6 => self.change(),
            6..12 => self.catch_up(),
            12..14 => self.report(),
            14 => self.restart_replica(),
            15..17 => self.restart_agent()?,
            17..19 => self.cut(),
            19..21 => {
                let node = self.rng.usize(..self.nodes.len());
                self.nodes[node].slow_until = self.now_ms + self.rng.u64(1..1500);
                self.tell(&format!("{} is slow", NODES[node]));
            }
            _ => {
                let node = self.rng.usize(..self.nodes.len());
                for _ in 0..self.rng.usize(1..6) {
                    self.act(node)?;
                }
            }
        }
        Ok(())
    }

    /// The sources say something else. One replica alone takes it at once.
    fn change(&mut self) {
        self.sources = sources::changed(&self.sources, &mut self.rng);
        let now = self.now();
        match self.replicas.as_mut_slice() {
            [only] => {
                only.take(&self.sources, only.at, now);
                self.publish();
            }
            _ => {
                let at = self.oracle.push(self.sources.clone());
                self.tell(&format!("the sources have state {at}"));
            }
        }
    }

    /// What a replica alone serves is what its sources say and its nodes report.
    fn publish(&mut self) {
        let served = self.replicas[0].mesh();
        let last = self.oracle.last();
        if !same(&served, self.oracle.state(last)) {
            self.replicas[0].at = self.oracle.push(served);
            self.tell(&format!("state {}", last + 1));
        }
    }

    fn catch_up(&mut self) {
        let replica = self.rng.usize(..self.replicas.len());
        let at = self.replicas[replica].at;
        let last = self.oracle.last();
        if self.replicas.len() > 1 && at < last {
            let at = self.rng.usize(at + 1..=last);
            let now = self.now();
            self.replicas[replica].take(self.oracle.state(at), at, now);
            self.tell(&format!("replica {replica} has state {at}"));
        }
    }

    /// Health is not shared between replicas.
    fn report(&mut self) {
        let node = NODES[self.rng.usize(..NODES.len())];
        if let [only] = self.replicas.as_slice() {
            let own = self.sources.workloads().filter(|w| w.node == node);
            let unwell = own.filter(|_| self.rng.bool());
            let unwell: Vec<_> = unwell
                .map(|w| (w.identity.namespace(), w.name.as_str()))
                .collect();
            if only.report(node, &unwell, self.now()) {
                self.publish();
            }
        }
    }

    fn restart_replica(&mut self) {
        let replica = self.rng.usize(..self.replicas.len());
        self.tell(&format!("replica {replica} restarts"));
        for node in 0..self.nodes.len() {
            let stream = self.nodes[node].stream.as_ref();
            if stream.is_some_and(|stream| stream.replica == replica) {
                self.end_stream(node);
            }
        }
        let last = self.oracle.last();
        self.replicas[replica] = Replica::new(&self.sources, last);
        if self.replicas.len() == 1 {
            self.publish();
        }
    }

    fn restart_agent(&mut self) -> Result<(), String> {
        let node = self.rng.usize(..self.nodes.len());
        let old = match self.rng.u8(..3) {
            0 => self.rng.bool(),
            _ => self.nodes[node].old,
        };
        self.tell(&format!("{}'s agent restarts, old: {old}", NODES[node]));
        self.nodes[node].restart(old, self.bug, &mut self.oracle)
    }

    fn cut(&mut self) {
        let node = self.rng.usize(..self.nodes.len());
        self.nodes[node].away_until = self.now_ms + self.rng.u64(1..3000);
        self.tell(&format!("{} is cut off", NODES[node]));
        self.end_stream(node);
    }

    fn end_stream(&mut self, node: usize) {
        let node = &mut self.nodes[node];
        node.stream = None;
        node.save(self.now_ms, true, self.bug);
    }

    /// A node, its stream, or control's end of it does one thing. Returns whether anything was to
    /// be done for discovery.
    fn act(&mut self, index: usize) -> Result<bool, String> {
        let away = self.nodes[index].away_until > self.now_ms;
        if self.nodes[index].stream.is_none() {
            if !away {
                let replica = self.rng.usize(..self.replicas.len());
                self.tell(&format!("{} asks replica {replica}", NODES[index]));
                self.nodes[index].connect(replica, &self.replicas[replica], self.bug);
            }
            return Ok(!away);
        }
        let node = &mut self.nodes[index];
        node.save(self.now_ms, false, self.bug);
        match self.rng.u8(0..8) {
            0 => {
                node.ask(&mut self.rng);
                Ok(true)
            }
            1 | 2 if node.slow_until <= self.now_ms => self.read(index),
            3 | 4 => Ok(node.stream.as_mut().is_some_and(|s| s.carry(&mut self.rng))),
            _ => {
                let stream = node.stream.as_mut();
                Ok(stream.is_some_and(|stream| {
                    stream.serve(&self.replicas[stream.replica], &mut self.rng, self.bug)
                }))
            }
        }
    }

    fn read(&mut self, index: usize) -> Result<bool, String> {
        let twice = self.rng.u8(..10) == 0;
        let node = &mut self.nodes[index];
        let read = node.read(self.now_ms, twice, self.bug, &mut self.oracle);
        self.tell(&format!("{} reads: {}", NODES[index], read.is_ok()));
        read
    }

    /// Nothing changes any more, and everybody reads: all nodes end with what the sources say.
    fn settle(&mut self) -> Result<(), String> {
        self.tell("all settles");
        let last = self.oracle.last();
        let now = self.now();
        if self.replicas.len() > 1 {
            for replica in &mut self.replicas {
                replica.take(self.oracle.state(last), last, now);
            }
        }
        for index in 0..self.nodes.len() {
            let node = &mut self.nodes[index];
            (node.away_until, node.slow_until) = (0, 0);
            for _ in 0..ROUNDS / 10 {
                self.act(index)?;
            }
            self.exhaust(index)?;
            // Pods that came with the last change ask as well.
            self.nodes[index].ask_all();
            self.exhaust(index)?;
            self.nodes[index].check_last(last, &mut self.oracle)?;
        }
        Ok(())
    }

    /// Until nothing of a stream is under way.
    fn exhaust(&mut self, index: usize) -> Result<(), String> {
        for _ in 0..ROUNDS {
            let node = &mut self.nodes[index];
            let Some(stream) = &mut node.stream else {
                break;
            };
            let replica = &self.replicas[stream.replica];
            let served = stream.serve(replica, &mut self.rng, self.bug);
            let carried = stream.carry(&mut self.rng);
            if !self.read(index)? && !served && !carried {
                return Ok(());
            }
        }
        Err(format!("{} does not come to rest", NODES[index]))
    }
}

fn same(one: &Mesh, other: &Mesh) -> bool {
    one.workloads().eq(other.workloads())
        && one.services().eq(other.services())
        && one.authorizations().eq(other.authorizations())
        && one.authentications().eq(other.authentications())
}
