//! Tunnels, pooled by the workload they lead to and the identity it must prove.
//!
//! Nothing is locked while a tunnel connects: whoever needs it waits for the outcome of a
//! task of its own, and flows to other workloads know nothing of it.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::rc::{Rc, Weak};

use h2::SendStream;
use h2::client::ResponseFuture;
use http::Request;
use mesh_common::PORT_HBONE;
use mesh_core::identity::Identity;
use mesh_core::reason::Reason;
use tokio::sync::oneshot;

use super::admission::{Place, Places};
use super::chunk::Chunk;
use super::context::Context;
use super::discovery::Endpoint;
use super::fault::{Direction, Fault};
use super::tunnel::{Driver, Tunnel};

/// Tunnels to one workload that may be connecting at one time.
const MAX_CONNECTING: usize = 8;

/// Everything that must be the same for two flows to share a tunnel. The source pod and its
/// identity are this process's.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    workload_uid: Rc<str>,
    identity: Identity,
    /// Where its worker is called: on 15008, or on the port of the app.
    to: SocketAddr,
}

/// Which port of a workload its worker is called at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Port {
    Hbone,
    /// The app's.
    Original,
}

/// All tunnels to others.
pub(crate) struct Pool {
    context: Rc<Context>,
    sites: RefCell<HashMap<Key, Rc<Site>>>,
    /// Tunnels that stand or are connecting.
    places: Places,
}

/// The tunnels to one workload.
struct Site {
    key: Key,
    endpoint: Rc<Endpoint>,
    pool: Weak<Pool>,
    tunnels: RefCell<Vec<Rc<Tunnel>>>,
    waiting: RefCell<VecDeque<oneshot::Sender<Result<Lease, Fault>>>>,
    connecting: Cell<usize>,
    /// Streams a tunnel to this workload took last time.
    streams_per_tunnel: Cell<u64>,
}

/// A place for one stream in a tunnel, held for as long as the stream lives.
pub(crate) struct Lease {
    tunnel: Rc<Tunnel>,
    site: Rc<Site>,
}

impl Lease {
    /// Sends a CONNECT in the place that is held.
    pub(crate) fn request(
        &self,
        request: Request<()>,
    ) -> Result<(ResponseFuture, SendStream<Chunk>), h2::Error> {
        self.tunnel.request(request).inspect_err(|_| {
            // Out of stream ids, or on its way out.
            self.tunnel.retire();
        })
    }

    /// The tunnel has broken before it answered. Its worker may have died, and every other
    /// tunnel to it with it: who comes next gets a new one.
    pub(crate) fn lost(&self) {
        self.tunnel.retire();
        self.site.each_tunnel(Tunnel::retire);
    }

    /// The peer does not answer: no new streams go into any tunnel to it before it has shown
    /// that it is alive. Ends when this tunnel has.
    pub(crate) async fn doubt(&self) {
        self.site.each_tunnel(Tunnel::doubt);
        self.tunnel.trusted().await;
    }

    /// The stream is open: data follows.
    pub(crate) fn data_sent(&self) {
        self.tunnel.data_sent();
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.tunnel.leave();
        self.site.serve();
    }
}

impl Pool {
    pub(crate) fn new(context: Rc<Context>) -> Rc<Self> {
        Rc::new(Self {
            context,
            sites: RefCell::default(),
            places: Places::default(),
        })
    }

    /// A place for a stream to this workload, in a new tunnel where there is none.
    pub(crate) async fn lease(
        self: &Rc<Self>,
        endpoint: &Rc<Endpoint>,
        port: Port,
    ) -> Result<Lease, Fault> {
        let site = self.site(endpoint, port);
        let leased = {
            if let Some(lease) = site.try_lease() {
                return Ok(lease);
            }
            let (sender, receiver) = oneshot::channel();
            site.waiting.borrow_mut().push_back(sender);
            receiver
        };
        site.serve();
        leased.await.unwrap_or_else(|_| {
            let detail = "the worker gave up on the tunnel";
            Err(Fault::new(Reason::TunnelConnect, detail))
        })
    }

    /// Lets every tunnel finish what it has and take nothing new: the certificate changed.
    pub(crate) fn retire_all(&self) {
        let sites: Vec<_> = self.sites.borrow().values().cloned().collect();
        for site in sites {
            site.each_tunnel(Tunnel::retire);
        }
    }

    /// A place for one more tunnel; where there are as many as may be, that of one that is idle.
    fn place(&self) -> Result<Place, Fault> {
        let (taken, most) = (self.places.taken(), self.context.limits().tunnels);
        if taken >= most {
            let sites: Vec<_> = self.sites.borrow().values().cloned().collect();
            let idle = sites.iter().filter_map(|site| site.longest_idle());
            let idle = idle.min_by_key(|tunnel| tunnel.idle_since());
            let idle = idle.ok_or_else(|| {
                let detail = format!("{taken} are open, and streams in all of them");
                Fault::new(Reason::TunnelLimit, detail)
            })?;
            idle.retire();
        }
        Ok(self.places.take())
    }

    fn site(self: &Rc<Self>, endpoint: &Rc<Endpoint>, port: Port) -> Rc<Site> {
        let key = Key {
            workload_uid: endpoint.workload_uid.clone(),
            identity: endpoint.identity.clone(),
            to: match port {
                Port::Hbone => SocketAddr::new(endpoint.address.ip(), PORT_HBONE),
                Port::Original => endpoint.address,
            },
        };
        let mut sites = self.sites.borrow_mut();
        let site = sites.entry(key).or_insert_with_key(|key| {
            Rc::new(Site {
                key: key.clone(),
                endpoint: endpoint.clone(),
                pool: Rc::downgrade(self),
                tunnels: RefCell::default(),
                waiting: RefCell::default(),
                connecting: Cell::new(0),
                streams_per_tunnel: Cell::new(self.context.limits().streams_per_tunnel.into()),
            })
        });
        site.clone()
    }
}

impl Site {
    fn each_tunnel(&self, act: fn(&Tunnel)) {
        let tunnels = self.tunnels.borrow().clone();
        for tunnel in tunnels {
            act(&tunnel);
        }
    }

    fn longest_idle(&self) -> Option<Rc<Tunnel>> {
        let tunnels = self.tunnels.borrow();
        let idle = tunnels
            .iter()
            .filter(|tunnel| tunnel.is_usable() && tunnel.streams() == 0);
        idle.min_by_key(|tunnel| tunnel.idle_since()).cloned()
    }

    fn try_lease(self: &Rc<Self>) -> Option<Lease> {
        let tunnels = self.tunnels.borrow();
        let roomy = tunnels.iter().filter(|tunnel| tunnel.has_room());
        // Streams that share a tunnel share its records and system calls. So they gather in the
        // fullest, and what a burst has opened comes to rest.
        let tunnel = roomy.max_by_key(|tunnel| tunnel.streams())?.clone();
        tunnel.enter();
        Some(Lease {
            tunnel,
            site: self.clone(),
        })
    }

    /// Gives places to who waits; connects where there are too few.
    fn serve(self: &Rc<Self>) {
        while self.someone_waits() {
            let Some(lease) = self.try_lease() else {
                self.connect();
                return;
            };
            let waiting = self.waiting.borrow_mut().pop_front();
            // One who is gone leaves the lease behind, which gives its place back.
            let _unused = waiting.map(|waiting| waiting.send(Ok(lease)));
        }
    }

    fn someone_waits(&self) -> bool {
        let mut waiting = self.waiting.borrow_mut();
        while waiting.front().is_some_and(oneshot::Sender::is_closed) {
            waiting.pop_front();
        }
        !waiting.is_empty()
    }

    fn connect(self: &Rc<Self>) {
        let Some(pool) = self.pool.upgrade() else {
            return;
        };
        let streams = usize::try_from(self.streams_per_tunnel.get()).unwrap_or(usize::MAX);
        let wanted = self.waiting.borrow().len().div_ceil(streams.max(1));
        while self.connecting.get() < wanted.min(MAX_CONNECTING) {
            let attempt = Attempt::begin(self.clone());
            let context = pool.context.clone();
            tokio::task::spawn_local(async move { attempt.run(context).await });
        }
    }

    /// Fails everyone who waits now.
    fn fail(&self, fault: &Fault) {
        let waiting = std::mem::take(&mut *self.waiting.borrow_mut());
        for waiting in waiting {
            // One who is gone needs no answer.
            let _gone = waiting.send(Err(fault.clone()));
        }
    }

    /// Drops a site that nobody uses.
    fn forget_if_unused(self: &Rc<Self>) {
        let unused =
            self.tunnels.borrow().is_empty() && self.connecting.get() == 0 && !self.someone_waits();
        if unused && let Some(pool) = self.pool.upgrade() {
            let mut sites = pool.sites.borrow_mut();
            if sites
                .get(&self.key)
                .is_some_and(|site| Rc::ptr_eq(site, self))
            {
                sites.remove(&self.key);
            }
        }
    }
}

/// One attempt to connect. However it ends, a panic included, who waits hears of it.
struct Attempt {
    site: Rc<Site>,
    outcome: Option<Result<(), Fault>>,
}

impl Attempt {
    fn begin(site: Rc<Site>) -> Self {
        site.connecting.set(site.connecting.get() + 1);
        Self {
            site,
            outcome: None,
        }
    }

    async fn run(mut self, context: Rc<Context>) {
        let outcome = self.connect(&context).await;
        self.outcome = Some(outcome);
    }

    async fn connect(&self, context: &Rc<Context>) -> Result<(), Fault> {
        let pool = self.site.pool.upgrade();
        let place = pool.ok_or_else(|| gone("the worker ends"))?.place()?;
        let (endpoint, to) = (&self.site.endpoint, self.site.key.to);
        let (tunnel, driver, ready) = Tunnel::connect(context, endpoint, to).await?;
        let (ended, has_ended) = oneshot::channel();
        let held = (tunnel.clone(), place);
        tokio::task::spawn_local(drive(driver, held, self.site.clone(), ended));
        // The server checks our certificate after our end of the handshake is done: only its
        // first frame says that it took it.
        match tokio::time::timeout(context.limits().handshake_timeout, ready).await {
            Ok(Ok(())) => {}
            // The driver has ended, or is about to say why.
            Ok(Err(_)) => {
                let fault = has_ended.await;
                return Err(fault.unwrap_or_else(|_| gone("the tunnel ended before it was used")));
            }
            Err(_) => {
                tunnel.retire();
                let detail = "the peer sent no HTTP/2 settings";
                return Err(Fault::new(Reason::HandshakeTimeout, detail));
            }
        }
        if !tunnel.is_usable() {
            return Err(gone("the peer closed the tunnel at once"));
        }
        let parameters = tunnel.parameters().to_owned();
        let reports = &context.reports;
        reports.tunnel_opened(Direction::Outbound, &endpoint.identity, to, parameters);
        self.site.streams_per_tunnel.set(tunnel.limit());
        self.site.tunnels.borrow_mut().push(tunnel);
        Ok(())
    }
}

fn gone(detail: &str) -> Fault {
    Fault::new(Reason::TunnelProtocol, detail)
}

impl Drop for Attempt {
    fn drop(&mut self) {
        let site = &self.site;
        site.connecting.set(site.connecting.get() - 1);
        match self.outcome.take() {
            Some(Ok(())) => site.serve(),
            // While another attempt runs, its outcome decides.
            _ if site.connecting.get() > 0 => {}
            Some(Err(fault)) => site.fail(&fault),
            None => site.fail(&gone("the attempt to connect was given up")),
        }
        site.forget_if_unused();
    }
}

/// Takes a tunnel out of its site when it ends, however it ends.
struct Registration {
    tunnel: Rc<Tunnel>,
    site: Rc<Site>,
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.tunnel.retire();
        let mut tunnels = self.site.tunnels.borrow_mut();
        tunnels.retain(|other| !Rc::ptr_eq(other, &self.tunnel));
        drop(tunnels);
        self.site.serve();
        self.site.forget_if_unused();
    }
}

async fn drive(
    driver: Driver,
    (tunnel, _place): (Rc<Tunnel>, Place),
    site: Rc<Site>,
    ended: oneshot::Sender<Fault>,
) {
    let registration = Registration {
        tunnel,
        site: site.clone(),
    };
    let Some(context) = site.pool.upgrade().map(|pool| pool.context.clone()) else {
        return;
    };
    let limits = || {
        site.streams_per_tunnel.set(registration.tunnel.limit());
        site.serve();
    };
    let fault = match driver.run(&context, limits).await {
        Ok(()) => gone("the peer closed the tunnel"),
        Err(fault) => fault,
    };
    // Whoever connected it may long have what it wanted.
    let _gone = ended.send(fault);
}
