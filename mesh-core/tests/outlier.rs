//! Outlier detection against a model that keeps the whole history.

use std::time::{Duration, Instant};

use mesh_core::outlier::{Outlier, has_room};
use mesh_core::traffic::OutlierDetection;
use proptest::prelude::*;

fn rules() -> impl Strategy<Value = OutlierDetection> {
    (0..5u32, 1..2000u64, 1..8000u64, 0..=100u8).prop_map(|(row, base, max, percent)| {
        OutlierDetection {
            consecutive_failures: row,
            base_ejection: Duration::from_millis(base),
            max_ejection: Duration::from_millis(max),
            max_ejected_percent: percent,
        }
    })
}

#[derive(Clone, Copy, Debug)]
struct Event {
    at: Duration,
    success: bool,
    may_eject: bool,
}

fn history() -> impl Strategy<Value = Vec<Event>> {
    let event = (
        0..1500u64,
        prop::bool::weighted(0.15),
        prop::bool::weighted(0.8),
    );
    prop::collection::vec(event, 0..40).prop_map(|events| {
        let mut at = Duration::ZERO;
        let events = events.into_iter().map(|(pause, success, may_eject)| {
            at += Duration::from_millis(pause);
            Event {
                at,
                success,
                may_eject,
            }
        });
        events.collect()
    })
}

/// When the endpoint returns, as the whole history says; `None` where it is not out.
fn model(rules: &OutlierDetection, history: &[Event]) -> Option<Duration> {
    let after_success = history.iter().rposition(|e| e.success).map_or(0, |i| i + 1);
    let mut times_out: Vec<Duration> = Vec::new();
    let mut row = 0;
    for failure in &history[after_success..] {
        if times_out.last().is_some_and(|until| failure.at < *until) {
            continue;
        }
        row += 1;
        let long_enough = rules.consecutive_failures > 0 && row >= rules.consecutive_failures;
        if long_enough && failure.may_eject {
            let n = u32::try_from(times_out.len()).unwrap() + 1;
            times_out.push(failure.at + (rules.base_ejection * n).min(rules.max_ejection));
        }
    }
    times_out.last().copied()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20_000))]

    #[test]
    fn an_endpoint_is_out_when_its_history_says_so(rules in rules(), history in history()) {
        let start = Instant::now();
        let mut outlier = Outlier::default();
        for (i, event) in history.iter().enumerate() {
            let now = start + event.at;
            let before = model(&rules, &history[..i]).filter(|until| event.at < *until);
            prop_assert_eq!(outlier.is_ejected(now), before.is_some());
            let ejected = if event.success {
                outlier.succeeded();
                false
            } else {
                outlier.failed(&rules, now, || event.may_eject)
            };
            let until = model(&rules, &history[..=i]);
            let newly = before.is_none() && until.is_some_and(|until| event.at < until);
            prop_assert_eq!(ejected, newly);
            if let Some(until) = until.filter(|until| event.at < *until) {
                prop_assert!(!outlier.is_ejected(start + until));
                prop_assert!(outlier.is_ejected(start + until - Duration::from_nanos(1)));
            }
        }
    }

    #[test]
    fn the_share_is_kept_and_one_stays(
        rules in rules(),
        endpoints in 0..12usize,
        failures in prop::collection::vec((0..12usize, 0..500u64), 0..60),
    ) {
        let mut outliers = vec![Outlier::default(); endpoints];
        let mut now = Instant::now();
        for (which, pause) in failures {
            now += Duration::from_millis(pause);
            let out = outliers.iter().filter(|o| o.is_ejected(now)).count();
            if let Some(outlier) = outliers.get_mut(which) {
                outlier.failed(&rules, now, || has_room(&rules, endpoints, out));
            }
            let out = outliers.iter().filter(|o| o.is_ejected(now)).count();
            let percent = usize::from(rules.max_ejected_percent);
            prop_assert!(out * 100 <= endpoints * percent);
            prop_assert!(out == 0 || out < endpoints);
        }
    }
}

#[test]
fn ejections_grow_by_the_base_and_a_success_forgets_them() {
    let rules = OutlierDetection::default();
    let (start, mut outlier) = (Instant::now(), Outlier::default());
    let at = |s| start + Duration::from_secs(s);
    for _ in 0..2 {
        assert!(!outlier.failed(&rules, at(0), || true));
    }
    assert!(outlier.failed(&rules, at(0), || true));
    assert!(outlier.is_ejected(at(4)) && !outlier.is_ejected(at(5)));
    // Back, and the first connection fails again.
    assert!(outlier.failed(&rules, at(5), || true));
    assert!(outlier.is_ejected(at(14)) && !outlier.is_ejected(at(15)));
    outlier.succeeded();
    assert!(!outlier.failed(&rules, at(15), || true));
}
