//! How the endpoints of a service are chosen and watched, as the operator wrote it.

use std::time::Duration;

/// What a `ServicePolicy` says of a service, with the defaults of one that has none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// How an endpoint is chosen.
    pub balancing: Balancing,
    /// Whether nearer endpoints come first.
    pub locality: LocalityPreference,
    /// When an endpoint is left alone for a while after failures.
    pub outliers: OutlierDetection,
    /// Probes of each endpoint, from its own node.
    pub checks: Vec<HealthCheck>,
}

/// How an endpoint is chosen among those that are equally good.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Balancing {
    /// The one of two picked at random that has fewer connections of this worker open.
    #[default]
    LeastRequests,
    /// One after the other.
    RoundRobin,
}

/// Whether nearer endpoints come first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LocalityPreference {
    /// All are the same.
    #[default]
    None,
    /// The nearest that can be had: node, zone, region, elsewhere.
    Nearest,
}

/// Passive outlier detection by the calling worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutlierDetection {
    /// Failed connections in a row after which an endpoint is ejected; 0 never ejects.
    pub consecutive_failures: u32,
    /// How long it stays out the first time; each further time that much longer.
    pub base_ejection: Duration,
    /// Longest ejection.
    pub max_ejection: Duration,
    /// Most of a service's endpoints that may be out, in percent.
    pub max_ejected_percent: u8,
}

impl Default for OutlierDetection {
    fn default() -> Self {
        Self {
            consecutive_failures: 3,
            base_ejection: Duration::from_secs(5),
            max_ejection: Duration::from_secs(60),
            max_ejected_percent: 50,
        }
    }
}

/// An active health check of each endpoint of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthCheck {
    /// Service port; the endpoint's target port is probed.
    pub port: u16,
    /// What is asked.
    pub probe: Probe,
    /// From the start of one probe to the start of the next.
    pub interval: Duration,
    /// How long one probe may take.
    pub timeout: Duration,
    /// Failures in a row that make the endpoint unhealthy.
    pub unhealthy_threshold: u32,
    /// Successes in a row that make it healthy again.
    pub healthy_threshold: u32,
}

/// What a health check asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Probe {
    /// A connection is accepted.
    Tcp,
    /// `GET path` is answered with a status from 200 to 399.
    Http {
        /// Path and query.
        path: String,
        /// The `Host` header; empty for the pod's address.
        host: String,
    },
}
