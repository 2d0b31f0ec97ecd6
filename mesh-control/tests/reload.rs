//! Signers that change while control runs: several side by side, and rollovers of both kinds.

mod support;

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

use mesh_control::audit::{Audit, Event};
use mesh_control::ca::signer::KeySource;
use mesh_control::ca::{
    Authority, IntermediateSource, Published, Reloader, RequestedKey, SignerSources,
};
use support::pki::{Ca, openssl};
use support::request;

const CART: &str = "spiffe://cluster.local/ns/shop/sa/cart";
const OVERLAP_S: i64 = 600;

/// Signers in a folder, followed by hand.
struct Followed {
    folder: tempfile::TempDir,
    authority: Arc<Authority>,
    audit: Arc<Audit>,
    reloader: Reloader,
    now_s: i64,
}

fn write(path: &Path, content: &str, mode: u32) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    // As a mounted Secret changes: another file under the same name.
    let draft = path.with_extension("draft");
    fs::write(&draft, content).unwrap();
    fs::set_permissions(&draft, Permissions::from_mode(mode)).unwrap();
    fs::rename(draft, path).unwrap();
}

/// An intermediate as a Secret of type kubernetes.io/tls has it.
fn write_pair(folder: &Path, chain: &[&Ca]) {
    let pem: String = chain.iter().map(|ca| ca.pem.as_str()).collect();
    write(&folder.join("tls.key"), &chain[0].key(), 0o600);
    write(&folder.join("tls.crt"), &pem, 0o644);
}

fn source(folder: &Path) -> IntermediateSource {
    IntermediateSource {
        certificate: folder.join("tls.crt"),
        key: KeySource::File(folder.join("tls.key")),
    }
}

impl Followed {
    fn new(roots: &[&Ca], default: &[&Ca], scoped: &[(&str, &[&Ca])]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let now_s = mesh_control::now_s();
        write_roots(folder.path(), roots);
        write_pair(&folder.path().join("default"), default);
        let namespaces = scoped.iter().map(|(scope, chain)| {
            let own = folder.path().join(scope.trim_end_matches('*'));
            write_pair(&own, chain);
            (scope.parse().unwrap(), source(&own))
        });
        let sources = SignerSources {
            namespaces: namespaces.collect(),
            root: folder.path().join("ca.crt"),
            default: source(&folder.path().join("default")),
        };
        let domain = "cluster.local".parse().unwrap();
        let authority = Authority::open(&sources, &domain, now_s).unwrap();
        let authority = Arc::new(authority);
        let published = Published::open(folder.path(), &authority.roots(), now_s).unwrap();
        let audit = Arc::new(Audit::default());
        let reloader = Reloader::new(
            authority.clone(),
            sources,
            published,
            OVERLAP_S,
            audit.clone(),
        );
        let mut followed = Self {
            folder,
            authority,
            audit,
            reloader,
            now_s,
        };
        followed.look();
        followed
    }

    /// Looks as often as it takes for a change to be taken.
    fn look(&mut self) {
        self.reloader.look(self.now_s);
        self.reloader.look(self.now_s);
    }

    /// Signs for a pod, and gives the leaf's issuer after openssl has verified its chain.
    fn issuer_of(&self, identity: &str) -> String {
        let (csr, _) = request(|_| ());
        let key = RequestedKey::from_pem(&csr, identity).unwrap();
        let identity = identity.parse().unwrap();
        let node = "spiffe://cluster.local/nodemesh/node/node-a"
            .parse()
            .unwrap();
        let now_s = mesh_control::now_s();
        let issued = self
            .authority
            .issue_workload(&identity, &node, &key, 0, now_s);
        let issued = issued.unwrap();
        let folder = self.folder.path();
        fs::write(folder.join("leaf.pem"), &issued.chain_pem[0]).unwrap();
        fs::write(folder.join("rest.pem"), issued.chain_pem[1..].concat()).unwrap();
        let bundle = self.authority.roots().pem().concat();
        fs::write(folder.join("bundle.pem"), bundle).unwrap();
        let line = "verify -x509_strict -purpose sslserver -CAfile bundle.pem -untrusted rest.pem leaf.pem";
        let verified = openssl(folder, line);
        assert!(
            verified.status.success(),
            "{}",
            String::from_utf8_lossy(&verified.stderr)
        );
        let said = openssl(folder, "x509 -in leaf.pem -noout -issuer").stdout;
        let said = String::from_utf8(said).unwrap();
        said.trim().trim_start_matches("issuer=CN = ").to_owned()
    }
}

fn write_roots(folder: &Path, roots: &[&Ca]) {
    let pem: String = roots.iter().map(|ca| ca.pem.as_str()).collect();
    write(&folder.join("ca.crt"), &pem, 0o644);
}

/// Chains of two and of three, verified by openssl.
#[test]
fn each_namespace_is_signed_for_by_its_own_intermediate() {
    let (root, other) = (Ca::root("root"), Ca::root("other root"));
    let (default, upper) = (root.below("default"), other.below("upper"));
    let (lower, team, exact) = (
        upper.below("payments"),
        root.below("team"),
        root.below("one"),
    );
    let followed = Followed::new(
        &[&root, &other],
        &[&default],
        &[
            ("payments", &[&lower, &upper]),
            ("team-*", &[&team]),
            ("team-one", &[&exact]),
        ],
    );
    for (namespace, issuer) in [
        ("shop", "default"),
        ("payments", "payments"),
        ("payments-1", "default"),
        ("team-two", "team"),
        ("team-one", "one"),
    ] {
        let identity = format!("spiffe://cluster.local/ns/{namespace}/sa/a");
        assert_eq!(followed.issuer_of(&identity), issuer, "{namespace}");
    }
    let status = followed.authority.status();
    let scopes: Vec<_> = status.iter().map(|s| s.scope.as_str()).collect();
    assert_eq!(scopes, ["default", "payments", "team-*", "team-one"]);
}

#[test]
fn a_new_intermediate_under_the_same_root_signs_at_once() {
    let root = Ca::root("root");
    let (first, second) = (root.below("first"), root.below("second"));
    let mut followed = Followed::new(&[&root], &[&first], &[]);
    assert_eq!(followed.issuer_of(CART), "first");
    assert_eq!(followed.audit.count(Event::SignerReplaced), 0);
    write_pair(&followed.folder.path().join("default"), &[&second]);
    // Looked at once: it may not be all there yet.
    followed.reloader.look(followed.now_s);
    assert_eq!(followed.issuer_of(CART), "first");
    followed.reloader.look(followed.now_s);
    assert_eq!(followed.issuer_of(CART), "second");
    assert_eq!(followed.audit.count(Event::SignerReplaced), 1);
    assert_eq!(followed.audit.count(Event::TrustChanged), 0);
}

#[test]
fn a_set_that_is_not_usable_changes_nothing_and_is_told_of_once() {
    let root = Ca::root("root");
    let (first, second) = (root.below("first"), root.below("second"));
    let mut followed = Followed::new(&[&root], &[&first], &[]);
    let folder = followed.folder.path().join("default");
    let mut refused = 0;
    let mut bundle = followed.authority.bundle();
    bundle.mark_unchanged();
    let stranger = Ca::root("stranger");
    let changes: [&dyn Fn(&Path); 5] = [
        // One half of a pair.
        &|_| write(&folder.join("tls.crt"), &second.pem, 0o644),
        &|_| write(&folder.join("tls.key"), &second.key(), 0o644),
        &|_| write(&folder.join("tls.crt"), "nothing", 0o644),
        // The root that signs is gone.
        &|path| write_roots(path, &[&stranger]),
        &|path| fs::remove_file(path.join("ca.crt")).unwrap(),
    ];
    for (index, change) in changes.iter().enumerate() {
        change(followed.folder.path());
        followed.look();
        followed.look();
        refused += 1;
        assert_eq!(
            followed.audit.count(Event::SignerRefused),
            refused,
            "{index}"
        );
        assert_eq!(followed.authority.status()[0].subject, "CN=first");
        assert!(!bundle.has_changed().unwrap());
    }
    write_roots(followed.folder.path(), &[&root]);
    write_pair(&folder, &[&second]);
    followed.look();
    assert_eq!(followed.issuer_of(CART), "second");
    assert_eq!(followed.audit.count(Event::SignerRefused), refused);
}

#[test]
fn a_new_root_is_known_for_a_while_before_anything_is_signed_under_it() {
    let (old, new) = (Ca::root("old root"), Ca::root("new root"));
    let (first, second) = (old.below("first"), new.below("second"));
    let (third, folder) = (new.below("third"), "default");
    let mut followed = Followed::new(&[&old], &[&first], &[]);
    let mut bundle = followed.authority.bundle();
    // All at once, as an operator in a hurry does it.
    write_roots(followed.folder.path(), &[&old, &new]);
    write_pair(&followed.folder.path().join(folder), &[&second]);
    followed.look();
    assert!(bundle.has_changed().unwrap(), "the bundle goes out at once");
    assert_eq!(bundle.borrow_and_update().roots().len(), 2);
    assert_eq!(followed.issuer_of(CART), "first");
    followed.now_s += OVERLAP_S - 1;
    followed.look();
    assert_eq!(followed.issuer_of(CART), "first");
    followed.now_s += 1;
    followed.look();
    assert_eq!(followed.issuer_of(CART), "second");
    // Its root is known by now.
    write_pair(&followed.folder.path().join(folder), &[&third]);
    followed.look();
    assert_eq!(followed.issuer_of(CART), "third");
    // The old root goes, and comes back: it is new again.
    write_roots(followed.folder.path(), &[&new]);
    followed.look();
    assert_eq!(bundle.borrow_and_update().roots().len(), 1);
    write_roots(followed.folder.path(), &[&new, &old]);
    write_pair(&followed.folder.path().join(folder), &[&first]);
    followed.look();
    assert_eq!(followed.issuer_of(CART), "third");
    followed.now_s += OVERLAP_S;
    followed.look();
    assert_eq!(followed.issuer_of(CART), "first");
}

#[test]
fn since_when_a_root_is_known_is_kept_across_a_restart() {
    let (old, new) = (Ca::root("old root"), Ca::root("new root"));
    let (first, second) = (old.below("first"), new.below("second"));
    let mut followed = Followed::new(&[&old], &[&first], &[]);
    write_roots(followed.folder.path(), &[&old, &new]);
    followed.look();
    let Followed {
        folder,
        authority,
        audit,
        now_s,
        ..
    } = followed;
    let again = |seconds| {
        let sources = SignerSources {
            root: folder.path().join("ca.crt"),
            default: source(&folder.path().join("default")),
            namespaces: Vec::new(),
        };
        let now_s = now_s + seconds;
        let published = Published::open(folder.path(), &authority.roots(), now_s).unwrap();
        let authority = authority.clone();
        let mut reloader = Reloader::new(authority, sources, published, OVERLAP_S, audit.clone());
        reloader.look(now_s);
        reloader.look(now_s);
    };
    write_pair(&folder.path().join("default"), &[&second]);
    again(OVERLAP_S - 1);
    assert_eq!(authority.status()[0].subject, "CN=first");
    again(OVERLAP_S);
    assert_eq!(authority.status()[0].subject, "CN=second");
    // A damaged record is told of, not made up for.
    fs::write(folder.path().join("trust-bundle.json"), "{").unwrap();
    let fault = Published::open(folder.path(), &authority.roots(), now_s).unwrap_err();
    assert!(fault.to_string().contains("remove it"), "{fault}");
}

/// Where what has signed so far can't any more, waiting would help nobody.
#[test]
fn nothing_waits_for_a_root_when_the_old_one_is_gone() {
    let (old, new) = (Ca::root("old root"), Ca::root("new root"));
    let (first, second) = (old.below("first"), new.below("second"));
    let mut followed = Followed::new(&[&old], &[&first], &[]);
    write_roots(followed.folder.path(), &[&new]);
    write_pair(&followed.folder.path().join("default"), &[&second]);
    followed.look();
    assert_eq!(followed.issuer_of(CART), "second");
}
