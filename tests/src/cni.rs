//! A container runtime's part with CNI plugins: the mesh's is run as one runs it.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::mesh::Agent;
use crate::pod::Pod;
use crate::programs;

/// A pod's sandbox, as the runtime has made it.
#[derive(Clone, Debug)]
pub struct Sandbox {
    /// Its id.
    pub container: String,
    /// Path of its network namespace.
    pub netns: PathBuf,
    namespace: String,
    name: String,
    uid: String,
    prev_result: Value,
}

/// What the plugin said.
#[derive(Clone, Debug)]
pub struct Said {
    /// Whether it ended well.
    pub well: bool,
    /// Its standard output; null where there is none.
    pub output: Value,
}

impl Said {
    /// The error's code.
    ///
    /// # Panics
    /// If it is none, or not as the specification has one.
    #[must_use]
    pub fn code(&self) -> u64 {
        assert!(!self.well, "no error: {}", self.output);
        let has = |field: &str| {
            self.output[field]
                .as_str()
                .is_some_and(|text| !text.is_empty())
        };
        let whole = ["cniVersion", "msg", "details"].into_iter().all(has);
        assert!(whole, "{}", self.output);
        self.output["code"].as_u64().expect("a number")
    }

    /// What a pod's event would say.
    #[must_use]
    pub fn text(&self) -> String {
        let part = |field: &str| self.output[field].as_str().unwrap_or_default().to_owned();
        format!("{}; {}", part("msg"), part("details"))
    }
}

impl Sandbox {
    /// Of a pod of the lab, in its own network namespace.
    #[must_use]
    pub fn of(pod: &Pod, container: &str) -> Self {
        let netns = pod.netns.path();
        let ips: Vec<Value> = pod
            .addresses()
            .iter()
            .map(|address| {
                let bits = if address.is_ipv4() { 32 } else { 128 };
                json!({"address": format!("{address}/{bits}"), "interface": 1})
            })
            .collect();
        let prev_result = json!({
            "cniVersion": "1.0.0",
            "interfaces": [
                {"name": pod.host_link},
                {"name": "eth0", "sandbox": &netns},
            ],
            "ips": ips,
            "dns": {"nameservers": ["10.96.0.10"]},
            "not-in-the-specification": [1, 2],
        });
        Self {
            container: container.to_owned(),
            netns,
            namespace: pod.namespace().to_owned(),
            name: pod.name().to_owned(),
            uid: String::new(),
            prev_result,
        }
    }

    /// Of a pod with this UID.
    #[must_use]
    pub fn uid(mut self, uid: &str) -> Self {
        uid.clone_into(&mut self.uid);
        self
    }

    /// Of a pod of another namespace.
    #[must_use]
    pub fn namespace(mut self, namespace: &str) -> Self {
        namespace.clone_into(&mut self.namespace);
        self
    }

    /// Of a pod of another name.
    #[must_use]
    pub fn name(mut self, name: &str) -> Self {
        name.clone_into(&mut self.name);
        self
    }

    /// With another network namespace.
    #[must_use]
    pub fn netns(mut self, path: &Path) -> Self {
        path.clone_into(&mut self.netns);
        self
    }

    /// What the plugins before say.
    #[must_use]
    pub fn prev_result(&self) -> &Value {
        &self.prev_result
    }

    fn arguments(&self) -> String {
        let mut arguments = format!(
            "IgnoreUnknown=1;K8S_POD_NAMESPACE={};K8S_POD_NAME={};K8S_POD_INFRA_CONTAINER_ID={}",
            self.namespace, self.name, self.container
        );
        if !self.uid.is_empty() {
            arguments.push_str(&format!(";K8S_POD_UID={}", self.uid));
        }
        arguments
    }
}

/// The plugin with its entry's settings.
#[derive(Clone, Debug)]
pub struct Plugin {
    program: PathBuf,
    config: Value,
}

impl Plugin {
    /// With an agent's socket, and so long a time for an enrolment.
    ///
    /// # Panics
    /// If it isn't built.
    #[must_use]
    pub fn of(agent: &Agent, timeout_ms: u64) -> Self {
        let program = programs::mesh_binary("nodemesh-cni").expect("it is built");
        let entry = json!({
            "type": "nodemesh-cni",
            "runDir": agent.run_dir(),
            "timeoutMs": timeout_ms,
        });
        Self::installed(&program, &entry)
    }

    /// As a runtime finds it, with its entry in a conflist.
    #[must_use]
    pub fn installed(program: &Path, entry: &Value) -> Self {
        let plugin = Self {
            program: program.to_owned(),
            config: entry.clone(),
        };
        plugin
            .with("cniVersion", json!("1.0.0"))
            .with("name", json!("lab"))
    }

    /// With one more field in its configuration.
    #[must_use]
    pub fn with(mut self, field: &str, value: Value) -> Self {
        self.config[field] = value;
        self
    }

    /// Runs a command for a sandbox.
    ///
    /// # Errors
    /// If it can't be run, or says what is no JSON.
    pub fn run(&self, command: &str, sandbox: &Sandbox) -> Result<Said> {
        let mut config = self.config.clone();
        if !matches!(command, "STATUS" | "GC" | "VERSION") {
            config["prevResult"] = sandbox.prev_result.clone();
        }
        let mut child = Command::new(&self.program);
        child
            .env_clear()
            .env("CNI_COMMAND", command)
            .env("CNI_CONTAINERID", &sandbox.container)
            .env("CNI_NETNS", &sandbox.netns)
            .env("CNI_IFNAME", "eth0")
            .env("CNI_ARGS", sandbox.arguments())
            .env("CNI_PATH", "/opt/cni/bin")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut child = child.spawn().context("starting nodemesh-cni")?;
        let mut stdin = child.stdin.take().context("its standard input")?;
        stdin.write_all(config.to_string().as_bytes())?;
        drop(stdin);
        let output = child.wait_with_output()?;
        let text = String::from_utf8(output.stdout)?;
        let output_json = match text.trim() {
            "" => Value::Null,
            text => serde_json::from_str(text).with_context(|| format!("no JSON: {text}"))?,
        };
        Ok(Said {
            well: output.status.success(),
            output: output_json,
        })
    }

    /// ADD, which has to end well and leave the result as it was.
    ///
    /// # Errors
    /// With what the plugin said.
    pub fn add(&self, sandbox: &Sandbox) -> Result<()> {
        let said = self.run("ADD", sandbox)?;
        ensure!(said.well, "{}", said.text());
        ensure!(
            said.output == sandbox.prev_result,
            "another result than that of the plugins before: {}",
            said.output
        );
        Ok(())
    }
}
