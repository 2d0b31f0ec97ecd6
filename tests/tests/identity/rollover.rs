//! The signing intermediate, and then the root, are replaced under pods' traffic: none of it fails.

use std::fs;
use std::path::{Path, PathBuf};

use mesh_lab::traffic::Traffic;
use mesh_lab::{Lab, Plan, Pod, PodSpec, wait};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    date_time_ymd,
};
use serde_json::Value;

use crate::revocation::serve;

/// Life of the pods' certificates, in seconds: each is replaced after some four.
const LIFE_S: &str = "6";
/// How long a new root is distributed before anything is signed under it.
const OVERLAP: &str = "2s";

/// A certificate that signs others.
struct Ca {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Ca {
    fn params(name: &str) -> (CertificateParams, KeyPair) {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = date_time_ymd(2099, 1, 1);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        params.use_authority_key_identifier_extension = true;
        (params, KeyPair::generate().unwrap())
    }

    fn root(name: &str) -> Self {
        let (params, key) = Self::params(name);
        Self {
            pem: params.self_signed(&key).unwrap().pem(),
            issuer: Issuer::new(params, key),
        }
    }

    /// The lab's own.
    fn read_root(pki: &Path) -> Self {
        let read = |name: &str| fs::read_to_string(pki.join(name)).unwrap();
        let (pem, key) = (read("root.pem"), read("root-key.pem"));
        let key = KeyPair::from_pem(&key).unwrap();
        Self {
            issuer: Issuer::from_ca_cert_pem(&pem, key).unwrap(),
            pem,
        }
    }

    fn below(&self, name: &str) -> Self {
        let (params, key) = Self::params(name);
        Self {
            pem: params.signed_by(&key, &self.issuer).unwrap().pem(),
            issuer: Issuer::new(params, key),
        }
    }
}

/// Puts a file in another's place, readable by its owner alone.
fn replace(path: PathBuf, content: &str) {
    use std::os::unix::fs::PermissionsExt;
    let draft = path.with_extension("draft");
    fs::write(&draft, content).unwrap();
    fs::set_permissions(&draft, fs::Permissions::from_mode(0o600)).unwrap();
    fs::rename(draft, path).unwrap();
}

fn sign_with(pki: &Path, ca: &Ca) {
    replace(pki.join("ca-key.pem"), &ca.issuer.key().serialize_pem());
    replace(pki.join("ca-cert.pem"), &ca.pem);
}

/// The chain that the agent keeps for a pod's worker.
fn chain(lab: &Lab, pod: &Pod) -> Vec<String> {
    let record = format!("run/pods/{}.json", pod.key().replace('/', "_"));
    let record = fs::read_to_string(lab.node(pod.node()).folder.join(record)).unwrap();
    let record: Value = serde_json::from_str(&record).unwrap();
    let certificates = record["placed"]["certificate"].as_array();
    let certificates = certificates.map_or(&[][..], Vec::as_slice);
    let texts = certificates.iter().filter_map(Value::as_str);
    texts.map(str::to_owned).collect()
}

/// Waits until all pods have certificates by this signer.
fn wait_signed(lab: &Lab, ca: &Ca) {
    let same = |a: &str| a.split_whitespace().eq(ca.pem.split_whitespace());
    wait::until_true("certificates by the new signer", wait::PATIENCE, || {
        Ok(lab
            .pods()
            .all(|pod| chain(lab, pod).iter().any(|pem| same(pem))))
    })
    .unwrap_or_else(|e| panic!("{e:#}\n{}", lab.log_tails()));
}

#[test]
fn pods_talk_on_while_intermediate_and_root_are_replaced() {
    let plan = Plan::nodes(2)
        .enrolled("shop")
        .pod(PodSpec::new("shop", "client"))
        .pod(PodSpec::new("shop", "web").node(1))
        .agent_option("--certificate-lifetime", LIFE_S)
        .control_option("--root-overlap", OVERLAP);
    let mut lab = Lab::with_mesh(plan).unwrap();
    let pki = lab.mesh.as_ref().unwrap().pki.clone();
    let (client, web) = (lab.pod("shop/client"), lab.pod("shop/web"));
    let _server = serve(web);
    let to = std::net::SocketAddr::new(web.v4().into(), 7000);
    let long = Traffic::stream(client, to);
    let calls = Traffic::calls(client, to);

    let old = Ca::read_root(&pki);
    let second = old.below("second intermediate");
    sign_with(&pki, &second);
    wait_signed(&lab, &second);

    let new = Ca::root("new root");
    let third = new.below("third intermediate");
    replace(pki.join("root.pem"), &format!("{}{}", old.pem, new.pem));
    sign_with(&pki, &third);
    wait_signed(&lab, &third);

    // Nodes' own certificates live for a day: they join anew, and then the old root goes.
    for node in 0..2 {
        let token = lab.control().token(lab.node(node).name()).unwrap();
        let (agent, host) = lab.agent_mut(node);
        agent.daemon.terminate().unwrap();
        fs::write(host.folder.join("token"), token).unwrap();
        fs::remove_file(host.folder.join("state/node.pem")).unwrap();
        agent.start(host).unwrap();
    }
    wait::until_true("both agents to follow control", wait::PATIENCE, || {
        let mut status = [lab.agent(0).status()?, lab.agent(1).status()?].into_iter();
        Ok(status.all(|status| status["control"]["connected"] == true))
    })
    .unwrap_or_else(|e| panic!("{e:#}\n{}", lab.log_tails()));
    replace(pki.join("root.pem"), &new.pem);
    wait::until_true("trust in the new root alone", wait::PATIENCE, || {
        let one = |node| {
            lab.agent(node)
                .metric(lab.node(node), "nodemesh_trusted_roots", &[])
        };
        Ok(one(0)? == 1.0 && one(1)? == 1.0)
    })
    .unwrap_or_else(|e| panic!("{e:#}\n{}", lab.log_tails()));
    // Certificates go on being replaced.
    let fourth = new.below("fourth intermediate");
    sign_with(&pki, &fourth);
    wait_signed(&lab, &fourth);
    long.finish_unharmed("one long stream");
    calls.finish_unharmed("calls");
}
