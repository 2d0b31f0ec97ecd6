//! What a worker is told, cut into messages that fit the channel's packets.

use mesh_api::policy::{Action, AuthorizationPolicy, Peer, PortTerm, Rule};
use mesh_api::worker::change::Change as Kind;
use mesh_api::worker::{Change, Changes, PodPolicy};
use prost::Message;

use crate::channel::MAX_PACKET;

/// Bytes of changes in one message: what is left of a packet after all that is around them.
const MAX_LEN: usize = MAX_PACKET - 1024;
/// Tag and length before each element of a list.
const ELEMENT: usize = 8;

/// One batch, and what could not be put into it.
#[derive(Debug, Default)]
pub(super) struct Batch {
    /// To be sent in this order, with nothing in between.
    pub(super) messages: Vec<Changes>,
    /// What is too large to be told, in words.
    pub(super) left_out: Vec<String>,
}

/// Makes a batch of what takes effect at once; no messages where there is nothing to tell.
pub(super) fn batch(changes: impl IntoIterator<Item = Kind>) -> Batch {
    let mut batch = Batch::default();
    let mut len = 0;
    for change in changes {
        let parts = match change {
            Kind::Policy(policy) => parts(policy, &mut batch.left_out)
                .into_iter()
                .map(Kind::Policy)
                .collect(),
            other => vec![other],
        };
        for part in parts {
            let change = Change { change: Some(part) };
            let change_len = change.encoded_len() + ELEMENT;
            if change_len > MAX_LEN {
                batch.left_out.push(describe(&change));
                continue;
            }
            len += change_len;
            match batch.messages.last_mut() {
                Some(last) if len <= MAX_LEN => last.changes.push(change),
                _ => {
                    len = change_len;
                    batch.messages.push(Changes {
                        changes: vec![change],
                        more: false,
                    });
                }
            }
        }
    }
    let followed = batch.messages.len().saturating_sub(1);
    for message in &mut batch.messages[..followed] {
        message.more = true;
    }
    batch
}

fn describe(change: &Change) -> String {
    let what = match &change.change {
        Some(Kind::Policy(_)) => "the pod's own labels and services".to_owned(),
        Some(Kind::Destination(d)) => format!("destination {:?} port {}", d.address, d.port),
        Some(Kind::Source(source)) => format!("source {:?}", source.address),
        None => "nothing".to_owned(),
    };
    format!("{what}: {} bytes", change.encoded_len())
}

/// Parts of a policy whose lists are to be joined; the rest is the same in each.
fn parts(mut policy: PodPolicy, left_out: &mut Vec<String>) -> Vec<PodPolicy> {
    if policy.encoded_len() + ELEMENT <= MAX_LEN {
        return vec![policy];
    }
    let authorizations = std::mem::take(&mut policy.authorizations);
    let authentications = std::mem::take(&mut policy.authentications);
    let next = PodPolicy {
        version: policy.version.clone(),
        audit: policy.audit,
        labels: policy.labels.clone(),
        ..PodPolicy::default()
    };
    let room = MAX_LEN.saturating_sub(next.encoded_len() + 2 * ELEMENT);
    let mut parts = Parts {
        len: policy.encoded_len(),
        done: Vec::new(),
        last: policy,
        next,
    };
    for policy in authorizations {
        for piece in pieces(policy, room, left_out) {
            parts.make_room(piece.encoded_len());
            parts.last.authorizations.push(piece);
        }
    }
    for scope in authentications {
        parts.make_room(scope.encoded_len());
        parts.last.authentications.push(scope);
    }
    parts.done.push(parts.last);
    parts.done
}

struct Parts {
    done: Vec<PodPolicy>,
    last: PodPolicy,
    len: usize,
    /// What each further part begins with.
    next: PodPolicy,
}

impl Parts {
    fn make_room(&mut self, len: usize) {
        self.len += len + ELEMENT;
        if self.len + ELEMENT > MAX_LEN {
            self.len = self.next.encoded_len() + len + ELEMENT;
            let full = std::mem::replace(&mut self.last, self.next.clone());
            self.done.push(full);
        }
    }
}

/// A policy in pieces of at most `room` bytes with its key, any of whose rules may match as
/// before: it says the same.
fn pieces(
    policy: AuthorizationPolicy,
    room: usize,
    left_out: &mut Vec<String>,
) -> Vec<AuthorizationPolicy> {
    if policy.encoded_len() <= room {
        return vec![policy];
    }
    let empty = AuthorizationPolicy {
        rules: Vec::new(),
        ..policy.clone()
    };
    let room = room.saturating_sub(empty.encoded_len());
    let deny = policy.action == i32::from(Action::Deny);
    let mut small = Vec::new();
    for rule in policy.rules {
        if rule.encoded_len() + ELEMENT <= room {
            small.push(rule);
            continue;
        }
        let (peers, too_large) = runs(rule.peers, room / 2, Peer::encoded_len);
        let (ports, _) = runs(rule.ports, room / 4, PortTerm::encoded_len);
        if too_large {
            left_out.push(format!("a peer of {} that no packet holds", policy.key));
        }
        for ports in ports {
            let rule = |peers: &Vec<Peer>| Rule {
                peers: peers.clone(),
                ports: ports.clone(),
            };
            // Without that peer an ALLOW allows less; a DENY must not deny less.
            match too_large && deny {
                true => small.push(rule(&Vec::new())),
                false => small.extend(peers.iter().map(rule)),
            }
        }
    }
    let (runs, _) = runs(small, room, Rule::encoded_len);
    let piece = |rules| AuthorizationPolicy {
        rules,
        ..empty.clone()
    };
    runs.into_iter().map(piece).collect()
}

/// Runs of `items` of at most `room` bytes each, and whether any item alone is larger than
/// that and left out. Of no items there is one run, without any; of items that are all left
/// out there is none.
fn runs<T>(items: Vec<T>, room: usize, len_of: impl Fn(&T) -> usize) -> (Vec<Vec<T>>, bool) {
    if items.is_empty() {
        return (vec![Vec::new()], false);
    }
    let (mut runs, mut len, mut too_large) = (Vec::<Vec<T>>::new(), 0, false);
    for item in items {
        let item_len = len_of(&item) + ELEMENT;
        if item_len > room {
            too_large = true;
            continue;
        }
        len += item_len;
        match runs.last_mut() {
            Some(run) if len <= room => run.push(item),
            _ => {
                len = item_len;
                runs.push(vec![item]);
            }
        }
    }
    (runs, too_large)
}

#[cfg(test)]
#[path = "packets_tests.rs"]
mod tests;
