//! One process of a container, its init or an exec: its states, and the only ways between them.
//!
//! A transition refuses or happens; it must never do I/O while it does.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use tokio::sync::watch;

use crate::api::{State, StdioPaths};
use crate::error::{Error, Kind, Result};
use crate::events::Exit;
use crate::launch::Child;
use crate::reaper::ExitWatch;
use crate::stdio::Stdio;

/// See the module text.
#[derive(Debug)]
pub struct Process {
    pub stdio_paths: StdioPaths,
    /// In the shim's PID namespace; 0 before there is one.
    pub pid: u32,
    /// Until Delete drains it.
    pub stdio: Option<Stdio>,
    /// CloseIO came, perhaps before there was anything to close.
    stdin_closed: bool,
    stage: Stage,
    pidfd: Option<Arc<OwnedFd>>,
    /// Set once the state is stopped, so that Wait never returns before.
    exit: watch::Sender<Option<Exit>>,
}

#[derive(Debug)]
enum Stage {
    /// An init that is parked, or was killed while it was.
    Parked(Option<Box<Child>>),
    /// An exec that is only registered: OCI's Process.
    Registered(Box<oci_spec::runtime::Process>),
    /// Start is at work. An exit that comes now is held back.
    Starting,
    /// Start failed; the exit is on its way.
    Failed,
    Running,
    Stopped(Exit),
}

/// What Start works with.
#[derive(Debug)]
pub enum Begin {
    Init(Box<Child>),
    Exec(Box<oci_spec::runtime::Process>),
}

impl Process {
    /// An init that waits for Start.
    pub fn parked(child: Child, stdio: Stdio, stdio_paths: StdioPaths) -> Process {
        Process {
            stdio_paths,
            pid: child.pid,
            stdio: Some(stdio),
            stdin_closed: false,
            pidfd: Some(Arc::clone(&child.pidfd)),
            stage: Stage::Parked(Some(Box::new(child))),
            exit: watch::channel(None).0,
        }
    }

    /// An exec that waits for Start.
    pub fn registered(process: oci_spec::runtime::Process, stdio_paths: StdioPaths) -> Process {
        Process {
            stdio_paths,
            pid: 0,
            stdio: None,
            stdin_closed: false,
            pidfd: None,
            stage: Stage::Registered(Box::new(process)),
            exit: watch::channel(None).0,
        }
    }

    /// created → starting.
    pub fn begin(&mut self) -> Result<Begin> {
        let stage = std::mem::replace(&mut self.stage, Stage::Starting);
        let refused = match stage {
            Stage::Parked(Some(child)) if child.exit.borrow().is_none() => {
                return Ok(Begin::Init(child));
            }
            Stage::Registered(process) => return Ok(Begin::Exec(process)),
            other => other,
        };
        let state = match &refused {
            Stage::Stopped(_) | Stage::Parked(_) | Stage::Failed => "stopped",
            Stage::Starting => "starting",
            _ => "running",
        };
        self.stage = refused;
        Err(Error::new(Kind::FailedPrecondition, format!("cannot start a {state} process")))
    }

    /// An exec got its process.
    pub fn launched(&mut self, pid: u32, pidfd: Arc<OwnedFd>, mut stdio: Stdio) {
        if self.stdin_closed {
            stdio.close_stdin();
        }
        (self.pid, self.pidfd, self.stdio) = (pid, Some(pidfd), Some(stdio));
    }

    /// CloseIO. A client whose input is short sends it before Start.
    pub fn close_stdin(&mut self) {
        self.stdin_closed = true;
        if let Some(stdio) = &mut self.stdio {
            stdio.close_stdin();
        }
    }

    /// starting → running. False: it was not starting any more.
    pub fn started(&mut self) -> bool {
        let starting = self.is_starting();
        if starting {
            self.stage = Stage::Running;
        }
        starting
    }

    /// starting → failed. An exec that never had a process is stopped at once.
    pub fn failed(&mut self, exit: Option<Exit>) {
        self.stage = Stage::Failed;
        if let Some(exit) = exit {
            self.stopped(exit);
        }
    }

    /// Whether an exit must wait for Start.
    pub fn is_starting(&self) -> bool {
        matches!(self.stage, Stage::Starting)
    }

    /// Whether it has a process that has not ended, as far as is known.
    pub fn is_alive(&self) -> bool {
        self.pid != 0 && self.exited().is_none()
    }

    /// anything → stopped; every waiter returns.
    pub fn stopped(&mut self, exit: Exit) {
        if self.exited().is_some() {
            return;
        }
        self.stage = Stage::Stopped(exit);
        if let Some(stdio) = &mut self.stdio {
            stdio.exited();
        }
        self.exit.send_replace(Some(exit));
    }

    /// How it ended.
    pub fn exited(&self) -> Option<Exit> {
        match self.stage {
            Stage::Stopped(exit) => Some(exit),
            _ => None,
        }
    }

    /// What State says of it.
    pub fn state(&self) -> State {
        match self.stage {
            Stage::Parked(_) | Stage::Registered(_) => State::Created,
            Stage::Starting | Stage::Running => State::Running,
            Stage::Failed | Stage::Stopped(_) => State::Stopped,
        }
    }

    /// Resolves when it is stopped.
    pub fn watch(&self) -> ExitWatch {
        self.exit.subscribe()
    }

    /// The pidfd of a process that may still be signalled. NotFound once it has ended: containerd
    /// takes nothing else for "it is gone" before it deletes.
    pub fn pidfd(&self) -> Result<Arc<OwnedFd>> {
        match (&self.stage, &self.pidfd) {
            (Stage::Registered(_), _) | (Stage::Starting, None) => {
                Err(Error::new(Kind::FailedPrecondition, "the process has not been started"))
            }
            (Stage::Stopped(_) | Stage::Failed, _) | (_, None) => {
                Err(Error::new(Kind::NotFound, "the process has already finished"))
            }
            (_, Some(pidfd)) => Ok(Arc::clone(pidfd)),
        }
    }

    /// Takes the parked child of a container that is deleted before it was started.
    pub fn take_parked(&mut self) -> Option<Box<Child>> {
        match &mut self.stage {
            Stage::Parked(child) => child.take(),
            _ => None,
        }
    }
}
