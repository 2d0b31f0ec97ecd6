//! Embeds the object built from `mesh-ebpf` (`cargo xtask ebpf`) where there is one. The
//! crate builds without it; the agent then says so and refuses to run.

use std::path::{Path, PathBuf};
use std::{env, fs};

fn main() {
    println!("cargo:rerun-if-env-changed=NODEMESH_EBPF_OBJECT");
    let object = env::var_os("NODEMESH_EBPF_OBJECT").map_or_else(default_object, PathBuf::from);
    println!("cargo:rerun-if-changed={}", object.display());
    let embedded =
        Path::new(&env::var_os("OUT_DIR").expect("cargo sets OUT_DIR")).join("mesh-ebpf.o");
    let bytes = fs::read(&object).unwrap_or_default();
    fs::write(&embedded, bytes).expect("OUT_DIR is writable");
}

fn default_object() -> PathBuf {
    let package = env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR");
    let workspace = Path::new(&package).parent().expect("a workspace");
    let object = match env::var_os("CARGO_FEATURE_ABI_NEXT") {
        Some(_) => "target/bpf/mesh-ebpf-abi-next.o",
        None => "target/bpf/mesh-ebpf.o",
    };
    workspace.join(object)
}
