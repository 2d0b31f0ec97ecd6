//! The order in which endpoints are tried, against what its documentation promises.

use std::collections::BTreeSet;

use mesh_core::balance::{Candidate, Order};
use mesh_core::traffic::{Balancing, LocalityPreference};
use proptest::prelude::*;

/// Evenly distributed numbers that a failing case can repeat (splitmix64, upper half).
fn random(mut state: u64) -> impl FnMut() -> u32 {
    move || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        u32::try_from((z ^ (z >> 31)) >> 32).unwrap()
    }
}

fn candidate() -> impl Strategy<Value = Candidate> {
    (
        0..4u32,
        0..4u8,
        prop::bool::weighted(0.2),
        prop::bool::weighted(0.2),
    )
        .prop_map(|(open, distance, unhealthy, ejected)| Candidate {
            open,
            distance,
            unhealthy,
            ejected,
        })
}

fn balancing() -> impl Strategy<Value = Balancing> {
    prop_oneof![Just(Balancing::LeastRequests), Just(Balancing::RoundRobin)]
}

fn locality() -> impl Strategy<Value = LocalityPreference> {
    prop_oneof![
        Just(LocalityPreference::None),
        Just(LocalityPreference::Nearest)
    ]
}

fn usable(candidate: &Candidate) -> bool {
    !candidate.unhealthy && !candidate.ejected
}

/// Whether the documentation wants `one` before `other`, whatever the balancing.
fn must_precede(locality: LocalityPreference, one: &Candidate, other: &Candidate) -> bool {
    match (usable(one), usable(other)) {
        (true, false) => true,
        (false, true) => false,
        _ => locality == LocalityPreference::Nearest && one.distance < other.distance,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20_000))]

    #[test]
    fn every_endpoint_comes_once_and_none_before_a_better_one(
        balancing in balancing(),
        locality in locality(),
        candidates in prop::collection::vec(candidate(), 0..12),
        turn: usize,
        seed: u64,
    ) {
        let order = Order::new(balancing, locality, candidates.iter().copied(), turn, random(seed));
        let order: Vec<_> = order.collect();
        let once: BTreeSet<_> = order.iter().copied().collect();
        prop_assert_eq!(once, (0..candidates.len()).collect::<BTreeSet<_>>());
        prop_assert_eq!(order.len(), candidates.len());
        for (at, one) in order.iter().enumerate() {
            for later in &order[at + 1..] {
                let (one, later) = (&candidates[*one], &candidates[*later]);
                prop_assert!(!must_precede(locality, later, one), "{order:?}");
            }
        }
    }

    #[test]
    fn the_busiest_of_equals_is_never_first(
        opens in prop::collection::vec(0..4u32, 2..12),
        seed: u64,
    ) {
        let candidates = opens.iter().map(|open| Candidate { open: *open, ..Candidate::default() });
        let locality = LocalityPreference::None;
        let first = Order::new(Balancing::LeastRequests, locality, candidates, 0, random(seed)).next();
        let chosen = opens[first.unwrap()];
        let as_busy = opens.iter().filter(|open| **open >= chosen).count();
        prop_assert!(as_busy > 1, "{chosen} of {opens:?}");
    }

    #[test]
    fn round_robin_begins_with_each_of_the_best_equally_often(
        locality in locality(),
        candidates in prop::collection::vec(candidate(), 1..12),
        start in 0..1_000_000usize,
        rounds in 1..5usize,
    ) {
        let best: Vec<_> = (0..candidates.len())
            .filter(|i| !candidates.iter().any(|c| must_precede(locality, c, &candidates[*i])))
            .collect();
        let mut first = vec![0; candidates.len()];
        for turn in start..start + rounds * best.len() {
            let each = candidates.iter().copied();
            let mut order = Order::new(Balancing::RoundRobin, locality, each, turn, random(0));
            first[order.next().unwrap()] += 1;
        }
        for (i, times) in first.iter().enumerate() {
            let expected = if best.contains(&i) { rounds } else { 0 };
            prop_assert_eq!(*times, expected, "endpoint {}", i);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    /// Connections that stay: whoever is chosen has one more.
    #[test]
    fn two_choices_keep_endpoints_even(endpoints in 2..32usize, seed: u64) {
        let connections = 100 * endpoints;
        let mut random = random(seed);
        let mut open = vec![0u32; endpoints];
        for _ in 0..connections {
            let each = open.iter().map(|open| Candidate { open: *open, ..Candidate::default() });
            let locality = LocalityPreference::None;
            let mut order = Order::new(Balancing::LeastRequests, locality, each, 0, &mut random);
            open[order.next().unwrap()] += 1;
        }
        // One random choice would be off by some tens; two are by ln ln n / ln 2 and a constant
        // (Azar, Broder, Karlin, Upfal 1999).
        prop_assert!(open.iter().all(|open| open.abs_diff(100) <= 8), "{open:?}");
    }
}

#[test]
fn equals_are_chosen_evenly() {
    let mut random = random(7);
    let mut first = [0u32; 10];
    for _ in 0..100_000 {
        let each = std::iter::repeat_n(Candidate::default(), 10);
        let locality = LocalityPreference::Nearest;
        let mut order = Order::new(Balancing::LeastRequests, locality, each, 0, &mut random);
        first[order.next().unwrap()] += 1;
    }
    // Ten standard deviations of a binomial distribution are about 950.
    assert!(first.iter().all(|n| n.abs_diff(10_000) < 950), "{first:?}");
}

#[test]
fn traffic_moves_outward_when_nothing_nearer_is_usable() {
    let at = |distance, unhealthy| Candidate {
        distance,
        unhealthy,
        ..Candidate::default()
    };
    let candidates = [at(3, false), at(0, true), at(2, false), at(1, true)];
    let (balancing, locality) = (Balancing::default(), LocalityPreference::Nearest);
    let order = Order::new(balancing, locality, candidates.into_iter(), 0, random(1));
    assert_eq!(order.collect::<Vec<_>>(), [2, 0, 1, 3]);
}
