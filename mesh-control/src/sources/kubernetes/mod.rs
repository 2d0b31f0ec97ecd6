//! The Kubernetes API: lists and watches of what the mesh is made of.
//!
//! While the API is out of reach the last good state stays. A list that has to be made anew takes
//! effect as a whole.

pub mod definitions;
mod kind;
pub mod lease;
mod objects;
mod startup;
mod status;
mod writer;

use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use kube::Client;
use kube::api::{Api, DynamicObject};
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event, watcher};
use mesh_core::identity::TrustDomain;
use mesh_core::revocation::Revocations;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use crate::registry::{Directory, Registry};
use crate::sources::manifests::{Composed, Mistake};
use kind::{KINDS, Kind};
use objects::Objects;
pub use startup::{KeyFault, TaintKey};
use startup::{Nodes, Remover};
use status::Reported;
pub use writer::Pace;
use writer::Writer;

/// Changes that come within this time of each other make one new state.
const SETTLE: Duration = Duration::from_millis(50);
/// Events that may wait while a state is made; with more, nothing further is read from the API.
const QUEUE_LEN: usize = 4096;
/// How often it is told what the start waits for.
const PATIENCE: Duration = Duration::from_secs(10);

/// Before everything of a kind is listed anew, so that a server that can't be followed is not pressed.
const BEFORE_ANEW: Duration = Duration::from_secs(1);
/// The status of an answer from where a watch can't go on.
const GONE: u16 = 410;

type News = (Kind, Event<DynamicObject>);

/// Keeps a [`Registry`] in step with a cluster.
pub struct Follower {
    objects: Objects,
    events: mpsc::Receiver<News>,
    /// Its tasks, which end with it.
    tasks: JoinSet<()>,
    told: Vec<Mistake>,
    statuses: watch::Sender<Vec<Reported>>,
    revocations: watch::Sender<Revocations>,
    /// Which nodes bear the start-up taint, if there is one.
    tainted: Option<Nodes>,
}

/// How a cluster is followed.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The mesh's trust domain.
    pub trust_domain: TrustDomain,
    /// Where it is told what is revoked.
    pub revocations: watch::Sender<Revocations>,
    /// How statuses are written.
    pub pace: Pace,
    /// The taint that is taken off nodes whose agents are ready.
    pub startup_taint: Option<TaintKey>,
}

/// The API can't be followed any more.
#[derive(Debug, thiserror::Error)]
#[error("all watches of the Kubernetes API have ended")]
pub struct Ended;

impl Follower {
    /// Begins to follow, and waits until everything has been listed once: nothing is served before.
    ///
    /// # Errors
    /// If the runtime is ending.
    pub async fn start(
        client: &Client,
        settings: Settings,
    ) -> Result<(Self, Arc<Registry>), Ended> {
        let (sender, events) = mpsc::channel(QUEUE_LEN);
        let mut tasks = JoinSet::new();
        for kind in KINDS {
            tasks.spawn(follow(client.clone(), kind, sender.clone()));
        }
        let statuses = watch::Sender::new(Vec::new());
        let mut follower = Self {
            objects: Objects::new(&KINDS, settings.trust_domain),
            events,
            tasks,
            told: Vec::new(),
            statuses,
            revocations: settings.revocations,
            tainted: settings.startup_taint.clone().map(Nodes::new),
        };
        follower.all_listed().await?;
        let directory = follower.compose().await?;
        let registry = Arc::new(Registry::new(directory));
        if let Some((key, nodes)) = settings.startup_taint.zip(follower.tainted.as_ref()) {
            let (weak, look) = (Arc::downgrade(&registry), settings.pace.look);
            let remover = Remover::new(client.clone(), key, weak, look);
            follower.tasks.spawn(remover.run(nodes.subscribe()));
        }
        let writer = Writer::new(client.clone(), Arc::downgrade(&registry), settings.pace);
        let statuses = follower.statuses.subscribe();
        follower.tasks.spawn(writer.run(statuses));
        follower.report(registry.number());
        Ok((follower, registry))
    }

    async fn all_listed(&mut self) -> Result<(), Ended> {
        let mut tell = tokio::time::interval(PATIENCE);
        tell.reset();
        while self.objects.missing().next().is_some() {
            tokio::select! {
                event = self.events.recv() => {
                    let (kind, event) = event.ok_or(Ended)?;
                    self.take(kind, event);
                }
                _ = tell.tick() => {
                    let missing: Vec<_> = self.objects.missing().map(|kind| kind.name).collect();
                    tracing::warn!(missing = missing.join(", "), "not serving yet: the Kubernetes API has not listed everything");
                }
            }
        }
        Ok(())
    }

    /// Follows for as long as the process lives.
    ///
    /// # Errors
    /// If all watches have ended.
    pub async fn run(mut self, registry: Arc<Registry>) -> Result<(), Ended> {
        loop {
            let (kind, event) = self.events.recv().await.ok_or(Ended)?;
            if !self.take(kind, event) {
                continue;
            }
            tokio::time::sleep(SETTLE).await;
            while let Ok((kind, event)) = self.events.try_recv() {
                self.take(kind, event);
            }
            let directory = self.compose().await?;
            let number = registry.set_sources(&directory, Instant::now());
            self.report(number);
        }
    }

    /// Takes an event. Returns whether anything is another way now.
    fn take(&mut self, kind: Kind, event: Event<DynamicObject>) -> bool {
        if let Some(nodes) = self.tainted.as_mut().filter(|_| kind.name == "Node") {
            nodes.note(&event, Instant::now());
        }
        self.objects.apply(kind, event)
    }

    /// What is wrong with the present objects, or skipped.
    #[must_use]
    pub fn mistakes(&self) -> &[Mistake] {
        &self.told
    }

    /// Has statuses written, now that the state of this number is served.
    fn report(&mut self, number: u64) {
        self.objects.served(number);
        self.statuses
            .send_replace(self.objects.reported(&self.told));
    }

    /// Makes the present state, away from the thread that serves.
    async fn compose(&mut self) -> Result<Directory, Ended> {
        let empty = Objects::new(&[], self.objects.trust_domain().clone());
        let objects = std::mem::replace(&mut self.objects, empty);
        let made = tokio::task::spawn_blocking(move || {
            let Composed {
                mesh,
                revocations,
                told,
            } = objects.compose();
            (objects, Directory::new(mesh), revocations, told)
        });
        let (objects, directory, revocations, told) = match made.await {
            Ok(made) => made,
            Err(ended) if ended.is_cancelled() => return Err(Ended),
            Err(panicked) => std::panic::resume_unwind(panicked.into_panic()),
        };
        self.objects = objects;
        self.revocations.send_if_modified(|before| {
            let news = *before != revocations;
            *before = revocations;
            news
        });
        self.tell(told);
        Ok(directory)
    }

    /// Says what is wrong now and was not before, and what is over.
    fn tell(&mut self, now: Vec<Mistake>) {
        for news in now.iter().filter(|mistake| !self.told.contains(mistake)) {
            tracing::warn!(mistake = %news, "Kubernetes");
        }
        for over in self.told.iter().filter(|mistake| !now.contains(mistake)) {
            tracing::info!(mistake = %over, "Kubernetes: no longer so");
        }
        self.told = now;
    }
}

/// What is listed and watched: group and plural of each kind.
pub fn followed() -> impl Iterator<Item = (&'static str, &'static str)> {
    KINDS.iter().map(|kind| kind.group_and_plural())
}

/// Passes the events of one kind on until nobody takes them.
async fn follow(client: Client, kind: Kind, events: mpsc::Sender<News>) {
    let api: Api<DynamicObject> = Api::all_with(client, &kind.resource());
    let mut trouble = None;
    loop {
        let stream = watcher(api.clone(), watcher::Config::default()).default_backoff();
        let mut stream = pin!(stream);
        while let Some(event) = stream.next().await {
            match event {
                Ok(event) => {
                    if trouble.take().is_some() {
                        tracing::info!(kind = kind.name, "Kubernetes API: followed again");
                    }
                    if events.send((kind, event)).await.is_err() {
                        return;
                    }
                }
                // The library begins anew where a watch says so, but not where the answer's status does.
                Err(watcher::Error::WatchStartFailed(kube::Error::Api(status)))
                    if status.code == GONE =>
                {
                    break;
                }
                Err(error) => {
                    let why = explain(kind, &error);
                    if trouble.as_ref() != Some(&why) {
                        tracing::error!(
                            kind = kind.name,
                            error = why,
                            "Kubernetes API: can't be followed now; tried again, and the last good state stays"
                        );
                    }
                    trouble = Some(why);
                }
            }
        }
        tracing::info!(kind = kind.name, "Kubernetes API: to be listed anew");
        tokio::time::sleep(BEFORE_ANEW).await;
    }
}

fn explain(kind: Kind, error: &watcher::Error) -> String {
    let status = match error {
        watcher::Error::InitialListFailed(kube::Error::Api(status))
        | watcher::Error::WatchStartFailed(kube::Error::Api(status))
        | watcher::Error::WatchError(status) => Some(status),
        _ => None,
    };
    match status.map(|status| status.code) {
        Some(404) if kind.is_own() => format!(
            "the cluster has no {}: install the mesh's CustomResourceDefinitions first",
            kind.definition()
        ),
        Some(403) => {
            format!("{error}; the control component's ClusterRole must allow list and watch")
        }
        _ => chain(error),
    }
}

/// An error with its causes.
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.fold(String::new(), |said, cause| match cause.to_string() {
        // A cause is often told in its effect's own words.
        text if said.contains(&text) => said,
        text if said.is_empty() => text,
        text => format!("{said}: {text}"),
    })
}
