//! An API server with its store, as envtest starts them, in a folder of its own.

use std::fs;
use std::io::Write;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rcgen::KeyPair;
use tempfile::TempDir;

/// How long the server may take to be ready.
const PATIENCE: Duration = Duration::from_secs(120);
/// Who may do everything.
pub(crate) const ADMIN_TOKEN: &str = "admin-token-of-a-test";

/// Ends the process it guards, whatever happens to the test.
struct Guarded(Child);

impl Drop for Guarded {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A running server.
pub(crate) struct Server {
    assets: PathBuf,
    port: u16,
    // The server before its store, and both before their folder.
    _server: Guarded,
    _store: Guarded,
    folder: TempDir,
}

fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

/// Starts a program of the assets, which logs into the folder.
fn start(assets: &Path, name: &str, folder: &Path, arguments: &[String]) -> Guarded {
    let log = fs::File::create(folder.join(format!("{name}.log"))).unwrap();
    let child = Command::new(assets.join(name))
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn();
    Guarded(child.unwrap_or_else(|e| panic!("{name} of KUBEBUILDER_ASSETS: {e}")))
}

impl Server {
    pub(crate) fn start() -> Self {
        let assets = std::env::var_os("KUBEBUILDER_ASSETS");
        let assets = PathBuf::from(assets.expect("KUBEBUILDER_ASSETS names a folder"));
        let folder = tempfile::tempdir().unwrap();
        let at = folder.path();
        let [client_port, peer_port, port] = [(); 3].map(|()| free_port());
        let store = format!("http://127.0.0.1:{client_port}");
        let peer = format!("http://127.0.0.1:{peer_port}");
        let etcd = [
            format!("--data-dir={}", at.join("etcd").display()),
            format!("--listen-client-urls={store}"),
            format!("--advertise-client-urls={store}"),
            format!("--listen-peer-urls={peer}"),
            format!("--initial-advertise-peer-urls={peer}"),
            format!("--initial-cluster=default={peer}"),
            "--unsafe-no-fsync".to_owned(),
        ];
        let key = KeyPair::generate().unwrap();
        fs::write(at.join("sa.key"), key.serialize_pem()).unwrap();
        fs::write(at.join("sa.pub"), key.public_key_pem()).unwrap();
        let tokens = format!("{ADMIN_TOKEN},admin,1,\"system:masters\"\n");
        fs::write(at.join("tokens.csv"), tokens).unwrap();
        let file = |name: &str| at.join(name).display().to_string();
        let api_server = [
            format!("--etcd-servers={store}"),
            format!("--cert-dir={}", at.display()),
            "--bind-address=127.0.0.1".to_owned(),
            "--advertise-address=127.0.0.1".to_owned(),
            format!("--secure-port={port}"),
            "--service-cluster-ip-range=10.96.0.0/16".to_owned(),
            "--authorization-mode=RBAC".to_owned(),
            // Nothing here makes the account and the token that it asks for.
            "--disable-admission-plugins=ServiceAccount".to_owned(),
            "--service-account-issuer=https://kubernetes.default.svc".to_owned(),
            format!("--service-account-key-file={}", file("sa.pub")),
            format!("--service-account-signing-key-file={}", file("sa.key")),
            format!("--token-auth-file={}", file("tokens.csv")),
        ];
        let store = start(&assets, "etcd", at, &etcd);
        let server = start(&assets, "kube-apiserver", at, &api_server);
        let server = Self {
            port,
            _server: server,
            _store: store,
            assets,
            folder,
        };
        let began = Instant::now();
        while !server.kubectl(&["get", "--raw", "/readyz"], "").0 {
            let log = fs::read_to_string(server.path("kube-apiserver.log")).unwrap_or_default();
            assert!(began.elapsed() < PATIENCE, "never ready:\n{log}");
            std::thread::sleep(Duration::from_millis(200));
        }
        server
    }

    pub(crate) fn url(&self) -> String {
        format!("https://127.0.0.1:{}", self.port)
    }

    /// A file in its folder.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn client(&self) -> kube::Client {
        self.client_of(None)
    }

    /// One that acts as somebody else.
    pub(crate) fn client_as(&self, user: &str) -> kube::Client {
        self.client_of(Some(user.to_owned()))
    }

    fn client_of(&self, user: Option<String>) -> kube::Client {
        let mut config = kube::Config::new(self.url().parse().unwrap());
        config.auth_info.impersonate = user;
        config.accept_invalid_certs = true;
        config.auth_info.token = Some(ADMIN_TOKEN.to_owned().into());
        kube::Client::try_from(config).unwrap()
    }

    /// Runs `kubectl` as the administrator: whether it worked, and what it said.
    pub(crate) fn kubectl(&self, arguments: &[&str], input: &str) -> (bool, String) {
        let child = Command::new(self.assets.join("kubectl"))
            .arg(format!("--server={}", self.url()))
            .arg(format!("--token={ADMIN_TOKEN}"))
            .arg("--insecure-skip-tls-verify")
            .args(arguments)
            .env("HOME", self.folder.path())
            .env_remove("KUBECONFIG")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn();
        let mut child = child.expect("kubectl of KUBEBUILDER_ASSETS");
        let mut stdin = child.stdin.take().unwrap();
        // It may end without reading it.
        let _ = stdin.write_all(input.as_bytes());
        drop(stdin);
        let output = child.wait_with_output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let said = text(&output.stdout) + &text(&output.stderr);
        (output.status.success(), said)
    }
}

/// What it said, if it worked.
pub(crate) fn done((worked, said): (bool, String)) -> String {
    assert!(worked, "{said}");
    said
}

/// What it said, if it did not.
pub(crate) fn failed((worked, said): (bool, String)) -> String {
    assert!(!worked, "{said}");
    said
}
