//! What the plugin does for each command.

use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};

use super::VERSIONS;
use super::call::{Call, Command, PodName};
use super::config::NetworkConfig;
use super::fault::{Code, Fault};
use crate::supervisor::admin::{self, PodAdd, Request, Response};
use crate::supervisor::report::{PodReport, PodState, StatusReport};

/// Longest configuration that is read, in bytes: the result of all plugins before is in it.
const MAX_INPUT: u64 = 1024 * 1024;
/// How much longer than the agent the plugin waits.
const MARGIN: Duration = Duration::from_secs(2);
/// How long the agent may take for what it answers at once, and for taking a pod out. A pod's end
/// waits no longer for an agent that is stuck.
const PROMPT: Duration = Duration::from_secs(5);
const REMOVAL: Duration = Duration::from_secs(10);
const LAST_VERSION: &str = VERSIONS[VERSIONS.len() - 1];

/// Does what a call says; `input` and `output` are what the runtime reads and writes. Whether it
/// went well.
pub fn run(call: &Call, mut input: impl Read, mut output: impl Write) -> bool {
    let mut text = String::new();
    let read = input.by_ref().take(MAX_INPUT).read_to_string(&mut text);
    let (version, outcome) = match read {
        Ok(_) => {
            let version = version_of(&text);
            (version, answer(call, &text))
        }
        Err(e) => (LAST_VERSION.to_owned(), Err(unreadable(&e))),
    };
    let well = outcome.is_ok();
    let said = outcome.unwrap_or_else(|fault| Some(fault.to_json(&version)));
    // Who doesn't listen can't be told that either.
    let told = said.is_none_or(|said| writeln!(output, "{said}").is_ok());
    well && told
}

/// The version that an answer is to have, also to what can't be used else.
fn version_of(text: &str) -> String {
    let config: Option<Value> = serde_json::from_str(text).ok();
    let named = config.and_then(|config| config["cniVersion"].as_str().map(str::to_owned));
    let spoken = named.filter(|version| VERSIONS.contains(&version.as_str()));
    spoken.unwrap_or_else(|| LAST_VERSION.to_owned())
}

fn unreadable(error: &io::Error) -> Fault {
    Fault::new(
        Code::Io,
        "nodemesh-cni could not read the network's configuration",
        format!("reading standard input: {error}"),
    )
}

/// What is written to standard output, if anything.
fn answer(call: &Call, text: &str) -> Result<Option<Value>, Fault> {
    let command = call.command()?;
    if command == Command::Version {
        return Ok(Some(
            json!({"cniVersion": version_of(text), "supportedVersions": VERSIONS}),
        ));
    }
    let config = NetworkConfig::parse(text)?;
    match command {
        Command::Add => add(call, &config).map(Some),
        Command::Del => del(call, &config).map(|()| None),
        Command::Check => check(call, &config).map(|()| None),
        Command::Gc => {
            collect_garbage(&config);
            Ok(None)
        }
        // Each pod is decided on by itself, and those of excluded namespaces always pass: a node
        // whose agent is away is not to be without network as a whole, or it would stay without.
        Command::Status | Command::Version => Ok(None),
    }
}

fn add(call: &Call, config: &NetworkConfig) -> Result<Value, Fault> {
    let result = result(config)?;
    let pod = call.pod()?;
    if config.plugin.exclude_namespaces.contains(&pod.namespace) {
        return Ok(result);
    }
    let netns = seen_by_others(&call.netns).map_err(|e| {
        let (
            PodName {
                namespace, name, ..
            },
            netns,
        ) = (&pod, &call.netns);
        Fault::new(
            Code::Environment,
            format!("nodemesh-cni refuses pod {namespace}/{name}"),
            format!("its network namespace CNI_NETNS={netns:?} can't be found: {e}"),
        )
    })?;
    let timeout_ms = config.plugin.timeout_ms;
    let request = PodAdd {
        namespace: pod.namespace.clone(),
        name: pod.name.clone(),
        netns,
        timeout_ms,
        uid: pod.uid.clone(),
        container: call.container()?.to_owned(),
        addresses: config.addresses()?,
        running: false,
    };
    let tried = Tried {
        run_dir: &config.plugin.run_dir,
        pod: &pod,
        what: format!(
            "asked it to enrol the pod in {} with {:?} within {timeout_ms} ms",
            request.netns.display(),
            request.addresses
        ),
    };
    let patience = Duration::from_millis(timeout_ms) + MARGIN;
    let answer = admin::ask_for(tried.run_dir, &Request::PodAdd(request), patience);
    match answer.map_err(|e| tried.no_answer(&e))? {
        Response {
            error: Some(why), ..
        } => Err(tried.refused(&why)),
        Response { .. } => Ok(result),
    }
}

/// The path without links on its way: the agent has other mounts, in which /var/run is none. What
/// the last part is, is the agent's to see: in /proc it is a link that only looks like one.
fn seen_by_others(path: &Path) -> io::Result<PathBuf> {
    let parts = path.parent().zip(path.file_name());
    let (folder, name) = parts.ok_or(io::ErrorKind::NotFound)?;
    Ok(folder.canonicalize()?.join(name))
}

/// What was asked of the agent, for whoever reads the pod's events.
struct Tried<'a> {
    run_dir: &'a Path,
    pod: &'a PodName,
    what: String,
}

impl Tried<'_> {
    fn no_answer(&self, error: &io::Error) -> Fault {
        let PodName {
            namespace, name, ..
        } = self.pod;
        Fault::new(
            Code::TryAgainLater,
            format!(
                "pod {namespace}/{name} may not start without the node's mesh agent, which does not answer"
            ),
            format!(
                "{}: {error}. Whether a pod is in the mesh only the agent can say, so none starts before it has. Look whether the nodemesh-agent pod of this node runs and is ready, and at its log; kubelet goes on trying",
                self.what
            ),
        )
    }

    fn refused(&self, why: &str) -> Fault {
        let PodName {
            namespace, name, ..
        } = self.pod;
        Fault::new(
            Code::Refused,
            format!("the mesh agent did not enrol pod {namespace}/{name}: {why}"),
            format!(
                "{}. `mesh-agent pod list` on this node and `meshctl status` say more; kubelet goes on trying. A pod that is not to be in the mesh needs a namespace without the label nodemesh.dev/enroll",
                self.what
            ),
        )
    }
}

/// That of the plugins before, unchanged.
fn result(config: &NetworkConfig) -> Result<Value, Fault> {
    let mut result = config.chained()?.clone();
    if let Some(fields) = result.as_object_mut() {
        let version = || Value::from(config.cni_version.as_str());
        fields.entry("cniVersion").or_insert_with(version);
    }
    Ok(result)
}

/// Never fails for want of an agent: it finds out by itself when a namespace is gone.
fn del(call: &Call, config: &NetworkConfig) -> Result<(), Fault> {
    let container = call.container()?.to_owned();
    let Ok(pod) = call.pod() else {
        return Ok(());
    };
    if config.plugin.exclude_namespaces.contains(&pod.namespace) {
        return Ok(());
    }
    let request = Request::PodRemove {
        namespace: pod.namespace,
        name: pod.name,
        container,
    };
    let asked = admin::ask_for(&config.plugin.run_dir, &request, REMOVAL);
    report_only(asked);
    Ok(())
}

/// What can't be done now is the agent's to find out: told in the runtime's log, where there is one.
fn report_only(asked: io::Result<Response>) {
    let why = match asked {
        Ok(Response { error: None, .. }) => return,
        Ok(Response {
            error: Some(why), ..
        }) => why,
        Err(e) => e.to_string(),
    };
    eprintln!("nodemesh-cni: the agent will find out by itself that a pod is gone: {why}");
}

fn status(config: &NetworkConfig) -> Result<StatusReport, String> {
    let answer = admin::ask_for(&config.plugin.run_dir, &Request::Status, PROMPT);
    let answer = answer.map_err(|e| e.to_string())?;
    answer
        .status
        .ok_or_else(|| "no status in the answer".to_owned())
}

fn check(call: &Call, config: &NetworkConfig) -> Result<(), Fault> {
    config.chained()?;
    let pod = call.pod()?;
    if config.plugin.exclude_namespaces.contains(&pod.namespace) {
        return Ok(());
    }
    let container = call.container()?;
    let known = status(config).map_err(|why| {
        Fault::new(
            Code::TryAgainLater,
            "nodemesh-cni can't say how the pod is: the node's mesh agent does not answer",
            why,
        )
    })?;
    let is_it = |known: &&PodReport| known.namespace == pod.namespace && known.name == pod.name;
    let found = known.pods.iter().find(is_it);
    let why = match found {
        None => "the agent has no such pod".to_owned(),
        Some(known) if known.container != container => format!(
            "the agent has it with another sandbox, {:?}",
            known.container
        ),
        Some(known) => match known.state {
            PodState::Enrolled | PodState::NotInMesh => return Ok(()),
            other => format!("it is {}: {}", other.name(), known.reason),
        },
    };
    let PodName {
        namespace, name, ..
    } = pod;
    Err(Fault::new(
        Code::Check,
        format!("pod {namespace}/{name} is not as nodemesh-cni left it"),
        why,
    ))
}

/// Takes out the pods whose sandboxes there are no more.
fn collect_garbage(config: &NetworkConfig) {
    let Some(valid) = &config.valid else {
        return;
    };
    let known = match status(config) {
        Ok(known) => known,
        Err(why) => return report_only(Err(io::Error::other(why))),
    };
    for pod in known.pods {
        if pod.container.is_empty() || valid.contains(&pod.container) {
            continue;
        }
        let request = Request::PodRemove {
            namespace: pod.namespace,
            name: pod.name,
            container: pod.container,
        };
        report_only(admin::ask_for(&config.plugin.run_dir, &request, REMOVAL));
    }
}
