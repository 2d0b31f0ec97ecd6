//! `cargo xtask manifests`: what is made of the Helm chart, and that the chart is sound.

mod values;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use serde_json::Value;

use crate::{exec, setup};

/// What to do
#[derive(Args)]
pub(crate) struct ManifestsArgs {
    /// Write nothing; fail where what is kept is not what would be made
    #[arg(long)]
    check: bool,
}

impl ManifestsArgs {
    /// As `--check`.
    pub(crate) fn check() -> Self {
        Self { check: true }
    }
}

const CHART: &str = "deploy/chart/nodemesh";
const NAMESPACE: &str = "nodemesh-system";

/// What is rendered and kept: values, and the file. The latter two change what the first leaves as it
/// is; tests read all three (`mesh-control/tests/install.rs`).
const RENDERED: [(&str, &str); 3] = [
    (
        "deploy/manifests/values.yaml",
        "deploy/manifests/nodemesh.yaml",
    ),
    (
        "deploy/chart/nodemesh/ci/changed.yaml",
        "deploy/chart/nodemesh/ci/changed.rendered.yaml",
    ),
    (
        "deploy/chart/nodemesh/ci/cert-manager.yaml",
        "deploy/chart/nodemesh/ci/cert-manager.rendered.yaml",
    ),
];

/// Installs that are refused: the namespace, what is set beside the values of the plain manifests, and
/// what the operator is told.
const REFUSED: [(&str, &[&str], &str); 12] = [
    (NAMESPACE, &["signer.secretName="], "meshctl pki init"),
    (
        NAMESPACE,
        &["signer.secretName="],
        "kubectl -n nodemesh-system create secret tls",
    ),
    (
        NAMESPACE,
        &["signer.certManager.issuerName=x"],
        "2 signers are given",
    ),
    (
        NAMESPACE,
        &["signer.secretName=", "signer.pkcs11.uri=pkcs11:object=x"],
        "chainSecretName",
    ),
    (
        NAMESPACE,
        &[
            "signer.secretName=",
            "signer.pkcs11.uri=pkcs11:object=x?pin-value=1",
        ],
        "pin-value",
    ),
    (NAMESPACE, &["trust.configMapName="], "trust.rootPem"),
    (
        NAMESPACE,
        &["trust.rootPem=-----BEGIN CERTIFICATE-----"],
        "by one of",
    ),
    ("default", &[], "nodemesh-system"),
    (
        NAMESPACE,
        &["agent.namespace=nodemesh-system"],
        "privileged",
    ),
    (NAMESPACE, &["control.replica=3"], "replica"),
    (NAMESPACE, &["agent.uidBase=0"], "uidBase"),
    (
        NAMESPACE,
        &["startupTaint=node.kubernetes.io/not-ready"],
        "startupTaint",
    ),
];

/// Makes the plain manifests and the chart's README, or compares them.
pub(crate) fn run(workspace: &Path, args: &ManifestsArgs) -> Result<()> {
    let helm = Helm {
        program: setup::helm(workspace)?,
        workspace,
    };
    let mut made = vec![(
        PathBuf::from(CHART).join("README.md"),
        described(workspace)?,
    )];
    for (values, to) in RENDERED {
        helm.lint(values)?;
        made.push((to.into(), helm.template(NAMESPACE, values, &[])?));
    }
    for (namespace, set, why) in REFUSED {
        let outcome = helm.template(namespace, RENDERED[0].0, set);
        let said = match outcome {
            Ok(_) => bail!("an install in {namespace} with {set:?} is not refused"),
            Err(error) => format!("{error:#}"),
        };
        ensure!(
            said.contains(why),
            "{set:?} is refused without a word on {why:?}: {said}"
        );
    }
    check_definitions(&helm)?;
    for (path, text) in made {
        let full = workspace.join(&path);
        if args.check {
            let kept = fs::read_to_string(&full).unwrap_or_default();
            ensure!(
                kept == text,
                "{} is not what the chart makes now: run `cargo xtask manifests`",
                path.display()
            );
        } else {
            fs::write(&full, text).with_context(|| format!("writing {}", full.display()))?;
            println!("{}", path.display());
        }
    }
    Ok(())
}

/// That the chart brings the mesh's kinds as they are, and that helm is told to keep them.
fn check_definitions(helm: &Helm<'_>) -> Result<()> {
    let rendered = helm.template(NAMESPACE, RENDERED[0].0, &["definitions.install=true"])?;
    let rendered = documents(&rendered)?;
    let path = helm.workspace.join("deploy/definitions.yaml");
    let definitions = documents(&fs::read_to_string(path).context("deploy/definitions.yaml")?)?;
    ensure!(!definitions.is_empty(), "deploy/definitions.yaml is empty");
    for mut definition in definitions {
        let name = definition["metadata"]["name"].clone();
        definition["metadata"]["annotations"]["helm.sh/resource-policy"] = "keep".into();
        ensure!(
            rendered.contains(&definition),
            "the chart does not bring {name} as it is"
        );
    }
    Ok(())
}

fn documents(text: &str) -> Result<Vec<Value>> {
    let documents = serde_yaml_ng::Deserializer::from_str(text);
    let documents = documents.map(serde::Deserialize::deserialize);
    let documents: Result<Vec<Value>, _> = documents.collect();
    let documents = documents.context("YAML")?;
    Ok(documents.into_iter().filter(|d| !d.is_null()).collect())
}

/// The chart's README, if values, schema and templates go together.
fn described(workspace: &Path) -> Result<String> {
    let chart = workspace.join(CHART);
    let read = |path: PathBuf| {
        let text = fs::read_to_string(&path);
        text.with_context(|| format!("reading {}", path.display()))
    };
    let values = values::read(&read(chart.join("values.yaml"))?)?;
    let schema = serde_json::from_str(&read(chart.join("values.schema.json"))?)?;
    let mut templates = String::new();
    for entry in fs::read_dir(chart.join("templates"))? {
        templates += &read(entry?.path())?;
    }
    let mistakes = values::mistakes(&values, &schema, &templates);
    ensure!(mistakes.is_empty(), "{}", mistakes.join("\n"));
    let version = env!("CARGO_PKG_VERSION");
    let about = read(chart.join("Chart.yaml"))?;
    for line in [
        format!("version: {version}\n"),
        format!("appVersion: \"{version}\"\n"),
    ] {
        ensure!(about.contains(&line), "Chart.yaml lacks {line:?}");
    }
    Ok(values::readme(&values))
}

struct Helm<'a> {
    program: PathBuf,
    workspace: &'a Path,
}

impl Helm<'_> {
    fn command(&self, arguments: &[&str], values: &str) -> Command {
        let mut helm = Command::new(&self.program);
        helm.current_dir(self.workspace).args(arguments);
        helm.args(["--values", values]);
        // Nothing of a cluster or a user's repositories is asked.
        helm.env("HELM_CONFIG_HOME", "/nonexistent")
            .env("KUBECONFIG", "/nonexistent");
        helm
    }

    fn lint(&self, values: &str) -> Result<()> {
        let arguments = [
            "lint",
            "--strict",
            "--quiet",
            "--namespace",
            NAMESPACE,
            CHART,
        ];
        exec::read(&mut self.command(&arguments, values)).map(drop)
    }

    fn template(&self, namespace: &str, values: &str, set: &[&str]) -> Result<String> {
        let arguments = ["template", "nodemesh", CHART, "--namespace", namespace];
        let mut helm = self.command(&arguments, values);
        for value in set {
            helm.args(["--set", value]);
        }
        exec::read(&mut helm)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_is_documented_used_and_in_the_schema() {
        let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let readme = described(workspace).unwrap();
        let kept = fs::read_to_string(workspace.join(CHART).join("README.md")).unwrap();
        assert!(readme == kept, "run: cargo xtask manifests");
    }
}
