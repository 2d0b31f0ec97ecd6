//! What a lab shall consist of: nodes, namespaces, pods, services, policies.

use crate::kubelet::CGROUP as KUBELET;

/// Which addresses a pod has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Families {
    /// IPv4 and IPv6.
    Dual,
    /// IPv4; IPv6 is on, but there is no address or route.
    V4Only,
    /// IPv6; IPv4 is there on loopback only.
    V6Only,
    /// IPv4; IPv6 is switched off, so there is no `::1` either.
    V6Disabled,
}

/// How far the pods of a namespace are in the mesh.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Enrolment {
    /// Not at all.
    None,
    /// Policy is evaluated; what it would refuse is let through and counted.
    Audit,
    /// Policy is enforced.
    Enforce,
}

/// Where a node stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Locality {
    pub(crate) region: String,
    pub(crate) zone: String,
}

/// A pod to be.
#[derive(Clone, Debug)]
pub struct PodSpec {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) node: usize,
    pub(crate) service_account: String,
    pub(crate) ports: Vec<(String, u16)>,
    pub(crate) families: Families,
    pub(crate) app: String,
    pub(crate) labels: Vec<(String, String)>,
    pub(crate) uid: String,
    pub(crate) probes: Vec<String>,
    pub(crate) own_users: bool,
    pub(crate) host_network: bool,
}

impl PodSpec {
    /// A pod of this namespace and name on the first node, with a service account of its
    /// own name and addresses of both families.
    #[must_use]
    pub fn new(namespace: &str, name: &str) -> Self {
        Self {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            node: 0,
            service_account: name.to_owned(),
            ports: Vec::new(),
            families: Families::Dual,
            app: name.to_owned(),
            labels: Vec::new(),
            uid: String::new(),
            probes: Vec::new(),
            own_users: false,
            host_network: false,
        }
    }

    /// With this UID; otherwise with none.
    #[must_use]
    pub fn uid(mut self, uid: &str) -> Self {
        uid.clone_into(&mut self.uid);
        self
    }

    /// With a user namespace of its own, which its network namespace belongs to (`hostUsers: false`).
    #[must_use]
    pub fn own_users(mut self) -> Self {
        self.own_users = true;
        self
    }

    /// In its node's network namespace (`hostNetwork: true`); only for a container runtime.
    #[must_use]
    pub fn host_network(mut self) -> Self {
        self.host_network = true;
        self
    }

    /// With one more label.
    #[must_use]
    pub fn label(mut self, key: &str, value: &str) -> Self {
        self.labels.push((key.to_owned(), value.to_owned()));
        self
    }

    /// Labelled `app: <app>` for services to select it; its own name otherwise.
    #[must_use]
    pub fn app(mut self, app: &str) -> Self {
        app.clone_into(&mut self.app);
        self
    }

    /// On the node with this index.
    #[must_use]
    pub fn node(mut self, node: usize) -> Self {
        self.node = node;
        self
    }

    /// With this service account.
    #[must_use]
    pub fn service_account(mut self, name: &str) -> Self {
        name.clone_into(&mut self.service_account);
        self
    }

    /// With a named container port.
    #[must_use]
    pub fn port(mut self, name: &str, number: u16) -> Self {
        self.ports.push((name.to_owned(), number));
        self
    }

    /// With a field of its container that says where kubelet calls it, in YAML's flow style, such as
    /// `readinessProbe: {tcpSocket: {port: 6379}}`.
    #[must_use]
    pub fn probe(mut self, field: &str) -> Self {
        self.probes.push(field.to_owned());
        self
    }

    /// With addresses of these families.
    #[must_use]
    pub fn families(mut self, families: Families) -> Self {
        self.families = families;
        self
    }

    /// `<namespace>/<name>`.
    #[must_use]
    pub fn key(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }

    /// Its service account.
    #[must_use]
    pub fn service_account_name(&self) -> &str {
        &self.service_account
    }

    /// Index of the node that it is to be on.
    #[must_use]
    pub fn node_index(&self) -> usize {
        self.node
    }
}

/// A service to be: it selects the pods of its namespace that are labelled `app: <its name>`.
#[derive(Clone, Debug)]
pub struct ServiceSpec {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) app: String,
    pub(crate) headless: bool,
    pub(crate) ports: Vec<(u16, String)>,
}

impl ServiceSpec {
    /// A service without ports.
    #[must_use]
    pub fn new(namespace: &str, name: &str) -> Self {
        Self {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            app: name.to_owned(),
            headless: false,
            ports: Vec::new(),
        }
    }

    /// Selecting the pods labelled `app: <app>` instead.
    #[must_use]
    pub fn app(mut self, app: &str) -> Self {
        app.clone_into(&mut self.app);
        self
    }

    /// Without a virtual address.
    #[must_use]
    pub fn headless(mut self) -> Self {
        self.headless = true;
        self
    }

    /// With a port that leads to a target: a number, or the name of a container port.
    #[must_use]
    pub fn port(mut self, port: u16, target: &str) -> Self {
        self.ports.push((port, target.to_owned()));
        self
    }
}

/// The plan of a lab.
#[derive(Clone, Debug)]
pub struct Plan {
    pub(crate) nodes: usize,
    pub(crate) namespaces: Vec<(String, Enrolment)>,
    pub(crate) pods: Vec<PodSpec>,
    pub(crate) services: Vec<ServiceSpec>,
    pub(crate) localities: Vec<Locality>,
    pub(crate) manifests: Vec<(String, String)>,
    pub(crate) default_policy: bool,
    pub(crate) resolvers: Vec<String>,
    pub(crate) agent_options: Vec<String>,
    pub(crate) control_options: Vec<String>,
    pub(crate) replicas: u16,
    pub(crate) part: Option<usize>,
    pub(crate) prefix: Option<String>,
}

impl Plan {
    /// This many nodes, and nothing on them.
    #[must_use]
    pub fn nodes(nodes: usize) -> Self {
        Self {
            nodes,
            namespaces: Vec::new(),
            pods: Vec::new(),
            services: Vec::new(),
            localities: Vec::new(),
            manifests: Vec::new(),
            default_policy: true,
            resolvers: Vec::new(),
            agent_options: Vec::new(),
            control_options: Vec::new(),
            replicas: 1,
            part: None,
            prefix: None,
        }
    }

    /// Two nodes; `shop/client` and `legacy/caller` on the first, `shop/web`, `data/db` and
    /// `legacy/server` on the second; `shop` and `data` enrolled, `legacy` not; a service
    /// in front of `shop/web`.
    #[must_use]
    pub fn two_nodes() -> Self {
        Self::nodes(2)
            .enrolled("shop")
            .enrolled("data")
            .namespace("legacy")
            .pod(PodSpec::new("shop", "client"))
            .pod(PodSpec::new("shop", "web").node(1).port("http", 80))
            .pod(PodSpec::new("data", "db").node(1).port("redis", 6379))
            .pod(PodSpec::new("legacy", "caller"))
            .pod(PodSpec::new("legacy", "server").node(1).port("http", 80))
            .service(ServiceSpec::new("shop", "web").port(8080, "http"))
    }

    /// A namespace whose pods are in the mesh, with policy enforced.
    #[must_use]
    pub fn enrolled(self, name: &str) -> Self {
        self.namespace_with(name, Enrolment::Enforce)
    }

    /// A namespace whose pods are in the mesh, for audit.
    #[must_use]
    pub fn audited(self, name: &str) -> Self {
        self.namespace_with(name, Enrolment::Audit)
    }

    /// A namespace that is not enrolled.
    #[must_use]
    pub fn namespace(self, name: &str) -> Self {
        self.namespace_with(name, Enrolment::None)
    }

    fn namespace_with(mut self, name: &str, enrolment: Enrolment) -> Self {
        self.namespaces.push((name.to_owned(), enrolment));
        self
    }

    /// Without the policies that every lab else has: members of the mesh may talk to members,
    /// on every TCP port.
    #[must_use]
    pub fn without_default_policy(mut self) -> Self {
        self.default_policy = false;
        self
    }

    /// With one more manifest, `<name>.yaml`.
    #[must_use]
    pub fn manifest(mut self, name: &str, content: &str) -> Self {
        self.manifests.push((name.to_owned(), content.to_owned()));
        self
    }

    /// The next node, beginning with the first, stands there.
    #[must_use]
    pub fn locality(mut self, region: &str, zone: &str) -> Self {
        self.localities.push(Locality {
            region: region.to_owned(),
            zone: zone.to_owned(),
        });
        self
    }

    /// The pod of this key is a DNS resolver of the cluster, which agents are told of.
    #[must_use]
    pub fn resolver(mut self, pod: &str) -> Self {
        self.resolvers.push(pod.to_owned());
        self
    }

    /// Every agent takes the lab's [`Kubelet`](crate::kubelet::Kubelet) for its node's.
    #[must_use]
    pub fn kubelet(self) -> Self {
        self.agent_option("--kubelet-cgroup", &format!("{{cgroup}}/{KUBELET}"))
    }

    /// Every agent is started with this option as well; `{folder}` stands for its node's folder,
    /// `{cgroup}` for the lab's cgroup from the hierarchy's root.
    #[must_use]
    pub fn agent_option(mut self, name: &str, value: &str) -> Self {
        let option = [name.to_owned(), value.to_owned()];
        self.agent_options.extend(option);
        self
    }

    /// Control is started with this option as well.
    #[must_use]
    pub fn control_option(mut self, name: &str, value: &str) -> Self {
        let option = [name.to_owned(), value.to_owned()];
        self.control_options.extend(option);
        self
    }

    /// Control has so many replicas, all on its host: they follow the same manifests, sign with the
    /// same intermediate, and share their tokens.
    #[must_use]
    pub fn replicas(mut self, replicas: u16) -> Self {
        self.replicas = replicas;
        self
    }

    /// Only the node with this index is on this machine, and control's host with the first.
    /// The others are made too, so that names and addresses agree, but joined to nothing; the
    /// fabric reaches the other machines by this one's device `eth0`, which is moved into it.
    #[must_use]
    pub fn part(mut self, node: usize) -> Self {
        self.part = Some(node);
        self
    }

    /// All names begin with this, `nm<pid>x<number>`, and so does the folder's: what a machine keeps on a
    /// disk is found again when it has booted. Whose process that was must be there as long as the lab.
    #[must_use]
    pub fn prefix(mut self, prefix: &str) -> Self {
        self.prefix = Some(prefix.to_owned());
        self
    }

    /// A pod.
    #[must_use]
    pub fn pod(mut self, pod: PodSpec) -> Self {
        self.pods.push(pod);
        self
    }

    /// A service.
    #[must_use]
    pub fn service(mut self, service: ServiceSpec) -> Self {
        self.services.push(service);
        self
    }
}
