//! Steps about what fails: workers, supervisors, control.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use mesh_lab::{Lab, Netns, wait};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::narrator::Narrator;
use super::stage::{CACHE, FRONTEND, Stage, WEB};

/// A worker is back this soon after SIGKILL.
const HEALED_WITHIN: Duration = Duration::from_millis(100);
const KILLS: usize = 5;

/// Kills the web pod's worker while requests come in and control is away.
pub(crate) fn kill_workers(stage: &mut Stage, tell: &Narrator) -> Result<()> {
    let (control, _) = stage.lab.control_mut();
    control.daemon.kill9()?;
    tell.say("control is killed; requests for shop/web go on without a pause");
    let lab = &stage.lab;
    let mut redis = RedisConnection::open(lab)?;
    let load = Load::new(SocketAddr::new(lab.service(WEB)[0], 80));
    let mut times = thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| load.run(&lab.pod(FRONTEND).netns));
        }
        let times: Result<Vec<Duration>> = (0..KILLS)
            .map(|_| heal_once(lab, &load, &mut redis, tell))
            .collect();
        load.stop();
        times
    })?;
    times.sort();
    let median = times[KILLS / 2];
    let (served, failed) = load.totals();
    tell.say(&format!(
        "{served} requests served, {failed} cut while the worker was killed"
    ));
    ensure!(
        median < HEALED_WITHIN,
        "median of {KILLS} kills: served again after {median:?}, not within {HEALED_WITHIN:?}"
    );
    tell.holds(&format!(
        "served again {:.0} ms after SIGKILL (median of {KILLS}), with control away",
        median.as_secs_f64() * 1e3
    ));
    tell.holds("the redis connection of the same caller, to another pod, never noticed");
    let (control, host) = stage.lab.control_mut();
    control.start(host)
}

/// One kill: from SIGKILL to the first request that was begun after it and answered.
fn heal_once(
    lab: &Lab,
    load: &Load,
    redis: &mut RedisConnection,
    tell: &Narrator,
) -> Result<Duration> {
    let web = lab.pod(WEB);
    let agent = lab.agent(web.node());
    let begun = Instant::now();
    wait::until_true("requests to be served", wait::PATIENCE, || {
        Ok(load.served_after(begun).is_some())
    })?;
    let old = agent.worker_pid(web)?;
    let killed = Instant::now();
    kill(Pid::from_raw(old), Signal::SIGKILL)?;
    let served = wait::until("a request to be served again", wait::PATIENCE, || {
        Ok(load.served_after(killed))
    })?;
    let new = agent.wait_new_worker(web, old, wait::PATIENCE)?;
    let healed = served - killed;
    tell.say(&format!(
        "worker {old} killed, worker {new} serves {:.0} ms later",
        healed.as_secs_f64() * 1e3
    ));
    redis
        .ping()
        .context("redis, while web's worker was killed")?;
    Ok(healed)
}

/// Requests, each on a connection of its own, one after the other on each thread.
struct Load {
    to: SocketAddr,
    stopped: AtomicBool,
    /// Begin and end of the latest answered request, how many were and weren't.
    seen: Mutex<(Vec<(Instant, Instant)>, usize)>,
}

impl Load {
    fn new(to: SocketAddr) -> Self {
        Self {
            to,
            stopped: AtomicBool::new(false),
            seen: Mutex::default(),
        }
    }

    fn run(&self, netns: &Netns) {
        netns.run(|| {
            while !self.stopped.load(Ordering::Relaxed) {
                let begun = Instant::now();
                let done = self.request();
                let mut seen = self.lock();
                match done {
                    Ok(()) => seen.0.push((begun, Instant::now())),
                    Err(_) => seen.1 += 1,
                }
            }
        });
    }

    fn request(&self) -> Result<()> {
        let mut stream = TcpStream::connect_timeout(&self.to, Duration::from_secs(5))?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        ensure!(answer.ends_with("hello from web\n"), "answer: {answer}");
        Ok(())
    }

    /// End of the first request that began after `when` and was answered.
    fn served_after(&self, when: Instant) -> Option<Instant> {
        let seen = self.lock();
        let later = seen.0.iter().filter(|(begun, _)| *begun >= when);
        later.map(|(_, ended)| *ended).min()
    }

    fn totals(&self) -> (usize, usize) {
        let seen = self.lock();
        (seen.0.len(), seen.1)
    }

    fn stop(&self) {
        self.stopped.store(true, Ordering::Relaxed);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, (Vec<(Instant, Instant)>, usize)> {
        self.seen
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// A connection that stays open, from the frontend to the cache.
pub(crate) struct RedisConnection(TcpStream);

impl RedisConnection {
    pub(crate) fn open(lab: &Lab) -> Result<Self> {
        let to = SocketAddr::new(lab.pod(CACHE).v4().into(), 6379);
        let netns = &lab.pod(FRONTEND).netns;
        let stream = netns.run(|| TcpStream::connect(to)).context("to redis")?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        let mut connection = Self(stream);
        connection.ping()?;
        Ok(connection)
    }

    /// Waits for it to be reset.
    pub(crate) fn wait_reset(&mut self) -> Result<()> {
        match self.0.read(&mut [0; 16]) {
            Err(error) if error.kind() == ErrorKind::ConnectionReset => Ok(()),
            other => bail!("waiting for a reset of the connection to redis: {other:?}"),
        }
    }

    fn ping(&mut self) -> Result<()> {
        self.0.write_all(b"PING\r\n")?;
        let mut answer = [0; 7];
        self.0.read_exact(&mut answer)?;
        ensure!(&answer == b"+PONG\r\n", "redis: {}", answer.escape_ascii());
        Ok(())
    }
}

/// Kills both supervisors; workers carry on and are adopted again.
pub(crate) fn kill_supervisors(stage: &mut Stage, tell: &Narrator) -> Result<()> {
    let lab = &mut stage.lab;
    let before = workers(lab)?;
    let mut redis = RedisConnection::open(lab)?;
    for node in [0, 1] {
        lab.agent_mut(node).0.daemon.kill9()?;
    }
    tell.say("both supervisors are killed (SIGKILL)");
    redis
        .ping()
        .context("the open connection, without supervisors")?;
    let load = Load::new(SocketAddr::new(lab.service(WEB)[0], 80));
    let netns = &lab.pod(FRONTEND).netns;
    netns
        .run(|| load.request())
        .context("a new connection, without supervisors")?;
    tell.holds("an open connection and a new one work with no supervisor on either node");
    for node in [0, 1] {
        let (agent, host) = lab.agent_mut(node);
        agent.start(host)?;
    }
    let after = wait::until("the workers to be adopted", wait::PATIENCE, || {
        let now = workers(lab)?;
        Ok((now == before).then_some(now))
    })?;
    redis
        .ping()
        .context("the open connection, after adoption")?;
    let pids: Vec<String> = after.iter().map(ToString::to_string).collect();
    tell.say(&format!(
        "supervisors started again; workers: {}",
        pids.join(", ")
    ));
    tell.holds("the same workers are adopted, the open connection still works");
    Ok(())
}

fn workers(lab: &Lab) -> Result<Vec<i32>> {
    let enrolled = lab.pods().filter(|pod| pod.namespace() != "legacy");
    enrolled
        .map(|pod| lab.agent(pod.node()).worker_pid(pod))
        .collect()
}
