//! docs/SECURITY.md says what the tests show: no more, no less.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use mesh_lab::inject::{
    Attempt, Surroundings, attempts, behind_the_supervisors_filter, on_a_supervisor, second_line,
};

/// Set, the list of attempts is written instead of compared.
const UPDATE: &str = "NODEMESH_UPDATE_DOCS";
const BEGIN: &str = "<!-- attempts -->\n";
const END: &str = "<!-- end of attempts -->\n";
/// Of these files each test has to be named.
const ALL_OF: [&str; 7] = [
    "tests/tests/privilege/capabilities.rs",
    "tests/tests/privilege/channel.rs",
    "tests/tests/privilege/forged.rs",
    "tests/tests/privilege/supervisor.rs",
    "tests/tests/privilege/worker.rs",
    "mesh-agent/tests/sandbox/refusals.rs",
    "mesh-agent/tests/sandbox/standing.rs",
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn document() -> String {
    fs::read_to_string(root().join("docs/SECURITY.md")).unwrap()
}

/// Names of the tests in a file.
fn tests_of(path: &str) -> BTreeSet<String> {
    let source = fs::read_to_string(root().join(path));
    let source = source.unwrap_or_else(|error| panic!("{path}: {error}"));
    let mut found = BTreeSet::new();
    let mut marked = false;
    for line in source.lines().map(str::trim) {
        let name = line.trim_start_matches("async ").strip_prefix("fn ");
        match name {
            Some(name) if marked => {
                found.insert(name.split('(').next().unwrap().to_owned());
                marked = false;
            }
            _ => marked |= line == "#[test]" || line.starts_with("#[tokio::test"),
        }
    }
    found
}

/// What the document names: files with their tests.
fn named() -> Vec<(String, Vec<String>)> {
    let document = document();
    let spans = document.split('`').skip(1).step_by(2);
    let tests = spans.filter_map(|span| span.split_once(".rs: "));
    tests
        .map(|(file, tests)| {
            let tests = tests.split(", ").map(str::to_owned).collect();
            (format!("{file}.rs"), tests)
        })
        .collect()
}

#[test]
fn every_row_names_a_test_that_there_is_and_every_test_has_a_row() {
    let named = named();
    assert!(named.len() > 15, "rows were found: {named:?}");
    for (file, tests) in &named {
        let there = tests_of(file);
        for test in tests {
            assert!(there.contains(test), "{file} has no test {test}");
        }
    }
    for file in ALL_OF {
        for test in tests_of(file) {
            let row = named
                .iter()
                .any(|(of, tests)| of == file && tests.contains(&test));
            assert!(row, "docs/SECURITY.md does not name {test} of {file}");
        }
    }
}

#[test]
fn what_is_tried_is_listed() {
    let expected = format!("{BEGIN}{}{END}", list());
    let document = document();
    let (before, rest) = document.split_once(BEGIN).unwrap();
    let (_, after) = rest.split_once(END).unwrap();
    let expected = format!("{before}{expected}{after}");
    if std::env::var_os(UPDATE).is_some() {
        fs::write(root().join("docs/SECURITY.md"), &expected).unwrap();
        return;
    }
    assert!(
        document == expected,
        "docs/SECURITY.md is stale; write it anew with\n  \
         {UPDATE}=1 cargo test --release -p mesh-lab --test privilege document"
    );
}

fn list() -> String {
    let nowhere = Path::new("/");
    let around = Surroundings {
        victim: 1,
        victim_address: 0,
        root_cgroup_procs: nowhere,
        unix_socket: nowhere,
    };
    let mut text = String::new();
    for (title, attempts) in [
        ("By a worker", attempts(&around)),
        ("By a worker, its filter out of force", second_line(&around)),
        ("By a supervisor", on_a_supervisor(&around)),
        (
            "By a supervisor, its filter out of force",
            behind_the_supervisors_filter(&around),
        ),
    ] {
        let names: Vec<&str> = attempts.iter().map(name).collect();
        writeln!(
            text,
            "\n**{title}** ({}): {}.",
            names.len(),
            names.join("; ")
        )
        .unwrap();
    }
    text + "\n"
}

fn name(attempt: &Attempt) -> &str {
    &attempt.name
}

/// The capabilities that the document says a supervisor keeps, with their numbers.
pub(crate) fn documented_capabilities() -> Vec<(String, u8)> {
    /// `linux/capability.h`.
    const NUMBERS: [(&str, u8); 9] = [
        ("CAP_KILL", 5),
        ("CAP_SETGID", 6),
        ("CAP_SETUID", 7),
        ("CAP_SETPCAP", 8),
        ("CAP_NET_ADMIN", 12),
        ("CAP_SYS_CHROOT", 18),
        ("CAP_SYS_PTRACE", 19),
        ("CAP_SYS_ADMIN", 21),
        ("CAP_MKNOD", 27),
    ];
    let document = document();
    let (_, table) = document
        .split_once("| capability | kept for | without it |\n")
        .unwrap();
    let rows = table.lines().skip(1).take_while(|row| row.starts_with('|'));
    let numbered = rows.map(|row| {
        let name = row.split('`').nth(1).unwrap();
        let known = NUMBERS.iter().find(|(known, _)| *known == name);
        let known = known.unwrap_or_else(|| panic!("{name}: add its number here"));
        (name.to_owned(), known.1)
    });
    numbered.collect()
}
