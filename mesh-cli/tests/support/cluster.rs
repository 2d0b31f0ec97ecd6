//! A double of an API server that the operator's kubeconfig names.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::mpsc;

use serde_json::json;
use tempfile::TempDir;

use crate::api::Api;

/// A double that answers in a thread of its own, and a kubeconfig for it.
pub(crate) struct Cluster {
    pub(crate) api: Api,
    pub(crate) folder: TempDir,
}

impl Cluster {
    pub(crate) fn start() -> Self {
        let (tell, told) = mpsc::channel();
        std::thread::spawn(move || {
            let mut runtime = tokio::runtime::Builder::new_current_thread();
            let runtime = runtime.enable_all().build().unwrap();
            runtime.block_on(async {
                tell.send(Api::start().await).unwrap();
                std::future::pending::<()>().await;
            });
        });
        let (api, folder): (Api, _) = (told.recv().unwrap(), tempfile::tempdir().unwrap());
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "double",
            "clusters": [{"name": "double", "cluster": {"server": api.url}}],
            "contexts": [{"name": "double", "context": {"cluster": "double", "user": "nobody"}}],
            "users": [{"name": "nobody", "user": {}}],
        });
        fs::write(folder.path().join("kubeconfig"), config.to_string()).unwrap();
        Self { api, folder }
    }

    /// A command on this cluster, in its folder.
    pub(crate) fn meshctl(&self, line: &str) -> Output {
        meshctl(
            self.folder.path(),
            &format!("{line} --kubeconfig kubeconfig"),
        )
    }
}

pub(crate) fn meshctl(folder: &Path, line: &str) -> Output {
    Command::new(env!("CARGO_BIN_EXE_meshctl"))
        .args(line.split_whitespace())
        .current_dir(folder)
        .env_remove("KUBECONFIG")
        .output()
        .unwrap()
}

pub(crate) fn done(output: &Output) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let said = text(&output.stdout) + &text(&output.stderr);
    assert!(output.status.success(), "{said}");
    said
}

pub(crate) fn failed(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    String::from_utf8_lossy(&output.stderr).into_owned()
}
