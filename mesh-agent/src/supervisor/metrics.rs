//! `/metrics`, `/healthz` and `/readyz`. The supervisor's own series come from the
//! recorder; those of pods are gathered when asked for, so that they end with their pod.

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use mesh_api::worker::Counter;
use metrics::gauge;
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, oneshot};
use tokio::time::timeout;

use super::join::now_s;
use super::pods::PodKey;
use super::readiness;
use super::report::PodState;
use super::shared::Shared;
use super::workers::Command;
use crate::capture;

/// How long a worker may take to tell its counters.
const WORKER_PATIENCE: Duration = Duration::from_millis(500);
/// How long a client may take for its request.
const HEADER_PATIENCE: Duration = Duration::from_secs(5);
/// How long a connection may stay.
const CONNECTION_PATIENCE: Duration = Duration::from_secs(60);
/// Connections at a time.
const MAX_CONNECTIONS: usize = 32;
/// How often the recorder tidies its histograms.
const UPKEEP: Duration = Duration::from_secs(5);

/// Makes the process's recorder.
///
/// # Errors
/// If there is one already.
pub(super) fn install() -> Result<PrometheusHandle, String> {
    let handle = PrometheusBuilder::new()
        .install_recorder()
        .map_err(|e| e.to_string())?;
    metrics::describe_gauge!(
        "nodemesh_control_connected",
        "Whether the discovery stream is up"
    );
    metrics::describe_gauge!(
        "nodemesh_trusted_roots",
        "Roots that this node and its pods trust"
    );
    metrics::describe_counter!(
        "nodemesh_control_moves_total",
        "Times the agent went over to another replica of control"
    );
    metrics::describe_counter!(
        "nodemesh_discovery_refused_total",
        "Resources of discovery that were refused as malformed"
    );
    metrics::describe_gauge!(
        "nodemesh_policies_unreadable",
        "Policies that this agent can't read; nothing opens by them"
    );
    metrics::describe_gauge!(
        "nodemesh_discovery_addresses",
        "Addresses that control is asked to tell of, for this node's workers and resolvers"
    );
    metrics::describe_counter!(
        "nodemesh_discovery_lookups_refused_total",
        "Addresses that control was not asked about, because the node asks about as many as it may"
    );
    metrics::describe_counter!(
        "nodemesh_workers_adopted_total",
        "Workers of an earlier supervisor that this one took over"
    );
    metrics::describe_counter!(
        "nodemesh_workers_rolled_total",
        "Workers that were replaced by new ones which took over while they lived"
    );
    metrics::describe_counter!(
        "nodemesh_worker_roll_failures_total",
        "New workers that were to take over and did not get ready, or did not stay"
    );
    metrics::describe_gauge!(
        "nodemesh_roll_stopped",
        "Whether no more workers are replaced, because new ones failed"
    );
    metrics::describe_gauge!(
        "nodemesh_capture_takeover_maps",
        "Kernel maps of another ABI version that this agent shared, copied, or had to begin empty"
    );
    metrics::describe_gauge!(
        "nodemesh_cni_installed",
        "Whether the CNI plugin is where the container runtime looks for it"
    );
    metrics::describe_counter!(
        "nodemesh_cni_writes_total",
        "Times that the CNI plugin's binary, or its entry, was put in place: at first, and whenever somebody took it away"
    );
    metrics::describe_counter!(
        "nodemesh_cni_install_faults_total",
        "Times that the CNI plugin could not be put in place, for another reason than before"
    );
    metrics::describe_counter!(
        "nodemesh_pods_found_total",
        "Pods that were found running and taken into the mesh"
    );
    metrics::describe_counter!(
        "nodemesh_pods_found_refused_total",
        "Running pods that can't be taken into the mesh, by reason"
    );
    metrics::describe_counter!(
        "nodemesh_pods_gone_total",
        "Pods that were taken out because their network namespaces were gone"
    );
    metrics::describe_gauge!(
        "nodemesh_kubelet_found",
        "Whether kubelet's cgroup is known, so that its probes of pods pass"
    );
    metrics::describe_counter!(
        "nodemesh_clock_steps_total",
        "Times that the node's clock was set by a second or more, by direction"
    );
    metrics::describe_counter!(
        "nodemesh_tampering_total",
        "What was found changed behind the agent's back, by what it was and what became of it"
    );
    Ok(handle)
}

/// Serves the endpoints, for ever.
pub(super) async fn serve(listener: TcpListener, shared: Arc<Shared>, handle: PrometheusHandle) {
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let upkeep = handle.clone();
    tokio::spawn(async move {
        loop {
            tokio::time::sleep(UPKEEP).await;
            upkeep.run_upkeep();
        }
    });
    loop {
        let Ok(permit) = slots.clone().acquire_owned().await else {
            return;
        };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(e) => {
                tracing::debug!(error = %e, "metrics: accept failed");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let (shared, handle) = (shared.clone(), handle.clone());
        tokio::spawn(async move {
            let service = service_fn(|request| answer(request, shared.clone(), handle.clone()));
            let mut builder = hyper::server::conn::http1::Builder::new();
            builder
                .timer(TokioTimer::new())
                .header_read_timeout(HEADER_PATIENCE);
            let connection = builder.serve_connection(TokioIo::new(stream), service);
            if let Ok(Err(e)) = timeout(CONNECTION_PATIENCE, connection).await {
                tracing::debug!(error = %e, "metrics: connection ended");
            }
            drop(permit);
        });
    }
}

/// Binds the endpoints' listener.
///
/// # Errors
/// If the address is taken or not the node's.
pub(super) async fn bind(address: SocketAddr) -> std::io::Result<TcpListener> {
    TcpListener::bind(address).await
}

async fn answer(
    request: Request<Incoming>,
    shared: Arc<Shared>,
    handle: PrometheusHandle,
) -> Result<Response<Full<Bytes>>, http::Error> {
    let (status, text) = match (request.method(), request.uri().path()) {
        (&Method::GET | &Method::HEAD, "/metrics") => {
            node_certificate(&shared);
            (StatusCode::OK, handle.render() + &pods_text(&shared).await)
        }
        (&Method::GET | &Method::HEAD, "/healthz") => (StatusCode::OK, "ok\n".to_owned()),
        (&Method::GET | &Method::HEAD, "/readyz") => ready(&shared),
        (&Method::GET | &Method::HEAD, _) => (
            StatusCode::NOT_FOUND,
            "try /metrics, /healthz or /readyz\n".to_owned(),
        ),
        _ => (StatusCode::METHOD_NOT_ALLOWED, "GET only\n".to_owned()),
    };
    Response::builder()
        .status(status)
        .header("content-type", "text/plain; version=0.0.4; charset=utf-8")
        .body(Full::new(Bytes::from(text)))
}

/// How long the node's own certificate still holds.
fn node_certificate(shared: &Shared) {
    if let Some(end) = shared.control.report().node_certificate_not_after_s {
        gauge!("nodemesh_node_certificate_expires_in_seconds").set((end - now_s()) as f64);
    }
}

fn ready(shared: &Shared) -> (StatusCode, String) {
    match readiness::lacks(shared) {
        None => (StatusCode::OK, "ready\n".to_owned()),
        Some(lacks) => (StatusCode::SERVICE_UNAVAILABLE, lacks + "\n"),
    }
}

/// Series by name, so that each name's lines stand together.
type Families = BTreeMap<String, Vec<String>>;

async fn pods_text(shared: &Shared) -> String {
    let pods: Vec<_> = shared
        .pods()
        .iter()
        .map(|(k, pod)| (k.clone(), pod.clone()))
        .collect();
    let mut families = Families::new();
    let mut waiting = Vec::new();
    for (key, pod) in pods {
        let report = pod.report.borrow().clone();
        let report = report.with_usage(&shared.mesh_cgroup);
        let enrolled = u64::from(report.state == PodState::Enrolled);
        add(&mut families, "nodemesh_pod_enrolled", &key, None, enrolled);
        let cut_off = u64::from(report.state == PodState::CutOff);
        add(&mut families, "nodemesh_pod_cut_off", &key, None, cut_off);
        let outdated = u64::from(report.worker_outdated);
        add(
            &mut families,
            "nodemesh_worker_outdated",
            &key,
            None,
            outdated,
        );
        let draining = "nodemesh_workers_draining";
        add(&mut families, draining, &key, None, report.draining.len());
        let left: u64 = report.draining.iter().map(|d| d.connections).sum();
        let connections = "nodemesh_connections_draining";
        add(&mut families, connections, &key, None, left);
        let restarts = "nodemesh_worker_restarts_total";
        add(&mut families, restarts, &key, None, report.restarts);
        let oom_kills = "nodemesh_worker_oom_kills_total";
        add(&mut families, oom_kills, &key, None, report.oom_kills);
        let older = report.older.connections;
        let name = "nodemesh_pod_older_connections";
        add(&mut families, name, &key, None, older);
        let name = "nodemesh_pod_foreign_processes_told";
        let told = u64::from(!report.foreign_processes.is_empty());
        add(&mut families, name, &key, None, told);
        let cpu = Seconds(report.cpu_us);
        add(
            &mut families,
            "nodemesh_worker_cpu_seconds_total",
            &key,
            None,
            cpu,
        );
        let memory = "nodemesh_worker_memory_bytes";
        add(&mut families, memory, &key, None, report.memory_bytes);
        let unhealthy = u64::from(report.unhealthy);
        add(
            &mut families,
            "nodemesh_pod_unhealthy",
            &key,
            None,
            unhealthy,
        );
        if let Some(end) = report.certificate_not_after_s {
            let name = "nodemesh_certificate_not_after_seconds";
            add(&mut families, name, &key, None, end.unsigned_abs());
            let name = "nodemesh_certificate_expires_in_seconds";
            add(&mut families, name, &key, None, end - now_s());
        }
        let refused = shared.capture().refusals(pod.slot).unwrap_or_default();
        let audited = shared.capture().audited(pod.slot).unwrap_or_default();
        for (name, counts) in [
            ("nodemesh_kernel_refusals_total", refused),
            ("nodemesh_kernel_audited_total", audited),
        ] {
            for (reason, count) in counts {
                let label = ("reason", capture::reason(reason).code());
                add(&mut families, name, &key, Some(label), count);
            }
        }
        let probes = shared.capture().probes_passed(pod.slot).unwrap_or_default();
        let name = "nodemesh_probes_passed_total";
        add(&mut families, name, &key, None, probes);
        if let Some(commands) = pod.commands {
            let (reply, counters) = oneshot::channel();
            // Scrapes never take the room that an order to leave needs.
            let room = commands.capacity() > commands.max_capacity() / 2;
            if room && commands.try_send(Command::Metrics(reply)).is_ok() {
                waiting.push((key, counters));
            }
        }
    }
    let asked_at = tokio::time::Instant::now();
    for (key, counters) in waiting {
        // One patience for all, not one after the other.
        let left = WORKER_PATIENCE.saturating_sub(asked_at.elapsed());
        match timeout(left, counters).await {
            Ok(Ok(counters)) => {
                for Counter { name, label, value } in counters {
                    let label = (!label.is_empty()).then_some((label_key(&name), label.as_str()));
                    add(&mut families, &name, &key, label, value);
                }
            }
            _ => add(&mut families, "nodemesh_worker_silent", &key, None, 1),
        }
    }
    render(&families)
}

/// What the one label of a worker's series says.
fn label_key(name: &str) -> &'static str {
    const BY_REASON: [&str; 4] = ["_refusals_", "_failures_", "_audited_", "_cut_"];
    match BY_REASON.iter().any(|family| name.contains(family)) {
        true => "reason",
        false => "kind",
    }
}

/// Microseconds, shown as seconds.
struct Seconds(u64);

impl fmt::Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:06}", self.0 / 1_000_000, self.0 % 1_000_000)
    }
}

fn add(
    families: &mut Families,
    name: &str,
    pod: &PodKey,
    label: Option<(&str, &str)>,
    value: impl fmt::Display,
) {
    let label = label
        .map(|(key, text)| format!(",{key}=\"{text}\""))
        .unwrap_or_default();
    let line = format!("{name}{{pod=\"{pod}\"{label}}} {value}");
    families.entry(name.to_owned()).or_default().push(line);
}

fn render(families: &Families) -> String {
    let mut text = String::new();
    for (name, lines) in families {
        let kind = if name.ends_with("_total") {
            "counter"
        } else {
            "gauge"
        };
        // Writing to a String can't fail.
        let _ = writeln!(text, "# TYPE {name} {kind}");
        for line in lines {
            let _ = writeln!(text, "{line}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_refused_audited_or_cut_is_labelled_by_its_reason() {
        for family in [
            "nodemesh_refusals_inbound_total",
            "nodemesh_handshake_failures_outbound_total",
            "nodemesh_audited_inbound_total",
            "nodemesh_cut_outbound_total",
        ] {
            assert_eq!(label_key(family), "reason", "{family}");
        }
        assert_eq!(label_key("nodemesh_connections_total"), "kind");
        assert_eq!(
            label_key("nodemesh_refusal_messages_suppressed_total"),
            "kind"
        );
    }

    #[test]
    fn lines_of_one_name_stand_together_under_their_type() {
        let mut families = Families::new();
        let (cart, pay) = (
            PodKey::new("shop", "cart").unwrap(),
            PodKey::new("shop", "pay").unwrap(),
        );
        add(
            &mut families,
            "nodemesh_a_total",
            &cart,
            Some(("reason", "x")),
            1,
        );
        add(&mut families, "nodemesh_open", &cart, None, 2);
        add(&mut families, "nodemesh_a_total", &pay, None, 3);
        assert_eq!(
            render(&families),
            "# TYPE nodemesh_a_total counter\n\
             nodemesh_a_total{pod=\"shop/cart\",reason=\"x\"} 1\n\
             nodemesh_a_total{pod=\"shop/pay\"} 3\n\
             # TYPE nodemesh_open gauge\n\
             nodemesh_open{pod=\"shop/cart\"} 2\n"
        );
    }
}
