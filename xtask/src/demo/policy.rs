//! Steps about policy: a call that no rule allows, a rule that is edited, a service that
//! loses an endpoint.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use mesh_lab::{call, manifest, wait};

use super::failures::RedisConnection;
use super::narrator::Narrator;
use super::stage::{CACHE, FRONTEND, PRICES, Stage};

/// A call that a change refuses is cut this soon after the file was written.
const CUT_WITHIN: Duration = Duration::from_secs(2);

/// The policies of the demo, each for one edge of what calls what, and nothing more.
pub(crate) fn manifests() -> [(&'static str, String); 5] {
    let out = "{target: {labels: {app: frontend}}, direction: Outbound, action: Allow, rules: [\
               {peers: [{service: web}, {service: prices}], ports: [8080]}, \
               {peers: [{namespace: data, serviceAccount: cache}], ports: [6379]}]}";
    let from_frontend = |app: &str| {
        let spec = format!(
            "{{target: {{labels: {{app: {app}}}}}, direction: Inbound, action: Allow, rules: [\
             {{peers: [{{serviceAccount: frontend, namespace: shop}}], ports: [8080]}}]}}"
        );
        manifest::authorization(&format!("shop/{app}"), &spec)
    };
    [
        (
            "allow-frontend",
            manifest::authorization("shop/frontend", out),
        ),
        ("allow-web", from_frontend("web")),
        ("allow-prices", from_frontend("prices")),
        ("allow-cache", cache("shop, serviceAccount: frontend")),
        (
            "deny-mail",
            manifest::authorization(
                "nodemesh-system/no-mail",
                "{target: {mesh: true}, direction: Outbound, action: Deny, rules: [{ports: [25]}]}",
            ),
        ),
    ]
}

/// Who may call the cache.
fn cache(namespace: &str) -> String {
    let spec = format!(
        "{{target: {{labels: {{app: cache}}}}, direction: Inbound, action: Allow, rules: [\
         {{peers: [{{namespace: {namespace}}}], ports: [6379]}}]}}"
    );
    manifest::authorization("data/cache", &spec)
}

/// A member of the mesh calls where no rule lets it, and where a rule denies it.
pub(crate) fn refused(stage: &mut Stage, tell: &Narrator) -> Result<()> {
    let lab = &stage.lab;
    let caller = lab.pod(PRICES[0]);
    let to = SocketAddr::new(lab.pod(CACHE).v4().into(), 6379);
    let agent = lab.agent(caller.node());
    let mark = agent.mark();
    tell.say(&format!(
        "in {}: redis-cli -h {} PING",
        caller.key(),
        to.ip()
    ));
    let redis = caller
        .command("redis-cli")
        .args(["-h", &to.ip().to_string()]);
    let ran = redis.arg("PING").output()?;
    tell.show("redis-cli", ran.stderr.trim());
    ensure!(
        !ran.stdout.contains("PONG"),
        "redis answered {}",
        ran.stdout
    );
    let line = agent.wait_refusal(mark, caller, &[("reason", "policy_no_rule")])?;
    tell.show(lab.node(caller.node()).name(), line.line());
    tell.say(&format!("meshctl why {} {to}", caller.key()));
    let why = lab.control().why(&caller.key(), &to.to_string())?;
    tell.show("meshctl", &why);
    ensure!(
        why.contains(": refused, policy_no_rule:"),
        "why says: {why}"
    );
    tell.holds("both are members with good certificates: what no rule allows is refused");

    let mail: SocketAddr = "198.51.100.7:25".parse()?;
    tell.say(&format!("in {FRONTEND}: connect to {mail}"));
    let called = call::tcp(&lab.pod(FRONTEND).netns, mail);
    tell.show("connect", &called.to_string());
    ensure!(
        called == call::Called::NotConnected(nix::libc::EPERM),
        "it is {called}"
    );
    tell.holds("what a rule denies outright fails in the app's own connect, by the kernel");
    Ok(())
}

/// The cache's policy is edited under an open connection, and back.
pub(crate) fn edited(stage: &mut Stage, tell: &Narrator) -> Result<()> {
    let lab = &stage.lab;
    let mut redis = RedisConnection::open(lab)?;
    tell.say(&format!("{FRONTEND} has a connection to {CACHE} open"));
    let cache_node = lab.pod(CACHE).node();
    let mark = lab.agent(cache_node).mark();
    lab.write_manifest("allow-cache", &cache("shop, serviceAccount: reporter"))?;
    let changed = Instant::now();
    tell.say("allow-cache.yaml now names another service account");
    redis.wait_reset()?;
    let cut = changed.elapsed();
    ensure!(cut < CUT_WITHIN, "cut only after {cut:?}");
    let fields = [("outcome", "cut")];
    let line = lab
        .agent(cache_node)
        .wait_refusal(mark, lab.pod(CACHE), &fields)?;
    tell.show(lab.node(cache_node).name(), line.line());
    tell.holds(&format!(
        "the open connection was reset {:.0} ms after the file was written",
        cut.as_secs_f64() * 1e3
    ));
    ensure!(
        RedisConnection::open(lab).is_err(),
        "a new connection passes"
    );
    tell.holds("a new one is refused");
    lab.write_manifest("allow-cache", &cache("shop, serviceAccount: frontend"))?;
    wait::until("redis to be reached again", wait::PATIENCE, || {
        Ok(RedisConnection::open(lab).ok())
    })?;
    tell.holds("with the rule put back, redis answers again; nothing was restarted");
    Ok(())
}

/// One of a service's two endpoints fails.
pub(crate) fn endpoint_fails(stage: &mut Stage, tell: &Narrator) -> Result<()> {
    let lab = &stage.lab;
    let before = prices(stage, 40)?;
    tell.say(&format!(
        "40 requests for shop/prices, answered by: {}",
        before.shown()
    ));
    ensure!(
        before.answers.iter().all(|n| *n > 0),
        "one endpoint gets nothing"
    );
    let gone = stage.prices.pop().context("nginx runs")?;
    drop(gone);
    tell.say(&format!("nginx in {} is killed", PRICES[1]));
    let after = prices(stage, 40)?;
    tell.say(&format!("40 more, answered by: {}", after.shown()));
    ensure!(after.answers == [40, 0], "answered by {}", after.shown());
    tell.holds(&format!(
        "none was lost; the slowest took {:.0} ms",
        after.slowest.as_secs_f64() * 1e3
    ));
    tell.say("meshctl status");
    tell.show("meshctl", &lab.control().status()?);
    Ok(())
}

/// How many requests each endpoint answered, and how long the slowest took.
struct Answers {
    answers: [usize; 2],
    slowest: Duration,
}

impl Answers {
    fn shown(&self) -> String {
        let [first, second] = self.answers;
        format!("{} {first}, {} {second}", PRICES[0], PRICES[1])
    }
}

fn prices(stage: &Stage, count: usize) -> Result<Answers> {
    let lab = &stage.lab;
    let to = SocketAddr::new(lab.service("shop/prices")[0], 80);
    let (mut answers, mut slowest) = ([0; 2], Duration::ZERO);
    for _ in 0..count {
        let begun = Instant::now();
        let by = call::http(&lab.pod(FRONTEND).netns, to, "/", call::PATIENCE)?;
        slowest = slowest.max(begun.elapsed());
        let index = PRICES.iter().position(|key| *key == by);
        answers[index.with_context(|| format!("answered by {by:?}"))?] += 1;
    }
    Ok(Answers { answers, slowest })
}
