//! The mesh's cgroups: one subtree per instance, one stable child per pod.
//!
//! The id of the subtree *is* the trust that the eBPF programs go by, so neither it nor a
//! pod's cgroup is ever removed or made anew while sockets of a worker live.
//!
//! Budgets go where the machine has the controllers: into cgroup v2, or, on hybrid
//! machines, into parallel v1 cgroups of the same names.

mod features;
mod host;
mod mounts;
mod oom;
mod usage;

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

pub(super) use features::features;
pub use host::{enter_host_namespace, probe_move};
use mounts::{Controller, Mounts};
pub use usage::Usage;

/// What went wrong with a cgroup.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// There is no usable cgroup v2 mount.
    #[error("{0}")]
    Mount(String),
    /// A name that is no single path component.
    #[error("`{0}` can't name a cgroup: it must be one path component")]
    Name(String),
    /// A call on a cgroup failed.
    #[error("cgroup {path}: {step} failed: {source}")]
    Call {
        /// The folder or file.
        path: PathBuf,
        /// What was tried.
        step: &'static str,
        /// Why.
        source: io::Error,
    },
    /// The agent is in a private cgroup namespace.
    #[error(
        "the machine's own cgroup namespace can't be entered: {0}. Run the agent in the host's pid \
         namespace with CAP_SYS_ADMIN and CAP_SYS_PTRACE"
    )]
    Namespace(#[source] io::Error),
    /// Processes can't be moved into the mesh's cgroups.
    #[error(
        "a process can't be moved into {path}: {source}. The agent must see the host's cgroups: \
         run it in the host's pid namespace with the host's cgroup2 mount and CAP_SYS_ADMIN"
    )]
    Move {
        /// The cgroup's folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// What one worker may use. 0 means no limit (for the weight: the default, 100).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Budget {
    /// Share of the CPU under contention, as in `cpu.weight`: 1 to 10,000.
    pub cpu_weight: u32,
    /// Most CPU, in thousandths of one.
    pub cpu_max_millicores: u32,
    /// Memory, kernel memory and socket buffers included, in bytes.
    pub memory_max_bytes: u64,
    /// Processes and threads.
    pub pids_max: u32,
}

/// The subtree of one instance.
#[derive(Clone, Debug)]
pub struct MeshCgroup {
    mounts: Mounts,
    name: String,
    id: u64,
}

/// The cgroup of one pod's worker.
#[derive(Clone, Debug)]
pub struct PodCgroup {
    /// In cgroup v2 first, then the v1 hierarchies that carry a budget.
    folders: Vec<PathBuf>,
    relative: String,
    id: u64,
    enforced: Vec<String>,
    unenforced: Vec<String>,
}

impl MeshCgroup {
    /// Opens the subtree `nodemesh-<instance>`, or makes it. Existing children stay as they are.
    ///
    /// # Errors
    /// [`CgroupError`]; the message says what is missing.
    pub fn open(instance: &str) -> Result<Self, CgroupError> {
        let name = format!("nodemesh-{}", component(instance)?);
        let mounts = Mounts::find()?;
        let folder = mounts.unified.join(&name);
        make(&folder)?;
        // Now: roots of hierarchies are closed to a supervisor that has started.
        for controller in Controller::ALL {
            if let (false, Some(mount)) = (mounts.unified_has(controller)?, mounts.v1(controller)) {
                make(&mount.join(&name))?;
            }
        }
        let id = cgroup_id(&folder)?;
        Ok(Self { mounts, name, id })
    }

    /// The kernel's id of the subtree's root.
    #[must_use]
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Depth of the subtree's root below the hierarchy's root, which is 0.
    #[must_use]
    pub fn level(&self) -> u32 {
        1
    }

    /// Folder of the subtree's root.
    #[must_use]
    pub fn folder(&self) -> PathBuf {
        self.mounts.unified.join(&self.name)
    }

    /// Where the hierarchy is mounted.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.mounts.unified
    }

    /// Names of the pods' cgroups that exist (`<namespace>_<name>`).
    ///
    /// # Errors
    /// [`CgroupError::Call`].
    pub fn pods(&self) -> Result<Vec<String>, CgroupError> {
        let folder = self.folder();
        let read = || -> io::Result<Vec<String>> {
            let mut names = Vec::new();
            for entry in fs::read_dir(&folder)? {
                let entry = entry?;
                let name = entry.file_name().to_string_lossy().into_owned();
                if entry.file_type()?.is_dir() && name.contains('_') {
                    names.push(name);
                }
            }
            names.sort();
            Ok(names)
        };
        read().map_err(call(&folder, "list"))
    }

    /// Opens a pod's cgroup, or makes it, and sets its budget, in place of the one that it has.
    /// What is in force is in [`PodCgroup::enforced`], what the machine can't enforce in
    /// [`PodCgroup::unenforced`], to be reported.
    ///
    /// # Errors
    /// [`CgroupError`].
    pub fn pod(
        &self,
        namespace: &str,
        name: &str,
        budget: Budget,
    ) -> Result<PodCgroup, CgroupError> {
        let child = format!("{}_{}", component(namespace)?, component(name)?);
        let mut pod = self.existing(&child)?;
        for controller in Controller::ALL {
            self.limit(&mut pod, &child, controller, budget)?;
        }
        Ok(pod)
    }

    /// A pod's cgroup by its own name, as [`MeshCgroup::pods`] gives it; made if missing.
    ///
    /// # Errors
    /// [`CgroupError`].
    pub fn existing(&self, child: &str) -> Result<PodCgroup, CgroupError> {
        let folder = self.folder().join(component(child)?);
        make(&folder)?;
        let v1 = Controller::ALL.iter().filter_map(|c| self.mounts.v1(*c));
        let v1 = v1.map(|mount| mount.join(&self.name).join(child));
        let id = cgroup_id(&folder)?;
        let mut folders = vec![folder];
        folders.extend(v1.filter(|folder| folder.is_dir()));
        folders.dedup();
        Ok(PodCgroup {
            folders,
            relative: format!("/{}/{child}", self.name),
            id,
            enforced: Vec::new(),
            unenforced: Vec::new(),
        })
    }

    fn limit(
        &self,
        pod: &mut PodCgroup,
        child: &str,
        controller: Controller,
        budget: Budget,
    ) -> Result<(), CgroupError> {
        let name = controller.name();
        let unified = self.mounts.unified_has(controller)?;
        let folder = if unified {
            if let Err(error) = self.enable(controller) {
                pod.unenforced.push(format!("{name} budget: {error}"));
                return Ok(());
            }
            pod.folders[0].clone()
        } else if let Some(mount) = self.mounts.v1(controller) {
            let folder = mount.join(&self.name).join(child);
            make(&mount.join(&self.name))?;
            make(&folder)?;
            if !pod.folders.contains(&folder) {
                pod.folders.push(folder.clone());
            }
            folder
        } else {
            let what = format!("{name} budget: this machine has no {name} controller");
            pod.unenforced.push(what);
            return Ok(());
        };
        for (file, value) in controller.settings(budget, unified) {
            let file = folder.join(file);
            match file.exists() {
                true if value.lowers_below_use(&folder) => pod.unenforced.push(format!(
                    "{name} budget: more is in use than {value}, so what was before stays for now"
                )),
                true => write(&file, &value.to_string()).map_err(call(&file, "set a budget"))?,
                false if value.is_none() => {}
                false => pod.unenforced.push(format!(
                    "{name} budget: this kernel has no {}",
                    file.display()
                )),
            }
        }
        let version = if unified { 2 } else { 1 };
        pod.enforced.push(format!("{name} by cgroup v{version}"));
        Ok(())
    }

    /// Lets the pods' cgroups have a controller.
    fn enable(&self, controller: Controller) -> Result<(), CgroupError> {
        [self.mounts.unified.clone(), self.folder()]
            .iter()
            .try_for_each(|parent| {
                let file = parent.join("cgroup.subtree_control");
                let value = format!("+{}", controller.name());
                write(&file, &value).map_err(call(&file, "enable a controller"))
            })
    }

    /// Removes the subtree, pods' cgroups included.
    ///
    /// # Errors
    /// [`CgroupError::Call`] with `EBUSY` while a worker lives in one.
    pub fn remove(self) -> Result<(), CgroupError> {
        for child in self.pods()? {
            self.existing(&child)?.remove()?;
        }
        for mount in self.mounts.all() {
            remove(&mount.join(&self.name))?;
        }
        Ok(())
    }
}

impl PodCgroup {
    /// The kernel's id: what `PodConfig::worker_cgroup_id` says.
    #[must_use]
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Path in the cgroup v2 hierarchy, for [`super::Expected::cgroup`].
    #[must_use]
    pub fn path(&self) -> &str {
        &self.relative
    }

    /// By which version of the hierarchy each part of the budget is in force, such as
    /// `cpu by cgroup v2`.
    #[must_use]
    pub fn enforced(&self) -> &[String] {
        &self.enforced
    }

    /// What of the budget the machine can't enforce, one line each.
    #[must_use]
    pub fn unenforced(&self) -> &[String] {
        &self.unenforced
    }

    /// `cgroup.procs` of each hierarchy, open for writing, cgroup v2 first: for
    /// [`super::Birth::cgroup_procs`].
    ///
    /// # Errors
    /// [`CgroupError::Call`].
    pub fn procs_files(&self) -> Result<Vec<File>, CgroupError> {
        let open = |folder: &PathBuf| {
            let file = folder.join("cgroup.procs");
            let opened = OpenOptions::new().write(true).open(&file);
            opened.map_err(call(&file, "open"))
        };
        self.folders.iter().map(open).collect()
    }

    /// The processes in it, in no order. A pid of 0 is a process of another pid namespace.
    ///
    /// # Errors
    /// [`CgroupError::Call`].
    pub fn processes(&self) -> Result<Vec<i32>, CgroupError> {
        let file = self.folders[0].join("cgroup.procs");
        let text = fs::read_to_string(&file).map_err(call(&file, "read"))?;
        Ok(text.lines().filter_map(|line| line.parse().ok()).collect())
    }

    /// Sends SIGKILL to every process in it (`cgroup.kill`, Linux 5.14).
    ///
    /// # Errors
    /// [`CgroupError::Call`].
    pub fn kill(&self) -> Result<(), CgroupError> {
        let file = self.folders[0].join("cgroup.kill");
        write(&file, "1").map_err(call(&file, "kill"))
    }

    /// Removes it: when the pod is withdrawn, and not before.
    ///
    /// # Errors
    /// [`CgroupError::Call`] with `EBUSY` while a worker lives in it.
    pub fn remove(self) -> Result<(), CgroupError> {
        self.folders
            .iter()
            .rev()
            .try_for_each(|folder| remove(folder))
    }
}

fn component(name: &str) -> Result<&str, CgroupError> {
    let bad = name.is_empty() || name.starts_with('.') || name.contains(['/', '\0', '\n']);
    if bad || name.len() > 250 {
        return Err(CgroupError::Name(name.to_owned()));
    }
    Ok(name)
}

fn call(path: &Path, step: &'static str) -> impl FnOnce(io::Error) -> CgroupError {
    let path = path.to_owned();
    move |source| CgroupError::Call { path, step, source }
}

fn make(folder: &Path) -> Result<(), CgroupError> {
    match fs::create_dir(folder) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => Err(call(folder, "make")(e)),
        _ => Ok(()),
    }
}

fn remove(folder: &Path) -> Result<(), CgroupError> {
    match fs::remove_dir(folder) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(call(folder, "remove")(e)),
        _ => Ok(()),
    }
}

/// One write() call: cgroup files take each as one command.
fn write(file: &Path, value: &str) -> io::Result<()> {
    fs::write(file, value)
}

/// The kernel's id of a cgroup, from its file handle.
fn cgroup_id(folder: &Path) -> Result<u64, CgroupError> {
    #[repr(C)]
    struct Handle {
        header: libc::file_handle,
        id: [u8; 8],
    }
    // SAFETY: all-zero is a valid value of these integers.
    let mut handle: Handle = unsafe { std::mem::zeroed() };
    handle.header.handle_bytes = 8;
    let path = std::ffi::CString::new(folder.as_os_str().as_bytes())
        .map_err(|e| call(folder, "name")(e.into()))?;
    let mut mount = 0;
    // SAFETY: the header is followed by the 8 bytes that it announces; the path is a C string.
    let result = unsafe {
        libc::name_to_handle_at(
            libc::AT_FDCWD,
            path.as_ptr(),
            (&raw mut handle).cast(),
            &raw mut mount,
            0,
        )
    };
    super::image::check(result).map_err(call(folder, "name_to_handle_at"))?;
    Ok(u64::from_ne_bytes(handle.id))
}
