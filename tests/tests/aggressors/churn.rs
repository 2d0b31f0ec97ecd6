//! What a tenant makes control and supervisors do.

use std::time::Instant;

use mesh_lab::aggressor::churn;
use mesh_lab::aggressor::stage::NOISY;

use crate::{Stage, TIME};

#[test]
fn a_large_policy_written_without_end_is_its_own_tenants_affair() {
    let stage = Stage::new();
    let before = stage.workers();
    let times = stage.beside(TIME, || {
        churn::policies(&stage.lab, NOISY, Instant::now() + TIME).unwrap()
    });
    assert!(times > 0);
    assert_eq!(stage.workers(), before, "workers ended");
}

#[test]
fn a_pod_that_wants_certificate_after_certificate_takes_nobody_elses() {
    let stage = Stage::new();
    let pod = stage.pod(NOISY, "client");
    let times = stage.beside(TIME, || {
        churn::enrolments(&stage.lab, pod, Instant::now() + TIME).unwrap()
    });
    assert!(times > 0);
}
