//! A pod's surroundings for one worker: a network namespace, a cgroup, a uid. Everything is
//! gone again when it is dropped.

use std::fs::{self, File};
use std::os::fd::{AsFd, AsRawFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::signal::Signal;

use mesh_agent::sandbox::cgroup::{self, Budget, MeshCgroup, PodCgroup};
use mesh_agent::sandbox::{Birth, Exit, Expected, Newborn, SandboxError, WorkerImage, spawn};
use mesh_api::worker::{MetricsRequest, to_supervisor, to_worker};

use crate::supervise::{self, PATIENCE};

/// Where a worker can be born.
pub(crate) struct Place {
    pub(crate) uid: u32,
    pub(crate) netns: File,
    pub(crate) cgroup: PodCgroup,
    mesh: Option<MeshCgroup>,
}

/// A pod with a worker.
pub(crate) struct Pod {
    pub(crate) worker: Newborn,
    pub(crate) place: Place,
}

static COUNT: AtomicU32 = AtomicU32::new(0);

impl Place {
    pub(crate) fn made() -> Self {
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let instance = format!("sandbox-test-{}-{count}", std::process::id());
        cgroup::enter_host_namespace().expect("the host's cgroup namespace");
        let mesh = MeshCgroup::open(&instance).expect("a mesh cgroup");
        cgroup::probe_move(&mesh).expect("processes can be moved");
        let budget = Budget {
            cpu_weight: 100,
            cpu_max_millicores: 0,
            memory_max_bytes: 256 << 20,
            pids_max: 2,
        };
        let cgroup = mesh.pod("default", "web", budget).expect("a pod's cgroup");
        Self {
            uid: 3_900_100_000 + count,
            netns: network_namespace(),
            cgroup,
            mesh: Some(mesh),
        }
    }

    /// Spawns a worker there.
    pub(crate) fn bear(&self, image: &WorkerImage) -> Result<Newborn, SandboxError> {
        self.bear_in(&self.netns, image)
    }

    /// Spawns a worker there, but with another network namespace.
    pub(crate) fn bear_in(
        &self,
        netns: &File,
        image: &WorkerImage,
    ) -> Result<Newborn, SandboxError> {
        let procs = self.cgroup.procs_files().expect("cgroup.procs");
        let birth = Birth {
            netns: netns.as_fd(),
            cgroup_procs: procs.iter().map(AsFd::as_fd).collect(),
            uid: self.uid,
            gid: self.uid,
            name: "default/web",
        };
        spawn(image, &birth)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mesh = self.mesh.take().expect("dropped once");
        if let Err(error) = mesh.remove() {
            eprintln!("left behind: {error}");
        }
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        let _ = self.worker.signal(Signal::SIGKILL);
        await_end(&self.worker);
    }
}

impl Pod {
    /// A worker that has said Ready.
    pub(crate) fn born() -> Self {
        let place = Place::made();
        let worker = place.bear(&image()).expect("a worker");
        let pod = Self { worker, place };
        supervise::start(&pod.worker);
        pod
    }

    pub(crate) fn expected(&self) -> Expected<'_> {
        Expected {
            cgroup: self.place.cgroup.path(),
            uid: self.place.uid,
        }
    }

    /// Asserts that the worker lives, answers on its channel, and serves a new tunnel.
    pub(crate) fn assert_serves(&self) {
        assert_eq!(
            self.worker.exited().expect("its state"),
            None,
            "the worker has ended"
        );
        let request = to_worker::Message::MetricsRequest(MetricsRequest { id: 7 });
        let counters = supervise::exchange(&self.worker, vec![request], |message| match message {
            to_supervisor::Message::Metrics(metrics) if metrics.id == 7 => Some(metrics.counters),
            _ => None,
        });
        assert!(!counters.is_empty(), "it counts");
        self.within(supervise::ask_through_tunnel);
    }

    /// Runs in a thread of its own inside the pod's network namespace.
    pub(crate) fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let inside = scope.spawn(|| {
                setns(self.place.netns.as_fd(), CloneFlags::CLONE_NEWNET).expect("its namespace");
                work()
            });
            inside.join().expect("no panic inside")
        })
    }

    /// A file of the worker in `/proc`.
    pub(crate) fn proc(&self, file: &str) -> PathBuf {
        format!("/proc/{}/{file}", self.worker.pid).into()
    }
}

/// The agent's binary, as its supervisor seals it.
pub(crate) fn image() -> WorkerImage {
    WorkerImage::seal_file(env!("CARGO_BIN_EXE_mesh-agent").as_ref()).expect("an image")
}

/// Waits for a worker to end and reaps it.
pub(crate) fn await_end(worker: &Newborn) -> Option<Exit> {
    let mut polled = [PollFd::new(worker.pidfd.as_fd(), PollFlags::POLLIN)];
    let timeout = PollTimeout::try_from(PATIENCE).expect("short");
    poll(&mut polled, timeout).expect("poll of the pidfd");
    worker.exited().expect("its end")
}

/// A new network namespace with its loopback device up.
fn network_namespace() -> File {
    let made = thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace (root?)");
        raise_loopback();
        File::open("/proc/thread-self/ns/net").expect("its handle")
    });
    made.join().expect("no panic")
}

fn raise_loopback() {
    let socket = std::net::UdpSocket::bind("127.0.0.1:0")
        .or_else(|_| std::net::UdpSocket::bind("0.0.0.0:0"))
        .expect("a socket");
    // SAFETY: all-zero is a valid value of this C struct.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_name[0] = b'l'.cast_signed();
    request.ifr_name[1] = b'o'.cast_signed();
    request.ifr_ifru.ifru_flags = libc::c_short::try_from(libc::IFF_UP).expect("a small flag");
    // SAFETY: the request is live and of the type that this command takes.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) };
    assert_eq!(
        result,
        0,
        "loopback up: {}",
        std::io::Error::last_os_error()
    );
}

/// Names of the entries of a folder, sorted.
pub(crate) fn entries(folder: &PathBuf) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(folder)
        .unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
        .map(|entry| {
            entry
                .expect("an entry")
                .file_name()
                .to_string_lossy()
                .into_owned()
        })
        .collect();
    names.sort();
    names
}
