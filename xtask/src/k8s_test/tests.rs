//! The runner, against a cluster that answers as it is told to.

use std::cell::RefCell;
use std::collections::BTreeSet;

use anyhow::{anyhow, ensure};

use super::case::Verdict;
use super::runner::outcome;
use super::*;

/// Answers the first of its rules that a command contains; everything else with nothing.
#[derive(Default)]
struct Double {
    rules: Vec<(&'static str, Result<&'static str, &'static str>)>,
    asked: RefCell<Vec<String>>,
}

impl Double {
    fn answering(
        rules: impl IntoIterator<Item = (&'static str, Result<&'static str, &'static str>)>,
    ) -> Self {
        Self {
            rules: rules.into_iter().collect(),
            asked: RefCell::default(),
        }
    }

    /// Where a command with these words came, of all.
    fn asked(&self, words: &str) -> Option<usize> {
        let asked = self.asked.borrow();
        asked.iter().position(|asked| asked.contains(words))
    }
}

impl Cluster for Double {
    fn run(&self, program: Program, arguments: &[&str], _input: &str) -> Result<String> {
        let command = format!("{program:?} {}", arguments.join(" ")).to_lowercase();
        self.asked.borrow_mut().push(command.clone());
        let rule = self.rules.iter().find(|(words, _)| command.contains(words));
        match rule {
            Some((_, Ok(said))) => Ok((*said).to_owned()),
            Some((_, Err(why))) => Err(anyhow!("`{command}`: {why}")),
            None => Ok(String::new()),
        }
    }
}

fn session(cluster: &Double) -> Session<'_> {
    let settings = Settings {
        run: "1".to_owned(),
        chart: "chart".to_owned(),
        repository: "nodemesh".to_owned(),
        app_image: "agnhost".to_owned(),
        pki: "pki".to_owned(),
        values: Vec::new(),
        lose_node: None,
        patience: Duration::ZERO,
        pause: Duration::ZERO,
        load: Duration::ZERO,
    };
    Session::new(cluster, settings)
}

const MARKED: (&str, Result<&str, &str>) = (
    "get namespaces,nodes",
    Ok("namespace/nodemesh-system\nnamespace/nodemesh-test-1\nnode/n1\n"),
);

#[test]
fn without_a_cluster_every_case_is_told_by_name() {
    let folder = tempfile();
    let report = folder.join("junit.xml");
    let args = K8sTestArgs {
        junit: Some(report.clone()),
        ..K8sTestArgs::without_cluster()
    };
    run(Path::new("/nonexistent"), &args).unwrap();
    let written = fs::read_to_string(&report).unwrap();
    fs::remove_dir_all(folder).unwrap();
    let names: BTreeSet<_> = names().collect();
    assert_eq!(names.len(), case::all().count(), "two cases of one name");
    assert!(names.len() >= 20, "{names:?}");
    let head = format!(
        "tests=\"{0}\" failures=\"0\" errors=\"0\" skipped=\"{0}\"",
        names.len()
    );
    assert!(written.contains(&head), "{written}");
    assert_eq!(written.matches(NO_CLUSTER).count(), names.len());
}

fn tempfile() -> PathBuf {
    let folder = format!("nodemesh-k8s-test-{}", std::process::id());
    let folder = std::env::temp_dir().join(folder);
    fs::create_dir_all(&folder).unwrap();
    folder
}

#[test]
fn where_the_install_fails_the_rest_is_not_run_and_all_is_taken_away() {
    let cluster = Double::answering([
        MARKED,
        ("helm install", Err("INSTALLATION FAILED: no such image")),
        ("helm list", Ok("nodemesh\n")),
        (
            "get daemonset",
            Ok(r#"{"status": {"desiredNumberScheduled": 0, "updatedNumberScheduled": 0}}"#),
        ),
    ]);
    let all = run_cases(&session(&cluster), case::all(), |_| true, false);
    let Outcome::Failed(why) = &all[0].outcome else {
        panic!("{:?}", all[0]);
    };
    assert!(why.contains("helm install nodemesh chart"), "{why}");
    assert!(why.contains("no such image"), "{why}");
    let (last, rest) = all[1..].split_last().unwrap();
    for done in rest {
        let stands_on = matches!(&done.outcome, Outcome::NotRun(why) if why.contains(all[0].name));
        assert!(stands_on, "{done:?}");
    }
    assert_eq!((last.group, &last.outcome), ("clean-up", &Outcome::Passed));
    let order = [
        "helm install",
        "uncordon n1",
        "--set agent.unload=true",
        "helm uninstall",
        "delete namespaces -l nodemesh.dev/k8s-test",
    ];
    let order = order.map(|words| cluster.asked(words).unwrap_or_else(|| panic!("{words}")));
    assert!(order.is_sorted(), "{order:?}");
}

#[test]
fn a_case_that_fails_or_panics_keeps_none_from_running() {
    const CASES: [Case; 5] = [
        Case::new("a", "passes", |_| Ok(Verdict::Passed)),
        Case::new("a", "fails", |session| {
            session.until("the moon", |_| Ok(Some("it is cloudy".to_owned())))?;
            Ok(Verdict::Passed)
        }),
        Case::new("b", "panics", |_| panic!("on purpose")),
        Case::new("b", "can't", |_| {
            Ok(Verdict::NotHere("one node".to_owned()))
        }),
        Case::new("b", "is not wanted", |_| Ok(Verdict::Passed)),
    ];
    let cluster = Double::answering([("delete namespaces", Err("the server is away"))]);
    let wanted = |case: &Case| case.name != "is not wanted";
    let all = run_cases(&session(&cluster), CASES.iter(), wanted, false);
    let told: Vec<String> = all.iter().map(junit::line).collect();
    for (line, expected) in told.iter().zip([
        "passed   a: passes",
        "FAILED   a: fails: the moon: not within 0 s: it is cloudy",
        "FAILED   b: panics: the case panicked",
        "not run  b: can't: one node",
        "not run  b: is not wanted: not asked for",
        "FAILED   clean-up: what the run has made is taken away: not everything",
    ]) {
        assert!(line.starts_with(expected), "{line}\nis not {expected}");
    }
    assert!(told[5].contains("the server is away"), "{}", told[5]);
}

#[test]
fn what_bears_no_mark_is_left_alone() {
    let kinds = (
        "get crd",
        Ok(
            "customresourcedefinition/others.example.com\ncustomresourcedefinition/authorizationpolicies.nodemesh.dev\n",
        ),
    );
    let cluster = Double::answering([kinds]);
    clean_up::run(&session(&cluster)).unwrap();
    for words in ["helm", "delete customresource", "uncordon", "taint"] {
        assert_eq!(cluster.asked(words), None, "{words}");
    }
    // With the mark on control's namespace the mesh is the run's own, and other kinds are not.
    let cluster = Double::answering([MARKED, kinds]);
    clean_up::run(&session(&cluster)).unwrap();
    assert!(
        cluster
            .asked("delete customresourcedefinition/authorizationpolicies.nodemesh.dev")
            .is_some()
    );
    assert_eq!(
        cluster.asked("delete customresourcedefinition/others"),
        None
    );
}

#[test]
fn a_node_without_the_taint_is_restored_all_the_same() {
    let absent = ("taint node", Err("error: taint \"x\" not found"));
    let cluster = Double::answering([MARKED, absent]);
    clean_up::run(&session(&cluster)).unwrap();
    assert!(
        cluster
            .asked("label node n1 nodemesh.dev/k8s-test-")
            .is_some()
    );
}

#[test]
fn a_cluster_with_a_mesh_is_refused() {
    for there in [
        (
            "get namespace nodemesh-system",
            Ok("namespace/nodemesh-node\n"),
        ),
        (
            "get crd",
            Ok("customresourcedefinition/revocations.nodemesh.dev\n"),
        ),
    ] {
        let cluster = Double::answering([there]);
        let why = refuse_a_mesh(&session(&cluster)).unwrap_err().to_string();
        assert!(
            why.contains("has a mesh already") && why.contains("--clean-up"),
            "{why}"
        );
        assert_eq!(cluster.asked("delete"), None);
    }
    refuse_a_mesh(&session(&Double::default())).unwrap();
}

/// Load is judged by what curl wrote before and after.
#[test]
fn what_load_lost_is_told() {
    let judged = |requests: &'static str, stream: &'static str| -> Result<()> {
        let cluster = Double::answering([("-c requests", Ok(requests)), ("-c stream", Ok(stream))]);
        let session = session(&cluster);
        let none = Double::default();
        let load = cases::load::Load::begin(&Session::new(&none, session.settings.clone()))?;
        load.nothing_lost(&session)
    };
    const WELL: &str =
        "1 200 \n2 200 \n3 200 \n4 200 \n5 200 \n6 200 \n7 200 \n8 200 \n9 200 \n10 200 \n";
    judged(WELL, "0 200\n0 200\n").unwrap();
    for (requests, stream, words) in [
        ("1 200 \n", "0 200\n", "only 1 requests"),
        (WELL, "", "carried nothing"),
        (WELL, "0 200\n1 200\n", "was lost 1 times"),
        (
            "1 000 reset\n2 200 \n3 200 \n4 200 \n5 200 \n6 200 \n7 200 \n8 200 \n9 200 \n10 000 reset\n",
            "0 200\n",
            "2 of 10 requests failed: {\"0 reset\": 2}",
        ),
    ] {
        let why = judged(requests, stream).unwrap_err().to_string();
        assert!(why.contains(words), "{why}");
    }
}

/// What is filled in is in every manifest, and nothing of it is left.
#[test]
fn manifests_are_filled_in() {
    let cluster = Double::default();
    let session = session(&cluster);
    for manifest in [cases::SHOP, cases::OUTSIDE] {
        let filled = session.filled(manifest);
        for left in ["SHOP", "OUTSIDE", "APP-IMAGE", "RUN\""] {
            assert!(!filled.contains(left), "{left} in {filled}");
        }
        assert!(filled.contains("nodemesh.dev/k8s-test: \"1\""), "{filled}");
    }
}

/// A failure of a case is an error with all that is known; `ensure!` is what makes it.
#[test]
fn causes_are_told() {
    let failed = outcome(|| {
        let cause: Result<()> = (|| {
            ensure!(false, "the cause");
            Ok(())
        })();
        cause.context("the effect")?;
        Ok(Verdict::Passed)
    });
    assert_eq!(failed, Outcome::Failed("the effect: the cause".to_owned()));
}
