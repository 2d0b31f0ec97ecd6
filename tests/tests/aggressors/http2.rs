//! What a peer with a good certificate can do inside its tunnel.

use mesh_lab::aggressor::Load;

use crate::Stage;

#[test]
fn floods_of_resets_and_headers_end_the_tunnel_that_they_come_by() {
    let stage = Stage::new();
    for load in [Load::RapidReset, Load::Continuation] {
        let before = stage.refused("server", "tunnel_protocol");
        let achieved = stage.load(load, 4);
        assert!(achieved.refused > 0, "{achieved:?}");
        stage.wait_refused("server", "tunnel_protocol", before);
    }
}

#[test]
fn floods_of_pings_and_settings_and_streams_without_window_cost_their_own_worker_only() {
    let stage = Stage::new();
    for load in [Load::Pings, Load::Settings, Load::ZeroWindow] {
        let achieved = stage.load(load, 4);
        assert!(achieved.done > 0, "{achieved:?}");
    }
}
