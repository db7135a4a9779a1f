//! What happened, in the order containerd must hear it.
//!
//! The queue is ordered and bounded. It must never block its pusher, and never drop an exit before
//! anything else.

use std::time::SystemTime;

use crate::plan::RootfsMount;

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exit {
    /// Its exit code, or 128 + the signal's number.
    pub status: u32,
    /// When the shim saw it.
    pub at: SystemTime,
}

/// An event of containerd's `/tasks/` topics.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// `/tasks/create`
    Create {
        container_id: String,
        bundle: String,
        rootfs: Vec<RootfsMount>,
        stdin: String,
        stdout: String,
        stderr: String,
        terminal: bool,
        pid: u32,
    },
    /// `/tasks/start`
    Start { container_id: String, pid: u32 },
    /// `/tasks/exit`; `id` is the exec's id, or the container's for its init.
    Exit { container_id: String, id: String, pid: u32, exit: Exit },
    /// `/tasks/delete`
    Delete { container_id: String, pid: u32, exit: Exit },
    /// `/tasks/exec-added`
    ExecAdded { container_id: String, exec_id: String },
    /// `/tasks/exec-started`
    ExecStarted { container_id: String, exec_id: String, pid: u32 },
    /// `/tasks/paused`
    Paused { container_id: String },
    /// `/tasks/resumed`
    Resumed { container_id: String },
    /// `/tasks/oom`
    Oom { container_id: String },
}
