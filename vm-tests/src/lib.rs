//! What is tested in virtual machines: the cases, which run in guests, and what guests and
//! host say to each other.
//!
//! A guest has no disk, but where a case is of a boot: everything is in its initramfs, which `cargo xtask
//! vm-test` makes.
//! Its process 1 is `mesh-vm-init`, which runs `mesh-vm-guest`, which runs the cases that the
//! host asks for and reports on a virtio port, line by line in JSON ([`wire`]).

mod case;
pub mod cases;
pub mod guest;
pub mod suite;
pub mod wire;

pub use case::Case;
pub use guest::Guest;
pub use suite::Suite;
