//! A laboratory of network namespaces: nodes on a bridge, pods on nodes, real programs as
//! unprivileged apps in the pods, the mesh's own binaries around them, and a capture of
//! what is on the wire between the nodes.
//!
//! Whatever a lab makes carries its prefix (`nm<pid>x<n>`) in its name, and is removed when
//! the [`Lab`] is dropped, also by a panic, by SIGINT and by SIGTERM. What a lab leaves
//! that was killed by SIGKILL, the next lab on the machine removes.
//!
//! ```no_run
//! # fn main() -> anyhow::Result<()> {
//! let lab = mesh_lab::Lab::two_nodes()?;
//! let web = lab.pod("shop/web").command("mesh-lab-app").args(["serve", "80"]).spawn()?;
//! lab.pod("shop/web").wait_listening(80)?;
//! let url = format!("http://{}/", lab.pod("shop/web").v4());
//! let answer = lab.pod("shop/client").command("curl").arg(url).output()?;
//! # Ok(()) }
//! ```

pub mod aggressor;
pub mod app;
mod bpf;
pub mod call;
pub mod cgroup;
pub mod cni;
pub mod dialogue;
pub mod foreign;
pub mod forger;
pub mod inject;
pub mod interrupt;
pub mod kubelet;
pub mod lab;
pub mod manifest;
pub mod mesh;
pub mod netns;
pub mod node;
pub mod pins;
pub mod place;
pub mod plan;
pub mod pod;
pub mod programs;
pub mod removal;
pub mod runtime;
pub mod servers;
pub mod soak;
pub mod tool;
pub mod traffic;
pub mod wait;
pub mod wire;
pub mod zds;
pub mod ztunnel;

pub use app::{App, PodCommand, Ran};
pub use bpf::map_bytes;
pub use dialogue::Dialogue;
pub use lab::Lab;
pub use mesh::{Agent, Mesh};
pub use netns::Netns;
pub use plan::{Enrolment, Families, Plan, PodSpec, ServiceSpec};
pub use pod::Pod;
