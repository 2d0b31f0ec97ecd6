//! What every figure depends on: the machine and its kernel.

use std::fs;

use serde_json::{Value, json};

/// Kernel and processor, for the file of results.
pub(crate) fn about() -> Value {
    let cpuinfo = setting("/proc/cpuinfo");
    let model = cpuinfo
        .lines()
        .find_map(|line| line.strip_prefix("model name"));
    json!({
        "kernel": setting("/proc/sys/kernel/osrelease"),
        "processor": model.map_or("", |m| m.trim_start_matches([' ', '\t', ':'])),
        "processors": std::thread::available_parallelism().map_or(0, usize::from),
        "virtual_machine": cpuinfo.contains(" hypervisor"),
    })
}

/// That in words.
pub(crate) fn text(about: &Value) -> String {
    let text = |name: &str| about[name].as_str().unwrap_or("?");
    let guest = if about["virtual_machine"] == true {
        " of a virtual machine"
    } else {
        ""
    };
    format!(
        "Linux {}, {} × {}{guest}",
        text("kernel"),
        about["processors"],
        text("processor")
    )
}

/// What a file of the kernel says; empty if there is none.
pub(crate) fn setting(path: &str) -> String {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.trim().to_owned()
}
