//! How workers share a processor.

use std::time::Duration;

use mesh_lab::place;

use crate::Stage;

/// Since Linux 6.12 a process has a slice of its own.
const OWN_SLICES: [u32; 2] = [6, 12];

#[test]
fn every_worker_runs_in_short_slices() {
    let stage = Stage::new();
    for pid in stage.workers() {
        let slice = place::slice(pid).unwrap();
        if place::kernel().unwrap() >= OWN_SLICES {
            assert_eq!(slice, Duration::from_micros(100), "of process {pid}");
        }
    }
}
