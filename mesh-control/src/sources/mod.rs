//! Where the state of the mesh comes from: a folder of manifests, or the Kubernetes API.

pub mod kubernetes;
pub mod manifests;
