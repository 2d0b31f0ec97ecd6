//! What the runtime says in the environment.

use std::path::PathBuf;

use super::fault::{Code, Fault};

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// A pod's network has been made.
    Add,
    /// A pod's network is going away.
    Del,
    /// Is a pod as it was left?
    Check,
    /// Whatever is of no pod any more is to go.
    Gc,
    /// Could a pod be added?
    Status,
    /// Which versions of the specification are spoken?
    Version,
}

/// One call of the plugin.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Call {
    /// `CNI_COMMAND`.
    command: String,
    /// `CNI_CONTAINERID`: the runtime's id of the sandbox.
    pub container: String,
    /// `CNI_NETNS`.
    pub netns: PathBuf,
    /// `CNI_ARGS`: `KEY=VALUE`, with `;` between them.
    args: String,
}

/// Whom a call is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PodName {
    pub(super) namespace: String,
    pub(super) name: String,
    /// Empty where the runtime doesn't say.
    pub(super) uid: String,
}

impl Call {
    /// What `variable` says, which is the process's environment.
    pub fn from_env(variable: impl Fn(&str) -> Option<String>) -> Self {
        let given = |name| variable(name).unwrap_or_default();
        Self {
            command: given("CNI_COMMAND"),
            container: given("CNI_CONTAINERID"),
            netns: given("CNI_NETNS").into(),
            args: given("CNI_ARGS"),
        }
    }

    /// What is to be done.
    ///
    /// # Errors
    /// If the specification has no such command.
    pub fn command(&self) -> Result<Command, Fault> {
        Ok(match self.command.as_str() {
            "ADD" => Command::Add,
            "DEL" => Command::Del,
            "CHECK" => Command::Check,
            "GC" => Command::Gc,
            "STATUS" => Command::Status,
            "VERSION" => Command::Version,
            other => {
                let details = format!(
                    "CNI_COMMAND is {other:?}: ADD, DEL, CHECK, GC, STATUS or VERSION; container runtimes run this program, people don't"
                );
                return Err(environment("nodemesh-cni has no such command", details));
            }
        })
    }

    /// The sandbox's id, which ADD, CHECK and DEL have.
    pub(super) fn container(&self) -> Result<&str, Fault> {
        match self.container.as_str() {
            "" => Err(environment(
                "nodemesh-cni was not told of which sandbox it is run",
                "CNI_CONTAINERID is not set",
            )),
            id => Ok(id),
        }
    }

    /// Whom the call is about.
    pub(super) fn pod(&self) -> Result<PodName, Fault> {
        let given = |key: &str| {
            let pairs = self.args.split(';').filter_map(|pair| pair.split_once('='));
            let mut values = pairs.filter(|(k, _)| *k == key).map(|(_, value)| value);
            let value = values.next().filter(|value| !value.is_empty());
            value.map(ToOwned::to_owned)
        };
        let required = |key| {
            given(key).ok_or_else(|| {
                let details = format!("CNI_ARGS has no {key}, but {:?}: enrolment is by the pod's name in Kubernetes, which runtimes give when kubelet asks them for a pod", self.args);
                environment("nodemesh-cni was not told of which pod it is run", details)
            })
        };
        Ok(PodName {
            namespace: required("K8S_POD_NAMESPACE")?,
            name: required("K8S_POD_NAME")?,
            uid: given("K8S_POD_UID").unwrap_or_default(),
        })
    }
}

fn environment(msg: &str, details: impl Into<String>) -> Fault {
    Fault::new(Code::Environment, msg, details)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(args: &str) -> Call {
        Call {
            args: args.to_owned(),
            ..Call::default()
        }
    }

    #[test]
    fn the_pod_is_in_the_arguments() {
        let pod = call("IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=cart;K8S_POD_UID=u-1");
        let pod = pod.pod().unwrap();
        assert_eq!(
            (pod.namespace.as_str(), pod.name.as_str(), pod.uid.as_str()),
            ("shop", "cart", "u-1")
        );
        let without = call("K8S_POD_NAMESPACE=shop;K8S_POD_NAME=cart");
        assert_eq!(without.pod().unwrap().uid, "");
        for args in [
            "",
            "K8S_POD_NAME=cart",
            "K8S_POD_NAMESPACE=;K8S_POD_NAME=cart",
        ] {
            assert_eq!(call(args).pod().unwrap_err().code, Code::Environment);
        }
    }
}
