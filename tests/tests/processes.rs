//! Processes that come into an enrolled pod from outside (a port-forward, an exec) and would pass
//! for the pod: they are noticed, and refused where its label says so.

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Output;

use mesh_lab::{App, Lab, Plan, Pod, PodSpec, call, cgroup, servers, wait};

const WEB: &str = "shop/web";
const CLIENT: &str = "shop/client";
const PORT: u16 = 8081;
const LABEL: &str = "nodemesh.dev/foreign-processes";
const URL: &str = "http://127.0.0.1:8081/";

/// Of this test alone: other labs' agents see the processes, too.
fn uid(number: u32) -> String {
    format!("{:08x}-0000-4000-9000-{number:012x}", std::process::id())
}

/// A pod with a cgroup as kubelet makes it, in which nginx runs.
struct Place {
    lab: Lab,
    uid: String,
    _nginx: App,
}

impl Place {
    fn new(number: u32) -> Self {
        let uid = uid(number);
        let plan = Plan::nodes(1)
            .enrolled("shop")
            .pod(PodSpec::new("shop", "web").uid(&uid))
            .pod(PodSpec::new("shop", "client"));
        let lab = Lab::with_mesh(plan).unwrap();
        let web = lab.pod(WEB);
        let nginx =
            servers::nginx_in(web, &[PORT], "of the pod", &container(&uid, "nginx")).unwrap();
        let place = Self {
            lab,
            uid,
            _nginx: nginx,
        };
        place.wait_label("audit");
        place
    }

    fn pod(&self) -> &Pod {
        self.lab.pod(WEB)
    }

    fn label(&self, value: &str) {
        self.lab.relabel_pod(self.pod(), &[(LABEL, value)]).unwrap();
        self.wait_label(value);
    }

    /// Waits until the agent has it in force.
    fn wait_label(&self, value: &str) {
        let agent = self.lab.agent(0);
        let in_force = wait::until_true(value, wait::PATIENCE * 2, || {
            Ok(agent.pod_status(self.pod())?["foreign_processes"] == value)
        });
        in_force.unwrap_or_else(|e| {
            let status = agent.pod_status(self.pod());
            panic!("{e:#}: {status:?}\n{}", self.lab.log_tails())
        });
    }

    /// curl by one of the pod's own processes; the body, or its exit status.
    fn own_curl(&self, name: &str) -> anyhow::Result<String> {
        let app = self.pod().command("curl").args(["-sS", "-m", "10", URL]);
        app.cgroup(&container(&self.uid, name)).output()?.ok()
    }

    /// curl as a port-forward of old: `nsenter --net`, from the test's own cgroup.
    fn foreign_curl(&self) -> Output {
        let mut nsenter = std::process::Command::new("nsenter");
        let netns = format!("--net={}", self.pod().netns.path().display());
        let curl = ["curl", "-sS", "-m", "10", URL];
        nsenter.arg(netns).args(curl).output().unwrap()
    }

    fn foreign_connect(&self, to: SocketAddr) -> io::Result<TcpStream> {
        self.pod().netns.run(|| TcpStream::connect(to))
    }

    /// How many were let through, and refused.
    fn counts(&self, reason: &str) -> (u64, u64) {
        let (agent, node) = (self.lab.agent(0), self.lab.node(0));
        (
            agent.audited(node, self.pod(), reason).unwrap(),
            agent.refused(node, self.pod(), reason).unwrap(),
        )
    }

    fn lines(&self, since: mesh_lab::mesh::Mark, reason: &str) -> usize {
        let lines = self.lab.agent(0).refusals(since).unwrap();
        lines.iter().filter(|l| l.field("reason") == reason).count()
    }
}

/// The cgroup of a container, below the pod's own.
fn container(uid: &str, name: &str) -> String {
    format!("kubepods/burstable/pod{uid}/{name}")
}

fn is_eperm<T>(result: io::Result<T>) -> bool {
    result.err().and_then(|e| e.raw_os_error()) == Some(libc::EPERM)
}

#[test]
fn a_port_forward_is_noticed_and_refused_where_the_label_says_so() {
    let place = Place::new(1);
    let (lab, pod) = (&place.lab, place.pod());
    let agent = lab.agent(0);
    let reason = "foreign_process";
    let mark = agent.mark();
    assert_eq!(place.own_curl("own-1").unwrap(), "of the pod");
    assert_eq!(place.counts(reason), (0, 0));

    let forwarded = place.foreign_curl();
    assert_eq!(forwarded.stdout, b"of the pod");
    let fields = [
        ("reason", reason),
        ("outcome", "audited"),
        ("command", "curl"),
        ("destination", "127.0.0.1:8081"),
        ("user", "0"),
    ];
    let line = agent.wait_refusal(mark, pod, &fields).unwrap();
    println!("{}", line.line());
    assert!(line.field("pid").parse::<u32>().is_ok(), "{}", line.line());
    // The test's own cgroup, by its path or, as the process has ended, by its number.
    let own = std::fs::read_to_string("/proc/self/cgroup").unwrap();
    let own = own.lines().find_map(|l| l.strip_prefix("0::")).unwrap();
    let id = cgroup_id(own);
    assert!(
        [own, &format!("id-{id}")].contains(&line.field("cgroup")),
        "{}",
        line.line()
    );
    assert_eq!(place.counts(reason), (1, 0));

    // The same again is counted, and fills no log.
    for _ in 0..20 {
        assert_eq!(place.foreign_curl().stdout, b"of the pod");
    }
    assert_eq!(place.counts(reason), (21, 0));
    assert_eq!(place.lines(mark, reason), 1);

    place.label("refuse");
    let refused = place.foreign_curl();
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(7), "{said}");
    let outcome = [("reason", reason), ("outcome", "refused")];
    agent.wait_refusal(mark, pod, &outcome).unwrap();
    assert_eq!(place.counts(reason), (21, 1));
    // Neither out under the pod's name, nor by way of its addresses.
    let client = lab.pod(CLIENT);
    for address in [client.v4(), pod.v4()] {
        let to = SocketAddr::new(address.into(), PORT);
        assert!(is_eperm(place.foreign_connect(to)), "{to}");
    }
    assert_eq!(place.own_curl("own-2").unwrap(), "of the pod");
    // The worker's dials of its app are its own.
    let from_client = client.command("curl");
    let url = format!("http://{}:{PORT}/", pod.v4());
    let served = from_client.args(["-sS", "-m", "10", &url]).output();
    assert_eq!(served.unwrap().ok().unwrap(), "of the pod");

    place.label("audit");
    assert_eq!(place.foreign_curl().stdout, b"of the pod");
    place.lab.finish().unwrap();
}

fn cgroup_id(path: &str) -> u64 {
    let folder = cgroup::mount_point().unwrap();
    let folder = folder.join(Path::new(path.trim_start_matches('/')));
    std::fs::metadata(folder).unwrap().ino()
}

#[test]
fn what_a_restarted_supervisor_finds_in_force_stays_in_force() {
    let mut place = Place::new(2);
    place.label("refuse");
    place.lab.agent_mut(0).0.daemon.kill9().unwrap();
    assert_eq!(place.foreign_curl().status.code(), Some(7));
    let (agent, node) = place.lab.agent_mut(0);
    agent.start(node).unwrap();
    place.wait_label("refuse");
    assert_eq!(place.foreign_curl().status.code(), Some(7));
    assert_eq!(place.own_curl("own").unwrap(), "of the pod");
    place.lab.finish().unwrap();
}

#[test]
fn an_exec_is_told_from_what_the_container_starts_itself() {
    let place = Place::new(3);
    let (pod, agent) = (place.pod(), place.lab.agent(0));
    let reason = "entered_process";
    let mark = agent.mark();
    // A container whose first process starts others, and others theirs.
    let script = format!("while sleep 0.2; do (sh -c 'curl -sS -m 10 {URL}; echo'); done");
    let container_app = pod.command("unshare").root();
    let container_app = container_app
        .args(["--pid", "--fork", "--kill-child", "bash", "-c", &script])
        .cgroup(&container(&place.uid, "app"))
        .spawn()
        .unwrap();
    container_app.wait_line("of the pod").unwrap();
    let init = first_of(&container_app);
    let exec = |name: &str, words: &[&str]| {
        let nsenter = pod.command("nsenter").root();
        let nsenter = nsenter.args(["-t", &init, "--pid"]).args(words);
        nsenter
            .cgroup(&container(&place.uid, name))
            .output()
            .unwrap()
    };
    let curl = ["curl", "-sS", "-m", "10", URL];
    let nested = ["unshare", "--pid", "--fork", "sh", "-c"];
    let script = curl.join(" ");
    let nested_curl = [&nested[..], &[script.as_str()]].concat();
    assert_eq!(place.counts(reason), (0, 0));

    assert_eq!(exec("exec-1", &curl).ok().unwrap(), "of the pod");
    let fields = [
        ("reason", reason),
        ("outcome", "audited"),
        ("command", "curl"),
    ];
    let line = agent.wait_refusal(mark, pod, &fields).unwrap();
    println!("{}", line.line());
    // A namespace of its own hides none.
    exec("exec-2", &nested_curl).ok().unwrap();
    assert_eq!(place.counts(reason), (2, 0));

    // To refuse those from outside is not to refuse these, by which probes are made.
    place.label("refuse");
    exec("exec-3", &curl).ok().unwrap();
    assert_eq!(place.counts(reason), (3, 0));

    place.label("refuse-exec");
    for (name, words) in [("exec-4", &curl[..]), ("exec-5", &nested_curl)] {
        assert_eq!(exec(name, words).status.code(), Some(7));
    }
    assert_eq!(place.counts(reason), (3, 2));
    // What the container starts itself goes on all the while.
    let served = || container_app.stdout().matches("of the pod").count();
    let before = served();
    wait::until_true("the container's own calls", wait::PATIENCE, || {
        Ok(served() > before + 2)
    })
    .unwrap();
    assert_eq!(container_app.stderr(), "");
    assert_eq!(place.counts(reason), (3, 2));
    assert_eq!(place.counts("foreign_process"), (0, 0));
    drop(container_app);
    place.lab.finish().unwrap();
}

/// The first process of the pid namespace that `unshare --fork` has made.
fn first_of(app: &App) -> String {
    let path = format!("/proc/{0}/task/{0}/children", app.pid());
    let children = std::fs::read_to_string(path).unwrap();
    children.trim().to_owned()
}

#[test]
fn a_pod_without_a_cgroup_of_its_own_is_left_alone_and_says_so() {
    let plan = Plan::nodes(1)
        .enrolled("shop")
        .pod(PodSpec::new("shop", "web").label(LABEL, "refuse-exec"));
    let lab = Lab::with_mesh(plan).unwrap();
    let pod = lab.pod(WEB);
    let _server = servers::echo(pod, PORT).unwrap();
    let to = SocketAddr::new([127, 0, 0, 1].into(), PORT);
    assert!(call::tcp(&pod.netns, to).served());
    let agent = lab.agent(0);
    assert_eq!(agent.pod_status(pod).unwrap()["foreign_processes"], "");
    let name = "nodemesh_pod_foreign_processes_told";
    let told = agent.metric(lab.node(0), name, &["pod=\"shop/web\""]);
    assert!(told.unwrap() < 0.5);
    lab.finish().unwrap();
}
