//! Options of nodes that Kubernetes attests.

use std::path::PathBuf;

use clap::Args;

use crate::attestor::{ApiServer, ServiceAccounts};

/// Options of attestation by Kubernetes, as given.
#[derive(Args, Clone, Debug)]
pub struct KubernetesOptions {
    /// Service account that speaks for the nodes its pods are on, as NAMESPACE/NAME: such a pod
    /// joins, or calls, with its bound token, which the API server is asked about (TokenReview).
    /// May be given several times
    #[arg(long, value_name = "NAMESPACE/NAME")]
    pub node_service_account: Vec<String>,
    /// Audience that those tokens are for
    #[arg(long, value_name = "AUDIENCE", default_value = "nodemesh-control")]
    pub token_audience: String,
    /// The API server
    #[arg(
        long,
        value_name = "URL",
        default_value = "https://kubernetes.default.svc"
    )]
    pub kubernetes_api: String,
    /// PEM of the CAs of the API server's certificate
    #[arg(
        long,
        value_name = "FILE",
        default_value = "/var/run/secrets/kubernetes.io/serviceaccount/ca.crt"
    )]
    pub kubernetes_ca: PathBuf,
    /// Control's own token for it, read anew for each question
    #[arg(
        long,
        value_name = "FILE",
        default_value = "/var/run/secrets/kubernetes.io/serviceaccount/token"
    )]
    pub kubernetes_token: PathBuf,
    /// Key of a taint that nodes are made with, such as nodemesh.dev/agent-not-ready: it is taken off a
    /// node, whatever its effect, once that node's agent is ready. Needs the right to patch nodes
    #[arg(long, value_name = "KEY", requires = "cluster")]
    pub startup_taint: Option<String>,
}

impl KubernetesOptions {
    /// The attestor, if any account is named.
    pub(super) fn accounts(&self) -> Result<Option<ServiceAccounts>, String> {
        if self.node_service_account.is_empty() {
            return Ok(None);
        }
        for account in &self.node_service_account {
            let parts: Vec<_> = account.split('/').collect();
            if parts.len() != 2 || parts.iter().any(|part| part.is_empty()) {
                return Err(format!("{account:?}: give NAMESPACE/NAME"));
            }
        }
        let (ca, token) = (&self.kubernetes_ca, &self.kubernetes_token);
        let api = ApiServer::new(&self.kubernetes_api, ca, token).map_err(|e| e.to_string())?;
        let accounts = self.node_service_account.iter().cloned();
        Ok(Some(ServiceAccounts::new(
            api,
            &self.token_audience,
            accounts,
        )))
    }
}
