//! The control component: certificate authority, discovery, and the sources they draw on.
#![forbid(unsafe_code)]

pub mod admin;
pub mod attestor;
pub mod audit;
pub mod ca;
pub mod clocks;
pub mod config;
pub mod granularity;
mod marks;
pub mod observe;
pub mod refusal;
pub mod registry;
pub mod server;
pub mod sources;
pub mod tokens;
pub mod trust;
pub mod xds;

use std::time::{SystemTime, UNIX_EPOCH};

/// Now, in seconds since the epoch.
#[must_use]
pub fn now_s() -> i64 {
    now_ms() / 1000
}

/// Now, in milliseconds since the epoch.
#[must_use]
pub fn now_ms() -> i64 {
    let elapsed = SystemTime::now().duration_since(UNIX_EPOCH);
    elapsed.map_or(0, |d| i64::try_from(d.as_millis()).unwrap_or(i64::MAX))
}
