//! Mutual TLS in front of a worker, for tools that speak none: what comes in on a port of
//! loopback goes to the worker inside TLS, byte for byte.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::thread;

use mesh_lab::Netns;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime;
use tokio::sync::oneshot;
use tokio_rustls::TlsConnector;

/// Serves until it is dropped.
pub(crate) struct Shim {
    address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Shim {
    pub(crate) fn start(netns: &Netns, worker: SocketAddr, config: ClientConfig) -> Self {
        let listener = netns.run(|| std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)));
        let listener = listener.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel();
        let namespace = netns.as_fd().try_clone_to_owned().unwrap();
        let thread = thread::spawn(move || {
            // Sockets are of the namespace of the thread that makes them.
            nix::sched::setns(namespace, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            let runtime = runtime::Builder::new_current_thread().enable_all().build();
            runtime.unwrap().block_on(async {
                tokio::select! {
                    () = serve(listener, worker, config) => {}
                    // Dropped is stopped as well.
                    _ = stopped => {}
                }
            });
        });
        Self {
            address,
            stop: Some(stop),
            thread: Some(thread),
        }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Shim {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // Its panic has been printed.
            let _panicked = thread.join();
        }
    }
}

async fn serve(listener: std::net::TcpListener, worker: SocketAddr, config: ClientConfig) {
    listener.set_nonblocking(true).unwrap();
    let listener = TcpListener::from_std(listener).unwrap();
    let connector = TlsConnector::from(Arc::new(config));
    loop {
        let (mut tool, _) = listener.accept().await.unwrap();
        let connector = connector.clone();
        tokio::spawn(async move {
            let tcp = TcpStream::connect(worker).await?;
            let name = ServerName::IpAddress(worker.ip().into());
            let mut tls = connector.connect(name, tcp).await?;
            // What the worker cuts is cut for the tool.
            copy_bidirectional(&mut tool, &mut tls).await
        });
    }
}
