//! Development commands: one file per command.

mod ebpf;

use std::path::Path;

use anyhow::{Result, bail};

fn main() -> Result<()> {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("a workspace");
    match std::env::args().nth(1).as_deref() {
        Some("ebpf") => {
            let object = ebpf::build(workspace)?;
            println!("{}", object.display());
            Ok(())
        }
        _ => bail!("usage: cargo xtask ebpf"),
    }
}
