//! A client of the Container Runtime Interface
//! (<https://kubernetes.io/docs/concepts/architecture/cri/>): what a kubelet asks of a runtime.

mod grpc;
pub mod messages;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use prost::Message;

pub use grpc::Status;
use messages::{
    Condition, ContainerId, ContainerStatus, ContainerStatusAnswer, CreateContainer, Empty,
    ExecSync, ExecSyncAnswer, ImageSpec, ImageStatus, ImageStatusRequest, ListedSandbox,
    PortForward, RunPodSandbox, RuntimeStatus, SandboxId, SandboxList, SandboxStatusAnswer,
    SandboxStatusRequest, StatusRequest, StopContainer, StreamUrl, Version, VersionRequest,
};

use crate::wait;

/// As a kubelet's `--runtime-request-timeout`.
const TIMEOUT: Duration = Duration::from_secs(120);

/// A runtime's socket.
#[derive(Clone, Debug)]
pub struct Cri {
    socket: PathBuf,
}

impl Cri {
    /// The runtime that listens on this socket; nothing is asked yet.
    #[must_use]
    pub fn at(socket: PathBuf) -> Self {
        Self { socket }
    }

    fn runtime<A: Message + Default>(&self, method: &str, request: &impl Message) -> Result<A> {
        let method = format!("runtime.v1.RuntimeService/{method}");
        grpc::call(&self.socket, &method, request, wait::scaled(TIMEOUT))
    }

    /// Which runtime it is.
    ///
    /// # Errors
    /// If it does not answer, as with all that follow: what it refuses is a [`Status`].
    pub fn version(&self) -> Result<Version> {
        let version = "v1".to_owned();
        self.runtime("Version", &VersionRequest { version })
    }

    /// The runtime's conditions.
    ///
    /// # Errors
    /// As [`Self::version`].
    pub fn conditions(&self) -> Result<Vec<Condition>> {
        let answer: RuntimeStatus = self.runtime("Status", &StatusRequest { verbose: false })?;
        Ok(answer.status.unwrap_or_default().conditions)
    }

    /// The network configuration that the runtime uses, as it tells it.
    ///
    /// # Errors
    /// As [`Self::version`].
    pub fn network_in_use(&self) -> Result<String> {
        let answer: RuntimeStatus = self.runtime("Status", &StatusRequest { verbose: true })?;
        let told = answer.info.get("cniconfig").cloned();
        told.context("the runtime says nothing of its network configuration")
    }

    /// Whether it has an image.
    ///
    /// # Errors
    /// As [`Self::version`].
    pub fn has_image(&self, name: &str) -> Result<bool> {
        let image = name.to_owned();
        let request = ImageStatusRequest {
            image: Some(ImageSpec { image }),
        };
        let method = "runtime.v1.ImageService/ImageStatus";
        let answer: ImageStatus =
            grpc::call(&self.socket, method, &request, wait::scaled(TIMEOUT))?;
        Ok(answer.image.is_some())
    }

    /// Makes a sandbox and its network; returns its id.
    ///
    /// # Errors
    /// As [`Self::version`]; what a CNI plugin refuses with is in the status's words.
    pub fn run_sandbox(&self, request: &RunPodSandbox) -> Result<String> {
        let answer: SandboxId = self.runtime("RunPodSandbox", request)?;
        Ok(answer.id)
    }

    /// Stops all that runs in a sandbox, and takes its network away. What is done is no error.
    ///
    /// # Errors
    /// As [`Self::version`].
    pub fn stop_sandbox(&self, id: &str) -> Result<()> {
        let id = id.to_owned();
        let _: Empty = self.runtime("StopPodSandbox", &SandboxId { id })?;
        Ok(())
    }

    /// Removes a sandbox and its containers. What is gone is no error.
    ///
    /// # Errors
    /// As [`Self::version`].
    pub fn remove_sandbox(&self, id: &str) -> Result<()> {
        let id = id.to_owned();
        let _: Empty = self.runtime("RemovePodSandbox", &SandboxId { id })?;
        Ok(())
    }

    /// A sandbox's state, with all that the runtime has to say of it.
    ///
    /// # Errors
    /// As [`Self::version`].
    pub fn sandbox(&self, id: &str) -> Result<SandboxStatusAnswer> {
        let request = SandboxStatusRequest {
            id: id.to_owned(),
            verbose: true,
        };
        self.runtime("PodSandboxStatus", &request)
    }

    /// All sandboxes.
    ///
    /// # Errors
    /// As [`Self::version`].
    pub fn sandboxes(&self) -> Result<Vec<ListedSandbox>> {
        let answer: SandboxList = self.runtime("ListPodSandbox", &Empty {})?;
        Ok(answer.items)
    }

    /// Makes a container and starts it; returns its id.
    ///
    /// # Errors
    /// As [`Self::version`].
    pub fn start_container(&self, request: &CreateContainer) -> Result<String> {
        let made: ContainerId = self.runtime("CreateContainer", request)?;
        let _: Empty = self.runtime("StartContainer", &made)?;
        Ok(made.id)
    }

    /// Stops a container: by signal, and after so many seconds by SIGKILL.
    ///
    /// # Errors
    /// As [`Self::version`].
    pub fn stop_container(&self, id: &str, timeout: i64) -> Result<()> {
        let id = id.to_owned();
        let _: Empty = self.runtime("StopContainer", &StopContainer { id, timeout })?;
        Ok(())
    }

    /// A container's state.
    ///
    /// # Errors
    /// As [`Self::version`].
    pub fn container(&self, id: &str) -> Result<ContainerStatus> {
        let id = id.to_owned();
        let answer: ContainerStatusAnswer = self.runtime("ContainerStatus", &ContainerId { id })?;
        answer.status.context("a container without a state")
    }

    /// Runs a program in a container to its end.
    ///
    /// # Errors
    /// As [`Self::version`]; how the program ends is no error.
    pub fn exec(&self, id: &str, command: &[&str]) -> Result<ExecSyncAnswer> {
        let request = ExecSync {
            id: id.to_owned(),
            command: command.iter().map(|&word| word.to_owned()).collect(),
            timeout: 60,
        };
        self.runtime("ExecSync", &request)
    }

    /// Where a stream to a port of a sandbox is to be had.
    ///
    /// # Errors
    /// As [`Self::version`].
    pub fn port_forward(&self, sandbox: &str, port: u16) -> Result<String> {
        let request = PortForward {
            sandbox: sandbox.to_owned(),
            ports: vec![i32::from(port)],
        };
        let answer: StreamUrl = self.runtime("PortForward", &request)?;
        Ok(answer.url)
    }
}
