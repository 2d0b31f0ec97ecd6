//! Compiles `proto/` without an external `protoc`.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    // Policy is part of both discovery and the worker protocol: compiled once, used by both.
    tonic_prost_build::configure()
        .btree_map(".")
        .compile_fds(protox::compile(["proto/policy.proto"], ["proto"])?)?;
    let files = ["workload", "authorization", "ca", "ads", "node", "worker"]
        .map(|n| format!("proto/{n}.proto"));
    let mut descriptors = protox::compile(files, ["proto"])?;
    descriptors
        .file
        .retain(|file| file.name() != "policy.proto");
    tonic_prost_build::configure()
        .extern_path(".nodemesh.policy.v1", "crate::policy")
        // Ordered maps make the encoding of a workload deterministic, so that its hash can
        // serve as its version in every replica.
        .btree_map(".istio.workload")
        .btree_map(".nodemesh.worker")
        .compile_fds(descriptors)?;
    Ok(())
}
