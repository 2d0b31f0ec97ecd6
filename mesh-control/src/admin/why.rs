//! What the mesh would do with a flow: names into the model's terms, and its explanation into
//! words.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use mesh_api::admin::{self, Place, Why};
use mesh_core::explain::{
    Attempt, Destination, Explanation, Outcome, Question, Source, Verdict, explain,
};
use mesh_core::model::{Mesh, Service, Workload, WorkloadUid};
use mesh_core::policy::Protocol;
use mesh_core::reason::Reason;

use crate::registry::{service_key, workload_uid};

/// The cluster's DNS service, whose addresses and endpoints are resolvers.
const DNS_SERVICE: (&str, &str) = ("kube-system", "kube-dns");

/// Why a question has no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum WhyFault {
    #[error("{0:?} is not <namespace>/<name>")]
    Name(String),
    #[error("there is no {kind} {name} in the mesh's manifests{hint}")]
    Unknown {
        kind: &'static str,
        name: String,
        hint: &'static str,
    },
    #[error("{0} is both a pod and a service: say pod/{0} or svc/{0}")]
    Ambiguous(String),
    #[error("flows come from pods, and {service} is a service; its pods: {pods}")]
    ServiceAsSource { service: String, pods: String },
    #[error("give a port, as in {destination}:80{known}")]
    Port { destination: String, known: String },
}

/// A question, as it came in.
pub(super) struct Asked<'a> {
    pub(super) source: &'a Place,
    pub(super) destination: &'a Place,
    pub(super) port: Option<u16>,
    pub(super) protocol: Protocol,
}

impl Asked<'_> {
    /// `cut_off`: what nodes say is in the way of pods that they have cut off.
    pub(super) fn answer(
        &self,
        mesh: &Mesh,
        resolvers: &[IpAddr],
        cut_off: &BTreeMap<WorkloadUid, String>,
    ) -> Result<Why, WhyFault> {
        let source = source(mesh, self.source)?;
        let destination = destination(mesh, self.destination)?;
        let port = match self.port {
            Some(port) => port,
            None => only_port(&destination)?,
        };
        let head = format!(
            "{} to {}, {} port {port}: ",
            shown_source(&source),
            shown_destination(&destination),
            match self.protocol {
                Protocol::Tcp => "TCP",
                Protocol::Udp => "UDP",
            }
        );
        let question = Question {
            source,
            destination,
            port,
            protocol: self.protocol,
        };
        let explanation = explain(mesh, &question, &all_resolvers(mesh, resolvers));
        let why = answer(&head, &explanation);
        Ok(match end_cut_off(&question.source, &explanation, cut_off) {
            Some(end) => overruled(why, &head, &end, self.protocol),
            None => why,
        })
    }
}

/// The resolvers that were given, and those that the model has.
fn all_resolvers(mesh: &Mesh, given: &[IpAddr]) -> Vec<IpAddr> {
    let key = service_key(DNS_SERVICE.0, DNS_SERVICE.1);
    let service = mesh.service(&key).into_iter();
    let own = service.flat_map(|service| service.addresses.iter());
    let members = mesh.members(&key).flat_map(|pod| pod.addresses.iter());
    let all = given.iter().chain(own).chain(members);
    let all: BTreeSet<IpAddr> = all.copied().collect();
    all.into_iter().collect()
}

fn split(name: &str) -> Result<(&str, &str), WhyFault> {
    let parts = name.split_once('/');
    parts.ok_or_else(|| WhyFault::Name(name.to_owned()))
}

fn pod<'a>(mesh: &'a Mesh, name: &str) -> Result<Option<&'a Arc<Workload>>, WhyFault> {
    let (namespace, pod) = split(name)?;
    Ok(mesh.workload(&workload_uid(namespace, pod)))
}

fn service<'a>(mesh: &'a Mesh, name: &str) -> Result<Option<&'a Arc<Service>>, WhyFault> {
    let (namespace, service) = split(name)?;
    Ok(mesh.service(&service_key(namespace, service)))
}

fn unknown(kind: &'static str, name: &str) -> WhyFault {
    let hint = match kind {
        "service" => "",
        _ => " (pods without a node, that have ended, or with hostNetwork are not in it)",
    };
    WhyFault::Unknown {
        kind,
        name: name.to_owned(),
        hint,
    }
}

fn source(mesh: &Mesh, place: &Place) -> Result<Source, WhyFault> {
    let as_service = |name: &str, service: &Service| {
        let pods = mesh.members(&service.key);
        let pods: Vec<_> = pods.map(|pod| named(pod)).collect();
        WhyFault::ServiceAsSource {
            service: name.to_owned(),
            pods: match pods.is_empty() {
                true => "none".to_owned(),
                false => pods.join(", "),
            },
        }
    };
    match place {
        Place::Address(address) => Ok(Source::Address(*address)),
        Place::Service(name) => match service(mesh, name)? {
            Some(service) => Err(as_service(name, service)),
            None => Err(unknown("service", name)),
        },
        Place::Pod(name) => {
            let pod = pod(mesh, name)?.ok_or_else(|| unknown("pod", name))?;
            Ok(Source::Workload(pod.clone()))
        }
        Place::Name(name) => match (pod(mesh, name)?, service(mesh, name)?) {
            (Some(pod), _) => Ok(Source::Workload(pod.clone())),
            (None, Some(service)) => Err(as_service(name, service)),
            (None, None) => Err(unknown("pod", name)),
        },
    }
}

fn destination(mesh: &Mesh, place: &Place) -> Result<Destination, WhyFault> {
    match place {
        Place::Address(address) => Ok(Destination::Address(*address)),
        Place::Pod(name) => {
            let pod = pod(mesh, name)?.ok_or_else(|| unknown("pod", name))?;
            Ok(Destination::Workload(pod.clone()))
        }
        Place::Service(name) => {
            let service = service(mesh, name)?.ok_or_else(|| unknown("service", name))?;
            Ok(Destination::Service(service.clone()))
        }
        Place::Name(name) => match (pod(mesh, name)?, service(mesh, name)?) {
            (Some(_), Some(_)) => Err(WhyFault::Ambiguous(name.clone())),
            (Some(pod), None) => Ok(Destination::Workload(pod.clone())),
            (None, Some(service)) => Ok(Destination::Service(service.clone())),
            (None, None) => Err(unknown("pod or service", name)),
        },
    }
}

/// The only port of a service.
fn only_port(destination: &Destination) -> Result<u16, WhyFault> {
    let ports: Vec<u16> = match destination {
        Destination::Service(service) => service.ports.iter().copied().collect(),
        Destination::Workload(_) | Destination::Address(_) => Vec::new(),
    };
    if let [port] = ports[..] {
        return Ok(port);
    }
    let known: Vec<_> = ports.iter().map(ToString::to_string).collect();
    Err(WhyFault::Port {
        destination: match destination {
            Destination::Address(IpAddr::V6(address)) => format!("[{address}]"),
            other => shown_name(other),
        },
        known: match known.is_empty() {
            true => String::new(),
            false => format!("; it has {}", known.join(", ")),
        },
    })
}

fn named(workload: &Workload) -> String {
    format!("{}/{}", workload.identity.namespace(), workload.name)
}

fn shown_pod(workload: &Workload) -> String {
    format!("pod {} ({})", named(workload), workload.identity)
}

fn shown_source(source: &Source) -> String {
    match source {
        Source::Workload(workload) => shown_pod(workload),
        Source::Address(address) => address.to_string(),
    }
}

fn shown_name(destination: &Destination) -> String {
    match destination {
        Destination::Workload(workload) => named(workload),
        Destination::Service(service) => format!("{}/{}", service.namespace, service.name),
        Destination::Address(address) => address.to_string(),
    }
}

fn shown_destination(destination: &Destination) -> String {
    match destination {
        Destination::Workload(workload) => shown_pod(workload),
        Destination::Service(_) => format!("service {}", shown_name(destination)),
        Destination::Address(_) => shown_name(destination),
    }
}

fn answer(head: &str, explanation: &Explanation) -> Why {
    let (outcome, refused) = match explanation.outcome {
        Outcome::Allowed => (admin::Outcome::Allowed, None),
        Outcome::Audited => (admin::Outcome::Audited, None),
        Outcome::Partly => (admin::Outcome::Partly, None),
        Outcome::Refused(reason) => (admin::Outcome::Refused, Some(reason)),
    };
    let attempts = &explanation.attempts;
    let missing: BTreeSet<_> = attempts
        .iter()
        .flat_map(|attempt| [&attempt.outbound, &attempt.inbound])
        .flatten()
        .filter_map(|verdict| verdict.missing.as_ref())
        .map(ToString::to_string)
        .collect();
    Why {
        outcome,
        reason: refused.map(reason),
        errno: explanation.kernel.map(|_| "EPERM".to_owned()),
        dialled: explanation.route.to_string(),
        attempts: attempts.iter().map(attempt).collect(),
        missing: missing.into_iter().collect(),
        text: format!("{head}{explanation}"),
    }
}

/// A pod that is cut off, in whose way a flow is.
struct CutOff<'a> {
    pod: &'a Workload,
    why: &'a str,
    is_source: bool,
}

/// The source, or each endpoint, is cut off.
fn end_cut_off<'a>(
    source: &'a Source,
    explanation: &'a Explanation,
    cut_off: &'a BTreeMap<WorkloadUid, String>,
) -> Option<CutOff<'a>> {
    let find = |pod: &'a Workload, is_source| {
        let why = cut_off.get(&pod.uid)?;
        Some(CutOff {
            pod,
            why,
            is_source,
        })
    };
    if let Source::Workload(pod) = source
        && let Some(end) = find(pod, true)
    {
        return Some(end);
    }
    let attempts = explanation.attempts.iter();
    let ends: Option<Vec<_>> = attempts
        .map(|attempt| find(attempt.workload.as_deref()?, false))
        .collect();
    ends?.into_iter().next()
}

/// Whatever policy says, nothing passes.
fn overruled(why: Why, head: &str, end: &CutOff<'_>, protocol: Protocol) -> Why {
    let connect_fails = end.is_source && protocol == Protocol::Tcp;
    let refused = Outcome::Refused(Reason::CutOff);
    let pod = shown_pod(end.pod);
    Why {
        outcome: admin::Outcome::Refused,
        reason: Some(reason(Reason::CutOff)),
        errno: connect_fails.then(|| "EPERM".to_owned()),
        missing: Vec::new(),
        text: format!("{head}{refused}\n{pod} is cut off: {}\n", end.why),
        ..why
    }
}

fn reason(reason: Reason) -> admin::Reason {
    admin::Reason {
        code: reason.code().to_owned(),
        sentence: reason.sentence().to_owned(),
        remedy: reason.remedy().to_owned(),
    }
}

fn attempt(attempt: &Attempt) -> admin::Attempt {
    let workload = attempt.workload.as_ref();
    admin::Attempt {
        workload: workload.map(|workload| workload.uid.to_string()),
        address: attempt.address,
        port: attempt.port,
        encrypted: attempt.encrypted,
        outbound: attempt.outbound.as_ref().map(decision),
        inbound: attempt.inbound.as_ref().map(decision),
    }
}

fn decision(verdict: &Verdict) -> admin::Decision {
    admin::Decision {
        refused: verdict.refused.map(reason),
        audited: verdict.audited,
        policy: verdict.policy.as_ref().map(ToString::to_string),
    }
}
