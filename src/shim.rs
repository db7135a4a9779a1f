//! All that one serving process holds: at most one sandbox, and containers. Each verb of the
//! Sandbox and Task services is one method here, in our own types.
//!
//! Methods that are not `async` answer from memory and never wait. An `async` method that changes
//! something must be run to its end even if its client went away (the service spawns it).

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use crate::error::{Error, Result};
use crate::events::Exit;
use crate::plan::RootfsMount;

/// The shim's own settings, from its command line and environment.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// containerd's namespace (`-namespace`).
    pub namespace: String,
    /// The sandbox or container that the shim was started for (`-id`).
    pub id: String,
    /// Its bundle: the working directory.
    pub bundle: PathBuf,
    /// containerd's TTRPC socket, for events.
    pub ttrpc_address: String,
    /// Our own socket; removed at the end.
    pub socket: PathBuf,
}

/// `NamespaceMode` of CRI.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NamespaceMode {
    /// One for the pod.
    #[default]
    Pod,
    /// One per container.
    Container,
    /// The host's.
    Node,
    /// Another container's.
    Target,
}

/// What CRI's `PodSandboxConfig` says that a sandbox needs; `Default` for a client without one.
#[derive(Clone, Debug, Default)]
pub struct PodConfig {
    /// Empty: the host's name.
    pub hostname: String,
    /// None: a copy of the host's resolv.conf.
    pub dns: Option<Dns>,
    /// Pod annotations and labels, for status and the spec that NRI sees.
    pub annotations: BTreeMap<String, String>,
    pub labels: BTreeMap<String, String>,
    /// `metadata` of the pod: name, uid, namespace, attempt.
    pub name: String,
    pub uid: String,
    pub namespace: String,
    pub attempt: u32,
    /// Given by the kubelet; empty with other clients.
    pub cgroup_parent: String,
    pub sysctls: BTreeMap<String, String>,
    pub network: NamespaceMode,
    pub pid: NamespaceMode,
    pub ipc: NamespaceMode,
    /// `userns_options.mode` is POD.
    pub user_namespace: bool,
    pub privileged: bool,
    pub log_directory: String,
}

/// `DNSConfig` of CRI.
#[derive(Clone, Debug, Default)]
pub struct Dns {
    pub servers: Vec<String>,
    pub searches: Vec<String>,
    pub options: Vec<String>,
}

/// `CreateSandboxRequest`.
#[derive(Clone, Debug, Default)]
pub struct CreateSandbox {
    pub id: String,
    pub bundle: PathBuf,
    /// Empty: the host's network namespace.
    pub netns_path: String,
    pub config: PodConfig,
}

/// `StartSandboxResponse`.
#[derive(Clone, Debug)]
pub struct StartedSandbox {
    pub pid: u32,
    pub created_at: SystemTime,
    /// An OCI spec as JSON, for NRI: the pod's namespaces and annotations.
    pub spec: String,
}

/// `SandboxStatusResponse`.
#[derive(Clone, Debug)]
pub struct SandboxStatus {
    pub id: String,
    pub pid: u32,
    pub ready: bool,
    pub created_at: SystemTime,
    pub exited_at: Option<SystemTime>,
    /// JSON, only when asked for.
    pub info: Option<String>,
}

/// `CreateTaskRequest`.
#[derive(Clone, Debug, Default)]
pub struct CreateContainer {
    pub id: String,
    pub bundle: PathBuf,
    pub rootfs: Vec<RootfsMount>,
    pub stdio: StdioPaths,
    /// Not empty: a restore, which we refuse by name.
    pub checkpoint: String,
    pub options: Options,
}

/// The stdio fields of a request, as they came: State gives them back.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct StdioPaths {
    pub stdin: String,
    pub stdout: String,
    pub stderr: String,
    pub terminal: bool,
}

/// `containerd.runc.v1.Options`: the fields that mean something here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    pub no_pivot_root: bool,
    pub no_new_keyring: bool,
    pub systemd_cgroup: bool,
    pub io_uid: u32,
    pub io_gid: u32,
}

/// `containerd.v1.types.Status`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Created,
    Running,
    Stopped,
    Paused,
    Pausing,
}

/// `StateResponse`.
#[derive(Clone, Debug)]
pub struct Status {
    /// The container's id, or the exec's.
    pub id: String,
    pub bundle: PathBuf,
    pub pid: u32,
    pub state: State,
    pub stdio: StdioPaths,
    pub exit: Option<Exit>,
}

/// A process of a container: Pids. `exec_id` for the first process of an exec.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pid {
    pub pid: u32,
    pub exec_id: Option<String>,
}

/// What Delete gives back.
#[derive(Clone, Copy, Debug)]
pub struct Deleted {
    pub pid: u32,
    pub exit: Exit,
}

/// The server's whole state. See the module text.
#[derive(Debug)]
pub struct Shim {
    settings: Settings,
}

/// The process a request names: a container's init (no exec id) or an exec.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    pub container: String,
    /// None: the init.
    pub exec: Option<String>,
}

impl Shim {
    /// An empty shim.
    pub fn new(settings: Settings) -> Arc<Shim> {
        Arc::new(Shim { settings })
    }

    /// The settings it was started with.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    pub async fn create_sandbox(self: Arc<Self>, _request: CreateSandbox) -> Result<()> {
        Err(Error::unimplemented("CreateSandbox"))
    }
    pub async fn start_sandbox(self: Arc<Self>, _id: String) -> Result<StartedSandbox> {
        Err(Error::unimplemented("StartSandbox"))
    }
    pub async fn stop_sandbox(self: Arc<Self>, _id: String) -> Result<()> {
        Err(Error::unimplemented("StopSandbox"))
    }
    /// Never fails; the process ends once its connections are closed.
    pub async fn shutdown_sandbox(self: Arc<Self>, _id: String) {}
    /// Not detached: cancelled when its client goes.
    pub async fn wait_sandbox(&self, _id: &str) -> Result<Exit> {
        Err(Error::unimplemented("WaitSandbox"))
    }
    pub fn sandbox_status(&self, _id: &str, _verbose: bool) -> Result<SandboxStatus> {
        Err(Error::unimplemented("SandboxStatus"))
    }
    pub fn ping_sandbox(&self, _id: &str) -> Result<()> {
        Err(Error::unimplemented("PingSandbox"))
    }
    /// Of the pod's cgroup.
    pub fn sandbox_metrics(&self, _id: &str) -> Result<crate::cgroup::Stats> {
        Err(Error::unimplemented("SandboxMetrics"))
    }

    /// The pid of the parked init.
    pub async fn create(self: Arc<Self>, _request: CreateContainer) -> Result<u32> {
        Err(Error::unimplemented("Create"))
    }
    pub async fn start(self: Arc<Self>, _target: Target) -> Result<u32> {
        Err(Error::unimplemented("Start"))
    }
    pub async fn delete(self: Arc<Self>, _target: Target) -> Result<Deleted> {
        Err(Error::unimplemented("Delete"))
    }
    /// `process` is OCI's Process as JSON.
    pub fn exec(&self, _target: Target, _process: &[u8], _stdio: StdioPaths) -> Result<()> {
        Err(Error::unimplemented("Exec"))
    }
    pub fn state(&self, _target: &Target) -> Result<Status> {
        Err(Error::unimplemented("State"))
    }
    pub async fn wait(&self, _target: &Target) -> Result<Exit> {
        Err(Error::unimplemented("Wait"))
    }
    pub fn kill(&self, _target: &Target, _signal: u32, _all: bool) -> Result<()> {
        Err(Error::unimplemented("Kill"))
    }
    pub fn pids(&self, _container: &str) -> Result<Vec<Pid>> {
        Err(Error::unimplemented("Pids"))
    }
    pub async fn pause(self: Arc<Self>, _container: String) -> Result<()> {
        Err(Error::unimplemented("Pause"))
    }
    pub async fn resume(self: Arc<Self>, _container: String) -> Result<()> {
        Err(Error::unimplemented("Resume"))
    }
    /// `resources` is OCI's LinuxResources as JSON.
    pub async fn update(self: Arc<Self>, _container: String, _resources: Vec<u8>) -> Result<()> {
        Err(Error::unimplemented("Update"))
    }
    pub fn stats(&self, _container: &str) -> Result<crate::cgroup::Stats> {
        Err(Error::unimplemented("Stats"))
    }
    pub fn resize_pty(&self, _target: &Target, _width: u32, _height: u32) -> Result<()> {
        Err(Error::unimplemented("ResizePty"))
    }
    pub fn close_stdin(&self, _target: &Target) -> Result<()> {
        Err(Error::unimplemented("CloseIO"))
    }
    /// (shim pid, init's pid or 0); never fails.
    pub fn connect(&self, _container: &str) -> (u32, u32) {
        (std::process::id(), 0)
    }
    /// Ends the process once it has answered, if nothing lives in it. True: it will end.
    pub fn shutdown(&self, _id: &str) -> bool {
        false
    }
    /// Resolves when the serving process shall end.
    pub async fn ended(&self) {
        std::future::pending::<()>().await
    }
    /// The next event for containerd, in order; the service forwards it and then calls `forwarded`.
    pub async fn next_event(&self) -> (SystemTime, crate::events::Event) {
        std::future::pending().await
    }
}
