//! The capture, with real eBPF, in network namespaces of its own. Needs root.

mod agreement;
mod cut_off;
mod device;
mod foreign;
mod frame;
mod inbound;
mod injection;
mod integrity;
mod killed;
mod lab;
mod lifecycle;
mod names;
mod order;
mod outbound;
mod policy;
mod process;
mod program;
mod quota;
mod sockets;
mod source;
mod swap;
mod takeover;
mod udp;
mod wall;
mod way;
