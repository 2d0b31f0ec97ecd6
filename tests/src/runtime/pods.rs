//! What a kubelet does: pods made, run and removed through the runtime's interface.

use std::collections::HashMap;
use std::fs;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::cri::messages::{
    ContainerConfig, ContainerMetadata, ContainerSecurity, CreateContainer, ImageSpec,
    LinuxContainer, LinuxSandbox, NamespaceOption, PodSandboxConfig, PodSandboxMetadata,
    RunPodSandbox, SandboxSecurity,
};
use super::{Runtime, image};
use crate::plan::PodSpec;
use crate::{cgroup, wait};

/// A namespace of the kernel that no two containers share, in the interface's words.
const OF_CONTAINER: i32 = 1;
/// One that is the node's.
const OF_NODE: i32 = 2;
const EXITED: i32 = 2;
/// A sandbox's state.
pub const NOT_READY: i32 = 1;

/// A pod's sandbox: its network is up, nothing of the pod's own runs yet.
#[derive(Clone, Debug)]
pub struct Sandbox {
    /// What it is for.
    pub spec: PodSpec,
    /// The pod's uid.
    pub uid: String,
    /// The sandbox's id.
    pub id: String,
    /// Its network namespace, as the runtime names it; empty where it is the node's.
    pub netns: PathBuf,
    /// The pod's addresses, as the runtime tells them.
    pub addresses: Vec<IpAddr>,
    config: PodSandboxConfig,
}

/// A container of a pod.
#[derive(Debug)]
pub struct Container {
    /// Its id.
    pub id: String,
    log: PathBuf,
}

impl Sandbox {
    /// Its first address.
    ///
    /// # Panics
    /// If it has none.
    #[must_use]
    pub fn address(&self) -> IpAddr {
        *self.addresses.first().expect("a pod with an address")
    }

    /// `<namespace>/<name>`.
    #[must_use]
    pub fn key(&self) -> String {
        self.spec.key()
    }
}

impl Container {
    /// What it has written: standard output and standard error.
    #[must_use]
    pub fn log(&self) -> String {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        // Each line is `<time> <stream> <P or F> <text>`.
        let lines = log.lines().filter_map(|line| line.splitn(4, ' ').nth(3));
        lines.map(|line| format!("{line}\n")).collect()
    }
}

impl Runtime {
    /// The sandbox of a pod with this uid, as a kubelet asks for it.
    #[must_use]
    pub fn sandbox_config(&self, spec: &PodSpec, uid: &str) -> PodSandboxConfig {
        let (name, namespace) = (spec.name.clone(), spec.namespace.clone());
        let logs = self.folders.logs();
        let logs = logs.join(format!("{namespace}_{name}_{uid}"));
        let mut labels: HashMap<String, String> = spec.labels.iter().cloned().collect();
        labels.insert("app".to_owned(), spec.app.clone());
        labels.extend(pod_labels(spec, uid));
        PodSandboxConfig {
            metadata: Some(PodSandboxMetadata {
                name: name.clone(),
                uid: uid.to_owned(),
                namespace,
                attempt: 0,
            }),
            // With the node's network goes its name.
            hostname: if spec.host_network {
                String::new()
            } else {
                name
            },
            log_directory: logs.display().to_string(),
            labels,
            annotations: HashMap::from(
                [
                    (
                        "kubernetes.io/config.seen",
                        "2026-01-01T00:00:00.000000000Z",
                    ),
                    ("kubernetes.io/config.source", "api"),
                ]
                .map(|(key, value)| (key.to_owned(), value.to_owned())),
            ),
            linux: Some(LinuxSandbox {
                cgroup_parent: format!("{}/pod{uid}", self.pods_in_cgroups()),
                security_context: Some(SandboxSecurity {
                    namespace_options: Some(namespaces(spec)),
                }),
            }),
        }
    }

    /// Makes a pod's sandbox, which runs the CNI plugins.
    ///
    /// # Errors
    /// With the runtime's words, which have the plugins'; what it had made by then is removed, as
    /// far as it can be.
    pub fn run_sandbox(&self, spec: &PodSpec) -> Result<Sandbox> {
        let uid = match spec.uid.as_str() {
            "" => new_uid(),
            uid => uid.to_owned(),
        };
        let config = self.sandbox_config(spec, &uid);
        fs::create_dir_all(&config.log_directory)?;
        let request = RunPodSandbox {
            config: Some(config.clone()),
            runtime_handler: String::new(),
        };
        let id = match self.cri.run_sandbox(&request) {
            Ok(id) => id,
            Err(error) => {
                self.remove_cgroups(&uid);
                return Err(error.context(format!("the sandbox of {}", spec.key())));
            }
        };
        let told = self.cri.sandbox(&id)?;
        let network = told.status.unwrap_or_default().network.unwrap_or_default();
        let additional = network.additional.iter().map(|pod| &pod.ip);
        let addresses = [&network.ip].into_iter().chain(additional);
        // Of a pod on its node's network the runtime tells none.
        let addresses = addresses.filter(|ip| !ip.is_empty());
        let addresses: Result<Vec<IpAddr>, _> = addresses.map(|ip| ip.parse()).collect();
        Ok(Sandbox {
            spec: spec.clone(),
            uid,
            netns: match spec.host_network {
                true => PathBuf::new(),
                false => network_namespace(&told.info)?,
            },
            addresses: addresses.with_context(|| format!("the addresses of {}", spec.key()))?,
            id,
            config,
        })
    }

    /// Makes and starts a container of a pod.
    ///
    /// # Errors
    /// With the runtime's words.
    pub fn start_container(
        &self,
        sandbox: &Sandbox,
        name: &str,
        command: &[&str],
    ) -> Result<Container> {
        let mut labels = pod_labels(&sandbox.spec, &sandbox.uid);
        labels.insert("io.kubernetes.container.name".to_owned(), name.to_owned());
        let log = format!("{name}/0.log");
        let path = PathBuf::from(&sandbox.config.log_directory).join(&log);
        fs::create_dir_all(path.parent().context("a log in a folder")?)?;
        let config = ContainerConfig {
            metadata: Some(ContainerMetadata {
                name: name.to_owned(),
                attempt: 0,
            }),
            image: Some(ImageSpec {
                image: image::APP.to_owned(),
            }),
            command: command.iter().map(|&word| word.to_owned()).collect(),
            labels,
            annotations: HashMap::new(),
            log_path: log,
            linux: Some(LinuxContainer {
                security_context: Some(ContainerSecurity {
                    namespace_options: Some(namespaces(&sandbox.spec)),
                }),
            }),
        };
        let request = CreateContainer {
            sandbox: sandbox.id.clone(),
            config: Some(config),
            sandbox_config: Some(sandbox.config.clone()),
        };
        let id = self.cri.start_container(&request);
        let id = id.with_context(|| format!("container {name} of {}", sandbox.key()))?;
        Ok(Container { id, log: path })
    }

    /// Waits for a container's end, and returns what it has written.
    ///
    /// # Errors
    /// If it does not end in time, or with another code than 0.
    pub fn wait_exit(&self, container: &Container, timeout: Duration) -> Result<String> {
        let ended = wait::until("the end of a container", timeout, || {
            let status = self.cri.container(&container.id)?;
            Ok((status.state == EXITED).then_some(status.exit_code))
        });
        let code = ended.with_context(|| format!("it said: {}", container.log()))?;
        ensure!(code == 0, "exit code {code}: {}", container.log());
        Ok(container.log())
    }

    /// Runs a shell command in a container, and returns what it wrote to standard output.
    ///
    /// # Errors
    /// If it ends with another code than 0, with what it said.
    pub fn shell(&self, container: &Container, command: &str) -> Result<String> {
        let ran = self.cri.exec(&container.id, &["sh", "-c", command])?;
        let [out, err] = [ran.stdout, ran.stderr].map(|b| String::from_utf8_lossy(&b).into_owned());
        ensure!(
            ran.exit_code == 0,
            "{command}: exit code {}: {out}{err}",
            ran.exit_code
        );
        Ok(out)
    }

    /// Ends a pod in a kubelet's order: containers, network, sandbox, cgroups.
    ///
    /// # Errors
    /// With the runtime's words.
    pub fn remove_sandbox(&self, sandbox: &Sandbox) -> Result<()> {
        self.cri.stop_sandbox(&sandbox.id)?;
        self.cri.remove_sandbox(&sandbox.id)?;
        self.remove_cgroups(&sandbox.uid);
        Ok(())
    }

    /// What a kubelet does now and then: sandboxes that don't run are removed. One whose making failed
    /// may be there still, for the plugins that take its network away are those that failed.
    ///
    /// # Errors
    /// With the runtime's words.
    pub fn collect_garbage(&self) -> Result<()> {
        for sandbox in self.cri.sandboxes()? {
            if sandbox.state == NOT_READY {
                self.cri.stop_sandbox(&sandbox.id)?;
                self.cri.remove_sandbox(&sandbox.id)?;
            }
        }
        Ok(())
    }

    /// The runtime removes containers' cgroups, a kubelet the pod's.
    fn remove_cgroups(&self, uid: &str) {
        let pods = self.pods_in_cgroups();
        for mount in cgroup::mount_points().unwrap_or_default() {
            let pod = format!("{}/pod{uid}", pods.trim_start_matches('/'));
            if let Err(error) = cgroup::remove(&mount.join(pod)) {
                eprintln!("removing the cgroups of a pod: {error:#}");
            }
        }
    }
}

/// A shell command that says a word to a server at `to`, address and port, and fails unless it comes back.
#[must_use]
pub fn say_to(word: &str, to: &str) -> String {
    format!("echo {word} | mesh-lab-app dial {to} | grep -qx {word}")
}

fn namespaces(spec: &PodSpec) -> NamespaceOption {
    NamespaceOption {
        network: if spec.host_network { OF_NODE } else { 0 },
        pid: OF_CONTAINER,
        ipc: 0,
    }
}

/// The labels by which a kubelet finds what it has made.
fn pod_labels(spec: &PodSpec, uid: &str) -> HashMap<String, String> {
    HashMap::from(
        [
            ("io.kubernetes.pod.name", spec.name.as_str()),
            ("io.kubernetes.pod.namespace", spec.namespace.as_str()),
            ("io.kubernetes.pod.uid", uid),
        ]
        .map(|(key, value)| (key.to_owned(), value.to_owned())),
    )
}

/// A pod's UID, as the API gives it.
#[must_use]
pub fn new_uid() -> String {
    let bits = fastrand::u128(..);
    let text = format!("{bits:032x}");
    let (parts, lengths) = (&text, [0..8, 8..12, 12..16, 16..20, 20..32]);
    lengths.map(|range| &parts[range]).join("-")
}

/// Out of containerd's own information about a sandbox.
fn network_namespace(info: &HashMap<String, String>) -> Result<PathBuf> {
    let told = info.get("info").map_or("", String::as_str);
    let told: Value = serde_json::from_str(told).context("what the runtime says of a sandbox")?;
    let namespaces = told["runtimeSpec"]["linux"]["namespaces"].as_array();
    let mut namespaces = namespaces.into_iter().flatten();
    let network = namespaces.find(|namespace| namespace["type"] == "network");
    let path = network.and_then(|namespace| namespace["path"].as_str());
    path.map(PathBuf::from)
        .context("the runtime names no network namespace")
}
