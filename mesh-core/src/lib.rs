//! Pure decisions of the mesh. No I/O, no clock, no environment: every decision is a
//! function of (state, event, now).
#![forbid(unsafe_code)]

pub mod attestation;
pub mod balance;
pub mod budget;
pub mod certificate;
pub mod explain;
pub mod identity;
pub mod model;
pub mod outlier;
pub mod policy;
pub mod rate;
pub mod reason;
pub mod revocation;
pub mod sharing;
pub mod traffic;
