//! The node agent of Nodemesh: a small privileged supervisor, and one sandboxed,
//! unprivileged worker process for each enrolled pod.
//!
//! `supervisor` and `worker` never import each other; they meet in [`channel`].

pub mod capture;
pub mod channel;
pub mod check;
mod clock;
pub mod cni;
pub mod features;
mod handed;
mod netlink;
pub mod sandbox;
pub mod supervisor;
pub mod worker;
