//! The options of the CNI plugin's installation.

use std::path::{Path, PathBuf};

use super::{ConfigFault, fault, is_name};
use crate::cni::PluginConfig;

/// Where a container runtime looks for network plugins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CniFolders {
    /// Their programs.
    pub bin: PathBuf,
    /// The configurations of pods' networks.
    pub conf: PathBuf,
}

/// What is to be installed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cni {
    /// Where.
    pub folders: CniFolders,
    /// The entry's settings.
    pub plugin: PluginConfig,
}

/// The folders, as given.
#[derive(clap::Args, Clone, Debug, Default)]
pub struct CniFolderArgs {
    /// Folder of the container runtime's network plugins, such as /opt/cni/bin: nodemesh-cni is put
    /// there, and put back. With --cni-conf-dir
    #[arg(long, value_name = "DIR")]
    pub cni_bin_dir: Option<PathBuf>,
    /// Folder of the container runtime's network configurations, such as /etc/cni/net.d: the first
    /// by name gets an entry for nodemesh-cni at its end, and gets it back
    #[arg(long, value_name = "DIR")]
    pub cni_conf_dir: Option<PathBuf>,
}

/// The options of `mesh-agent run`, as given.
#[derive(clap::Args, Clone, Debug, Default)]
pub struct CniArgs {
    /// The folders.
    #[command(flatten)]
    pub folders: CniFolderArgs,
    /// A namespace whose pods start without the agent being asked: one that a node needs before it
    /// has an agent. May be given several times [default: kube-system nodemesh-system nodemesh-node]
    #[arg(long = "cni-exclude-namespace", value_name = "NAMESPACE")]
    pub exclude_namespaces: Vec<String>,
    /// Seconds that a new pod's enrolment may take before its start is given up for the time being;
    /// kubelet tries again [default: 20]
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u16).range(1..=110))]
    pub cni_timeout: Option<u16>,
}

impl CniFolderArgs {
    /// Both folders, or none.
    pub(crate) fn validate(self, faults: &mut Vec<ConfigFault>) -> Option<CniFolders> {
        for (option, folder) in [
            ("--cni-bin-dir", &self.cni_bin_dir),
            ("--cni-conf-dir", &self.cni_conf_dir),
        ] {
            if let Some(folder) = folder.as_ref().filter(|folder| !folder.is_absolute()) {
                faults.push(fault(option, folder.display(), "must be an absolute path"));
            }
        }
        let why = "the CNI plugin takes both --cni-bin-dir and --cni-conf-dir";
        match (self.cni_bin_dir, self.cni_conf_dir) {
            (Some(bin), Some(conf)) => return Some(CniFolders { bin, conf }),
            (None, None) => {}
            (None, Some(_)) => faults.push(ConfigFault::Missing {
                option: "--cni-bin-dir",
                why,
            }),
            (Some(_), None) => faults.push(ConfigFault::Missing {
                option: "--cni-conf-dir",
                why,
            }),
        }
        None
    }
}

impl CniArgs {
    pub(super) fn validate(self, run_dir: &Path, faults: &mut Vec<ConfigFault>) -> Option<Cni> {
        for namespace in &self.exclude_namespaces {
            if !is_name(namespace) {
                let why = "no name of a Kubernetes namespace";
                faults.push(fault("--cni-exclude-namespace", namespace, why));
            }
        }
        let folders = self.folders.validate(faults)?;
        let mut plugin = PluginConfig {
            run_dir: run_dir.to_owned(),
            ..PluginConfig::default()
        };
        if !self.exclude_namespaces.is_empty() {
            plugin.exclude_namespaces = self.exclude_namespaces.into_iter().collect();
        }
        if let Some(seconds) = self.cni_timeout {
            plugin.timeout_ms = u64::from(seconds) * 1_000;
        }
        Some(Cni { folders, plugin })
    }
}
