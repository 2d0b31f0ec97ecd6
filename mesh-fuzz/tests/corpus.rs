//! Every file that fuzzing has kept, fed to its target again: what was found once stays fixed,
//! and no fuzzer is needed to see it.

use std::collections::BTreeSet;
use std::fs;
use std::panic::catch_unwind;
use std::path::PathBuf;

use mesh_fuzz::{TARGETS, run};

/// Bytes that all corpora may have together.
const MAX_BYTES: u64 = 1024 * 1024;

fn fuzz() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../fuzz"))
}

fn files(target: &str) -> Vec<PathBuf> {
    let folder = fuzz().join("corpus").join(target);
    let entries = fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    let mut files: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

fn replay(target: &str) {
    let files = files(target);
    assert!(!files.is_empty(), "nothing is kept for {target}");
    for file in files {
        let bytes = fs::read(&file).unwrap();
        let outcome = catch_unwind(|| run(target, &bytes));
        assert!(outcome.is_ok(), "{}", file.display());
    }
}

macro_rules! replayed {
    ($($target:ident),* $(,)?) => {
        $(#[test]
        fn $target() {
            replay(stringify!($target));
        })*

        const REPLAYED: &[&str] = &[$(stringify!($target)),*];
    };
}

replayed!(
    admin_requests,
    certificate,
    certificate_request,
    channel,
    csr,
    discovery_requests,
    discovery_responses,
    hbone_request,
    health_answer,
    join_request,
    kept_files,
    kernel_event,
    manifests,
    netlink_messages,
    node_report,
    peer_settings,
    policy_decision,
    port_tables,
    signed_chain,
    spiffe_id,
    supervisor_messages,
    worker_messages,
);

fn stems(folder: &str) -> BTreeSet<String> {
    let entries = fs::read_dir(fuzz().join(folder)).unwrap();
    let stem = |path: PathBuf| path.file_stem().unwrap().to_str().unwrap().to_owned();
    entries.map(|entry| stem(entry.unwrap().path())).collect()
}

#[test]
fn every_target_is_fuzzed_replayed_and_described() {
    let targets: BTreeSet<String> = TARGETS.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(targets.len(), TARGETS.len());
    let replayed = REPLAYED.iter().map(|name| (*name).to_owned());
    assert_eq!(replayed.collect::<BTreeSet<_>>(), targets);
    assert_eq!(stems("corpus"), targets);
    assert_eq!(stems("fuzz_targets"), targets);
    let described = fs::read(fuzz().join("targets.json")).unwrap();
    let described: serde_json::Value = serde_json::from_slice(&described).unwrap();
    let described = described.as_object().unwrap();
    assert!(described.keys().eq(targets.iter()));
    for (target, facts) in described {
        for source in facts["sources"].as_array().unwrap() {
            let path = fuzz().join("..").join(source.as_str().unwrap());
            assert!(path.is_file(), "{target}: {}", path.display());
        }
    }
}

#[test]
fn every_target_has_its_row_in_the_document() {
    let document = fs::read_to_string(fuzz().join("../docs/FUZZING.md")).unwrap();
    let (_, rest) = document.split_once("--coverage: begin -->").unwrap();
    let (table, _) = rest.split_once("<!--").unwrap();
    let rows = table.lines().filter_map(|row| row.strip_prefix("| `"));
    let rows: Vec<&str> = rows.map(|row| row.split('`').next().unwrap()).collect();
    let targets = TARGETS.iter().map(|(name, _)| *name);
    assert!(
        rows.iter().copied().eq(targets),
        "{rows:?}: `cargo xtask fuzz --coverage` writes them"
    );
}

#[test]
fn corpora_are_small() {
    let files = TARGETS.iter().flat_map(|(name, _)| files(name));
    let bytes: u64 = files.map(|file| fs::metadata(file).unwrap().len()).sum();
    assert!(bytes <= MAX_BYTES, "{bytes} bytes");
}
