//! What comes from outside goes to the worker; what the worker dials goes to the app.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::time::Duration;

use mesh_common::{ABI_VERSION, KernelReason, PORT_HBONE};
use socket2::{Domain, Socket, Type};

use crate::lab::{Lab, eventually, netns_path};
use crate::names::{accept, address, local, peer};

/// A caller outside.
fn call(lab: &Lab, to: SocketAddr) -> std::io::Result<Socket> {
    lab.in_node(|| {
        let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
        socket.connect_timeout(&to.into(), Duration::from_secs(5))?;
        Ok(socket)
    })
}

fn app_listener(lab: &Lab, at: &str) -> Socket {
    let at = address(at);
    lab.in_pod(|| {
        let listener = Socket::new(Domain::for_address(at), Type::STREAM, None).unwrap();
        listener.bind(&at.into()).unwrap();
        listener.listen(8).unwrap();
        listener
    })
}

#[test]
fn every_port_goes_to_the_workers_plaintext_listener_unchanged() {
    let lab = Lab::new();
    let _app = app_listener(&lab, "0.0.0.0:8080");
    for (ip, listener) in [
        (lab.pod().v4, &lab.worker().plaintext_v4),
        (lab.pod().v6, &lab.worker().plaintext_v6),
    ] {
        for port in [8080, 8081] {
            let to = SocketAddr::new(ip, port);
            let caller = call(&lab, to).unwrap();
            let (worker, from) = accept(listener);
            assert_eq!(local(&worker), to);
            assert_eq!(from, local(&caller));
        }
    }
}

#[test]
fn hbone_goes_to_its_own_listener() {
    let lab = Lab::new();
    let at = SocketAddr::new(lab.pod().v4, PORT_HBONE);
    let hbone = lab.worker().process.listen(at).unwrap();
    let caller = call(&lab, at).unwrap();
    let (_worker, from) = accept(&hbone);
    assert_eq!(from, local(&caller));
}

/// The kernel answers what `sk_lookup` drops as it answers a closed port.
#[test]
fn without_a_listener_callers_are_refused_and_the_app_hears_nothing() {
    let mut lab = Lab::new();
    let app = app_listener(&lab, "[::]:8080");
    lab.pods[0].worker = None;
    // Another test's process, just forked, may still have a duplicate.
    eventually("the listeners are closed", || {
        let gone = [lab.pod().v4, lab.pod().v6].map(|ip| {
            let called = call(&lab, SocketAddr::new(ip, 8080));
            called.is_err_and(|e| e.kind() == ErrorKind::ConnectionRefused)
        });
        (gone == [true; 2]).then_some(())
    });
    assert!(lab.refused(0, KernelReason::LookupNoListener) >= 2);
    app.set_nonblocking(true).unwrap();
    assert_eq!(app.accept().unwrap_err().kind(), ErrorKind::WouldBlock);
}

#[test]
fn a_listeners_duplicate_keeps_the_queue_for_the_next_worker() {
    let mut lab = Lab::new();
    let duplicate = lab.worker().plaintext_v4.try_clone().unwrap();
    lab.pods[0].worker = None;
    let to = SocketAddr::new(lab.pod().v4, 8080);
    let caller = call(&lab, to).unwrap();
    let (worker, from) = accept(&duplicate);
    assert_eq!((local(&worker), from), (to, local(&caller)));
}

#[test]
fn the_app_sees_the_client_and_its_own_address() {
    let lab = Lab::new();
    let client4 = address("203.0.113.9:5555");
    let client6 = address("[2001:db8::9]:5555");
    let v4 = app_listener(&lab, "0.0.0.0:8080");
    let v6 = app_listener(&lab, "[::]:8081");
    let to = SocketAddr::new(lab.pod().v4, 8080);
    let dial = |to, client| lab.worker().process.dial_app(to, client).unwrap();

    let worker = dial(to, client4);
    let (app, from) = accept(&v4);
    assert_eq!((from, peer(&app), local(&app)), (client4, client4, to));
    assert_eq!(peer(&worker), to);

    let to = SocketAddr::new(lab.pod().v6, 8081);
    let _worker = dial(to, client6);
    let (app, from) = accept(&v6);
    assert_eq!((from, peer(&app), local(&app)), (client6, client6, to));

    // A dual-stack listener sees IPv4 mapped.
    let _worker = dial(SocketAddr::new(lab.pod().v4, 8081), client4);
    let (app, from) = accept(&v6);
    let mapped = address("[::ffff:203.0.113.9]:5555");
    assert_eq!((from, peer(&app)), (mapped, mapped));
    assert_eq!(local(&app), address("[::ffff:10.88.0.2]:8081"));
    assert_eq!(lab.capture.as_ref().unwrap().unfinished(0).unwrap(), (0, 0));
}

#[test]
fn a_dial_without_a_label_reaches_the_app_as_the_worker() {
    let lab = Lab::new();
    let listener = app_listener(&lab, "0.0.0.0:8080");
    let to = SocketAddr::new(lab.pod().v4, 8080);
    let worker = lab.worker().process.dial(to).unwrap();
    let (_app, from) = accept(&listener);
    assert_eq!(from, local(&worker));
}

#[test]
fn a_dial_that_the_app_refuses_is_refused_and_leaves_nothing() {
    let lab = Lab::new();
    let to = SocketAddr::new(lab.pod().v4, 8080);
    let client = address("203.0.113.9:5555");
    let error = lab.worker().process.dial_app(to, client).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
    assert_eq!(lab.capture.as_ref().unwrap().unfinished(0).unwrap(), (0, 0));
}

#[test]
fn apps_cannot_bind_the_meshs_ports() {
    let lab = Lab::new();
    for at in [
        "0.0.0.0:15001",
        "10.88.0.2:15008",
        "[::]:15006",
        "[::1]:15053",
    ] {
        let at = address(at);
        for kind in [Type::STREAM, Type::DGRAM] {
            let error = lab.in_pod(|| {
                let socket = Socket::new(Domain::for_address(at), kind, None).unwrap();
                socket.set_reuse_address(true).unwrap();
                socket.bind(&at.into()).unwrap_err()
            });
            assert_eq!(error.raw_os_error(), Some(libc::EADDRINUSE), "{at}");
        }
    }
    assert_eq!(lab.refused(0, KernelReason::BindReservedPort), 8);
}

#[test]
fn an_app_that_starts_late_gets_its_port_while_clients_keep_trying_it() {
    let lab = Lab::new();
    let to = SocketAddr::new(lab.pod().v4, 8080);
    let _caller = call(&lab, to).unwrap();
    let (_held, _) = accept(&lab.worker().plaintext_v4);
    // Without SO_REUSEADDR of its own.
    let listener = app_listener(&lab, "0.0.0.0:8080");
    let _worker = lab
        .worker()
        .process
        .dial_app(to, address("203.0.113.9:5555"));
    accept(&listener);
}

#[test]
fn steering_again_changes_nothing_and_another_namespace_replaces_the_link() {
    let mut lab = Lab::new();
    lab.add_pod();
    let link = lab.options.bpffs.join(format!(
        "nodemesh-{}/v{ABI_VERSION}/links/steer-0",
        lab.prefix
    ));
    let inode = |path| std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(path).unwrap());
    let before = inode(&link);
    let netns = |lab: &Lab, n: usize| std::fs::File::open(netns_path(&lab.pods[n].netns)).unwrap();
    let (first, second) = (netns(&lab, 0), netns(&lab, 1));
    lab.capture().steer(0, first.as_fd()).unwrap();
    assert_eq!(inode(&link), before);
    lab.capture().steer(0, second.as_fd()).unwrap();
    assert_ne!(inode(&link), before);
}
