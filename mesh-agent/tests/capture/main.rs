//! The capture, with real eBPF, in network namespaces of its own. Needs root.

mod lab;
mod outbound;
mod process;
