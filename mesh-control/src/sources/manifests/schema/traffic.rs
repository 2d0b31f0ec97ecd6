//! spec of a ServicePolicy: how a service's endpoints are chosen and watched.

use std::time::Duration;

use mesh_core::traffic;
use serde::Deserialize;

use super::values::{HttpHost, HttpPath, ServiceBalancing, ServiceLocality, given};
use super::{Label, Port};

/// spec of a ServicePolicy.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct ServicePolicy {
    pub(crate) service: Label,
    #[serde(default, deserialize_with = "given")]
    pub(crate) balancing: Option<ServiceBalancing>,
    #[serde(default, deserialize_with = "given")]
    pub(crate) locality: Option<ServiceLocality>,
    #[serde(default)]
    pub(crate) outlier_detection: OutlierDetection,
    #[serde(default)]
    pub(crate) health_checks: Vec<HealthCheck>,
}

/// Fields that are absent have the default of services without a policy.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct OutlierDetection {
    pub(crate) consecutive_failures: u32,
    pub(crate) base_ejection_ms: u64,
    pub(crate) max_ejection_ms: u64,
    pub(crate) max_ejected_percent: u8,
}

impl Default for OutlierDetection {
    fn default() -> Self {
        let default = traffic::OutlierDetection::default();
        let ms = |time: Duration| time.as_secs() * 1000;
        Self {
            consecutive_failures: default.consecutive_failures,
            base_ejection_ms: ms(default.base_ejection),
            max_ejection_ms: ms(default.max_ejection),
            max_ejected_percent: default.max_ejected_percent,
        }
    }
}

/// One active health check: exactly one of `tcp` and `http` is given.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct HealthCheck {
    pub(crate) port: Port,
    #[serde(default, deserialize_with = "given")]
    pub(crate) tcp: Option<TcpProbe>,
    #[serde(default, deserialize_with = "given")]
    pub(crate) http: Option<HttpProbe>,
    #[serde(default = "HealthCheck::interval_ms")]
    pub(crate) interval_ms: u64,
    #[serde(default = "HealthCheck::timeout_ms")]
    pub(crate) timeout_ms: u64,
    #[serde(default = "HealthCheck::threshold")]
    pub(crate) unhealthy_threshold: u32,
    #[serde(default = "HealthCheck::threshold")]
    pub(crate) healthy_threshold: u32,
}

impl HealthCheck {
    fn interval_ms() -> u64 {
        1000
    }

    fn timeout_ms() -> u64 {
        500
    }

    fn threshold() -> u32 {
        2
    }
}

/// `tcp: {}`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, expecting = "an empty mapping: {}")]
pub(crate) struct TcpProbe {}

/// What `GET` asks for.
#[derive(Clone, Debug, Deserialize)]
#[serde(
    deny_unknown_fields,
    expecting = "a mapping such as {path: /healthz, host: web.example}"
)]
pub(crate) struct HttpProbe {
    pub(crate) path: HttpPath,
    #[serde(default, deserialize_with = "given")]
    pub(crate) host: Option<HttpHost>,
}
