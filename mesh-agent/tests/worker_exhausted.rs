//! A worker without descriptors rests, counts, and goes on when there are some again. A test
//! binary of its own: the limit is the whole process's. Needs root.

#[path = "../src/worker/tests/pki.rs"]
#[allow(
    dead_code,
    unreachable_pub,
    reason = "shared with the tests inside the crate"
)]
mod pki;
#[path = "worker/supervisor.rs"]
#[allow(dead_code, reason = "shared with the other tests of the worker")]
mod supervisor;

use std::io::{ErrorKind, Read};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use mesh_lab::netns::Netns;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use socket2::{Domain, Socket, Type};
use supervisor::Supervisor;

#[test]
fn accepting_survives_the_want_of_descriptors() {
    let name = format!("nmwk-full-{}", std::process::id());
    let netns = Netns::create_all(&[name]).expect("root makes network namespaces");
    let worker = Supervisor::start(&netns[0]);
    let to: SocketAddr = "127.0.0.1:15006".parse().unwrap();
    let client = netns[0].run(|| Socket::new(Domain::IPV4, Type::STREAM, None).unwrap());
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    // No descriptor is free below the limit, which is not below what is open.
    setrlimit(Resource::RLIMIT_NOFILE, 3, hard).unwrap();
    client.connect(&to.into()).unwrap();
    client
        .set_read_timeout(Some(Duration::from_millis(300)))
        .unwrap();
    let mut client = TcpStream::from(client);
    let waiting = client
        .read(&mut [0; 1])
        .expect_err("nobody can have accepted this");
    assert_eq!(waiting.kind(), ErrorKind::WouldBlock);
    setrlimit(Resource::RLIMIT_NOFILE, soft, hard).unwrap();
    client
        .set_read_timeout(Some(Duration::from_secs(10)))
        .unwrap();
    let refused = client.read(&mut [0; 1]).expect_err("a reset was due");
    assert_eq!(refused.kind(), ErrorKind::ConnectionReset);
    worker.until_refused("inbound_plaintext", 1);
    worker.drain();
}
