//! Compiles `proto/` without an external `protoc`.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let files =
        ["workload", "ca", "ads", "node", "worker"].map(|name| format!("proto/{name}.proto"));
    let descriptors = protox::compile(files, ["proto"])?;
    tonic_prost_build::configure()
        // Ordered maps make the encoding of a workload deterministic, so that its hash can
        // serve as its version in every replica.
        .btree_map(".istio.workload")
        .compile_fds(descriptors)?;
    Ok(())
}
