//! What a stream has an interest in: what follows from the names it has asked for, and from
//! the pods of its node.
//!
//! A node that asks for [`OWN_NAME`](mesh_api::OWN_NAME) gets what it takes to serve its own pods: the pods, their
//! services, the policies that select them, DNS, and whatever else of the mesh the kernel's part
//! of those policies is made from. A policy comes in one change with all that: the kernel never
//! lets through what a peer that has not arrived yet would be refused for. Peers that workers
//! decide on are asked for by address, when somebody calls them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use mesh_core::model::Workload;
use mesh_core::policy::kernel::{Need, Needs};
use mesh_core::policy::{AuthorizationPolicy, MESH_NAMESPACE};

use crate::registry::{
    DNS_SERVICE, Directory, Resource, ResourceType, Subject, Topic, service_key,
};

/// The topics of a subscription.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Plan {
    /// What it is to be sent.
    pub(super) wanted: BTreeSet<Topic>,
    /// What else decides on that.
    pub(super) decisive: BTreeSet<Topic>,
}

impl Plan {
    /// For what has been asked for of a type: everything, what the node `own` needs, and names.
    pub(super) fn new(
        kind: ResourceType,
        wildcard: bool,
        own: Option<&str>,
        names: &BTreeSet<String>,
        directory: &Directory,
    ) -> Self {
        let mut plan = Self::default();
        if wildcard {
            plan.wanted.insert(Topic::All(kind));
        }
        for name in names {
            plan.wanted.insert(Topic::named(kind, name));
            if let Some(resource) = directory.find(kind, name) {
                plan.service(resource);
            }
        }
        match (own, kind) {
            (Some(node), ResourceType::Address) => plan.own_places(node, directory),
            (Some(node), ResourceType::Policy) => plan.own_policies(node, directory),
            (Some(_), ResourceType::Istio) | (None, _) => {}
        }
        plan
    }

    /// Whether a resource is to be sent.
    pub(super) fn wants(&self, resource: &Resource) -> bool {
        let mut blocks = self.wanted.iter().filter(|topic| topic.is_block());
        resource.topics().any(|topic| self.wanted.contains(&topic))
            || blocks.any(|block| block.covers(resource))
    }

    /// A service comes with all its workloads: of one that is known in part nobody could say
    /// what may be called.
    fn service(&mut self, resource: &Resource) {
        if let Subject::Service(service) = &resource.subject {
            self.service_by_key(&service.key);
        }
    }

    fn service_by_key(&mut self, key: &Arc<str>) {
        let name = Topic::Name(ResourceType::Address, key.clone());
        self.wanted.extend([name, Topic::Member(key.clone())]);
    }

    /// Where a topic is about workloads for the services in front of them: those services.
    fn services_of(&mut self, workload: &Workload, topic: &Topic) {
        match topic {
            Topic::Block(_) => {
                for key in workload.services.keys() {
                    self.service_by_key(key);
                }
            }
            Topic::Target(port) => {
                let to_it = workload.translations().filter(|(_, target)| target == port);
                for (key, _) in to_it {
                    self.service_by_key(key);
                }
            }
            _ => {}
        }
    }

    fn own_places(&mut self, node: &str, directory: &Directory) {
        self.wanted.insert(Topic::Node(node.into()));
        self.service_by_key(&service_key(DNS_SERVICE.0, DNS_SERVICE.1).into());
        for workload in directory.mesh().on_node(node) {
            for key in workload.services.keys() {
                self.service_by_key(key);
            }
        }
        let policies = OwnPolicies::of(node, directory);
        self.decisive.extend(policies.namespaces());
        for need in policies.needs {
            self.need(need, directory);
        }
    }

    fn own_policies(&mut self, node: &str, directory: &Directory) {
        let policies = OwnPolicies::of(node, directory);
        self.decisive.insert(Topic::Node(node.into()));
        self.decisive.extend(policies.namespaces());
        let named = |name| Topic::Name(ResourceType::Policy, name);
        self.wanted.extend(policies.names.into_iter().map(named));
    }

    fn need(&mut self, need: Need, directory: &Directory) {
        let kind = ResourceType::Address;
        let topic = match need {
            Need::Mesh => Topic::All(kind),
            Need::Namespace(namespace) => Topic::Namespace(namespace),
            Need::Block(block) => Topic::Block(block),
            Need::Virtual(block) => Topic::Virtual(block),
            Need::Port(port) => Topic::Port(port),
            Need::Target(port) => Topic::Target(port),
        };
        if topic != Topic::All(kind) {
            for resource in directory.about(kind, &topic) {
                self.service(resource);
                if let Subject::Workload(workload, _) = &resource.subject {
                    self.services_of(workload, &topic);
                }
            }
        }
        self.wanted.insert(topic);
    }
}

/// The policies that select a node's pods.
#[derive(Default)]
struct OwnPolicies {
    /// Namespaces of the pods.
    pods: BTreeSet<Arc<str>>,
    names: BTreeSet<Arc<str>>,
    needs: BTreeSet<Need>,
}

impl OwnPolicies {
    fn of(node: &str, directory: &Directory) -> Self {
        let mesh = directory.mesh();
        let mut by_namespace: BTreeMap<&str, Vec<&Workload>> = BTreeMap::new();
        for workload in mesh.on_node(node) {
            let namespace = workload.identity.namespace();
            by_namespace.entry(namespace).or_default().push(workload);
        }
        let mut own = Self::default();
        for (namespace, workloads) in by_namespace {
            own.pods.insert(namespace.into());
            let scopes = mesh.authentications_over(namespace);
            let scopes = scopes.filter(|p| workloads.iter().any(|w| p.selects(w)));
            own.names
                .extend(scopes.map(|p| name("authentication", &p.key)));
            let policies: Vec<_> = mesh.authorizations_over(namespace).collect();
            // Most pods of a namespace are selected by the same policies.
            let mut sets = BTreeSet::new();
            for workload in workloads {
                let all = policies.iter().enumerate();
                let set = all.filter(|(_, policy)| policy.selects(workload));
                sets.insert(set.map(|(index, _)| index).collect::<Vec<usize>>());
            }
            for set in sets {
                let set = set.into_iter().map(|index| &**policies[index]);
                own.together(set, directory);
            }
        }
        own
    }

    /// Policies that select one pod.
    fn together<'a>(
        &mut self,
        policies: impl Iterator<Item = &'a AuthorizationPolicy>,
        directory: &Directory,
    ) {
        let mut needs = Needs::default();
        for policy in policies {
            let name = name("authorization", &policy.key);
            let resource = directory.resource(ResourceType::Policy, &name);
            if let Some(Subject::Authorization(_, of_one)) = resource.map(|p| &p.subject) {
                needs.merge(of_one);
            }
            self.names.insert(name);
        }
        self.needs.extend(needs.parts().cloned());
    }

    /// Whose policies decide what these are.
    fn namespaces(&self) -> impl Iterator<Item = Topic> {
        let mesh = Arc::from(MESH_NAMESPACE);
        let pods = self.pods.iter().cloned();
        pods.chain([mesh]).map(Topic::Policies)
    }
}

/// Name of a policy's resource.
fn name(kind: &str, key: &str) -> Arc<str> {
    format!("{kind}/{key}").into()
}
