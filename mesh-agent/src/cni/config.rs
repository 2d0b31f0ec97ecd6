//! The plugin's entry in a network's configuration, and what the runtime adds to it.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::VERSIONS;
use super::fault::{Code, Fault};

/// `type` of the entry, and name of the binary.
pub const ENTRY_TYPE: &str = "nodemesh-cni";
/// How long a pod's enrolment may take by default, in milliseconds. Kubelet waits 2 min and more.
const TIMEOUT_MS: u64 = 20_000;
const LONGEST_TIMEOUT_MS: u64 = 110_000;

/// What an operator can set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PluginConfig {
    /// The agent's `--run-dir`, where its socket is.
    pub run_dir: PathBuf,
    /// Namespaces whose pods pass without asking: those that a node needs before it has an agent.
    pub exclude_namespaces: BTreeSet<String>,
    /// How long a pod's enrolment may take.
    pub timeout_ms: u64,
}

impl Default for PluginConfig {
    fn default() -> Self {
        Self {
            run_dir: PathBuf::from("/run/nodemesh/default"),
            exclude_namespaces: ["kube-system", "nodemesh-system", "nodemesh-node"]
                .map(str::to_owned)
                .into(),
            timeout_ms: TIMEOUT_MS,
        }
    }
}

/// What comes in on standard input.
#[derive(Debug, Deserialize)]
struct Raw {
    #[serde(rename = "cniVersion", default)]
    cni_version: String,
    #[serde(rename = "prevResult")]
    prev_result: Option<Value>,
    #[serde(rename = "cni.dev/valid-attachments")]
    valid_attachments: Option<Vec<Attachment>>,
    #[serde(flatten)]
    plugin: PluginConfig,
}

#[derive(Debug, Deserialize)]
struct Attachment {
    #[serde(rename = "containerID")]
    container_id: String,
}

/// The configuration of one call.
#[derive(Debug)]
pub(super) struct NetworkConfig {
    /// Of the result.
    pub(super) cni_version: String,
    /// What the plugins before have done.
    pub(super) prev_result: Option<Value>,
    /// The sandboxes that there are; only for GC.
    pub(super) valid: Option<BTreeSet<String>>,
    pub(super) plugin: PluginConfig,
}

impl NetworkConfig {
    pub(super) fn parse(text: &str) -> Result<Self, Fault> {
        let what = "nodemesh-cni can't use the network's configuration";
        let raw: Raw = serde_json::from_str(text).map_err(|e| {
            let details = format!(
                "reading it from standard input: {e}; correct the {ENTRY_TYPE} entry in the CNI configuration of this node"
            );
            Fault::new(Code::Decode, what, details)
        })?;
        if !VERSIONS.contains(&raw.cni_version.as_str()) {
            let details = format!(
                "its cniVersion is {:?}; {ENTRY_TYPE} speaks {}",
                raw.cni_version,
                VERSIONS.join(", ")
            );
            return Err(Fault::new(Code::IncompatibleVersion, what, details));
        }
        let plugin = raw.plugin;
        if !plugin.run_dir.is_absolute() {
            let details = format!("runDir {:?} is no absolute path", plugin.run_dir);
            return Err(Fault::new(Code::Config, what, details));
        }
        if !(1..=LONGEST_TIMEOUT_MS).contains(&plugin.timeout_ms) {
            let details = format!(
                "timeoutMs is {}: from 1 to {LONGEST_TIMEOUT_MS}, for kubelet gives up after 2 min",
                plugin.timeout_ms
            );
            return Err(Fault::new(Code::Config, what, details));
        }
        let valid = raw.valid_attachments;
        let ids = |all: Vec<Attachment>| all.into_iter().map(|one| one.container_id).collect();
        Ok(Self {
            cni_version: raw.cni_version,
            prev_result: raw.prev_result,
            valid: valid.map(ids),
            plugin,
        })
    }

    /// What the plugins before have done: this one is none to be alone.
    pub(super) fn chained(&self) -> Result<&Value, Fault> {
        let given = self.prev_result.as_ref().filter(|result| !result.is_null());
        given.ok_or_else(|| {
            Fault::new(
                Code::Config,
                "nodemesh-cni has no network to enrol a pod in",
                format!("there is no prevResult: {ENTRY_TYPE} is for the end of a conflist, after the plugins that make the pod's network"),
            )
        })
    }

    /// The pod's addresses, as the plugins before say.
    pub(super) fn addresses(&self) -> Result<Vec<IpAddr>, Fault> {
        let wrong = |what: &str| {
            let details = format!(
                "prevResult.ips: {what}; the plugins before {ENTRY_TYPE} in the conflist have written it"
            );
            Fault::new(
                Code::Decode,
                "nodemesh-cni can't read the pod's addresses",
                details,
            )
        };
        let none = Vec::new();
        let ips = match self.chained()?.get("ips") {
            None | Some(Value::Null) => &none,
            Some(Value::Array(ips)) => ips,
            Some(_) => return Err(wrong("no list")),
        };
        let address = |ip: &Value| {
            let text = ip["address"].as_str()?;
            text.split_once('/').map_or(text, |(a, _)| a).parse().ok()
        };
        let each = ips.iter().map(|ip| {
            let given = address(ip).map(|a: IpAddr| a.to_canonical());
            given.ok_or_else(|| wrong(&format!("{ip} has no address such as 10.0.0.2/24")))
        });
        each.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<NetworkConfig, Fault> {
        NetworkConfig::parse(text)
    }

    #[test]
    fn an_entry_without_settings_has_the_defaults() {
        let config = parse(r#"{"cniVersion":"1.0.0","name":"n","type":"nodemesh-cni"}"#).unwrap();
        assert_eq!(config.plugin, PluginConfig::default());
        assert_eq!(config.chained().unwrap_err().code, Code::Config);
    }

    #[test]
    fn what_can_not_be_used_is_refused() {
        for (text, code) in [
            ("{", Code::Decode),
            (r#"{"cniVersion":"0.2.0"}"#, Code::IncompatibleVersion),
            (r#"{"name":"n"}"#, Code::IncompatibleVersion),
            (r#"{"cniVersion":"1.1.0","runDir":"run"}"#, Code::Config),
            (r#"{"cniVersion":"1.1.0","timeoutMs":0}"#, Code::Config),
            (r#"{"cniVersion":"1.1.0","timeoutMs":"1"}"#, Code::Decode),
        ] {
            assert_eq!(parse(text).unwrap_err().code, code, "{text}");
        }
    }

    #[test]
    fn addresses_are_read_of_every_version() {
        for ips in [
            r#"[{"version":"4","address":"10.0.0.2/24"},{"version":"6","address":"fd00::2/64"}]"#,
            r#"[{"address":"10.0.0.2/24","interface":2},{"address":"fd00::2/64"}]"#,
        ] {
            let text = format!(r#"{{"cniVersion":"0.3.1","prevResult":{{"ips":{ips}}}}}"#);
            let addresses = parse(&text).unwrap().addresses().unwrap();
            let expected: [IpAddr; 2] = ["10.0.0.2".parse().unwrap(), "fd00::2".parse().unwrap()];
            assert_eq!(addresses, expected);
        }
        let text = r#"{"cniVersion":"1.0.0","prevResult":{"ips":[{"address":"x"}]}}"#;
        assert_eq!(
            parse(text).unwrap().addresses().unwrap_err().code,
            Code::Decode
        );
    }
}
