//! What runs out: places for unfinished connections, of which no pod takes another's, and the
//! kernel's memory for what is known of a socket.

use std::fs;
use std::net::SocketAddr;

use aya::maps::{ArrayOfMaps, HashMap, Map, MapData};
use mesh_common::{ABI_VERSION, FLOWS_PER_POD, KernelReason, map_name};
use socket2::{Domain, Socket, Type};

use crate::lab::{Lab, in_netns};
use crate::names::{accept, address};

type Pending = HashMap<MapData, u64, u64>;

/// The pod's reservations, as the programs see them.
fn pending(lab: &Lab, slot: u32) -> Pending {
    let pins = lab
        .options
        .bpffs
        .join(format!("nodemesh-{}/v{ABI_VERSION}/maps", lab.prefix));
    let map = MapData::from_pin(pins.join(map_name::PENDING)).unwrap();
    let outer: ArrayOfMaps<MapData, Pending> = Map::ArrayOfMaps(map).try_into().unwrap();
    outer.get(&slot, 0).unwrap()
}

fn dial(netns: &str, to: SocketAddr) -> std::io::Result<Socket> {
    in_netns(netns, || {
        let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
        socket.connect(&to.into())?;
        Ok(socket)
    })
}

#[test]
fn a_full_quota_refuses_this_pods_connects_and_nobody_elses() {
    let mut lab = Lab::new();
    lab.add_pod();
    lab.enrol(1);
    // Sockets that reserved and never finish; no cookie is that large.
    let mut reservations = pending(&lab, 0);
    let cookies = (1 << 60)..(1 << 60) + u64::from(FLOWS_PER_POD);
    for cookie in cookies {
        reservations.insert(cookie, 0, 0).unwrap();
    }
    let to = address("198.51.100.7:443");
    let error = dial(&lab.pods[0].netns, to).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EAGAIN));
    assert_eq!(lab.refused(0, KernelReason::ConnectQuota), 1);
    // A worker that can't publish must not reach its app as a stranger either.
    let app = SocketAddr::new(lab.pod().v4, 8080);
    let dial_app = lab.worker().process.dial_app(app, address("192.0.2.1:1"));
    assert_eq!(dial_app.unwrap_err().raw_os_error(), Some(libc::EAGAIN));

    dial(&lab.pods[1].netns, to).unwrap();
    accept(&lab.pods[1].worker.as_ref().unwrap().outbound_v4);
    assert_eq!(lab.refused(1, KernelReason::ConnectQuota), 0);

    reservations.remove(&(1 << 60)).unwrap();
    dial(&lab.pods[0].netns, to).unwrap();
}

/// Without storage nobody would know where it wanted to go.
#[test]
fn a_socket_without_room_for_its_state_is_refused() {
    let lab = Lab::new();
    let limit = "/proc/sys/net/core/optmem_max";
    if !lab.in_pod(|| fs::exists(limit).unwrap()) {
        println!("test skipped: this kernel has one limit for all namespaces (until Linux 6.8)");
        return;
    }
    lab.in_pod(|| fs::write(limit, "0").unwrap());
    let app = SocketAddr::new(lab.pod().v4, 8080);
    for (to, count) in [("198.51.100.7:443", 1), ("[2001:db8::7]:443", 2)] {
        let error = dial(&lab.pod().netns, address(to)).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENOMEM), "{to}");
        assert_eq!(lab.refused(0, KernelReason::ConnectNoStorage), count);
    }
    let error = lab.worker().process.dial(app).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::ENOMEM));
    assert_eq!(lab.capture.as_ref().unwrap().unfinished(0).unwrap(), (0, 0));
}
