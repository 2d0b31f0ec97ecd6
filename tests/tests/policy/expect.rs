//! What is expected of one call, checked wherever it is told.

use std::net::{IpAddr, SocketAddr};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use mesh_lab::call::{self, Called};
use mesh_lab::mesh::Refusal;
use mesh_lab::node::Host;
use mesh_lab::{App, Lab, Netns, Pod, wait};

/// Where a flow is decided, seen from the pod that decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum At {
    /// By the source's kernel programs, at `connect`.
    SourceKernel,
    /// By the source's worker.
    Source,
    /// By the destination's worker.
    Destination,
}

/// Why a call is refused.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Refused<'a> {
    pub(crate) at: At,
    pub(crate) reason: &'a str,
    /// The policy that decides; empty where none does.
    pub(crate) policy: &'a str,
}

/// All mistakes of many checks, so that one run shows them all.
#[derive(Default)]
pub(crate) struct Checks {
    wrong: Vec<String>,
    done: usize,
}

impl Checks {
    pub(crate) fn add(&mut self, what: &str, result: Result<()>) {
        self.done += 1;
        if let Err(error) = result {
            self.wrong.push(format!("{what}: {error:#}"));
        }
    }

    /// Panics with all that was wrong.
    pub(crate) fn assert(self, lab: &Lab) {
        println!("{} checks", self.done);
        let wrong = self.wrong.join("\n\n");
        assert!(wrong.is_empty(), "{wrong}\n\n{}", lab.log_tails());
    }
}

/// The lab's server on these ports of a pod.
pub(crate) fn serve(pod: &Pod, ports: &[u16]) -> App {
    let list: Vec<String> = ports.iter().map(ToString::to_string).collect();
    let app = pod.command("mesh-lab-app").args(["serve", &list.join(",")]);
    let app = app.spawn().unwrap();
    ports
        .iter()
        .for_each(|port| pod.wait_listening(*port).unwrap());
    app
}

/// A pod's addresses with a port, one of each family.
pub(crate) fn both(pod: &Pod, port: u16) -> Vec<SocketAddr> {
    let addresses = pod.addresses().into_iter();
    addresses.map(|ip| SocketAddr::new(ip, port)).collect()
}

/// Whoever calls.
#[derive(Clone, Copy)]
pub(crate) enum Caller<'a> {
    /// A pod of the mesh.
    Member(&'a Pod),
    /// A pod that is not enrolled.
    Plain(&'a Pod),
    /// A host that is no node of the mesh.
    Host(&'a Host),
}

impl<'a> Caller<'a> {
    pub(crate) fn netns(self) -> &'a Netns {
        match self {
            Self::Member(pod) | Self::Plain(pod) => &pod.netns,
            Self::Host(host) => &host.netns,
        }
    }

    pub(crate) fn addresses(self) -> Vec<IpAddr> {
        match self {
            Self::Member(pod) | Self::Plain(pod) => pod.addresses(),
            Self::Host(host) => vec![host.v4().into(), host.v6().into()],
        }
    }

    /// As `meshctl why` takes it.
    pub(crate) fn name(self, to: SocketAddr) -> String {
        match self {
            Self::Member(pod) | Self::Plain(pod) => pod.key(),
            Self::Host(host) if to.is_ipv4() => host.v4().to_string(),
            Self::Host(host) => host.v6().to_string(),
        }
    }
}

/// A call that a server has to answer, and of which `why` has to say so.
pub(crate) fn served(lab: &Lab, from: Caller<'_>, to: SocketAddr) -> Result<()> {
    let called = call::tcp(from.netns(), to);
    ensure!(called.served(), "{called}");
    let why = lab.control().why(&from.name(to), &to.to_string())?;
    ensure!(
        first_line(&why).ends_with(": allowed"),
        "served, but `why` says:\n{why}"
    );
    Ok(())
}

/// Calls until all of these are served, or none is.
pub(crate) fn wait_served(lab: &Lab, from: Caller<'_>, to: &[SocketAddr], served: bool) {
    let what = format!("calls to {to:?} to be served: {served}");
    wait::until_true(&what, wait::PATIENCE, || {
        let calls = to.iter().map(|to| {
            thread::sleep(PACE);
            call::tcp(from.netns(), *to).served()
        });
        Ok(calls.filter(|answered| *answered != served).count() == 0)
    })
    .unwrap_or_else(|error| panic!("{error:#}\n{}", lab.log_tails()));
}

/// A worker tells of ten flows a second, so calls that are told of come no faster. The kernel
/// tells of more.
pub(crate) const PACE: Duration = Duration::from_millis(100);

pub(crate) fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}

/// A call that has to be refused as expected, and told of as such by the app's errno, by the
/// deciding agent's log and metric, and by `why`.
pub(crate) fn refused(
    lab: &Lab,
    from: Caller<'_>,
    to: SocketAddr,
    expected: &Refused<'_>,
) -> Result<()> {
    let decider = decider(lab, from, to, expected.at)?;
    let agent = lab.agent(decider.node());
    let host = lab.node(decider.node());
    let before = agent.refused(host, decider, expected.reason)?;
    let mark = agent.mark();
    let source = match from {
        Caller::Member(pod) => Some((pod, lab.agent(pod.node()).mark())),
        _ => None,
    };
    thread::sleep(PACE);
    let called = call::tcp(from.netns(), to);
    let wanted = match expected.at {
        At::SourceKernel => Called::NotConnected(libc::EPERM),
        At::Source | At::Destination => Called::Reset,
    };
    ensure!(called == wanted, "the app saw: {called}, not: {wanted}");
    let line = agent.wait_refusal(mark, decider, &fields(expected, "refused"))?;
    names_ends(from, to, expected.at, &line)?;
    if let (At::Destination, Some((pod, mark))) = (expected.at, source) {
        let fields = [("reason", "peer_policy"), ("direction", "outbound")];
        lab.agent(pod.node()).wait_refusal(mark, pod, &fields)?;
    }
    wait::until_true("the refusal to be counted", wait::PATIENCE, || {
        Ok(agent.refused(host, decider, expected.reason)? > before)
    })?;
    let why = lab.control().why(&from.name(to), &to.to_string())?;
    let says = format!(": refused, {}:", expected.reason);
    ensure!(
        first_line(&why).contains(&says),
        "`why` says no {says:?} but:\n{why}"
    );
    ensure!(
        why.contains(expected.policy),
        "`why` names no policy:\n{why}"
    );
    Ok(())
}

/// A call that is let through, and told of as one that would be refused.
pub(crate) fn audited(
    lab: &Lab,
    from: Caller<'_>,
    to: SocketAddr,
    expected: &Refused<'_>,
) -> Result<()> {
    let decider = decider(lab, from, to, expected.at)?;
    let agent = lab.agent(decider.node());
    let host = lab.node(decider.node());
    let count = || agent.audited(host, decider, expected.reason);
    let refusals = || agent.refused(host, decider, expected.reason);
    let (before, refused_before, mark) = (count()?, refusals()?, agent.mark());
    thread::sleep(PACE);
    let called = call::tcp(from.netns(), to);
    ensure!(called.served(), "{called}");
    let line = agent.wait_refusal(mark, decider, &fields(expected, "audited"))?;
    names_ends(from, to, expected.at, &line)?;
    wait::until_true("the audited flow to be counted", wait::PATIENCE, || {
        Ok(count()? > before)
    })?;
    ensure!(
        refusals()? == refused_before,
        "it is counted as refused too"
    );
    let why = lab.control().why(&from.name(to), &to.to_string())?;
    let says = format!("would be refused, {}", expected.reason);
    ensure!(why.contains(&says), "`why` says no {says:?} but:\n{why}");
    Ok(())
}

/// The pod whose kernel programs or worker decide.
fn decider<'a>(lab: &'a Lab, from: Caller<'a>, to: SocketAddr, at: At) -> Result<&'a Pod> {
    match (at, from) {
        (At::SourceKernel | At::Source, Caller::Member(pod)) => Ok(pod),
        (At::SourceKernel | At::Source, _) => bail!("outside the mesh nothing is decided"),
        (At::Destination, _) => {
            let service = lab.pods().find(|pod| pod.addresses().contains(&to.ip()));
            service.context("a destination that decides is a pod")
        }
    }
}

/// What the log says of it.
fn fields<'a>(expected: &Refused<'a>, outcome: &'a str) -> Vec<(&'static str, &'a str)> {
    let by = match expected.at {
        At::SourceKernel => ("by", "kernel"),
        At::Source => ("direction", "outbound"),
        At::Destination => ("direction", "inbound"),
    };
    vec![
        ("reason", expected.reason),
        ("policy", expected.policy),
        by,
        ("outcome", outcome),
    ]
}

/// Which flow it was. A socket that the kernel refuses at `connect` has no address yet.
fn names_ends(from: Caller<'_>, to: SocketAddr, at: At, line: &Refusal) -> Result<()> {
    let address = |field: &str| -> Result<SocketAddr> {
        let address = line.field(field).parse();
        address.with_context(|| line.line().to_owned())
    };
    ensure!(
        address("destination")? == to,
        "another destination: {}",
        line.line()
    );
    if at != At::SourceKernel {
        let source = address("source")?.ip().to_canonical();
        ensure!(
            from.addresses().contains(&source),
            "another source: {}",
            line.line()
        );
    }
    Ok(())
}
