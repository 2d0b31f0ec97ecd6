//! Compiles `proto/` without an external `protoc`.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    // Policy and trust are part of what control says and of the worker protocol: compiled once,
    // used by both.
    let shared = ["proto/policy.proto", "proto/trust.proto"];
    tonic_prost_build::configure()
        .btree_map(".")
        .compile_fds(protox::compile(shared, ["proto"])?)?;
    let files = [
        "workload",
        "authorization",
        "ca",
        "ads",
        "node",
        "tunnel",
        "worker",
    ]
    .map(|n| format!("proto/{n}.proto"));
    let mut descriptors = protox::compile(files, ["proto"])?;
    descriptors
        .file
        .retain(|file| !["policy.proto", "trust.proto"].contains(&file.name()));
    tonic_prost_build::configure()
        .extern_path(".nodemesh.policy.v1", "crate::policy")
        .extern_path(".nodemesh.trust.v1", "crate::trust")
        // Ordered maps make the encoding of a workload deterministic, so that its hash can
        // serve as its version in every replica.
        .btree_map(".istio.workload")
        .btree_map(".nodemesh.worker")
        .compile_fds(descriptors)?;
    Ok(())
}
