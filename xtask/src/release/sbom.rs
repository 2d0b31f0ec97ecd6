//! What a binary is made of, as CycloneDX 1.6 says it: every crate that is compiled into it or runs in
//! its build, with licence and checksum, and the C library that is linked in.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::{Release, TARGET, rfc3339};
use crate::exec;

/// All packages of the workspace's dependency graph.
pub(crate) struct Packages {
    metadata: Value,
    checksums: BTreeMap<(String, String), String>,
    libc: String,
}

impl Packages {
    /// Asks cargo, for the platform that is released.
    ///
    /// # Errors
    /// If cargo or the lock file can't be asked.
    pub(crate) fn read(workspace: &Path) -> Result<Self> {
        let mut cargo = exec::cargo(workspace);
        cargo.args(["metadata", "--format-version", "1", "--locked"]);
        cargo.args(["--filter-platform", TARGET]);
        let metadata = serde_json::from_str(&exec::read(&mut cargo)?).context("cargo metadata")?;
        let lock = std::fs::read_to_string(workspace.join("Cargo.lock")).context("Cargo.lock")?;
        let libc = exec::read(Command::new("getconf").arg("GNU_LIBC_VERSION"))?;
        Ok(Self {
            metadata,
            checksums: checksums(&lock),
            libc: libc.trim().trim_start_matches("glibc ").to_owned(),
        })
    }

    /// The bill of some packages of the workspace and of what they need, for one artefact.
    ///
    /// # Errors
    /// A package that there isn't.
    pub(crate) fn bill(&self, artefact: &str, of: &[&str], release: &Release) -> Result<Value> {
        let mut needed = BTreeSet::new();
        for name in of {
            let package = self.all().find(|package| package["name"] == **name);
            let package = package.with_context(|| format!("no package {name}"))?;
            self.collect(package["id"].as_str().unwrap_or_default(), &mut needed);
        }
        let packages = self.all();
        let packages = packages.filter(|p| needed.contains(p["id"].as_str().unwrap_or_default()));
        let mut components: Vec<Value> = packages.map(|package| self.component(package)).collect();
        components.push(json!({
            "type": "library",
            "bom-ref": "glibc",
            "name": "glibc",
            "version": self.libc,
            "description": "linked statically",
            "licenses": [{"expression": "LGPL-2.1-or-later"}],
        }));
        components.sort_by_key(|component| component["bom-ref"].as_str().map(str::to_owned));
        Ok(json!({
            "bomFormat": "CycloneDX",
            "specVersion": "1.6",
            "version": 1,
            "metadata": {
                "timestamp": rfc3339(release.time_s)?,
                "component": {
                    "type": "application",
                    "bom-ref": artefact,
                    "name": artefact,
                    "version": release.version,
                    "licenses": [{"expression": release.license}],
                },
            },
            "components": components,
        }))
    }

    fn all(&self) -> impl Iterator<Item = &Value> {
        self.metadata["packages"].as_array().into_iter().flatten()
    }

    /// A package, and all that it needs but for its tests.
    fn collect<'a>(&'a self, id: &'a str, needed: &mut BTreeSet<&'a str>) {
        if !needed.insert(id) {
            return;
        }
        let nodes = self.metadata["resolve"]["nodes"].as_array();
        let node = nodes.into_iter().flatten().find(|node| node["id"] == id);
        let uses = node.and_then(|node| node["deps"].as_array());
        for used in uses.into_iter().flatten() {
            let kinds = used["dep_kinds"].as_array().into_iter().flatten();
            if kinds.into_iter().any(|kind| kind["kind"] != "dev") {
                self.collect(used["pkg"].as_str().unwrap_or_default(), needed);
            }
        }
    }

    fn component(&self, package: &Value) -> Value {
        let text = |field: &str| package[field].as_str().unwrap_or_default().to_owned();
        let (name, version) = (text("name"), text("version"));
        let purl = format!("pkg:cargo/{name}@{version}");
        let mut component = json!({
            "type": "library",
            "bom-ref": purl,
            "name": name,
            "version": version,
            "purl": purl,
            // Older crates have a slash for OR.
            "licenses": [{"expression": text("license").replace('/', " OR ")}],
        });
        if let Some(checksum) = self.checksums.get(&(name, version)) {
            component["hashes"] = json!([{"alg": "SHA-256", "content": checksum}]);
        }
        component
    }
}

/// Of each package in a lock file, by name and version.
fn checksums(lock: &str) -> BTreeMap<(String, String), String> {
    let mut found = BTreeMap::new();
    for package in lock.split("[[package]]").skip(1) {
        let field = |name: &str| {
            let line = package.lines().find_map(|line| line.strip_prefix(name))?;
            Some(line.strip_prefix(" = ")?.trim_matches('"').to_owned())
        };
        if let (Some(name), Some(version), Some(checksum)) =
            (field("name"), field("version"), field("checksum"))
        {
            found.insert((name, version), checksum);
        }
    }
    found
}
