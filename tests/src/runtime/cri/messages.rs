//! Those messages of the Container Runtime Interface, `runtime.v1`, that a kubelet needs to run
//! pods, with the fields that are used here. Fields that are left out are what the runtime takes
//! for unset.

use std::collections::HashMap;

macro_rules! messages {
    ($($(#[$doc:meta])* $name:ident { $($(#[$field:meta])* $member:ident: $kind:ty,)* })*) => {
        $($(#[$doc])* #[derive(Clone, PartialEq, prost::Message)]
        pub struct $name { $($(#[$field])* pub $member: $kind,)* })*
    };
}

messages! {
    /// Who a sandbox is for.
    PodSandboxMetadata {
        /// The pod's name.
        #[prost(string, tag = "1")] name: String,
        /// The pod's uid.
        #[prost(string, tag = "2")] uid: String,
        /// The pod's namespace.
        #[prost(string, tag = "3")] namespace: String,
        /// How often a sandbox was made for this pod before.
        #[prost(uint32, tag = "4")] attempt: u32,
    }
    /// Which namespaces of the kernel are shared: 0 by the pod, 1 by nobody, 2 with the node.
    NamespaceOption {
        /// Network.
        #[prost(int32, tag = "1")] network: i32,
        /// Processes.
        #[prost(int32, tag = "2")] pid: i32,
        /// IPC.
        #[prost(int32, tag = "3")] ipc: i32,
    }
    /// A sandbox's security settings.
    SandboxSecurity {
        /// Namespaces.
        #[prost(message, optional, tag = "1")] namespace_options: Option<NamespaceOption>,
    }
    /// What of a sandbox is Linux's.
    LinuxSandbox {
        /// Where the pod's cgroups are to be.
        #[prost(string, tag = "1")] cgroup_parent: String,
        /// Security settings.
        #[prost(message, optional, tag = "2")] security_context: Option<SandboxSecurity>,
    }
    /// A sandbox to be.
    PodSandboxConfig {
        /// Whose it is.
        #[prost(message, optional, tag = "1")] metadata: Option<PodSandboxMetadata>,
        /// Its host name.
        #[prost(string, tag = "2")] hostname: String,
        /// Where containers' logs go.
        #[prost(string, tag = "3")] log_directory: String,
        /// Labels.
        #[prost(map = "string, string", tag = "6")] labels: HashMap<String, String>,
        /// Annotations.
        #[prost(map = "string, string", tag = "7")] annotations: HashMap<String, String>,
        /// Linux's part.
        #[prost(message, optional, tag = "8")] linux: Option<LinuxSandbox>,
    }
    /// Makes and starts a sandbox, its network included.
    RunPodSandbox {
        /// What it shall be.
        #[prost(message, optional, tag = "1")] config: Option<PodSandboxConfig>,
        /// Which of the runtime's handlers; empty for the default.
        #[prost(string, tag = "2")] runtime_handler: String,
    }
    /// Names a sandbox: all that is asked when it is stopped or removed, and the answer to
    /// [`RunPodSandbox`].
    SandboxId {
        /// The sandbox's id.
        #[prost(string, tag = "1")] id: String,
    }
    /// Names a container: all that is asked when it is started or removed, and the answer to
    /// [`CreateContainer`].
    ContainerId {
        /// The container's id.
        #[prost(string, tag = "1")] id: String,
    }
    /// Asks for a sandbox's state.
    SandboxStatusRequest {
        /// The sandbox's id.
        #[prost(string, tag = "1")] id: String,
        /// Whether the runtime's own information is wanted too.
        #[prost(bool, tag = "2")] verbose: bool,
    }
    /// An address.
    PodIp {
        /// In text form.
        #[prost(string, tag = "1")] ip: String,
    }
    /// A sandbox's addresses.
    SandboxNetwork {
        /// The first.
        #[prost(string, tag = "1")] ip: String,
        /// The others.
        #[prost(message, repeated, tag = "2")] additional: Vec<PodIp>,
    }
    /// A sandbox's state.
    SandboxStatus {
        /// Its id.
        #[prost(string, tag = "1")] id: String,
        /// 0 ready, 1 not.
        #[prost(int32, tag = "3")] state: i32,
        /// Its addresses.
        #[prost(message, optional, tag = "5")] network: Option<SandboxNetwork>,
    }
    /// Answer to [`SandboxStatusRequest`].
    SandboxStatusAnswer {
        /// The state.
        #[prost(message, optional, tag = "1")] status: Option<SandboxStatus>,
        /// The runtime's own information: JSON by name.
        #[prost(map = "string, string", tag = "2")] info: HashMap<String, String>,
    }
    /// Asks for all sandboxes; also what has no fields at all.
    Empty {}
    /// A sandbox of a list.
    ListedSandbox {
        /// Its id.
        #[prost(string, tag = "1")] id: String,
        /// Whose it is.
        #[prost(message, optional, tag = "2")] metadata: Option<PodSandboxMetadata>,
        /// 0 ready, 1 not.
        #[prost(int32, tag = "3")] state: i32,
    }
    /// All sandboxes.
    SandboxList {
        /// They.
        #[prost(message, repeated, tag = "1")] items: Vec<ListedSandbox>,
    }
    /// Names an image.
    ImageSpec {
        /// Its name.
        #[prost(string, tag = "1")] image: String,
    }
    /// Asks whether an image is there.
    ImageStatusRequest {
        /// Which.
        #[prost(message, optional, tag = "1")] image: Option<ImageSpec>,
    }
    /// An image.
    Image {
        /// Its id.
        #[prost(string, tag = "1")] id: String,
    }
    /// Answer to [`ImageStatusRequest`].
    ImageStatus {
        /// The image, if it is there.
        #[prost(message, optional, tag = "1")] image: Option<Image>,
    }
    /// Name of a container in its pod.
    ContainerMetadata {
        /// The name.
        #[prost(string, tag = "1")] name: String,
        /// How often it was made before.
        #[prost(uint32, tag = "2")] attempt: u32,
    }
    /// A container's security settings.
    ContainerSecurity {
        /// Namespaces.
        #[prost(message, optional, tag = "3")] namespace_options: Option<NamespaceOption>,
    }
    /// What of a container is Linux's.
    LinuxContainer {
        /// Security settings.
        #[prost(message, optional, tag = "2")] security_context: Option<ContainerSecurity>,
    }
    /// A container to be.
    ContainerConfig {
        /// Its name.
        #[prost(message, optional, tag = "1")] metadata: Option<ContainerMetadata>,
        /// Its image.
        #[prost(message, optional, tag = "2")] image: Option<ImageSpec>,
        /// Its program and arguments.
        #[prost(string, repeated, tag = "3")] command: Vec<String>,
        /// Labels.
        #[prost(map = "string, string", tag = "9")] labels: HashMap<String, String>,
        /// Annotations.
        #[prost(map = "string, string", tag = "10")] annotations: HashMap<String, String>,
        /// Its log, below the sandbox's folder.
        #[prost(string, tag = "11")] log_path: String,
        /// Linux's part.
        #[prost(message, optional, tag = "15")] linux: Option<LinuxContainer>,
    }
    /// Makes a container in a sandbox.
    CreateContainer {
        /// The sandbox's id.
        #[prost(string, tag = "1")] sandbox: String,
        /// What it shall be.
        #[prost(message, optional, tag = "2")] config: Option<ContainerConfig>,
        /// What the sandbox was made with.
        #[prost(message, optional, tag = "3")] sandbox_config: Option<PodSandboxConfig>,
    }
    /// Stops a container.
    StopContainer {
        /// Its id.
        #[prost(string, tag = "1")] id: String,
        /// Seconds from the signal to the kill.
        #[prost(int64, tag = "2")] timeout: i64,
    }
    /// A container's state.
    ContainerStatus {
        /// 0 created, 1 running, 2 exited, 3 unknown.
        #[prost(int32, tag = "3")] state: i32,
        /// What it exited with.
        #[prost(int32, tag = "7")] exit_code: i32,
    }
    /// Answer with a container's state.
    ContainerStatusAnswer {
        /// The state.
        #[prost(message, optional, tag = "1")] status: Option<ContainerStatus>,
    }
    /// Runs a program in a container to its end.
    ExecSync {
        /// The container's id.
        #[prost(string, tag = "1")] id: String,
        /// Program and arguments.
        #[prost(string, repeated, tag = "2")] command: Vec<String>,
        /// Seconds that it may take.
        #[prost(int64, tag = "3")] timeout: i64,
    }
    /// How such a program ended.
    ExecSyncAnswer {
        /// Standard output.
        #[prost(bytes = "vec", tag = "1")] stdout: Vec<u8>,
        /// Standard error.
        #[prost(bytes = "vec", tag = "2")] stderr: Vec<u8>,
        /// Exit code.
        #[prost(int32, tag = "3")] exit_code: i32,
    }
    /// Asks for a stream to a sandbox's ports.
    PortForward {
        /// The sandbox's id.
        #[prost(string, tag = "1")] sandbox: String,
        /// The ports.
        #[prost(int32, repeated, tag = "2")] ports: Vec<i32>,
    }
    /// Where a stream is to be had, once.
    StreamUrl {
        /// Of a server of the runtime's.
        #[prost(string, tag = "1")] url: String,
    }
    /// One of the runtime's conditions.
    Condition {
        /// `RuntimeReady` or `NetworkReady`.
        #[prost(string, tag = "1")] kind: String,
        /// Whether it holds.
        #[prost(bool, tag = "2")] status: bool,
        /// Why not.
        #[prost(string, tag = "4")] message: String,
    }
    /// All of them.
    Conditions {
        /// They.
        #[prost(message, repeated, tag = "1")] conditions: Vec<Condition>,
    }
    /// Asks how the runtime is.
    StatusRequest {
        /// Whether the runtime's own information is wanted too.
        #[prost(bool, tag = "1")] verbose: bool,
    }
    /// Answer to [`StatusRequest`].
    RuntimeStatus {
        /// Its conditions.
        #[prost(message, optional, tag = "1")] status: Option<Conditions>,
        /// The runtime's own information: JSON by name.
        #[prost(map = "string, string", tag = "2")] info: HashMap<String, String>,
    }
    /// Asks for the version.
    VersionRequest {
        /// The caller's version of the interface.
        #[prost(string, tag = "1")] version: String,
    }
    /// Which runtime it is.
    Version {
        /// Such as `containerd`.
        #[prost(string, tag = "2")] runtime_name: String,
        /// Its version.
        #[prost(string, tag = "3")] runtime_version: String,
        /// Of the interface.
        #[prost(string, tag = "4")] api_version: String,
    }
}
