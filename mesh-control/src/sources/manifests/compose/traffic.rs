//! From a checked ServicePolicy to the model's words.

use std::time::Duration;

use mesh_core::traffic::{HealthCheck, OutlierDetection, Probe, Traffic};

use crate::sources::manifests::schema::traffic::{self as schema, ServicePolicy};

pub(super) fn traffic(policy: &ServicePolicy) -> Traffic {
    let default = Traffic::default();
    let outliers = &policy.outlier_detection;
    Traffic {
        balancing: policy
            .balancing
            .as_ref()
            .map_or(default.balancing, |balancing| balancing.0),
        locality: policy
            .locality
            .as_ref()
            .map_or(default.locality, |locality| locality.0),
        outliers: OutlierDetection {
            consecutive_failures: outliers.consecutive_failures,
            base_ejection: Duration::from_millis(outliers.base_ejection_ms),
            max_ejection: Duration::from_millis(outliers.max_ejection_ms),
            max_ejected_percent: outliers.max_ejected_percent,
        },
        checks: policy.health_checks.iter().map(check).collect(),
    }
}

fn check(check: &schema::HealthCheck) -> HealthCheck {
    let probe = match &check.http {
        None => Probe::Tcp,
        Some(http) => Probe::Http {
            path: http.path.0.clone(),
            host: http.host.as_ref().map_or_else(String::new, |h| h.0.clone()),
        },
    };
    HealthCheck {
        port: check.port.0,
        probe,
        interval: Duration::from_millis(check.interval_ms),
        timeout: Duration::from_millis(check.timeout_ms),
        unhealthy_threshold: check.unhealthy_threshold,
        healthy_threshold: check.healthy_threshold,
    }
}
