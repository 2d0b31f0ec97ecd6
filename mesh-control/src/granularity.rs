//! Tells of namespaces whose pods can't be told apart: all of them run as `default`.

use std::collections::BTreeSet;
use std::sync::Weak;
use std::time::Duration;

use mesh_core::sharing::default_alone;
use metrics::gauge;

use crate::registry::Registry;

/// How often the mesh is looked through, at most.
const PAUSE: Duration = Duration::from_secs(10);

/// Follows the state of the mesh as long as there is a registry; each namespace is told of once.
pub async fn follow(registry: Weak<Registry>) {
    let Some(mut news) = registry.upgrade().map(|registry| registry.subscribe()) else {
        return;
    };
    let mut told = BTreeSet::new();
    loop {
        let Some(found) = registry
            .upgrade()
            .map(|registry| default_alone(registry.current().mesh()))
        else {
            return;
        };
        #[expect(clippy::cast_precision_loss, reason = "a count of namespaces")]
        gauge!("nodemesh_control_namespaces_on_default").set(found.len() as f64);
        for (namespace, pods) in &found {
            if told.insert(namespace.clone()) {
                tracing::warn!(
                    namespace,
                    pods,
                    "all enrolled pods run as the service account default: policy can't tell \
                     them apart; give each service an account of its own"
                );
            }
        }
        told.retain(|namespace| found.contains_key(namespace));
        tokio::time::sleep(PAUSE).await;
        if news.changed().await.is_err() {
            return;
        }
    }
}
