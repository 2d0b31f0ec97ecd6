//! What decides on one pod's flows, as its worker and the kernel programs get it.

use std::net::IpAddr;
use std::sync::Arc;

use mesh_api::convert::address_to_bytes;
use mesh_api::convert::policy::{authentication_to_wire, authorization_to_wire, check_to_wire};
use mesh_api::worker as wire;
use mesh_core::model::{Enrolment, Service, Workload};
use mesh_core::policy::kernel::KernelPolicy;
use mesh_core::policy::{AuthenticationPolicy, AuthorizationPolicy, PodPolicy};
use mesh_core::traffic::HealthCheck;

use super::answers::services_of;
use super::discovery::View;
use super::kernel_rules;

/// What a pod's rules are made from. While nothing of it changes, they can't.
#[derive(Clone, Debug)]
struct Basis {
    policies: u64,
    workload: Arc<Workload>,
    services: Vec<Arc<Service>>,
    resolvers: Arc<[IpAddr]>,
}

impl Basis {
    fn of(view: &View, uid: &str) -> Option<Self> {
        let workload = view.mesh.workload(uid)?.clone();
        let services = workload.services.keys();
        let services = services.filter_map(|key| view.mesh.service(key));
        Some(Self {
            policies: view.policies,
            services: services.cloned().collect(),
            resolvers: view.resolvers.clone(),
            workload,
        })
    }

    fn is_same(&self, other: &Self) -> bool {
        let services = self.services.iter().zip(&other.services);
        self.policies == other.policies
            && Arc::ptr_eq(&self.workload, &other.workload)
            && self.services.len() == other.services.len()
            && services.into_iter().all(|(a, b)| Arc::ptr_eq(a, b))
            && Arc::ptr_eq(&self.resolvers, &other.resolvers)
    }
}

/// All that a worker is told of its pod's policy.
#[derive(Clone, Debug, PartialEq)]
struct Content {
    audit: bool,
    authorizations: Vec<Arc<AuthorizationPolicy>>,
    authentications: Vec<Arc<AuthenticationPolicy>>,
    checks: Vec<HealthCheck>,
    labels: mesh_core::policy::Labels,
    services: Vec<String>,
    resolvers: Arc<[IpAddr]>,
}

impl Content {
    fn of(view: &View, basis: &Basis) -> Self {
        let workload = &basis.workload;
        let (authorizations, authentications) = view.mesh.policies_for(workload);
        Self {
            audit: workload.enrolment == Enrolment::Audit,
            authorizations,
            authentications,
            checks: checks(workload, &basis.services),
            labels: workload.labels.clone(),
            services: services_of(workload),
            resolvers: basis.resolvers.clone(),
        }
    }

    fn compile(&self) -> PodPolicy {
        PodPolicy::new(
            self.authorizations.clone(),
            self.authentications.clone(),
            self.resolvers.to_vec(),
        )
    }

    fn to_wire(&self, version: &str) -> wire::PodPolicy {
        let authorizations = self.authorizations.iter();
        let authentications = self.authentications.iter();
        wire::PodPolicy {
            version: version.to_owned(),
            audit: self.audit,
            authorizations: authorizations.map(|p| authorization_to_wire(p)).collect(),
            authentications: authentications.map(|p| authentication_to_wire(p)).collect(),
            checks: self.checks.iter().map(check_to_wire).collect(),
            labels: self.labels.clone(),
            services: self.services.clone(),
            resolvers: self.resolvers.iter().map(address_to_bytes).collect(),
        }
    }
}

/// Health checks of the services that a pod is an endpoint of, on the pod's own ports.
fn checks(workload: &Workload, services: &[Arc<Service>]) -> Vec<HealthCheck> {
    let mut found: Vec<HealthCheck> = Vec::new();
    for service in services {
        let Some(ports) = workload.services.get(&service.key) else {
            continue;
        };
        for check in &service.traffic.checks {
            let own = ports.get(&check.port).map(|port| HealthCheck {
                port: *port,
                ..check.clone()
            });
            // Two services in front of the same port may ask the same.
            found.extend(own.filter(|own| !found.contains(own)));
        }
    }
    found
}

#[derive(Debug)]
struct Own {
    basis: Basis,
    content: Content,
    policy: Arc<PodPolicy>,
    /// The places that the kernel's policy was last made from; `None` where it is to be made.
    compiled: Option<u64>,
}

/// A pod's rules.
#[derive(Debug, Default)]
pub(super) struct Rules {
    own: Option<Own>,
    /// Counts what [`Rules::refresh`] found to be news: each of the pod's workers is told by it.
    pub(super) generation: u64,
}

impl Rules {
    /// Takes in what discovery says now; whether a worker that knows what they were before is
    /// to be told. A pod that discovery knows no more keeps what it had until it is taken out.
    pub(super) fn refresh(&mut self, view: &View, uid: &str) -> bool {
        let news = self.take_in(view, uid);
        self.generation += u64::from(news);
        news
    }

    fn take_in(&mut self, view: &View, uid: &str) -> bool {
        let Some(basis) = Basis::of(view, uid) else {
            return false;
        };
        match &mut self.own {
            Some(own) if own.basis.is_same(&basis) => false,
            Some(own) => {
                let content = Content::of(view, &basis);
                own.basis = basis;
                let news = own.content != content;
                if news {
                    own.policy = content.compile().into();
                    own.content = content;
                    own.compiled = None;
                }
                news
            }
            None => {
                let content = Content::of(view, &basis);
                self.own = Some(Own {
                    policy: content.compile().into(),
                    basis,
                    content,
                    compiled: None,
                });
                true
            }
        }
    }

    /// Whether the pod is enrolled for audit only; `None` while nothing is known of it.
    pub(super) fn audit(&self) -> Option<bool> {
        self.own.as_ref().map(|own| own.content.audit)
    }

    /// What decides on the pod's flows; `None` while nothing is known of it.
    pub(super) fn policy(&self) -> Option<&PodPolicy> {
        self.own.as_ref().map(|own| &*own.policy)
    }

    /// What discovery says of the pod; `None` while nothing is known of it.
    pub(super) fn workload(&self) -> Option<&Workload> {
        self.own.as_ref().map(|own| &*own.basis.workload)
    }

    /// What the worker is told; `None` while nothing is known of the pod.
    pub(super) fn message(&self, version: &str) -> Option<wire::PodPolicy> {
        self.own.as_ref().map(|own| own.content.to_wire(version))
    }

    /// Whether the kernel has been given any.
    pub(super) fn are_in_use(&self) -> bool {
        self.own.as_ref().is_some_and(|own| own.compiled.is_some())
    }

    /// The pod's slot was made anew: the kernel has nothing of what it was given.
    pub(super) fn kernel_was_emptied(&mut self) {
        if let Some(own) = &mut self.own {
            own.compiled = None;
        }
    }

    /// What the kernel is to have; `None` where nothing of it can have changed.
    pub(super) fn for_kernel(
        &mut self,
        view: &View,
    ) -> Option<(kernel_rules::Rules, Arc<PodPolicy>)> {
        let own = self.own.as_mut()?;
        (own.compiled != Some(view.places)).then(|| {
            own.compiled = Some(view.places);
            let rules = kernel_rules::Rules {
                policy: KernelPolicy::new(&own.policy, &own.basis.workload.addresses, &view.mesh),
                audit: own.content.audit,
            };
            (rules, own.policy.clone())
        })
    }
}

#[cfg(test)]
#[path = "rules_tests.rs"]
mod tests;
