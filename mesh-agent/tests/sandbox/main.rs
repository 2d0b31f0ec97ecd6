//! Proof of what a worker can't do: workers of the agent's own binary, spawned, confined and
//! serving as in production, are made to issue the system calls themselves, and each must be
//! refused.
//!
//! Needs root, a cgroup2 mount and a kernel with namespaces; without them it fails.

mod life;
mod place;
mod refusals;
mod standing;
mod supervise;
