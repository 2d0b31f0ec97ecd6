//! Two machines as two nodes of one mesh.

use std::fs;
use std::fs::File;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mesh_lab::{App, Lab, Plan, Pod, servers, wait};

use crate::{Case, Guest};

pub(super) const CASES: &[Case] = &[Case {
    name: "nodes/mutual-tls-between-two-machines",
    nodes: 2,
    kernel_args: "",
    timeout_s: 240,
    run: mutual_tls,
}];

pub(super) const CLIENT: &str = "shop/client";
pub(super) const WEB: &str = "shop/web";
/// For one call between machines that are emulated.
const CALL: Duration = Duration::from_secs(30);

/// The lab, of which each machine is one node; the mesh runs.
pub(super) fn lab(guest: &Guest) -> Result<Lab> {
    let plan = Plan::two_nodes().part(guest.node().into());
    let mut lab = Lab::build(plan)?;
    lab.start_part(|told| match told {
        Some(told) => {
            guest.tell("mesh", told.clone());
            Ok(told)
        }
        None => guest.wait_for("mesh"),
    })
    .with_context(|| lab.log_tails())?;
    Ok(lab)
}

/// Waits until both machines are there.
pub(super) fn meet(guest: &Guest, at: &str) -> Result<()> {
    guest.tell(format!("{at} {}", guest.node()), "");
    (0..2).try_for_each(|node| guest.wait_for(&format!("{at} {node}")).map(drop))
}

pub(super) fn serve(pod: &Pod, port: u16) -> Result<App> {
    let app = pod
        .command("mesh-lab-app")
        .args(["serve", &port.to_string()]);
    let app = app.spawn()?;
    pod.wait_listening(port)?;
    Ok(app)
}

fn dial(pod: &Pod, to: SocketAddr, data: &str) -> Result<String> {
    let input = pod.write("input", data)?;
    pod.command("mesh-lab-app")
        .args(["dial", &to.to_string()])
        .stdin(File::open(input)?)
        .timeout(CALL)
        .output()?
        .ok()
}

/// curl reaches nginx over both families; names are as without the mesh; the wire between the
/// machines carries TLS 1.3 to the mesh's port and no byte of what was said; a caller that is
/// not in the mesh is refused, and counted.
fn mutual_tls(guest: &Guest) -> Result<()> {
    let lab = lab(guest)?;
    let (client, web) = (lab.pod(CLIENT), lab.pod(WEB));
    guest.step("the mesh runs on both machines");
    if guest.node() == 1 {
        let nginx = servers::nginx(web, &[80], "hello\\n")?;
        let _echo = serve(web, 7000)?;
        meet(guest, "served")?;
        guest.wait_for("called")?;
        let callers = nginx.stdout();
        for from in client.addresses() {
            ensure!(
                callers.contains(&format!("{from}:")),
                "nginx was not called from {from}: {callers}"
            );
        }
        let reset = ["reason=\"inbound_plaintext\"", "web"];
        wait::until("the plain callers to be counted", wait::PATIENCE, || {
            let counted =
                lab.agent(1)
                    .metric(lab.node(1), "nodemesh_refusals_inbound_total", &reset)?;
            Ok(Some(()).filter(|()| counted >= 2.0))
        })
        .with_context(|| lab.agent(1).metrics(lab.node(1)).unwrap_or_default())?;
        meet(guest, "end")?;
        return lab.finish();
    }
    meet(guest, "served")?;
    let capture = lab.capture(lab.node(0))?;
    let nonce = fs::read_to_string("/proc/sys/kernel/random/uuid")?;
    for (from, to) in client.addresses().into_iter().zip(web.addresses()) {
        let url = format!("http://{}/", SocketAddr::new(to, 80));
        let curl = client.command("curl").args(["-sS", "--max-time", "30"]);
        let answer = curl.arg(url).timeout(CALL).output()?.ok();
        let answer = answer.with_context(|| lab.log_tails())?;
        ensure!(answer == "hello\n", "{to} answered {answer:?}");
        let said = dial(client, SocketAddr::new(to, 7000), nonce.trim())?;
        ensure!(said.contains(nonce.trim()), "{to} echoed {said:?}");
        let peer = format!("peer={}", SocketAddr::new(to, 7000));
        let local = format!("local={}", SocketAddr::new(from, 0));
        let local = local.trim_end_matches('0');
        ensure!(
            said.contains(&peer) && said.contains(local),
            "no {peer} or {local} in {said}"
        );
    }
    let recording = capture.stop()?;
    ensure!(
        !recording.contains(nonce.trim().as_bytes()),
        "the wire carries what was said"
    );
    let (here, there) = (lab.node(0), lab.node(1));
    let streams = recording.streams();
    let streams = streams.between(|ip| here.owns(ip), |ip| there.owns(ip));
    let summary = streams.assert_all_tls()?;
    ensure!(
        summary.ports.keys().eq([&15008]),
        "other ports than the mesh's: {summary:?}"
    );
    ensure!(
        summary
            .handshakes
            .keys()
            .all(|kind| kind.starts_with("TLS 1.3")),
        "{summary:?}"
    );
    guest.step(format!("on the wire: {summary:?}"));
    for to in web.addresses() {
        let called = mesh_lab::call::tcp(&lab.pod("legacy/caller").netns, SocketAddr::new(to, 80));
        ensure!(
            !called.served(),
            "a caller outside the mesh was served: {called:?}"
        );
    }
    guest.tell("called", "");
    meet(guest, "end")?;
    lab.finish()
}
