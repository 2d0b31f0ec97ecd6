//! Two real workers and peers of other kinds, on loopback, without eBPF: each pod has an
//! address of its own in 127.0.0.0/8, and the hooks are answered by the test.

mod balance;
mod batches;
mod budgets;
mod bulk;
mod failover;
mod handshake;
mod harness;
mod health;
mod inbound_policy;
mod lifecycle;
mod many;
mod memory;
mod original_port;
mod outbound_policy;
mod peers;
mod pki;
mod policies;
mod pool;
mod relay;
mod revocation;
mod rotation;
mod server;
mod stalled;
mod supervisor;
