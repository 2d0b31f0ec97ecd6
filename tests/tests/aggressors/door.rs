//! What anybody can do at a worker's tunnel port before there is a tunnel.

use mesh_lab::aggressor::Load;

use crate::Stage;

#[test]
fn handshakes_without_end_are_taken_or_refused_one_by_one() {
    let stage = Stage::new();
    let good = stage.load(Load::GoodHandshakes, 8);
    assert!(good.done > 0, "{good:?}");
    let before = stage.refused("server", "peer_untrusted");
    let bad = stage.load(Load::BadHandshakes, 8);
    assert_eq!(bad.done, 0, "{bad:?}");
    stage.wait_refused("server", "peer_untrusted", before);
}

#[test]
fn handshakes_that_do_not_end_meet_a_limit() {
    let stage = Stage::new();
    for load in [Load::SlowLoris, Load::HalfOpen] {
        let before = stage.refused("server", "handshake_limit");
        let achieved = stage.load(load, 300);
        assert!(achieved.refused > 0, "{achieved:?}");
        stage.wait_refused("server", "handshake_limit", before);
    }
}
