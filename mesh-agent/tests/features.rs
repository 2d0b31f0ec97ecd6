//! What the agent makes of a kernel that lacks something: a system call filter stands in for
//! the kernel, and the binary is the one that ships. Needs root.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};
use serde_json::Value;

const BPF_MAP_UPDATE_BATCH: u64 = 26;
const BPF_LINK_CREATE: u64 = 28;
/// What maps answer that can't do a batch (`ENOTSUPP` of the kernel's own `linux/errno.h`).
const ENOTSUPP: i32 = 524;

/// A system call that this kernel is to lack, with a first argument or whatever it is given.
#[derive(Clone, Copy)]
struct Lack {
    call: i64,
    first_argument: Option<u64>,
    errno: i32,
}

const fn no_call(call: i64) -> Lack {
    Lack {
        call,
        first_argument: None,
        errno: libc::ENOSYS,
    }
}

const fn no_command(command: u64, errno: i32) -> Lack {
    Lack {
        call: libc::SYS_bpf,
        first_argument: Some(command),
        errno,
    }
}

impl Lack {
    fn filter(self) -> BpfProgram {
        let arch = TargetArch::try_from(std::env::consts::ARCH).unwrap();
        let equal = |value| {
            let condition =
                SeccompCondition::new(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, value);
            SeccompRule::new(vec![condition.unwrap()]).unwrap()
        };
        let rules = BTreeMap::from([(
            self.call,
            self.first_argument.map(equal).into_iter().collect(),
        )]);
        let errno = SeccompAction::Errno(self.errno.unsigned_abs());
        SeccompFilter::new(rules, SeccompAction::Allow, errno, arch)
            .unwrap()
            .try_into()
            .unwrap()
    }
}

/// `mesh-agent` on a kernel that lacks these.
fn agent(lacks: &[Lack]) -> Command {
    let filters: Vec<BpfProgram> = lacks.iter().map(|lack| lack.filter()).collect();
    let mut command = Command::new(env!("CARGO_BIN_EXE_mesh-agent"));
    // SAFETY: two system calls, no allocation: the filters exist already.
    unsafe {
        command.pre_exec(move || {
            filters.iter().try_for_each(|filter| {
                seccompiler::apply_filter(filter).map_err(|_| std::io::ErrorKind::Other.into())
            })
        });
    }
    command
}

fn check(lacks: &[Lack]) -> (Output, Value) {
    let output = agent(lacks).args(["check", "--json"]).output().unwrap();
    let answer = serde_json::from_slice(&output.stdout);
    let answer = answer.unwrap_or_else(|e| panic!("{e}: {output:?}"));
    (output, answer)
}

/// Names of what is missing.
fn missing(answer: &Value) -> Vec<&str> {
    let features = answer["features"].as_array().unwrap();
    let missing = features.iter().filter(|feature| !feature["lack"].is_null());
    missing
        .map(|feature| feature["name"].as_str().unwrap())
        .collect()
}

/// A supervisor of an instance of its own, which goes with it.
struct Node {
    instance: String,
    folder: tempfile::TempDir,
}

impl Node {
    fn new(name: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let key = rcgen::KeyPair::generate().unwrap();
        let root = rcgen::CertificateParams::new([])
            .unwrap()
            .self_signed(&key)
            .unwrap();
        fs::write(folder.path().join("root.pem"), root.pem()).unwrap();
        fs::write(folder.path().join("token"), "none").unwrap();
        Self {
            instance: format!("nmft-{name}-{}", std::process::id()),
            folder,
        }
    }

    fn run(&self, lacks: &[Lack]) -> Child {
        let path = |name: &str| self.folder.path().join(name);
        agent(lacks)
            .args(["run", "--node", "n", "--control", "https://127.0.0.1:9"])
            .args(["--instance", &self.instance])
            .arg("--trust-bundle")
            .arg(path("root.pem"))
            .arg("--join-token-file")
            .arg(path("token"))
            .arg("--state-dir")
            .arg(path("state"))
            .arg("--run-dir")
            .arg(path("run"))
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    }

    /// Whether anything of it is on this kernel.
    fn stands(&self) -> bool {
        let name = format!("nodemesh-{}", self.instance);
        let cgroups = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"];
        let pins = Path::new("/sys/fs/bpf").join(&name);
        pins.exists()
            || cgroups
                .iter()
                .any(|root| Path::new(root).join(&name).exists())
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let unloaded = agent(&[])
            .args(["unload", "--instance", &self.instance, "--run-dir"])
            .arg(self.folder.path().join("run"))
            .output();
        assert!(unloaded.is_ok_and(|output| output.status.success()) || std::thread::panicking());
    }
}

#[test]
fn this_kernel_will_do() {
    let output = agent(&[])
        .args(["check", "--json", "--programs"])
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
    let programs = answer["programs"]["programs"].as_array().unwrap();
    let wall = programs
        .iter()
        .find(|program| program["name"] == "wall")
        .unwrap();
    assert!(wall["instructions"].as_u64().unwrap() > 1000, "{wall}");
    assert!(
        wall["verified_instructions"].as_u64().unwrap() > 1000,
        "{wall}"
    );
}

#[test]
fn a_verifier_log_is_kept_for_each_program() {
    let folder = tempfile::tempdir().unwrap();
    let output = agent(&[])
        .args(["check", "--json", "--verifier-log"])
        .arg(folder.path())
        .output()
        .unwrap();
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
    let programs = answer["programs"]["programs"].as_array().unwrap();
    assert!(!programs.is_empty());
    for program in programs {
        let name = program["name"].as_str().unwrap();
        let log = fs::read_to_string(folder.path().join(format!("{name}.log"))).unwrap();
        let last = log.lines().last().unwrap();
        // The log and the table are of the same code.
        let processed = format!("processed {} insns", program["verified_instructions"]);
        assert!(last.starts_with(&processed), "{name}: {processed}: {last}");
    }
}

#[test]
fn a_kernel_without_what_is_required_is_refused_by_name() {
    let lacks = [
        (no_call(libc::SYS_bpf), "bpf(2)", "4.1"),
        (no_call(libc::SYS_pidfd_getfd), "pidfd_getfd", "5.6"),
        (no_call(libc::SYS_close_range), "close_range", "5.9"),
        (no_call(libc::SYS_seccomp), "seccomp filters", "4.14"),
        (
            no_command(BPF_LINK_CREATE, libc::EINVAL),
            "links of cgroup programs",
            "5.7",
        ),
        (
            no_command(BPF_MAP_UPDATE_BATCH, ENOTSUPP),
            "batched updates of tries and arrays of maps",
            "5.19",
        ),
    ];
    for (lack, name, since) in lacks {
        let (output, answer) = check(&[lack]);
        assert_eq!(output.status.code(), Some(1), "{name}");
        assert!(
            missing(&answer).contains(&name),
            "{name}: {:?}",
            missing(&answer)
        );
        let node = Node::new("refused");
        let output = node.run(&[lack]).wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{said}");
        for part in [name, &format!("Linux {since}"), "Linux 6.1 or later"] {
            assert!(said.contains(part), "no {part:?} in {said}");
        }
        assert!(
            !node.stands(),
            "{name} is missing, and something was attached"
        );
    }
}

#[test]
fn a_kernel_without_tcx_has_its_walls_on_clsact() {
    let (_, answer) = check(&[no_command(BPF_LINK_CREATE, libc::EINVAL)]);
    let missing = missing(&answer);
    assert!(missing.contains(&"tcx"), "{missing:?}");
    assert!(
        !missing.contains(&"tcx, or clsact with bpf filters"),
        "{missing:?}"
    );
}

#[test]
fn a_kernel_without_what_is_optional_will_do_and_the_log_says_so() {
    let lacks = [
        no_call(libc::SYS_landlock_create_ruleset),
        no_call(libc::SYS_memfd_secret),
    ];
    let (output, answer) = check(&lacks);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(
        missing(&answer),
        ["memfd_secret", "landlock", "landlock's scopes"]
    );
    let node = Node::new("without");
    let mut supervisor = node.run(&lacks);
    // Held to the end: who has nobody to write to dies of it.
    let mut lines = BufReader::new(supervisor.stderr.take().unwrap()).lines();
    let said: Vec<String> = lines
        .by_ref()
        .map(Result::unwrap)
        .take_while(|line| !line.contains("supervisor is up"))
        .collect();
    for name in ["memfd_secret", "landlock"] {
        let told = said
            .iter()
            .any(|line| line.contains(&format!("this kernel has no {name}")));
        assert!(told, "{said:?}");
    }
    kill(
        Pid::from_raw(supervisor.id().cast_signed()),
        Signal::SIGTERM,
    )
    .unwrap();
    assert!(supervisor.wait().unwrap().success(), "{said:?}");
    assert!(node.stands());
}

/// The rows of docs/KERNELS.md for features of one need. Which hooks use a helper is left to
/// `mesh-agent check`.
fn rows(answer: &Value, need: &str) -> String {
    let of_need = |feature: &&Value| feature["need"] == need;
    let row = |feature: &Value| {
        let text = |field: &str| feature[field].as_str().unwrap().to_owned();
        let name = text("name");
        let name = name.split(" in ").next().unwrap();
        let options = text("config");
        let purpose = text("purpose");
        format!("| {name} | {purpose} | {} | {options} |\n", text("since"))
    };
    let rows = answer["features"]
        .as_array()
        .unwrap()
        .iter()
        .filter(of_need)
        .map(row);
    let head = "| feature | what it is for | Linux | built with |\n|---|---|---|---|\n".to_owned();
    head + &rows.collect::<String>()
}

#[test]
fn the_document_lists_what_is_asked_for() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/KERNELS.md");
    let (_, answer) = check(&[]);
    let found = fs::read_to_string(&path).unwrap();
    let mut wanted = found.clone();
    for need in ["required", "optional"] {
        let (head, rest) = wanted
            .split_once(&format!("<!-- features: {need}"))
            .unwrap();
        let (comment, rest) = rest.split_once("-->\n").unwrap();
        let (_, tail) = rest.split_once("<!-- features: end -->").unwrap();
        let rows = rows(&answer, need);
        wanted =
            format!("{head}<!-- features: {need}{comment}-->\n{rows}<!-- features: end -->{tail}");
    }
    if std::env::var_os("NODEMESH_UPDATE_DOCS").is_some() {
        fs::write(&path, &wanted).unwrap();
        return;
    }
    assert!(
        found == wanted,
        "docs/KERNELS.md is stale; write it anew with\n  \
         NODEMESH_UPDATE_DOCS=1 cargo test --release -p mesh-agent --test features"
    );
}
