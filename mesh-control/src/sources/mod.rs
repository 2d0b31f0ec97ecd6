//! Where the mesh's objects come from.

pub mod manifests;
