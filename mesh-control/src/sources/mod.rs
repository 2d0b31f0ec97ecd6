//! Where the state of the mesh comes from: a folder of manifests, or the Kubernetes API.

pub mod kubernetes;
pub mod manifests;

use std::sync::Arc;

use anyhow::Context;
use mesh_core::identity::TrustDomain;
use mesh_core::revocation::Revocations;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::registry::Registry;
use kubernetes::Follower;

/// A source that is about to be followed.
pub enum Source {
    /// A folder, read already.
    Manifests(manifests::Watcher, Arc<Registry>),
    /// The cluster that this process runs in, or that KUBECONFIG names.
    Kubernetes(kubernetes::Settings),
}

impl Source {
    /// A cluster, of which nothing is known yet, and the taint that is taken off its nodes when their
    /// agents are ready.
    #[must_use]
    pub fn kubernetes(
        trust_domain: TrustDomain,
        startup_taint: Option<kubernetes::TaintKey>,
    ) -> Self {
        Self::Kubernetes(kubernetes::Settings {
            trust_domain,
            revocations: watch::Sender::default(),
            pace: kubernetes::Pace::default(),
            startup_taint,
        })
    }

    /// What is revoked, now and after each change.
    #[must_use]
    pub fn revocations(&self) -> watch::Receiver<Revocations> {
        match self {
            Self::Manifests(watcher, _) => watcher.revocations(),
            Self::Kubernetes(settings) => settings.revocations.subscribe(),
        }
    }

    /// Begins to follow, once there is a whole state to serve. The task ends only if nothing more
    /// can come.
    ///
    /// # Errors
    /// If there is no cluster to be followed.
    pub async fn start(self) -> anyhow::Result<(Arc<Registry>, JoinHandle<anyhow::Result<()>>)> {
        match self {
            Self::Manifests(watcher, registry) => {
                let following = tokio::spawn(async {
                    watcher.run().await;
                    Ok(())
                });
                Ok((registry, following))
            }
            Self::Kubernetes(settings) => {
                let config = kube::Config::infer().await.context(
                    "finding the Kubernetes API: neither a pod's service account nor a KUBECONFIG that can be read",
                )?;
                let url = config.cluster_url.clone();
                tracing::info!(%url, "following the Kubernetes API");
                let client = kube::Client::try_from(config)
                    .with_context(|| format!("making a client for the Kubernetes API at {url}"))?;
                let (follower, registry) = Follower::start(&client, settings).await?;
                let following = follower.run(registry.clone());
                let following = tokio::spawn(async { Ok(following.await?) });
                Ok((registry, following))
            }
        }
    }
}
