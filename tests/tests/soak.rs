//! The soak, its short form.

use std::time::Duration;

use mesh_lab::soak::{Soak, run};

#[test]
fn under_churn_of_everything_nothing_is_lost_and_nothing_grows() {
    let soak = Soak {
        seed: 1,
        time: Duration::from_secs(30),
    };
    let outcome = run(soak, &mut |line| println!("{line}"));
    println!("{}", outcome.unwrap_or_else(|e| panic!("{e:#}")));
}
