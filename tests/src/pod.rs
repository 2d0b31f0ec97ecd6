//! A pod: a network namespace routed through its node, an unprivileged uid, a folder.

use std::ffi::OsStr;
use std::fs::{self, Permissions};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU32;

use anyhow::{Context, Result};

use crate::app::PodCommand;
use crate::cgroup::Cgroup;
use crate::netns::Netns;
use crate::node::Host;
use crate::plan::{Families, PodSpec};
use crate::wait;

/// Apps run as uids from here on, one a pod.
const FIRST_UID: u32 = 61_000;

/// A pod of the lab.
#[derive(Debug)]
pub struct Pod {
    /// Its network namespace; `eth0` is its way out.
    pub netns: Netns,
    /// What apps may write to; also the current folder of its apps.
    pub folder: PathBuf,
    /// Name of its veth on the node's side.
    pub host_link: String,
    pub(crate) cgroup: Cgroup,
    pub(crate) spec: PodSpec,
    pub(crate) apps_started: AtomicU32,
    uid: u32,
    v4: Option<Ipv4Addr>,
    v6: Option<Ipv6Addr>,
}

/// What a pod is made in.
pub(crate) struct Ground<'a> {
    pub(crate) node: &'a Host,
    pub(crate) scratch: &'a Path,
    pub(crate) cgroup: &'a Path,
}

impl Pod {
    /// `serial` is unique in the lab, `index` on the node.
    pub(crate) fn create(
        spec: PodSpec,
        netns: Netns,
        serial: u8,
        index: u8,
        ground: &Ground<'_>,
    ) -> Result<Self> {
        let (v4, v6) = ground.node.pod_addresses(index);
        let name = format!("{}-{}", spec.namespace, spec.name);
        let pod = Self {
            netns,
            folder: ground.scratch.join("pods").join(&name),
            host_link: format!("p-{serial}"),
            cgroup: Cgroup::create(ground.cgroup.join(&name))?,
            apps_started: AtomicU32::new(0),
            uid: FIRST_UID + u32::from(serial),
            v4: (spec.families != Families::V6Only).then_some(v4),
            v6: matches!(spec.families, Families::Dual | Families::V6Only).then_some(v6),
            spec,
        };
        pod.make_folder()
            .with_context(|| format!("making {}", pod.folder.display()))?;
        pod.plug_in(ground.node)
            .with_context(|| format!("joining pod {} to its node", pod.key()))?;
        Ok(pod)
    }

    fn make_folder(&self) -> Result<()> {
        fs::create_dir_all(&self.folder)?;
        chown(&self.folder, Some(self.uid), Some(self.uid))?;
        fs::set_permissions(&self.folder, Permissions::from_mode(0o700))?;
        Ok(())
    }

    fn plug_in(&self, node: &Host) -> Result<()> {
        let disabled = if self.spec.families == Families::V6Disabled {
            "1"
        } else {
            "0"
        };
        self.netns.sysctl(&[
            ("ipv4/ip_unprivileged_port_start", "0"),
            ("ipv6/conf/all/accept_dad", "0"),
            ("ipv6/conf/default/accept_dad", "0"),
            ("ipv6/conf/all/disable_ipv6", disabled),
            ("ipv6/conf/default/disable_ipv6", disabled),
        ])?;
        let link = &self.host_link;
        let mut on_node = format!(
            "link add {link} type veth peer name eth0 netns {}\n\
             addr add 169.254.1.1/32 dev {link}\naddr add fe80::1/64 dev {link} nodad\n\
             link set {link} up\n",
            self.netns.name()
        );
        let mut in_pod = "link set eth0 up\n".to_owned();
        on_node.push_str(&self.routes(node, "add"));
        if let Some(v4) = self.v4 {
            in_pod.push_str(&format!(
                "addr add {v4}/32 dev eth0\nroute add 169.254.1.1 dev eth0 scope link\n\
                 route add default via 169.254.1.1 dev eth0\n"
            ));
        }
        if let Some(v6) = self.v6 {
            in_pod.push_str(&format!(
                "addr add {v6}/128 dev eth0 nodad\nroute add default via fe80::1 dev eth0\n"
            ));
        }
        node.netns.ip(&on_node)?;
        self.netns.ip(&in_pod)
    }

    /// The node's routes to it, for `ip -batch`.
    fn routes(&self, node: &Host, verb: &str) -> String {
        let link = &self.host_link;
        let v4 = self.v4.map(|to| (IpAddr::V4(to), IpAddr::V4(node.v4())));
        let v6 = self.v6.map(|to| (IpAddr::V6(to), IpAddr::V6(node.v6())));
        let of_each = |(to, from)| format!("route {verb} {to} dev {link} src {from}\n");
        v4.into_iter().chain(v6).map(of_each).collect()
    }

    /// Whatever comes for it through its node is silently dropped, until [`Self::reach`].
    ///
    /// # Errors
    /// If the node's routes can't be changed.
    pub fn black_hole(&self, node: &Host) -> Result<()> {
        let of_each = |to| format!("route add blackhole {to}\n");
        let batch: String = self.addresses().into_iter().map(of_each).collect();
        node.netns.ip(&(self.unrouted() + &batch))
    }

    /// Undoes [`Self::black_hole`].
    ///
    /// # Errors
    /// If the node's routes can't be changed.
    pub fn reach(&self, node: &Host) -> Result<()> {
        node.netns
            .ip(&(self.unrouted() + &self.routes(node, "add")))
    }

    fn unrouted(&self) -> String {
        let of_each = |to| format!("route del {to}\n");
        self.addresses().into_iter().map(of_each).collect()
    }

    /// `<namespace>/<name>`.
    #[must_use]
    pub fn key(&self) -> String {
        self.spec.key()
    }

    /// Its Kubernetes namespace.
    #[must_use]
    pub fn namespace(&self) -> &str {
        &self.spec.namespace
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.spec.name
    }

    /// Index of its node.
    #[must_use]
    pub fn node(&self) -> usize {
        self.spec.node
    }

    /// The uid that its apps run as.
    #[must_use]
    pub fn uid(&self) -> u32 {
        self.uid
    }

    /// Its SPIFFE ID in the lab's trust domain.
    #[must_use]
    pub fn identity(&self) -> String {
        format!(
            "spiffe://{}/ns/{}/sa/{}",
            crate::mesh::TRUST_DOMAIN,
            self.spec.namespace,
            self.spec.service_account
        )
    }

    /// Its IPv4 address.
    ///
    /// # Panics
    /// If it was made without.
    #[must_use]
    pub fn v4(&self) -> Ipv4Addr {
        self.v4
            .unwrap_or_else(|| panic!("pod {} has no IPv4 address", self.key()))
    }

    /// Its IPv6 address.
    ///
    /// # Panics
    /// If it was made without.
    #[must_use]
    pub fn v6(&self) -> Ipv6Addr {
        self.v6
            .unwrap_or_else(|| panic!("pod {} has no IPv6 address", self.key()))
    }

    /// All its addresses.
    #[must_use]
    pub fn addresses(&self) -> Vec<IpAddr> {
        let v4 = self.v4.map(IpAddr::V4);
        v4.into_iter().chain(self.v6.map(IpAddr::V6)).collect()
    }

    /// A program to run as an app of this pod: found on the machine, or a binary of this
    /// workspace such as `mesh-lab-app`.
    pub fn command(&self, program: impl AsRef<OsStr>) -> PodCommand<'_> {
        PodCommand::new(self, program.as_ref())
    }

    /// Writes a file into the pod's folder, owned by its uid, and returns its path.
    ///
    /// # Errors
    /// If it can't be written.
    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) -> Result<PathBuf> {
        let path = self.folder.join(name);
        fs::write(&path, content).with_context(|| format!("writing {}", path.display()))?;
        chown(&path, Some(self.uid), Some(self.uid))?;
        Ok(path)
    }

    /// Waits until something listens on this TCP port, on any address of the pod.
    ///
    /// # Errors
    /// When [`wait::PATIENCE`] is over.
    pub fn wait_listening(&self, port: u16) -> Result<()> {
        let what = format!("a listener on port {port} of pod {}", self.key());
        wait::until_true(&what, wait::PATIENCE, || {
            Ok(listening_ports(&self.netns)?.contains(&port))
        })
    }
}

/// The TCP ports that something listens on in a namespace.
///
/// # Errors
/// If the kernel's tables can't be read.
pub fn listening_ports(netns: &Netns) -> Result<Vec<u16>> {
    let tables = netns.run(|| {
        let v4 = fs::read_to_string("/proc/thread-self/net/tcp")?;
        // Absent where the kernel has no IPv6.
        let v6 = fs::read_to_string("/proc/thread-self/net/tcp6").unwrap_or_default();
        anyhow::Ok(v4 + &v6)
    })?;
    Ok(tables.lines().filter_map(listening_port).collect())
}

fn listening_port(line: &str) -> Option<u16> {
    let mut columns = line.split_ascii_whitespace().skip(1);
    let local = columns.next()?;
    let state = columns.nth(1)?;
    let (_, port) = local.rsplit_once(':')?;
    (state == "0A").then(|| u16::from_str_radix(port, 16).ok())?
}
