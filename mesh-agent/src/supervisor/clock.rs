//! The node's wall clock: certificates are judged by it, so a step of it is told and counted. Nothing
//! else goes by it.

use metrics::counter;

use crate::clock::ClockWatch;

/// A smaller step is not told, in milliseconds: it is no news to a certificate.
const NOTABLE_MS: i64 = 1_000;

/// Tells of steps, for ever.
pub(super) async fn follow() {
    let mut clock = match ClockWatch::start() {
        Ok(clock) => clock,
        Err(e) => {
            tracing::warn!(error = %e, "it won't be told when the node's clock is set");
            return;
        }
    };
    loop {
        match clock.set().await {
            Ok(step_ms) if step_ms.saturating_abs() >= NOTABLE_MS => tell(step_ms),
            Ok(_) => {}
            Err(e) => {
                tracing::error!(error = %e, "it can't be heard any more that the node's clock is set");
                return;
            }
        }
    }
}

fn tell(step_ms: i64) {
    let direction = if step_ms > 0 { "forward" } else { "back" };
    counter!("nodemesh_clock_steps_total", "direction" => direction).increment(1);
    tracing::warn!(
        by_s = step_ms / 1_000,
        direction,
        "the node's clock was set: certificates that have ended by it, or have not begun, are refused as long as it says so; if it was not right before, all is well now"
    );
}
