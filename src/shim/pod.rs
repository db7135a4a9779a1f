//! The verbs of the Sandbox service, and the end of everything.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, timeout};

use super::{Shim, home};
use crate::api::{CreateSandbox, SandboxStatus, StartedSandbox, Target};
use crate::bundle::{self, RECORD_VERSION, ServerRecord};
use crate::cgroup::{self, Stats};
use crate::container::Container;
use crate::error::{Doing, Error, Kind, Result};
use crate::events::Exit;
use crate::reaper::ended;
use crate::sandbox::{self, Sandbox};
use crate::sys;

/// How long the containers of a stopped sandbox may take to die.
const STOP_LIMIT: Duration = Duration::from_secs(10);
/// How long until they are killed again: a fork may have slipped through.
const KILL_AGAIN: Duration = Duration::from_millis(200);
/// What WaitSandbox says of a sandbox that was stopped.
const STOPPED: u32 = 0;
/// And of one whose holder died: its processes were killed with it.
const KILLED: u32 = 137;

impl super::State {
    fn sandbox(&self, id: &str) -> Result<&Sandbox> {
        let sandbox = self.sandbox.as_ref().filter(|sandbox| sandbox.id == id);
        sandbox.ok_or_else(|| no_sandbox(id))
    }

    fn sandbox_mut(&mut self, id: &str) -> Result<&mut Sandbox> {
        let sandbox = self.sandbox.as_mut().filter(|sandbox| sandbox.id == id);
        sandbox.ok_or_else(|| no_sandbox(id))
    }
}

fn no_sandbox(id: &str) -> Error {
    let shown: String = id.chars().take(80).collect();
    Error::new(Kind::NotFound, format!("no sandbox {shown:?}"))
}

impl Shim {
    /// Remembers the sandbox and writes its files.
    pub async fn create_sandbox(self: Arc<Self>, request: CreateSandbox) -> Result<()> {
        let doing = format!("create sandbox {:?}", request.id);
        let mut state = self.lock();
        if state.ending {
            return Err(super::unavailable()).doing(|| doing);
        }
        if let Some(sandbox) = &state.sandbox {
            let text = format!("this shim has the sandbox {:?}", sandbox.id);
            return Err(Error::new(Kind::AlreadyExists, text)).doing(|| doing);
        }
        if !state.containers.is_empty() {
            let text = "this shim was started for a container";
            return Err(Error::new(Kind::FailedPrecondition, text)).doing(|| doing);
        }
        state.sandbox = Some(Sandbox::create(request).doing(|| doing)?);
        Ok(())
    }

    /// Enters the pod.
    pub async fn start_sandbox(self: Arc<Self>, id: String) -> Result<StartedSandbox> {
        let doing = || format!("start sandbox {id:?}");
        let request = self.lock().sandbox_mut(&id)?.starting()?;
        let result = sandbox::start(&self.reaper, &self.pod, request).await;
        let started = self.lock().sandbox_mut(&id)?.started(result);
        self.changed.notify_waiters();
        match started {
            Ok(started) => {
                self.watch_holder(&id);
                Ok(started)
            }
            Err(unstarted) => {
                let undone = match unstarted.undo {
                    Some(ready) => ready.take_down(&self.pod).await.err(),
                    None => None,
                };
                let error = unstarted.error;
                Err(Error::all(error, undone)).doing(doing)
            }
        }
    }

    /// A pod whose holder is killed has lost its PID namespace and all that was in it.
    fn watch_holder(self: &Arc<Self>, id: &str) {
        let exit = self.lock().sandbox(id).ok().and_then(|sandbox| sandbox.ready()?.holder_exit());
        let Some(mut exit) = exit else { return };
        let (shim, id) = (Arc::clone(self), id.to_owned());
        tokio::spawn(async move {
            ended(&mut exit).await;
            let alive = shim.lock().sandbox(&id).is_ok_and(|sandbox| sandbox.ready().is_some());
            if alive {
                log::warn!("sandbox {id:?}: its holder was killed");
                if let Err(error) = shim.stop(&id, KILLED).await {
                    log::warn!("stop sandbox {id:?}: {error}");
                }
            }
        });
    }

    /// Ends every process of the pod, leaves its namespaces, completes every waiter. Any number of
    /// times.
    pub async fn stop_sandbox(self: Arc<Self>, id: String) -> Result<()> {
        self.lock().sandbox(&id)?;
        self.stop(&id, STOPPED).await.doing(|| format!("stop sandbox {id:?}"))
    }

    async fn stop(self: &Arc<Self>, id: &str, status: u32) -> Result<()> {
        // A StartSandbox that is at work is waited for: it holds what is to be taken down.
        self.until(|state| state.sandbox(id).map_or(true, |sandbox| !sandbox.is_starting())).await;
        let stopping = self.lock().sandbox_mut(id)?.stopping();
        let Some(ready) = stopping else {
            let stopped =
                |state: &super::State| state.sandbox(id).map_or(true, Sandbox::is_stopped);
            self.until(stopped).await;
            return Ok(());
        };
        let mut errors = Vec::new();
        errors.extend(self.kill_everything().await.err());
        if let Some(ready) = ready {
            errors.extend(ready.take_down(&self.pod).await.err());
        }
        self.lock().sandbox_mut(id)?.stopped(status);
        self.changed.notify_waiters();
        Error::join(errors)
    }

    /// Kills every container, again and again until they have ended.
    async fn kill_everything(&self) -> Result<()> {
        let end = Instant::now() + STOP_LIMIT;
        loop {
            let errors = self.kill_once();
            let dead = self.until(|state| {
                let alive = |container: &Container| container.init.is_alive();
                state.creating.is_empty() && !state.containers.values().any(alive)
            });
            if timeout(KILL_AGAIN, dead).await.is_ok() {
                return Ok(());
            }
            if Instant::now() > end {
                let text = format!("processes are alive after {STOP_LIMIT:?}");
                return Err(Error::all(Error::new(Kind::DeadlineExceeded, text), errors));
            }
        }
    }

    fn kill_once(&self) -> Vec<Error> {
        let mut state = self.lock();
        for child in state.creating.values().flatten() {
            let _ = sys::fd::pidfd_signal(child, libc::SIGKILL);
        }
        let mut errors = Vec::new();
        for container in state.containers.values_mut().filter(|container| container.init.is_alive())
        {
            // A cgroup that was never joined is empty; the init is killed all the same.
            if let Ok(init) = container.init.pidfd() {
                let _ = sys::fd::pidfd_signal(&init, libc::SIGKILL);
            }
            errors.extend(container.kill_all(libc::SIGKILL).err());
        }
        errors
    }

    /// Ends the pod and everything in it, then the process. Works in any state, and never fails:
    /// containerd would leak the bundle. What could not be removed stays on record for `delete`.
    /// An id that is not the sandbox's ends nothing, unless there is nothing here.
    pub async fn shutdown_sandbox(self: Arc<Self>, id: String) {
        {
            let mut state = self.lock();
            if state.sandbox(&id).is_err() && !state.is_empty() {
                log::warn!("shutdown sandbox {id:?}: it is none of this shim's");
                return;
            }
            state.ending = true;
        }
        // For who waits without end: a poststop hook that hangs.
        self.changed.notify_waiters();
        if let Err(error) = self.stop(&id, STOPPED).await
            && error.kind() != Kind::NotFound
        {
            log::warn!("shutdown sandbox {id:?}: {error}");
        }
        let left: Vec<String> = self.lock().containers.keys().cloned().collect();
        for container in left {
            let target = Target { container, exec: None };
            if let Err(error) = Arc::clone(&self).delete(target).await
                && error.kind() != Kind::NotFound
            {
                log::warn!("shutdown sandbox {id:?}: {error}");
            }
        }
        sandbox::files::remove(home(&self));
        self.end(&mut self.lock());
    }

    /// Removes what is on disk of a server that ends, but for containers that are still there.
    pub(super) fn give_up_waiting(&self) {
        let state = self.lock();
        if state.is_waiting() {
            sandbox::files::remove(home(self));
        }
        if state.containers.is_empty() {
            bundle::forget_server(home(self));
        }
    }

    /// Waits for the end of the sandbox. Cancelled with its client.
    pub async fn wait_sandbox(&self, id: &str) -> Result<Exit> {
        let mut exit = self.lock().sandbox(id)?.exit();
        Ok(ended(&mut exit).await)
    }

    /// Answers from memory.
    pub fn sandbox_status(&self, id: &str, verbose: bool) -> Result<SandboxStatus> {
        Ok(self.lock().sandbox(id)?.status(verbose))
    }

    /// Whether the sandbox is there.
    pub fn ping_sandbox(&self, id: &str) -> Result<()> {
        self.lock().sandbox(id).map(drop)
    }

    /// The numbers of the pod's cgroup, which the kubelet made.
    pub fn sandbox_metrics(&self, id: &str) -> Result<Stats> {
        let parent = self.lock().sandbox(id)?.config.cgroup_parent.clone();
        if parent.is_empty() {
            // critest and crictl pods have none.
            return Ok(Stats::default());
        }
        let parent = super::systemd::parent(Path::new(&parent))?;
        cgroup::stats_of(&self.layout()?.cgroups(&parent))
    }

    /// The record that `delete` needs of the process itself; made once.
    pub(super) fn write_server_record(&self) -> Result<()> {
        if ServerRecord::read(home(self))?.is_some() {
            return Ok(());
        }
        let pid = std::process::id();
        let record = ServerRecord {
            version: RECORD_VERSION,
            shim_pid: pid,
            shim_start_time: bundle::start_time(pid)?,
            ..ServerRecord::default()
        };
        match record.write(home(self)) {
            // As for a container's record.
            Err(e) if e.errno() == Some(nix::errno::Errno::ENOENT) => Ok(()),
            result => result,
        }
    }
}
