//! How processes end, and Delete.
//!
//! Order is the contract: leftovers die first, execs' exits come before the init's, OOM before
//! exit, the record before the memory, the state before the event.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::time::{Instant, sleep};

use super::{Shim, home, oom};
use crate::api::{Deleted, State, Target};
use crate::bundle;
use crate::cgroup::Cgroup;
use crate::container::precondition;
use crate::error::{Doing, Error, Result};
use crate::events::{Event, Exit};
use crate::rdt;
use crate::reaper::{ExitWatch, ended};
use crate::sys;

/// How long leftovers of a container may take to die: one may hang in the kernel for ever.
const LEFTOVER_LIMIT: Duration = Duration::from_secs(10);
/// How long a Delete waits for output that somebody may never close (the Go shim's figure).
const DRAIN_LIMIT: Duration = Duration::from_secs(10);
/// How long State may wait for a client that reads a stopped container's last output.
/// containerd gives State 2 s.
const STATE_LIMIT: Duration = Duration::from_millis(500);
/// The longest pause between two looks at a cgroup.
const POLL: Duration = Duration::from_millis(20);

/// Follows a process to its end.
pub(super) fn watch(shim: &Arc<Shim>, target: Target, mut exit: ExitWatch) {
    let shim = Arc::clone(shim);
    tokio::spawn(async move {
        let exit = ended(&mut exit).await;
        shim.until(|state| match state.container(&target.container) {
            Ok(container) => {
                container.process(target.exec.as_deref()).is_ok_and(|p| !p.is_starting())
            }
            Err(_) => true,
        })
        .await;
        match &target.exec {
            Some(exec) => shim.exec_ended(&target.container, exec, exit),
            None => shim.init_ended(&target.container, exit).await,
        }
        shim.changed.notify_waiters();
    });
}

impl Shim {
    /// Waits until `done` says so; it is asked again at every change.
    pub(super) async fn until(&self, mut done: impl FnMut(&super::State) -> bool) {
        loop {
            // Made before the look, so that no change is missed.
            let changed = self.changed.notified();
            if done(&self.lock()) {
                return;
            }
            changed.await;
        }
    }

    fn exec_ended(&self, container_id: &str, exec: &str, exit: Exit) {
        let mut state = self.lock();
        let Ok(container) = state.container_mut(container_id) else { return };
        let Ok(process) = container.process_mut(Some(exec)) else { return };
        process.stopped(exit);
        let pid = process.pid;
        self.queue.push(Event::Exit {
            container_id: container_id.into(),
            id: exec.into(),
            pid,
            exit,
        });
    }

    async fn init_ended(&self, id: &str, exit: Exit) {
        let (cgroup, own_pid_namespace) = {
            let mut state = self.lock();
            let Ok(container) = state.container_mut(id) else { return };
            // Whoever is frozen cannot die.
            if let Err(error) = container.thaw_to_die() {
                log::warn!("container {id:?}: {error}");
            }
            oom::last_look(self, &mut state, id, exit);
            let Ok(container) = state.container_mut(id) else { return };
            super::systemd::keep_numbers(container);
            (container.cgroup.clone(), container.base.own_pid_namespace)
        };
        if !own_pid_namespace {
            self.kill_leftovers(id, &cgroup).await;
        }
        let execs_ended = self.until(|state| match state.container(id) {
            Ok(container) => {
                container.execs.values().all(|exec| !exec.is_alive() && !exec.is_starting())
            }
            Err(_) => true,
        });
        if tokio::time::timeout(LEFTOVER_LIMIT, execs_ended).await.is_err() {
            log::warn!("container {id:?}: an exec is alive {LEFTOVER_LIMIT:?} after the init");
        }
        self.deliver(id).await;
        let mut state = self.lock();
        let Ok(container) = state.container_mut(id) else { return };
        container.record.exit_status = Some(exit.status);
        container.record.exited_at_ms = Some(bundle::millis(exit.at));
        if let Err(error) = container.record.write(home(self), &container.bundle) {
            log::warn!("container {id:?}: {error}");
        }
        oom::look(self, container);
        container.init.stopped(exit);
        let pid = container.init.pid;
        self.queue.push(Event::Exit { container_id: id.into(), id: id.into(), pid, exit });
    }

    /// Waits until the clients of a dead init's streams have read all: containerd throws away what
    /// it has not read when it hears of the exit (`task.Delete` cancels its reads).
    async fn deliver(&self, id: &str) {
        let left = {
            let mut state = self.lock();
            let stdio = state.container_mut(id).ok().and_then(|c| c.init.stdio.as_mut());
            let Some(stdio) = stdio.filter(|stdio| stdio.is_remote()) else { return };
            // A terminal's output ends with it.
            stdio.exited();
            stdio.left()
        };
        if tokio::time::timeout(DRAIN_LIMIT, left).await.is_err() {
            log::warn!("container {id:?}: its output was not read within {DRAIN_LIMIT:?}");
        }
    }

    /// The same for one that ended while containerd was away: it connects its streams, asks for the
    /// state twice, and then cancels its reads. Nothing is waited for with any other stdio.
    pub async fn delivered(&self, target: &Target) {
        let left = {
            let state = self.lock();
            let Ok(container) = state.container(&target.container) else { return };
            let init = &container.init;
            match (&target.exec, init.exited(), &init.stdio) {
                (None, Some(_), Some(stdio)) if stdio.is_remote() => stdio.left(),
                _ => return,
            }
        };
        drop(tokio::time::timeout(STATE_LIMIT, left).await);
    }

    /// Kills what is left of a container whose init is dead.
    pub(super) async fn kill_leftovers(&self, id: &str, cgroup: &Cgroup) {
        let end = Instant::now() + LEFTOVER_LIMIT;
        let mut pause = Duration::from_millis(1);
        while !cgroup.empty().unwrap_or(true) {
            if let Err(error) = cgroup.kill_all(libc::SIGKILL) {
                log::warn!("container {id:?}: kill leftovers: {error}");
                return;
            }
            if Instant::now() > end {
                log::warn!("container {id:?}: leftovers are alive after {LEFTOVER_LIMIT:?}");
                return;
            }
            sleep(pause).await;
            pause = POLL.min(pause * 2);
        }
    }

    /// Removes a stopped, or never started, process. A container goes with all that it has.
    pub async fn delete(self: Arc<Self>, target: Target) -> Result<Deleted> {
        match &target.exec {
            Some(exec) => self.delete_exec(&target.container, exec).await,
            None => self.delete_container(&target.container).await,
        }
    }

    async fn delete_exec(&self, container: &str, exec: &str) -> Result<Deleted> {
        let (pid, exit, stdio) = {
            let mut state = self.lock();
            let container = state.container_mut(container)?;
            let process = container.process_mut(Some(exec))?;
            if process.state() == State::Running || process.is_alive() {
                return Err(precondition(format!("delete exec {exec:?}: it is running")));
            }
            let unborn = Exit { status: 0, at: SystemTime::now() };
            (process.pid, process.exited().unwrap_or(unborn), process.stdio.take())
        };
        if let Some(stdio) = stdio {
            stdio.drain(DRAIN_LIMIT).await;
        }
        if let Ok(container) = self.lock().container_mut(container) {
            container.execs.remove(exec);
        }
        Ok(Deleted { pid, exit })
    }

    async fn delete_container(self: &Arc<Self>, id: &str) -> Result<Deleted> {
        self.abandon_create(id).await;
        // A delete that is at work is waited for: a retry must not be told that it failed.
        self.until(|state| state.container(id).map_or(true, |container| !container.deleting)).await;
        let parked = {
            let mut state = self.lock();
            let container = state.container_mut(id)?;
            let state = container.state();
            if !matches!(state, State::Created | State::Stopped) {
                let state = crate::container::name(state);
                return Err(precondition(format!("delete container {id:?}: it is {state}")));
            }
            container.deleting = true;
            container.init.take_parked()
        };
        if let Some(mut child) = parked {
            child.kill().await;
        }
        let stopped =
            self.until(|state| state.container(id).is_ok_and(|c| c.init.exited().is_some()));
        let result = match tokio::time::timeout(2 * LEFTOVER_LIMIT + DRAIN_LIMIT, stopped).await {
            Ok(()) => self.take_down(id).await,
            Err(_) => Err(precondition("its init does not die".into())),
        };
        if result.is_err()
            && let Ok(container) = self.lock().container_mut(id)
        {
            container.deleting = false;
        }
        self.changed.notify_waiters();
        result.doing(|| format!("delete container {id:?}"))
    }

    /// Kills a Create whose client has given up, and waits until it has cleaned up.
    async fn abandon_create(&self, id: &str) {
        self.until(|state| {
            let creating = state.creating.get(id);
            // There may be none yet, and after a birth another one.
            if let Some(Some(child)) = creating {
                let _ = sys::fd::pidfd_signal(child, libc::SIGKILL);
            }
            creating.is_none()
        })
        .await;
    }

    /// Every step runs; the container stays, to be deleted again, if one fails.
    async fn take_down(&self, id: &str) -> Result<Deleted> {
        let (stdios, cgroup, dir, hooks, mount, groups) = {
            let mut state = self.lock();
            let container = state.container_mut(id)?;
            let processes =
                std::iter::once(&mut container.init).chain(container.execs.values_mut());
            let stdios: Vec<_> = processes.filter_map(|process| process.stdio.take()).collect();
            // Once, however often Delete has to be sent.
            let hooks = container.hooks.take();
            let (dir, mount) = (container.bundle.clone(), container.record.rootfs_mount.clone());
            let groups = container.record.resctrl.clone();
            (stdios, container.cgroup.clone(), dir, hooks, mount, groups)
        };
        self.kill_leftovers(id, &cgroup).await;
        let end = Instant::now() + DRAIN_LIMIT;
        for stdio in stdios {
            stdio.drain(end.saturating_duration_since(Instant::now())).await;
        }
        let removed = self.remove_cgroup(&cgroup).await;
        let ungrouped = rdt::remove(&self.reaper, &groups).await;
        if let Some(hooks) = hooks {
            self.poststop_hooks(id, &dir, &hooks, true).await;
        }
        let steps = [removed, ungrouped, self.unmount_rootfs(mount.as_deref()).await];
        Error::join(steps.into_iter().filter_map(Result::err).collect())?;
        // Without its record, `delete` would never find what is left.
        bundle::forget_container(home(self), id, &dir)?;
        let mut state = self.lock();
        let container = state.containers.remove(id).ok_or_else(|| super::no_container(id))?;
        let exit = container.init.exited().unwrap_or(Exit { status: 255, at: SystemTime::now() });
        let pid = container.init.pid;
        self.queue.push(Event::Delete { container_id: id.into(), pid, exit });
        Ok(Deleted { pid, exit })
    }
}
