//! The capture, with real eBPF, in network namespaces of its own. Needs root.

mod frame;
mod inbound;
mod injection;
mod lab;
mod lifecycle;
mod names;
mod outbound;
mod process;
mod program;
mod quota;
mod wall;
