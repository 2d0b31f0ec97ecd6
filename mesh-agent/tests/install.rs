//! The DaemonSet that the chart makes: its arguments are ones that the agent takes, and its privileges are
//! those that docs/SECURITY.md justifies, in the same words.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use clap::Parser;
use mesh_agent::supervisor::config::RunArgs;

const MANIFESTS: [&str; 2] = [
    "deploy/manifests/nodemesh.yaml",
    "deploy/chart/nodemesh/ci/changed.rendered.yaml",
];
const TEMPLATE: &str = "deploy/chart/nodemesh/templates/agent.yaml";

fn read(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path);
    fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// The DaemonSet's lines.
fn daemon_set(path: &str) -> Vec<String> {
    let text = read(path);
    let document = text
        .split("\n---\n")
        .find(|d| d.contains("\nkind: DaemonSet\n"));
    let document = document.unwrap_or_else(|| panic!("{path} has no DaemonSet"));
    document
        .lines()
        .map(|line| line.trim().to_owned())
        .collect()
}

#[derive(Parser)]
struct Agent {
    #[command(flatten)]
    run: RunArgs,
}

#[test]
fn the_agent_takes_its_arguments() {
    for path in MANIFESTS {
        let run = options(path);
        assert_eq!(run.join_token_file.unwrap(), Path::new("/token/control"));
        // What is checked later than the command line is parsed.
        assert!(run.uid_base.parse::<u32>().is_ok(), "{}", run.uid_base);
        assert!(
            run.metrics_listen
                .unwrap()
                .parse::<std::net::SocketAddr>()
                .is_ok()
        );
        assert!(
            !run.control.is_empty() && run.control.iter().all(|uri| uri.starts_with("https://"))
        );
    }
}

/// The options of the DaemonSet of these manifests.
fn options(path: &str) -> RunArgs {
    let lines = daemon_set(path);
    let arguments = lines.iter().filter_map(|line| line.strip_prefix("- --"));
    let arguments = arguments.map(|argument| format!("--{argument}"));
    let parsed = Agent::try_parse_from(std::iter::once("agent".to_owned()).chain(arguments));
    parsed.unwrap_or_else(|e| panic!("{path}: {e}")).run
}

#[test]
fn the_chart_says_how_workers_are_rolled() {
    let rolled = |path: &str| {
        let run = options(path);
        (
            run.roll,
            run.roll_at_once,
            run.drain_for,
            run.grandfather_for,
        )
    };
    assert_eq!(
        rolled(MANIFESTS[0]),
        ("auto".to_owned(), Some(1), Some(3600), Some(3600))
    );
    assert_eq!(
        rolled(MANIFESTS[1]),
        ("manual".to_owned(), Some(4), Some(600), Some(0))
    );
}

/// What is asked for beyond an ordinary container, by the lines that ask.
fn privileges(lines: &[String]) -> BTreeSet<String> {
    let mut asked = BTreeSet::new();
    let mut adding = false;
    for line in lines {
        let (key, value) = line.split_once(": ").unwrap_or((line, ""));
        match (key, value) {
            ("hostPID" | "hostNetwork" | "hostIPC" | "privileged", "true") => {
                asked.insert(key.to_owned());
            }
            ("runAsUser", "0") => {
                asked.insert("runAsUser 0".to_owned());
            }
            ("seccompProfile:" | "appArmorProfile:" | "seLinuxOptions:", _) => {
                let profile = key.trim_end_matches(':');
                asked.insert(format!("{profile} Unconfined"));
            }
            ("add:", _) => {
                adding = true;
                continue;
            }
            ("hostPath", value) => {
                let path = value.trim_start_matches("{path: ").split(',').next();
                asked.insert(format!("hostPath {}", path.unwrap_or_default()));
            }
            _ => {}
        }
        match line.strip_prefix("- ") {
            Some(name) if adding => {
                asked.insert(format!("CAP_{name}"));
            }
            _ if line.starts_with('#') => {}
            _ => adding = false,
        }
    }
    asked
}

#[test]
fn each_privilege_is_justified_in_the_chart_and_in_the_document_alike() {
    let document = read("docs/SECURITY.md");
    let template = read(TEMPLATE);
    let mut justified = BTreeSet::new();
    for line in template.lines() {
        let Some(why) = line.trim().strip_prefix("# why ") else {
            continue;
        };
        let (privilege, reason) = why.split_once(": ").expect("PRIVILEGE: REASON");
        let row = format!("| `{privilege}` | {reason} |\n");
        assert!(
            document.contains(&row),
            "docs/SECURITY.md lacks the row\n{row}"
        );
        assert!(justified.insert(privilege.to_owned()), "{privilege} twice");
    }
    let asked = privileges(&daemon_set(MANIFESTS[0]));
    assert_eq!(asked, justified);
    let (_, rows) = document
        .split_once("| privilege | what for |\n|---|---|\n")
        .unwrap();
    let rows = rows
        .lines()
        .take_while(|line| line.starts_with('|'))
        .count();
    assert_eq!(rows, justified.len(), "a row that justifies nothing");
}

/// A capability too few is told by the supervisor at its start; this is one too many. One is for the start
/// alone.
#[test]
fn the_capabilities_are_those_that_the_supervisor_keeps() {
    let document = read("docs/SECURITY.md");
    let (_, kept) = document.split_once("| capability | kept for |").unwrap();
    let kept = kept
        .lines()
        .skip(2)
        .take_while(|line| line.starts_with('|'));
    let mut kept: BTreeSet<_> = kept
        .map(|row| row.split('`').nth(1).unwrap().to_owned())
        .collect();
    kept.insert("CAP_DAC_OVERRIDE".to_owned());
    let asked = privileges(&daemon_set(MANIFESTS[0]));
    let asked: BTreeSet<_> = asked
        .into_iter()
        .filter(|p| p.starts_with("CAP_"))
        .collect();
    assert_eq!(asked, kept);
}
