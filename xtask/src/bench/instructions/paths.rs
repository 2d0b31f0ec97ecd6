//! The paths: decisions that are made for each connection.

use std::collections::BTreeSet;
use std::hint::black_box;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Result, bail};
use mesh_core::balance::{Candidate, Order};
use mesh_core::identity::{Identity, TrustDomain};
use mesh_core::policy::{
    Action, AuthorizationPolicy, Direction, Flow, Labels, Peer, PeerTerm, PodPolicy, PortTerm,
    Protocol, Rule, Target,
};
use mesh_core::rate::TokenBucket;
use mesh_core::traffic::{Balancing, LocalityPreference};

const POLICY_HIT: &str = "decide by 1,000 policies, one matches";
const POLICY_MISS: &str = "decide by 1,000 policies, none matches";
const ENDPOINTS: &str = "choose the first of 100 endpoints";
const SPIFFE_ID: &str = "read a SPIFFE ID";
const RATE: &str = "ask a token bucket";

/// All of them.
pub(super) const NAMES: [&str; 5] = [POLICY_HIT, POLICY_MISS, ENDPOINTS, SPIFFE_ID, RATE];

/// Runs one of them.
pub(super) fn run(path: &str, times: u32) -> Result<()> {
    match path {
        POLICY_HIT => decide(times, 500),
        POLICY_MISS => decide(times, POLICIES),
        ENDPOINTS => choose(times),
        SPIFFE_ID => read(times),
        RATE => ask(times),
        _ => bail!("no such path: {path}"),
    }
}

const POLICIES: u32 = 1_000;

fn identity(number: u32) -> Result<Identity> {
    let domain: TrustDomain = "cluster.local".parse()?;
    Ok(Identity::new(domain, "shop", &format!("account-{number}"))?)
}

/// Policies of one identity each, and a caller that has that of number `caller`.
fn decide(times: u32, caller: u32) -> Result<()> {
    let port = PortTerm {
        port: Some(8080),
        protocol: Protocol::Tcp,
    };
    let mut policies = Vec::new();
    for number in 0..POLICIES {
        let peer = PeerTerm {
            identity: Some(identity(number)?),
            ..PeerTerm::default()
        };
        policies.push(Arc::new(AuthorizationPolicy {
            key: format!("shop/policy-{number}").into(),
            target: Target::Namespace,
            direction: Direction::Inbound,
            action: Action::Allow,
            rules: vec![Rule {
                peers: vec![peer],
                ports: BTreeSet::from([port]),
            }],
        }));
    }
    let policy = PodPolicy::new(policies, Vec::new(), Vec::new());
    let identity = identity(caller)?;
    let services = ["shop/web".into(), "shop/web-headless".into()];
    let labels: Labels = (0..8)
        .map(|number| (format!("example.com/label-{number}"), "0".to_owned()))
        .collect();
    let flow = Flow {
        direction: Direction::Inbound,
        peer: Peer {
            address: Ipv4Addr::new(10, 1, 2, 3).into(),
            member: true,
            identity: Some(&identity),
            services: &services,
            labels: &labels,
        },
        port: 8080,
        protocol: Protocol::Tcp,
    };
    for _ in 0..times {
        black_box(policy.decide(black_box(&flow)));
    }
    Ok(())
}

/// Among endpoints of which some are far, and some unhealthy.
fn choose(times: u32) -> Result<()> {
    let candidates: Vec<Candidate> = (0u8..100)
        .map(|number| Candidate {
            open: u32::from(number % 7),
            distance: number % 4,
            unhealthy: number % 10 == 0,
            ejected: false,
        })
        .collect();
    for turn in 0..times {
        let mut random = turn;
        let random = move || {
            random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            random
        };
        let mut order = Order::new(
            Balancing::LeastRequests,
            LocalityPreference::Nearest,
            black_box(&candidates).iter().copied(),
            turn.try_into()?,
            random,
        );
        black_box(order.next());
    }
    Ok(())
}

fn read(times: u32) -> Result<()> {
    let text = identity(7)?.to_string();
    for _ in 0..times {
        black_box(black_box(&text).parse::<Identity>()?);
    }
    Ok(())
}

/// Time stands still, so that each takes one of what there is.
fn ask(times: u32) -> Result<()> {
    let now = Instant::now();
    let mut bucket = TokenBucket::new(times, times, now);
    for _ in 0..times {
        black_box(bucket.take(black_box(now)));
    }
    Ok(())
}
