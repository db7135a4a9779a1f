//! A pod's sandbox: the namespaces that this process enters, the files and the `/dev/shm` that its
//! containers share, and a holder where they share a PID or a user namespace.
//!
//! Its state changes only here. Status, Ping and Platform must never wait for any of it.

pub mod files;
mod start;

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde_json::json;
use tokio::sync::watch;
use tokio::time::timeout;

use crate::api::{CreateSandbox, NamespaceMode, PodConfig, SandboxStatus, StartedSandbox};
use crate::bundle;
use crate::error::{Doing, Error, Kind, Result};
use crate::events::Exit;
use crate::namespaces::Pod;
use crate::plan;
use crate::reaper::{ExitWatch, ended};
use crate::sys;

use start::own_namespaces;
pub use start::{StartRequest, start};

/// How long the pod's first process may take to end once it was killed.
const HOLDER_LIMIT: Duration = Duration::from_secs(5);
/// One pod's sandbox.
#[derive(Debug)]
pub struct Sandbox {
    pub id: String,
    pub config: PodConfig,
    bundle: PathBuf,
    netns: Option<PathBuf>,
    created_at: SystemTime,
    stage: Stage,
    exit: watch::Sender<Option<Exit>>,
}

#[derive(Debug)]
enum Stage {
    Created,
    /// StartSandbox is at work on it.
    Starting,
    Ready(Ready),
    /// StopSandbox is at work on it.
    Stopping,
    Stopped,
}

/// A start that failed, and what is to be taken down of it.
#[derive(Debug)]
pub struct Unstarted {
    pub error: Error,
    pub undo: Option<Ready>,
}

/// What a started sandbox holds.
#[derive(Debug)]
pub struct Ready {
    holder: Option<Holder>,
    shm: Option<Shm>,
}

#[derive(Debug)]
struct Holder {
    pid: u32,
    pidfd: Arc<OwnedFd>,
    exit: ExitWatch,
}

/// The pod's `/dev/shm`.
#[derive(Debug)]
struct Shm {
    mount: OwnedFd,
    /// Where it is attached on the host, if this kernel cannot clone a detached mount (< 6.15).
    attached: Option<PathBuf>,
}

impl Sandbox {
    /// Writes the pod's files. Nothing runs yet.
    pub fn create(request: CreateSandbox) -> Result<Sandbox> {
        bundle::check_id(&request.id)?;
        let root = |map: &plan::IdMap| map.uid(0).is_some() && map.gid(0).is_some();
        if request.config.user.as_ref().is_some_and(|map| !root(map)) {
            return Err(Error::invalid("namespace_options.userns_options: 0 is not mapped"));
        }
        if request.config.network != NamespaceMode::Node && request.netns_path.is_empty() {
            return Err(Error::invalid(
                "netns_path is empty, and the pod does not use the host's network",
            ));
        }
        for name in request.config.sysctls.keys() {
            let file = plan::sysctl_file(name, own_namespaces(&request.config));
            file.doing(|| format!("sysctl {name:?}"))?;
        }
        files::write(&request.bundle, &request.config)?;
        let netns = (!request.netns_path.is_empty()).then(|| PathBuf::from(&request.netns_path));
        Ok(Sandbox {
            id: request.id,
            config: request.config,
            bundle: request.bundle,
            netns,
            created_at: SystemTime::now(),
            stage: Stage::Created,
            exit: watch::channel(None).0,
        })
    }

    /// Moves from created to starting; the caller then calls [`start`] and [`Sandbox::started`].
    pub fn starting(&mut self) -> Result<StartRequest> {
        match self.stage {
            Stage::Created => self.stage = Stage::Starting,
            _ => return Err(self.wrong_state("start")),
        }
        Ok(StartRequest {
            id: self.id.clone(),
            bundle: self.bundle.clone(),
            netns: self.netns.clone(),
            config: self.config.clone(),
        })
    }

    /// Moves from starting to ready, or back to created. A sandbox that was stopped meanwhile
    /// gives the result back to be undone.
    pub fn started(&mut self, result: Result<Ready>) -> Result<StartedSandbox, Box<Unstarted>> {
        match (&self.stage, result) {
            (Stage::Starting, Ok(ready)) => {
                self.stage = Stage::Ready(ready);
                Ok(StartedSandbox {
                    pid: self.pid(),
                    created_at: self.created_at,
                    spec: self.spec().to_string(),
                })
            }
            (Stage::Starting, Err(error)) => {
                self.stage = Stage::Created;
                Err(Box::new(Unstarted { error, undo: None }))
            }
            (_, result) => {
                let error = self.wrong_state("start");
                Err(Box::new(Unstarted { error, undo: result.ok() }))
            }
        }
    }

    /// Moves to stopping; what it held is for the caller to take down, who then calls
    /// [`Sandbox::stopped`]. `None`: it was stopped, or somebody else is at it.
    pub fn stopping(&mut self) -> Option<Option<Ready>> {
        if matches!(self.stage, Stage::Stopping | Stage::Stopped) {
            return None;
        }
        match std::mem::replace(&mut self.stage, Stage::Stopping) {
            Stage::Ready(ready) => Some(Some(ready)),
            _ => Some(None),
        }
    }

    /// Moves to stopped, and completes every waiter.
    pub fn stopped(&mut self, status: u32) {
        self.stage = Stage::Stopped;
        self.exit.send_if_modified(|exit| {
            let first = exit.is_none();
            exit.get_or_insert(Exit { status, at: SystemTime::now() });
            first
        });
    }

    fn wrong_state(&self, verb: &str) -> Error {
        let state = match self.stage {
            Stage::Created => "created",
            Stage::Starting => "starting",
            Stage::Ready(_) => "ready",
            Stage::Stopping => "stopping",
            Stage::Stopped => "stopped",
        };
        Error::new(Kind::FailedPrecondition, format!("{verb} sandbox {:?}: it is {state}", self.id))
    }

    /// How it ends.
    pub fn exit(&self) -> ExitWatch {
        self.exit.subscribe()
    }

    /// Whether it was started and not stopped.
    pub fn ready(&self) -> Option<&Ready> {
        match &self.stage {
            Stage::Ready(ready) => Some(ready),
            _ => None,
        }
    }

    /// Whether it was stopped.
    pub fn is_stopped(&self) -> bool {
        matches!(self.stage, Stage::Stopped)
    }

    /// Whether StartSandbox is at work.
    pub fn is_starting(&self) -> bool {
        matches!(self.stage, Stage::Starting)
    }

    /// Whether StartSandbox has not come yet.
    pub fn is_waiting(&self) -> bool {
        matches!(self.stage, Stage::Created)
    }

    /// A process in all of the pod's namespaces: the holder, or this one.
    fn pid(&self) -> u32 {
        match self.ready().and_then(|ready| ready.holder.as_ref()) {
            Some(holder) => holder.pid,
            None => std::process::id(),
        }
    }

    /// What SandboxStatus answers.
    pub fn status(&self, verbose: bool) -> SandboxStatus {
        let ready = self.ready().is_some();
        SandboxStatus {
            id: self.id.clone(),
            pid: if ready { self.pid() } else { 0 },
            ready,
            created_at: self.created_at,
            exited_at: self.exit.borrow().map(|exit| exit.at),
            info: verbose.then(|| self.info().to_string()),
        }
    }

    fn info(&self) -> serde_json::Value {
        json!({
            "pid": self.pid(),
            "processStatus": if self.ready().is_some() { "running" } else { "stopped" },
            "netNamespaceClosed": false,
            "runtimeType": "io.containerd.rs.v2",
            "runtimeSpec": self.spec(),
        })
    }

    /// The OCI spec that a pause container would have had, as far as anybody reads it.
    fn spec(&self) -> serde_json::Value {
        let pid = self.pid();
        let path = |kind: &str| format!("/proc/{pid}/ns/{kind}");
        let mut namespaces = vec![
            json!({"type": "ipc", "path": path("ipc")}),
            json!({"type": "uts", "path": path("uts")}),
        ];
        if let Some(netns) = &self.netns {
            namespaces.push(json!({"type": "network", "path": netns}));
        }
        if self.config.pid == NamespaceMode::Pod {
            namespaces.push(json!({"type": "pid", "path": path("pid")}));
        }
        if self.config.user.is_some() {
            namespaces.push(json!({"type": "user", "path": path("user")}));
        }
        let mut annotations: BTreeMap<&str, &str> =
            self.config.annotations.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        annotations.insert("io.kubernetes.cri.container-type", "sandbox");
        annotations.insert("io.kubernetes.cri.sandbox-id", &self.id);
        annotations.insert("io.kubernetes.cri.sandbox-name", &self.config.name);
        annotations.insert("io.kubernetes.cri.sandbox-namespace", &self.config.namespace);
        annotations.insert("io.kubernetes.cri.sandbox-uid", &self.config.uid);
        json!({
            "ociVersion": "1.3.0",
            "hostname": self.config.hostname,
            "annotations": annotations,
            "linux": {
                "cgroupsPath": self.config.cgroup_parent,
                "namespaces": namespaces,
                "sysctl": self.config.sysctls,
            },
        })
    }

    /// The directory of `hosts`, `hostname` and `resolv.conf`.
    pub fn files(&self) -> PathBuf {
        files::dir(&self.bundle)
    }
}

impl Ready {
    /// Whether the pod has its own `/dev/shm`.
    pub fn has_shm(&self) -> bool {
        self.shm.is_some()
    }

    /// A copy of the pod's `/dev/shm`, attached nowhere.
    pub fn shm(&self) -> Result<Option<OwnedFd>> {
        let copy = |shm: &Shm| {
            let copy = sys::mount::clone_mount(shm.mount.as_fd());
            copy.doing(|| "open_tree(/dev/shm of the pod, OPEN_TREE_CLONE)")
        };
        self.shm.as_ref().map(copy).transpose()
    }

    /// Takes everything down; every step runs, and the namespaces are left whatever hangs in them.
    pub async fn take_down(mut self, pod: &Pod) -> Result<()> {
        let mut errors = Vec::new();
        if let Some(holder) = &self.holder {
            let _ = sys::fd::pidfd_signal(&holder.pidfd, libc::SIGKILL);
        }
        errors.extend(pod.leave().err());
        if let Some(path) = self.shm.as_ref().and_then(|shm| shm.attached.as_deref()) {
            errors.extend(unmount_shm(path).err());
        }
        // pid 1 of the pod ends only after every process of its namespace has.
        if let Some(holder) = &mut self.holder
            && timeout(HOLDER_LIMIT, ended(&mut holder.exit)).await.is_err()
        {
            let text = format!("a process of the pod is alive after {HOLDER_LIMIT:?}");
            errors.push(Error::new(Kind::DeadlineExceeded, text));
        }
        Error::join(errors)
    }

    /// How the holder ends, if there is one: the pod's processes end with it.
    pub fn holder_exit(&self) -> Option<ExitWatch> {
        self.holder.as_ref().map(|holder| holder.exit.clone())
    }
}

/// Detaches a pod's `/dev/shm` from the host.
pub fn unmount_shm(path: &Path) -> Result<()> {
    let c_path = plan::cpath("shm", path)?;
    match sys::raw::umount(&c_path, libc::MNT_DETACH | libc::UMOUNT_NOFOLLOW) {
        Ok(_) | Err(nix::errno::Errno::EINVAL | nix::errno::Errno::ENOENT) => {}
        Err(errno) => return Err(Error::sys(format!("umount {path:?}"), errno)),
    }
    match std::fs::remove_dir(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(Error::io(format!("rmdir {path:?}"), &e))
        }
        _ => Ok(()),
    }
}
