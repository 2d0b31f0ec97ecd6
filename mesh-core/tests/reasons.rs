//! The list of reasons is sound, and `docs/REASONS.md` says what it says.

use std::collections::HashSet;
use std::fmt::Write;
use std::path::Path;

use mesh_core::reason::Reason;

/// Set, the test writes the file instead of comparing it.
const UPDATE: &str = "NODEMESH_UPDATE_DOCS";

fn document() -> String {
    let mut text = String::from(
        "# Reasons\n\n\
         Every refusal and every failure of a flow has one of these codes: in the log line\n\
         (`reason=`), in the metrics (label `reason`), in `meshctl why`. Generated from\n\
         `mesh-core/src/reason/list.rs`; a test keeps the two the same.\n",
    );
    for group in Reason::GROUPS {
        let title = group.title;
        let head = "| code | what the app sees | what happened | what would change it |";
        writeln!(text, "\n## {title}\n\n{head}\n|---|---|---|---|").unwrap();
        for reason in group.reasons {
            let (code, shows) = (reason.code(), reason.shows());
            let (sentence, remedy) = (reason.sentence(), reason.remedy());
            writeln!(text, "| `{code}` | {shows} | {sentence} | {remedy} |").unwrap();
        }
    }
    text
}

#[test]
fn the_document_is_up_to_date() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/REASONS.md");
    if std::env::var_os(UPDATE).is_some() {
        std::fs::write(&path, document()).unwrap();
    }
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        found == document(),
        "docs/REASONS.md is stale; write it anew with\n  \
         {UPDATE}=1 cargo test --release -p mesh-core --test reasons"
    );
}

#[test]
fn codes_are_unique_and_of_one_form() {
    let codes: HashSet<_> = Reason::ALL.iter().map(|r| r.code()).collect();
    assert_eq!(codes.len(), Reason::ALL.len());
    let form = |code: &str| code.bytes().all(|b| b.is_ascii_lowercase() || b == b'_');
    assert!(codes.iter().all(|code| form(code)));
}

#[test]
fn texts_stand_in_a_line_and_in_a_table() {
    for reason in Reason::ALL {
        for text in [reason.sentence(), reason.remedy(), reason.shows()] {
            assert!(!text.is_empty() && !text.contains(['|', '\n']), "{reason}");
            assert!(!text.ends_with('.'), "{reason}: {text}");
        }
        assert!(reason.group().reasons.contains(reason));
    }
}
