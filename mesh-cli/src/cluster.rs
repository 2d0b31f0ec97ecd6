//! A cluster's API server, as the operator's kubeconfig names it.

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;
use kube::api::{Api, DynamicObject, ListParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::discovery::ApiResource;
use kube::{Client, Config};

/// Most objects in one answer.
const PAGE: u32 = 500;

/// Which cluster.
#[derive(Args, Debug)]
pub(crate) struct ClusterArgs {
    /// kubeconfig of the cluster; without it KUBECONFIG, ~/.kube/config, or a pod's own account
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// Context of the kubeconfig
    #[arg(long, value_name = "NAME")]
    context: Option<String>,
}

impl ClusterArgs {
    /// Does something with the cluster's API server.
    pub(crate) fn run<T>(&self, with: impl AsyncFnOnce(Client) -> Result<T>) -> Result<T> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("starting the runtime")?;
        runtime.block_on(async { with(self.client().await?).await })
    }

    async fn client(&self) -> Result<Client> {
        let options = KubeConfigOptions {
            context: self.context.clone(),
            ..KubeConfigOptions::default()
        };
        let config = match (&self.kubeconfig, &self.context) {
            (None, None) => Config::infer().await.context(
                "finding the cluster: neither KUBECONFIG or ~/.kube/config nor a pod's service account can be read",
            )?,
            (None, Some(_)) => Config::from_kubeconfig(&options)
                .await
                .context("reading the kubeconfig")?,
            (Some(path), _) => {
                let shown = path.display();
                let file = Kubeconfig::read_from(path);
                let file = file.with_context(|| format!("reading {shown}"))?;
                let config = Config::from_custom_kubeconfig(file, &options).await;
                config.with_context(|| format!("using {shown}"))?
            }
        };
        let url = config.cluster_url.clone();
        Client::try_from(config).with_context(|| format!("making a client for {url}"))
    }
}

/// All objects of a kind that have these labels (`a=b`; all without), in pages.
pub(crate) async fn list(
    api: &Api<DynamicObject>,
    labels: &str,
) -> Result<Vec<DynamicObject>, kube::Error> {
    let mut objects = Vec::new();
    let mut params = ListParams::default().limit(PAGE);
    params.label_selector = (!labels.is_empty()).then(|| labels.to_owned());
    loop {
        let page = api.list(&params).await?;
        objects.extend(page.items);
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => params.continue_token = Some(token),
            None => return Ok(objects),
        }
    }
}

/// Objects of a kind, in all namespaces.
pub(crate) fn all(
    client: &Client,
    group: &str,
    version: &str,
    kind: &str,
    plural: &str,
) -> Api<DynamicObject> {
    let api_version = match group {
        "" => version.to_owned(),
        group => format!("{group}/{version}"),
    };
    let resource = ApiResource {
        group: group.to_owned(),
        version: version.to_owned(),
        api_version,
        kind: kind.to_owned(),
        plural: plural.to_owned(),
    };
    Api::all_with(client.clone(), &resource)
}

/// Where namespaces are.
pub(crate) fn namespace_api(client: &Client) -> Api<DynamicObject> {
    all(client, "", "v1", "Namespace", "namespaces")
}
