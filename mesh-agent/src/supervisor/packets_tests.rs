use super::*;
use mesh_api::worker::{Destination, SourceInfo, ToWorker, to_worker};
use std::collections::BTreeMap;

fn peer(text: String) -> Peer {
    Peer {
        namespace: text,
        ..Peer::default()
    }
}

fn authorization(key: &str, action: Action, rules: Vec<Rule>) -> AuthorizationPolicy {
    AuthorizationPolicy {
        key: key.to_owned(),
        action: action.into(),
        rules,
        ..AuthorizationPolicy::default()
    }
}

fn rule(peers: Vec<Peer>) -> Rule {
    Rule {
        peers,
        ports: vec![PortTerm {
            port: 80,
            protocol: 1,
        }],
    }
}

fn policy(authorizations: Vec<AuthorizationPolicy>) -> PodPolicy {
    PodPolicy {
        version: "7".to_owned(),
        audit: true,
        authorizations,
        labels: [("app".to_owned(), "cart".to_owned())].into(),
        services: vec!["shop/cart".to_owned()],
        resolvers: vec![vec![10, 0, 0, 53]],
        ..PodPolicy::default()
    }
}

/// Every message fits, and only the last says that nothing follows.
fn check(batch: &Batch) {
    for (n, message) in batch.messages.iter().enumerate() {
        let last = n + 1 == batch.messages.len();
        assert_eq!(message.more, !last);
        let message = Some(to_worker::Message::Changes(message.clone()));
        assert!(ToWorker { message }.encoded_len() <= MAX_PACKET);
    }
}

/// The policy that a worker puts together from a batch.
fn joined(batch: &Batch) -> PodPolicy {
    let changes = batch.messages.iter().flat_map(|message| &message.changes);
    let parts = changes.filter_map(|change| match &change.change {
        Some(Kind::Policy(part)) => Some(part),
        _ => None,
    });
    let mut whole = PodPolicy::default();
    for part in parts {
        whole.merge(part.encode_to_vec().as_slice()).unwrap();
    }
    whole
}

#[test]
fn nothing_makes_no_message_and_little_makes_one() {
    assert!(batch([]).messages.is_empty());
    let little = [
        Kind::Policy(policy(Vec::new())),
        Kind::Destination(Destination::default()),
        Kind::Source(SourceInfo::default()),
    ];
    let batch = batch(little);
    check(&batch);
    assert_eq!(
        (batch.messages.len(), batch.messages[0].changes.len()),
        (1, 3)
    );
}

#[test]
fn ten_thousand_policies_arrive_whole_with_what_changed_besides() {
    let one = |n| {
        let rules = vec![rule(vec![peer(format!("namespace-{n}"))])];
        authorization(&format!("shop/policy-{n}"), Action::Allow, rules)
    };
    let sent = policy((0..10_000).map(one).collect());
    let destination = Kind::Destination(Destination::default());
    let batch = batch([Kind::Policy(sent.clone()), destination]);
    check(&batch);
    assert!(batch.messages.len() > 3 && batch.left_out.is_empty());
    assert_eq!(joined(&batch), sent);
    let last = batch.messages.last().unwrap().changes.last().unwrap();
    assert!(matches!(last.change, Some(Kind::Destination(_))));
    for change in batch.messages.iter().flat_map(|message| &message.changes) {
        if let Some(Kind::Policy(part)) = &change.change {
            assert_eq!(
                (&part.version, part.audit, &part.labels),
                (&sent.version, true, &sent.labels)
            );
        }
    }
}

#[test]
fn one_policy_that_no_packet_holds_is_told_in_pieces_with_its_key() {
    let peers: Vec<Peer> = (0..20_000)
        .map(|n| peer(format!("namespace-{n}")))
        .collect();
    let large = authorization(
        "shop/large",
        Action::Deny,
        vec![rule(peers.clone()), rule(vec![])],
    );
    let small = authorization("shop/small", Action::Allow, vec![rule(vec![])]);
    let batch = batch([Kind::Policy(policy(vec![large, small.clone()]))]);
    check(&batch);
    assert!(batch.left_out.is_empty());
    let mut by_key = BTreeMap::<String, Vec<Rule>>::new();
    for piece in joined(&batch).authorizations {
        assert!(!piece.rules.is_empty());
        by_key.entry(piece.key).or_default().extend(piece.rules);
    }
    assert_eq!(by_key["shop/small"], small.rules);
    let rules = &by_key["shop/large"];
    assert!(rules.iter().all(|r| r.ports == rule(vec![]).ports));
    let told: Vec<Peer> = rules.iter().flat_map(|r| r.peers.clone()).collect();
    assert_eq!(told, peers);
    // A rule without peers is for everybody: there was one, and there is one.
    assert_eq!(rules.iter().filter(|r| r.peers.is_empty()).count(), 1);
}

#[test]
fn a_peer_that_no_packet_holds_opens_nothing() {
    let vast = || rule(vec![peer("x".repeat(MAX_PACKET)), peer("shop".to_owned())]);
    let whole = |action| {
        let batch = batch([Kind::Policy(policy(vec![authorization(
            "shop/vast",
            action,
            vec![vast()],
        )]))]);
        check(&batch);
        assert_eq!(batch.left_out.len(), 1, "{:?}", batch.left_out);
        let pieces = joined(&batch).authorizations;
        pieces
            .into_iter()
            .flat_map(|piece| piece.rules)
            .collect::<Vec<Rule>>()
    };
    assert_eq!(whole(Action::Allow), [rule(vec![peer("shop".to_owned())])]);
    assert_eq!(whole(Action::Deny), [rule(vec![])]);
}

#[test]
fn what_is_too_large_is_left_out_and_the_batch_still_ends() {
    let vast = SourceInfo {
        identity: "x".repeat(MAX_PACKET),
        ..SourceInfo::default()
    };
    let batch = batch([
        Kind::Destination(Destination::default()),
        Kind::Source(vast),
    ]);
    check(&batch);
    assert_eq!((batch.messages.len(), batch.left_out.len()), (1, 1));
}
