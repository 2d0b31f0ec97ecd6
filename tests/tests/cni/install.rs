//! The plugin is where the container runtime looks for it, and comes back when it is not.

use std::fs;
use std::path::{Path, PathBuf};

use mesh_lab::cni::{Plugin, Sandbox};
use mesh_lab::manifest::Stage;
use mesh_lab::{Lab, Plan, wait};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde_json::Value;
use tempfile::TempDir;

use crate::{NEW, lab};

const LIST: &str =
    r#"{"cniVersion":"1.0.0","name":"pods","plugins":[{"type":"bridge"},{"type":"portmap"}]}"#;
const SINGLE: &str = r#"{"cniVersion":"1.0.0","name":"pods","type":"bridge"}"#;

/// The agent's own configuration, a copy of the network's.
const OWN: &str = "00--nodemesh.conflist";

/// A container runtime's folders.
struct Runtime {
    bin: PathBuf,
    conf: PathBuf,
    _folder: TempDir,
}

impl Runtime {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (bin, conf) = (folder.path().join("bin"), folder.path().join("net.d"));
        for path in [&bin, &conf] {
            fs::create_dir(path).unwrap();
        }
        Self {
            bin,
            conf,
            _folder: folder,
        }
    }

    /// One node, for each has folders of its own.
    fn plan(&self) -> Plan {
        Plan::nodes(1)
            .enrolled("shop")
            .agent_option("--cni-bin-dir", self.bin.to_str().unwrap())
            .agent_option("--cni-conf-dir", self.conf.to_str().unwrap())
    }

    /// As an installer of a network plugin does.
    fn write(&self, name: &str, text: &str) {
        let new = self.conf.join("new");
        fs::write(&new, text).unwrap();
        fs::rename(new, self.conf.join(name)).unwrap();
    }

    /// What a runtime takes: the first by name.
    fn taken(&self) -> Option<Value> {
        let entries = fs::read_dir(&self.conf).ok()?.flatten();
        let paths = entries.map(|entry| entry.path());
        let configurations = |path: &PathBuf| path.extension().is_some_and(|e| e != "new");
        let first = paths.filter(configurations).min()?;
        serde_json::from_str(&fs::read_to_string(first).ok()?).ok()
    }

    /// The entry at the end of that, which is of this network.
    fn entry(&self, network: &str) -> Option<Value> {
        let list = self.taken()?;
        let last = list["plugins"].as_array()?.last()?.clone();
        (list["name"] == network && last["type"] == "nodemesh-cni").then_some(last)
    }

    fn binary(&self) -> PathBuf {
        self.bin.join("nodemesh-cni")
    }

    fn wait_whole(&self, lab: &Lab, network: &str) {
        let what = format!("the plugin in place, in network {network}");
        let whole = wait::until_true(&what, wait::PATIENCE, || {
            let fault = lab.agent(0).unready(lab.node(0))?;
            Ok(self.entry(network).is_some() && self.binary().is_file() && fault.is_none())
        });
        whole.unwrap_or_else(|e| panic!("{e:#}\n{}", lab.log_tails()));
    }

    fn wait_fault(&self, lab: &Lab, words: &[&str]) {
        let what = format!("not ready for {words:?}");
        let told = wait::until_true(&what, wait::PATIENCE, || {
            let why = lab.agent(0).unready(lab.node(0))?.unwrap_or_default();
            Ok(words.iter().all(|word| why.contains(word)))
        });
        told.unwrap_or_else(|e| panic!("{e:#}\n{}", lab.log_tails()));
    }
}

fn writes(lab: &Lab, what: &str) -> f64 {
    let label = format!("what=\"{what}\"");
    let name = "nodemesh_cni_writes_total";
    lab.agent(0).metric(lab.node(0), name, &[&label]).unwrap()
}

/// Of another network than [`LIST`].
fn network(name: &str) -> String {
    LIST.replace("pods", name)
}

#[test]
fn the_plugin_is_installed_and_put_back() {
    let runtime = Runtime::new();
    runtime.write("20-other.conflist", &network("other"));
    runtime.write("10-pods.conflist", LIST);
    let mut lab = lab(runtime.plan());
    runtime.wait_whole(&lab, "pods");

    // What is installed works, with what its entry says.
    let entry = runtime.entry("pods").unwrap();
    let plugin = Plugin::installed(&runtime.binary(), &entry);
    lab.announce_pod(lab.pod(NEW), Stage::Pending).unwrap();
    let sandbox = Sandbox::of(lab.pod(NEW), "c-1").uid("uid-1");
    plugin
        .add(&sandbox)
        .unwrap_or_else(|e| panic!("{e:#}\n{}", lab.log_tails()));

    let before = ["binary", "entry"].map(|what| writes(&lab, what));
    fs::remove_file(runtime.binary()).unwrap();
    runtime.wait_whole(&lab, "pods");
    fs::remove_file(runtime.conf.join(OWN)).unwrap();
    runtime.wait_whole(&lab, "pods");
    // What the network plugin's installer writes is followed, and takes nothing away meanwhile.
    runtime.write("10-pods.conflist", &network("changed"));
    runtime.wait_whole(&lab, "changed");
    // In place, and in two steps.
    fs::write(runtime.conf.join("10-pods.conflist"), "{\"plugins\":").unwrap();
    runtime.wait_fault(&lab, &["10-pods.conflist", "no JSON"]);
    assert!(runtime.entry("changed").is_some(), "the last good copy");
    fs::write(runtime.conf.join("10-pods.conflist"), LIST).unwrap();
    runtime.wait_whole(&lab, "pods");
    // A configuration that comes before, of a single plugin.
    runtime.write("05-single.conf", &SINGLE.replace("pods", "single"));
    runtime.wait_whole(&lab, "single");
    let after = ["binary", "entry"].map(|what| writes(&lab, what));
    assert!(
        after[0] > before[0] && after[1] > before[1] + 2.0,
        "{before:?} {after:?}"
    );

    // Without a supervisor it stays whatever is written, and pods are refused.
    lab.agent_mut(0).0.daemon.kill9().unwrap();
    runtime.write("05-single.conf", SINGLE);
    runtime.write("00-first.conflist", LIST);
    assert!(runtime.entry("single").is_some() && runtime.binary().is_file());
    let refused = Plugin::installed(&runtime.binary(), &entry);
    assert_eq!(refused.run("ADD", &sandbox).unwrap().code(), 11);
    lab.finish().unwrap();
    let mut left: Vec<_> = fs::read_dir(&runtime.conf).unwrap().flatten().collect();
    left.sort_by_key(fs::DirEntry::path);
    let left: Vec<_> = left.iter().map(fs::DirEntry::file_name).collect();
    let others = ["00-first", "05-single", "10-pods", "20-other"];
    assert_eq!(left.len(), others.len(), "{left:?}");
    for (name, other) in left.iter().zip(others) {
        assert!(name.to_string_lossy().starts_with(other), "{left:?}");
    }
    assert_eq!(
        fs::read_to_string(runtime.conf.join("20-other.conflist")).unwrap(),
        network("other")
    );
    assert!(!runtime.binary().exists());
}

/// A file system of its own for a folder, of a few pages.
struct Small(PathBuf);

impl Small {
    fn mount(folder: &Path) -> Self {
        let options = Some("size=16k");
        mount(
            Some("small"),
            folder,
            Some("tmpfs"),
            MsFlags::empty(),
            options,
        )
        .unwrap();
        Self(folder.to_owned())
    }

    fn read_only(&self, on: bool) {
        let flags = if on {
            MsFlags::MS_RDONLY
        } else {
            MsFlags::empty()
        };
        let none: Option<&str> = None;
        mount(none, &self.0, none, MsFlags::MS_REMOUNT | flags, none).unwrap();
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}

#[test]
fn a_full_disk_and_a_folder_that_can_not_be_written_are_told_and_healed() {
    let runtime = Runtime::new();
    let small = Small::mount(&runtime.conf);
    runtime.write("10-pods.conflist", LIST);
    let filler = runtime.conf.join("filler");
    while fs::OpenOptions::new()
        .append(true)
        .create(true)
        .open(&filler)
        .and_then(|mut file| std::io::Write::write_all(&mut file, &[0; 4096]))
        .is_ok()
    {}
    let lab = lab(runtime.plan());
    runtime.wait_fault(&lab, &[OWN, "No space left"]);
    assert_eq!(
        fs::read_to_string(runtime.conf.join("10-pods.conflist")).unwrap(),
        LIST
    );
    fs::remove_file(filler).unwrap();
    runtime.wait_whole(&lab, "pods");

    runtime.write("10-pods.conflist", LIST);
    runtime.wait_whole(&lab, "pods");
    fs::remove_file(runtime.conf.join("10-pods.conflist")).unwrap();
    runtime.wait_fault(&lab, &["no network configuration"]);
    runtime.write("10-pods.conflist", &LIST.replace("1.0.0", "0.2.0"));
    runtime.wait_fault(&lab, &["cniVersion"]);
    small.read_only(true);
    let fault = lab.agent(0).status().unwrap()["cni_fault"].clone();
    assert!(fault.is_string(), "{fault}");
    small.read_only(false);
    runtime.write("10-pods.conflist", LIST);
    runtime.wait_whole(&lab, "pods");
    // Nothing half written is left.
    let left: Vec<_> = fs::read_dir(&runtime.conf).unwrap().flatten().collect();
    assert_eq!(left.len(), 2, "{left:?}");
}

#[test]
fn the_agents_word_of_its_readiness_reaches_control() {
    let runtime = Runtime::new();
    runtime.write("10-pods.conflist", LIST);
    let lab = lab(runtime.plan());
    let told = |what: &str, holds: &dyn Fn(&str) -> bool| {
        let heard = wait::until_true(what, wait::PATIENCE, || Ok(holds(&lab.control().status()?)));
        heard.unwrap_or_else(|e| panic!("{e:#}\n{}", lab.log_tails()));
    };
    let ready = |status: &str| status.contains("mesh-agent ") && !status.contains("not ready");
    runtime.wait_whole(&lab, "pods");
    told("that the agent is ready", &ready);
    fs::write(runtime.conf.join("10-pods.conflist"), "{\"plugins\":").unwrap();
    told("why it is not", &|status| {
        status.contains("not ready: the CNI plugin is not in place: ")
    });
    runtime.write("10-pods.conflist", LIST);
    told("that it is again", &ready);
}
