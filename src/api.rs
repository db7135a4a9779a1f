//! What the verbs of the Sandbox and Task services take and give, in our own types.
//!
//! Plain values: nothing here may have behaviour, or know protobuf.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::SystemTime;

use crate::events::Exit;
use crate::plan::{IdMap, RootfsMount};

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
    /// `userns_options` with mode POD.
    pub user: Option<IdMap>,
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

/// What holds for a container: runc's options that mean something here, and our own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    pub no_pivot_root: bool,
    pub no_new_keyring: bool,
    pub systemd_cgroup: bool,
    /// Who owns the pipes that a process gets as 0, 1 and 2.
    pub io_uid: u32,
    pub io_gid: u32,
    /// The cgroup that a server is started in.
    pub shim_cgroup: String,
    /// Directories whose programs may be loggers; `None`: any may.
    pub loggers: Option<Vec<PathBuf>>,
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

/// The process a request names: a container's init (no exec id) or an exec.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    pub container: String,
    /// None: the init.
    pub exec: Option<String>,
}
