//! The folder of manifests that the lab's control component follows.

use std::fs;
use std::net::IpAddr;
use std::path::PathBuf;

use anyhow::{Context, Result};

use super::{Lab, service_addresses};
use crate::manifest::{self, Stage};
use crate::plan::{Enrolment, PodSpec};
use crate::pod::Pod;

/// File of the policies that a lab has unless its plan leaves them out.
const DEFAULT_POLICY: &str = "policy-default";

impl Lab {
    /// The folder of manifests.
    #[must_use]
    pub fn manifests(&self) -> PathBuf {
        self.scratch.join("manifests")
    }

    pub(super) fn write_manifests(&self) -> Result<()> {
        fs::create_dir_all(self.manifests())?;
        for (name, enrolment) in &self.plan.namespaces {
            self.set_enrolment(name, *enrolment)?;
        }
        for (host, locality) in self.nodes.iter().zip(&self.plan.localities) {
            let content = manifest::node(host.name(), locality);
            self.write_manifest(&format!("node-{}", host.name()), &content)?;
        }
        for (service, index) in self.plan.services.iter().zip(1u16..) {
            let addresses = service_addresses(index);
            let name = format!("service-{}-{}", service.namespace, service.name);
            self.write_manifest(&name, &manifest::service(service, &addresses))?;
        }
        if self.plan.default_policy {
            self.write_manifest(DEFAULT_POLICY, &manifest::members_talk_to_members())?;
        }
        for (name, content) in &self.plan.manifests {
            self.write_manifest(name, content)?;
        }
        self.pods.values().try_for_each(|pod| self.write_pod(pod))
    }

    pub(super) fn write_pod(&self, pod: &Pod) -> Result<()> {
        self.announce_pod(pod, Stage::Running)
    }

    /// Says of a pod how far it has come.
    ///
    /// # Errors
    /// If the manifest can't be written.
    pub fn announce_pod(&self, pod: &Pod, stage: Stage) -> Result<()> {
        let node = self.nodes[pod.node()].name();
        let content = manifest::pod(&pod.spec, &pod.addresses(), node, stage);
        self.write_manifest(&pod_file(pod), &content)
    }

    /// As [`Self::announce_pod`], of a pod of the same name with another UID.
    ///
    /// # Errors
    /// If the manifest can't be written.
    pub fn announce_namesake(&self, pod: &Pod, uid: &str, stage: Stage) -> Result<()> {
        let node = self.nodes[pod.node()].name();
        let spec = pod.spec.clone().uid(uid);
        let content = manifest::pod(&spec, &pod.addresses(), node, stage);
        self.write_manifest(&pod_file(pod), &content)
    }

    /// Gives a pod other labels than its plan does, beside `app`.
    ///
    /// # Errors
    /// If the manifest can't be written.
    pub fn relabel_pod(&self, pod: &Pod, labels: &[(&str, &str)]) -> Result<()> {
        let node = self.nodes[pod.node()].name();
        let bare = PodSpec {
            labels: Vec::new(),
            ..pod.spec.clone()
        };
        let spec = labels
            .iter()
            .fold(bare, |spec, (key, value)| spec.label(key, value));
        self.write_manifest(
            &pod_file(pod),
            &manifest::pod(&spec, &pod.addresses(), node, Stage::Running),
        )
    }

    /// Gives a pod other probes than its plan does.
    ///
    /// # Errors
    /// If the manifest can't be written.
    pub fn set_probes(&self, pod: &Pod, probes: &[&str]) -> Result<()> {
        let node = self.nodes[pod.node()].name();
        let spec = PodSpec {
            probes: probes.iter().map(|field| (*field).to_owned()).collect(),
            ..pod.spec.clone()
        };
        let content = manifest::pod(&spec, &pod.addresses(), node, Stage::Running);
        self.write_manifest(&pod_file(pod), &content)
    }

    /// Says that a pod which the lab did not make is on a node, with these addresses; with none,
    /// that the node has not reported any yet.
    ///
    /// # Errors
    /// If the manifest can't be written.
    pub fn declare_pod(&self, spec: &PodSpec, addresses: &[IpAddr]) -> Result<()> {
        let node = self.nodes[spec.node].name();
        let stage = match addresses {
            [] => Stage::Pending,
            _ => Stage::Running,
        };
        let content = manifest::pod(spec, addresses, node, stage);
        self.write_manifest(&declared_file(spec), &content)
    }

    /// Takes [`Self::declare_pod`] back.
    ///
    /// # Errors
    /// If there is no such pod.
    pub fn withdraw_pod(&self, spec: &PodSpec) -> Result<()> {
        self.remove_manifest(&declared_file(spec))
    }

    /// Says of a pod that it is being deleted: it finishes what it has, and services have it
    /// no more.
    ///
    /// # Errors
    /// If the manifest can't be written.
    pub fn terminate_pod(&self, pod: &Pod) -> Result<()> {
        self.announce_pod(pod, Stage::Terminating)
    }

    /// Puts a manifest in place at once, as `<name>.yaml`, anew or instead of an earlier one;
    /// control sees it by itself.
    ///
    /// # Errors
    /// If it can't be written.
    pub fn write_manifest(&self, name: &str, content: &str) -> Result<()> {
        manifest::write(&self.manifests(), name, content)
    }

    /// Takes a manifest away.
    ///
    /// # Errors
    /// If there is none of that name.
    pub fn remove_manifest(&self, name: &str) -> Result<()> {
        let path = self.manifests().join(format!("{name}.yaml"));
        fs::remove_file(&path).with_context(|| format!("removing {}", path.display()))
    }

    /// Enrols a namespace, or takes it out; control sees it by itself.
    ///
    /// # Errors
    /// If the manifest can't be written.
    pub fn set_enrolment(&self, namespace: &str, enrolment: Enrolment) -> Result<()> {
        let content = manifest::namespace(namespace, enrolment);
        self.write_manifest(&format!("namespace-{namespace}"), &content)
    }
}

fn pod_file(pod: &Pod) -> String {
    declared_file(&pod.spec)
}

fn declared_file(spec: &PodSpec) -> String {
    format!("pod-{}-{}", spec.namespace, spec.name)
}
