//! Agents of different ABI versions take over from each other. Another version is played here by
//! giving the folder of the pins, and maps in it, other names; `tests/recovery/versions.rs` has two
//! binaries.

use std::fs;
use std::io::ErrorKind;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::PathBuf;
use std::time::Duration;

use aya::maps::{HashMap, MapInfo};
use aya::programs::loaded_programs;
use mesh_agent::capture::{Capture, CaptureError, TakeOver};
use mesh_common::{ABI_VERSION, KernelReason, MAX_PODS, PodConfig, map_name};
use nix::sys::socket::sockopt;
use socket2::{Domain, Socket, Type};

use crate::lab::{Lab, NODE_V4, eventually, in_netns, ip};
use crate::names::{accept, address, local, original_destination, peer};
use crate::policy::{DENIED, denials};
use crate::program;

/// The version that is played.
pub(crate) const OTHER: u32 = 999;
pub(crate) const OUTSIDE: &str = "192.0.2.9:443";
/// All maps but the one that says whose they are.
const MAPS: [&str; 17] = [
    map_name::PODS,
    map_name::FLOWS,
    map_name::PENDING,
    map_name::GRANDFATHERED,
    map_name::LISTENERS,
    map_name::SOCKETS,
    map_name::WALLS,
    map_name::REFUSALS,
    map_name::AUDITED,
    map_name::POLICIES,
    map_name::PROBE_PORTS,
    map_name::PROBES,
    map_name::PROBED,
    map_name::EVENTS,
    map_name::EVENT_BUDGETS,
    map_name::PROCESSES,
    map_name::FOREIGN,
];

pub(crate) fn folder(lab: &Lab, version: u32) -> PathBuf {
    let instance = lab.options.bpffs.join(format!("nodemesh-{}", lab.prefix));
    instance.join(format!("v{version}"))
}

pub(crate) fn versions(lab: &Lab) -> Vec<String> {
    let instance = folder(lab, ABI_VERSION);
    let entries = fs::read_dir(instance.parent().unwrap()).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names.collect();
    names.sort();
    names
}

/// What stands was made by the other version, which has another layout of these maps.
pub(crate) fn play_other(lab: &mut Lab, changed: &[&str]) {
    lab.capture = None;
    let other = folder(lab, OTHER);
    fs::rename(folder(lab, ABI_VERSION), &other).unwrap();
    for map in changed {
        let maps = other.join("maps");
        fs::rename(maps.join(map), maps.join(format!("{map}_7"))).unwrap();
    }
}

pub(crate) fn open(lab: &Lab) -> Result<Capture, CaptureError> {
    in_netns(&lab.node_netns(), || Capture::open(&lab.options))
}

fn take_over(lab: &mut Lab) -> TakeOver {
    let capture = open(lab).unwrap_or_else(|e| panic!("{e}"));
    let report = capture.taken_over().expect("it was another's").clone();
    lab.capture = Some(capture);
    assert_eq!(report.from, OTHER);
    assert_eq!(versions(lab), [format!("v{ABI_VERSION}")]);
    report
}

pub(crate) fn dial(lab: &Lab, to: SocketAddr) -> std::io::Result<Socket> {
    lab.in_pod(|| {
        let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
        socket.connect_timeout(&to.into(), Duration::from_secs(2))?;
        Ok(socket)
    })
}

pub(crate) fn assert_captured(lab: &Lab) {
    let app = dial(lab, address(OUTSIDE)).unwrap();
    let (worker, _) = accept(&lab.worker().outbound_v4);
    assert_eq!(
        original_destination(&worker, libc::SOL_IP),
        address(OUTSIDE)
    );
    assert_eq!(peer(&app), address(OUTSIDE));
}

fn assert_walled(lab: &Lab) {
    let before = lab.refused(0, KernelReason::WallNotWorker);
    crate::wall::send_raw_syn(lab, address("10.88.0.1:80"));
    assert_eq!(lab.refused(0, KernelReason::WallNotWorker), before + 1);
}

/// A line of what the kernel says of a descriptor.
pub(crate) fn fact(fd: BorrowedFd<'_>, name: &str) -> Option<u64> {
    let facts = fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_raw_fd())).unwrap();
    let mut facts = facts.lines().filter_map(|line| line.split_once(':'));
    let (_, value) = facts.find(|(key, _)| *key == name)?;
    value.trim().parse().ok()
}

/// Every program works on the maps that are pinned now, and on no other's.
pub(crate) fn assert_on_own_maps(lab: &Lab) {
    let pins = folder(lab, ABI_VERSION);
    let all = MAPS.into_iter().chain([map_name::CONFIG]);
    let own = all.map(|map| MapInfo::from_pin(pins.join("maps").join(map)).unwrap().id());
    let own: Vec<u32> = own.collect();
    let links = fs::read_dir(pins.join("links")).unwrap();
    let links: Vec<PathBuf> = links.map(|entry| entry.unwrap().path()).collect();
    assert!(links.len() > 12, "{links:?}");
    for link in links {
        let running = program::of_link(program::pinned(&link).as_fd());
        let id = u32::try_from(fact(running.as_fd(), "prog_id").unwrap()).unwrap();
        let mut programs = loaded_programs().filter_map(Result::ok);
        let running = programs.find(|program| program.id() == id).unwrap();
        for map in running.map_ids().unwrap().unwrap() {
            let name = MapInfo::from_id(map)
                .unwrap()
                .name_as_str()
                .unwrap()
                .to_owned();
            let ours = own.contains(&map) || name.starts_with('.');
            assert!(ours, "{} works on another's {name}", link.display());
        }
    }
}

fn call(lab: &Lab) -> std::io::Result<Socket> {
    let to = SocketAddr::new(lab.pod().v4, 8080);
    lab.in_node(|| {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        socket.connect_timeout(&to.into(), Duration::from_secs(5))?;
        Ok(socket)
    })
}

pub(crate) fn assert_steered(lab: &Lab) {
    let caller = call(lab).unwrap();
    let (_, from) = accept(&lab.worker().plaintext_v4);
    assert_eq!(from, local(&caller));
}

#[test]
fn what_is_under_way_goes_on_and_what_was_counted_counts_on() {
    let mut lab = Lab::new();
    lab.set_policy(0, &denials(), false);
    let accepted = dial(&lab, address(OUTSIDE)).unwrap();
    let (worker, _) = accept(&lab.worker().outbound_v4);
    let waiting = dial(&lab, address("192.0.2.1:80")).unwrap();
    assert_walled(&lab);
    play_other(&mut lab, &[]);
    let without_agent = dial(&lab, address("192.0.2.2:80")).unwrap();
    let report = take_over(&mut lab);
    assert_eq!(report.shared, MAPS);
    assert!(report.copied.is_empty() && report.emptied.is_empty());
    assert!(report.links >= 14 + 1 + 2, "{report:?}");
    for (app, to) in [
        (&accepted, OUTSIDE),
        (&waiting, "192.0.2.1:80"),
        (&without_agent, "192.0.2.2:80"),
    ] {
        assert_eq!(peer(app), address(to));
        assert_eq!(local(app).ip(), lab.pod().v4);
    }
    assert_eq!(
        original_destination(&worker, libc::SOL_IP),
        address(OUTSIDE)
    );
    for to in ["192.0.2.1:80", "192.0.2.2:80"] {
        let (worker, _) = accept(&lab.worker().outbound_v4);
        assert_eq!(original_destination(&worker, libc::SOL_IP), address(to));
    }
    assert_eq!(lab.refused(0, KernelReason::WallNotWorker), 1);
    crate::policy::assert_eperm(crate::policy::dial(&lab, DENIED[0]), DENIED[0]);
    assert_steered(&lab);
    assert_captured(&lab);
    assert_walled(&lab);
    assert_on_own_maps(&lab);
}

#[test]
fn maps_of_another_layout_are_copied_or_begin_empty_and_refuse() {
    let mut lab = Lab::new();
    lab.set_policy(0, &denials(), false);
    let app = dial(&lab, address(OUTSIDE)).unwrap();
    let (worker, _) = accept(&lab.worker().outbound_v4);
    assert_walled(&lab);
    // The names of sockets are all that stays.
    let changed: Vec<&str> = MAPS
        .into_iter()
        .filter(|m| *m != map_name::SOCKETS)
        .collect();
    play_other(&mut lab, &changed);
    let report = take_over(&mut lab);
    assert_eq!(report.shared, [map_name::SOCKETS]);
    assert_eq!(report.copied, [map_name::PODS, map_name::WALLS]);
    assert_eq!(report.emptied.len(), 14, "{report:?}");
    assert_on_own_maps(&lab);
    assert_eq!(
        original_destination(&worker, libc::SOL_IP),
        address(OUTSIDE)
    );
    assert_eq!(peer(&app), address(OUTSIDE));
    // Capture and wall stand, and count from zero. What the supervisor has yet to fill refuses.
    assert_eq!(lab.refused(0, KernelReason::WallNotWorker), 0);
    assert_captured(&lab);
    assert_walled(&lab);
    assert_eq!(call(&lab).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    assert!(lab.refused(0, KernelReason::LookupNoListener) > 0);
    lab.enrol(0);
    assert_steered(&lab);
}

/// Puts another map in the place of the pods', whose values have this length.
fn resize_pods<const BYTES: usize>(lab: &Lab) {
    let pin = folder(lab, OTHER).join("maps/PODS_7");
    fs::remove_file(&pin).unwrap();
    let mut map = HashMap::<_, u64, [u8; BYTES]>::create(MAX_PODS, 0).unwrap();
    // SAFETY: the type has no padding.
    let pod = unsafe { std::mem::transmute::<PodConfig, [u8; 48]>(lab.pod().config) };
    let mut value = [0xff; BYTES];
    let kept = BYTES.min(pod.len());
    value[..kept].copy_from_slice(&pod[..kept]);
    map.insert(lab.pod().cookie, value, 0).unwrap();
    map.pin(&pin).unwrap();
}

#[test]
fn pods_of_an_older_version_are_filled_up_and_of_a_newer_one_cut_off() {
    for older in [false, true] {
        let mut lab = Lab::new();
        let (cookie, mut config) = (lab.pod().cookie, lab.pod().config);
        play_other(&mut lab, &[map_name::PODS]);
        if older {
            resize_pods::<32>(&lab);
            config.address_v6 = [0; 16];
        } else {
            resize_pods::<56>(&lab);
        }
        let report = take_over(&mut lab);
        assert_eq!(report.copied, [map_name::PODS]);
        assert_eq!(lab.capture().enrolled().unwrap(), [(cookie, config)]);
        assert_captured(&lab);
    }
}

#[test]
fn what_was_shut_stays_shut() {
    let mut lab = Lab::new();
    let (pod, slot) = (lab.pod().netns.clone(), lab.pod().slot);
    ip(&format!("-n {pod} link add a0 type veth peer name a1"));
    for device in ["a0", "a1"] {
        ip(&format!("-n {pod} link set {device} up"));
    }
    let ifindex = lab.in_pod(|| nix::net::if_::if_nametoindex("a0").unwrap());
    let capture = lab.capture();
    in_netns(&pod, || capture.shut_device(slot, ifindex)).unwrap();
    play_other(&mut lab, &[]);
    take_over(&mut lab);
    let before = lab.refused(0, KernelReason::CutOff);
    lab.in_pod(|| {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        nix::sys::socket::setsockopt(&socket, sockopt::BindToDevice, &"a0".into()).unwrap();
        socket.send_to(b"x", "10.77.0.1:9").unwrap();
    });
    eventually("what it asks for its neighbour is counted", || {
        (lab.refused(0, KernelReason::CutOff) > before).then_some(())
    });
    assert_on_own_maps(&lab);
}

#[test]
fn hooks_that_only_one_version_has_come_and_go() {
    let mut lab = Lab::new();
    play_other(&mut lab, &[]);
    let links = folder(&lab, OTHER).join("links");
    fs::rename(links.join("bind4"), links.join("future_hook")).unwrap();
    let theirs = program::pinned(&links.join("future_hook"));
    assert_eq!(fact(theirs.as_fd(), "cgroup_id"), Some(1));
    take_over(&mut lab);
    let ours = folder(&lab, ABI_VERSION).join("links");
    assert!(!ours.join("future_hook").exists());
    assert_eq!(
        fact(theirs.as_fd(), "cgroup_id"),
        Some(0),
        "it is taken off"
    );
    let bound = lab.in_pod(|| {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.bind(&address("0.0.0.0:15053").into())
    });
    assert_eq!(
        bound.unwrap_err().kind(),
        ErrorKind::AddrInUse,
        "ours is attached"
    );
}

#[test]
fn what_cannot_be_taken_over_is_refused_and_stands() {
    let mut lab = Lab::new();
    play_other(&mut lab, &[]);
    let maps = folder(&lab, OTHER).join("maps");
    fs::rename(maps.join(map_name::PODS), maps.join("SOMETHING")).unwrap();
    let error = open(&lab).unwrap_err();
    assert!(
        matches!(error, CaptureError::NotCarried { found: OTHER, .. }),
        "{error}"
    );
    for needed in ["999", "PODS", "unload"] {
        assert!(error.to_string().contains(needed), "{error}");
    }
    assert_captured(&lab);
    fs::rename(maps.join("SOMETHING"), maps.join(map_name::PODS)).unwrap();
    let mut options = lab.options.clone();
    options.mesh_cgroup = lab.app_cgroup();
    let error = Capture::open(&options).unwrap_err();
    assert!(
        matches!(error, CaptureError::CgroupMismatch { .. }),
        "{error}"
    );
    assert_captured(&lab);
    take_over(&mut lab);
    // And what is from before take-overs.
    lab.capture = None;
    fs::rename(folder(&lab, ABI_VERSION), folder(&lab, 2)).unwrap();
    let error = open(&lab).unwrap_err();
    assert!(
        matches!(error, CaptureError::AbiTooOld { found: 2, .. }),
        "{error}"
    );
    assert!(error.to_string().contains("unload"), "{error}");
    assert_captured(&lab);
    in_netns(&lab.node_netns(), || Capture::unload(&lab.options)).unwrap();
    let to = SocketAddr::new(NODE_V4.parse().unwrap(), 9);
    let error = dial(&lab, to).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "still captured");
}
