//! Which nodes bear the start-up taint, by what the API server says.

use std::collections::BTreeMap;
use std::time::Instant;

use kube::api::DynamicObject;
use kube::runtime::watcher::Event;
use serde_json::Value;
use tokio::sync::watch;

use super::TaintKey;

/// A node with the taint.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Tainted {
    pub(super) uid: Option<String>,
    /// All of its taints, as the API server has them.
    pub(super) taints: Vec<Value>,
    /// Since when this process knows of the taint on this node: what its agent said before may be another
    /// machine's word.
    pub(super) since: Instant,
}

type ByName = BTreeMap<String, Tainted>;

/// The nodes that bear it.
pub(crate) struct Nodes {
    key: TaintKey,
    /// A list that is under way: what there was stays until it is whole.
    listing: Option<ByName>,
    tainted: watch::Sender<ByName>,
}

impl Nodes {
    pub(crate) fn new(key: TaintKey) -> Self {
        Self {
            key,
            listing: None,
            tainted: watch::Sender::default(),
        }
    }

    /// Those that bear the taint, now and after each change.
    pub(crate) fn subscribe(&self) -> watch::Receiver<ByName> {
        self.tainted.subscribe()
    }

    /// Takes an event of a node.
    pub(crate) fn note(&mut self, event: &Event<DynamicObject>, now: Instant) {
        match event {
            Event::Init => self.listing = Some(ByName::new()),
            Event::InitApply(node) => {
                let entry = self.entry(node, now);
                self.listing.get_or_insert_default().extend(entry);
            }
            Event::InitDone => {
                let listed = self.listing.take().unwrap_or_default();
                self.change(|tainted| *tainted = listed);
            }
            Event::Apply(node) => {
                let entry = self.entry(node, now);
                self.change(|tainted| {
                    tainted.remove(&name(node));
                    tainted.extend(entry);
                });
            }
            Event::Delete(node) => self.change(|tainted| {
                // Of an earlier node of this name there may be late news.
                let uid = &node.metadata.uid;
                tainted.retain(|known, entry| *known != name(node) || entry.uid != *uid);
            }),
        }
    }

    /// The node, if it bears the taint.
    fn entry(&self, node: &DynamicObject, now: Instant) -> Option<(String, Tainted)> {
        let taints = node.data["spec"]["taints"].as_array()?;
        if !taints.iter().any(|taint| taint["key"] == self.key.as_str()) {
            return None;
        }
        let (name, uid) = (name(node), node.metadata.uid.clone());
        let known = self.tainted.borrow();
        let same = known.get(&name).filter(|known| known.uid == uid);
        let since = same.map_or(now, |known| known.since);
        let taints = taints.clone();
        Some((name, Tainted { uid, taints, since }))
    }

    fn change(&self, change: impl FnOnce(&mut ByName)) {
        self.tainted.send_if_modified(|tainted| {
            let before = tainted.clone();
            change(tainted);
            before != *tainted
        });
    }
}

fn name(node: &DynamicObject) -> String {
    node.metadata.name.clone().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::time::Duration;

    fn node(name: &str, uid: &str, keys: &[&str]) -> DynamicObject {
        let taint = |key: &&str| json!({"key": key, "effect": "NoSchedule"});
        let taints: Vec<Value> = keys.iter().map(taint).collect();
        let object = json!({
            "apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "uid": uid},
            "spec": {"taints": taints},
        });
        serde_json::from_value(object).unwrap()
    }

    #[test]
    fn a_node_is_known_from_when_its_taint_was_first_seen() {
        const KEY: &str = "nodemesh.dev/agent-not-ready";
        let mut nodes = Nodes::new(KEY.parse().unwrap());
        let tainted = nodes.subscribe();
        let start = Instant::now();
        let at = |s: u64| start + Duration::from_secs(s);
        let since = || {
            let known = tainted.borrow();
            known
                .get("a")
                .map(|entry| (entry.since, entry.taints.len()))
        };
        nodes.note(&Event::Init, at(0));
        nodes.note(&Event::InitApply(node("a", "1", &["other", KEY])), at(0));
        assert_eq!(since(), None, "the list is not whole");
        nodes.note(&Event::InitDone, at(0));
        assert_eq!(since(), Some((at(0), 2)));
        nodes.note(&Event::Apply(node("a", "1", &[KEY])), at(1));
        assert_eq!(since(), Some((at(0), 1)), "the same node");
        // A list that is made anew tells nothing new.
        nodes.note(&Event::Init, at(2));
        nodes.note(&Event::InitApply(node("a", "1", &[KEY])), at(2));
        nodes.note(&Event::InitDone, at(2));
        assert_eq!(since(), Some((at(0), 1)));
        // Another of that name, of whose predecessor there is late news.
        nodes.note(&Event::Apply(node("a", "2", &[KEY])), at(3));
        nodes.note(&Event::Delete(node("a", "1", &[KEY])), at(4));
        assert_eq!(since(), Some((at(3), 1)));
        // The taint is gone, and back.
        nodes.note(&Event::Apply(node("a", "2", &["other"])), at(5));
        assert_eq!(since(), None);
        nodes.note(&Event::Apply(node("a", "2", &[KEY])), at(6));
        assert_eq!(since(), Some((at(6), 1)));
        nodes.note(&Event::Delete(node("a", "2", &[KEY])), at(7));
        assert_eq!(since(), None);
    }
}
