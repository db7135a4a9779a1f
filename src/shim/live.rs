//! Changes to a container that runs: Pause, Resume, Update, and signals to all of it.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::Shim;
use crate::api::State;
use crate::cgroup::{self, Cgroup, Update};
use crate::container::{Container, Freezer, name, precondition};
use crate::error::{Doing, Error, Kind, Result};
use crate::events::Event;
use crate::launch;
use crate::plan::cgroup::ignored;
use crate::plan::{self, Op, Plan};

/// A process in the kernel's hands (D state) may not freeze for long.
const FREEZE_LIMIT: Duration = Duration::from_secs(10);
/// `memory.max` below the usage reclaims before it returns.
const UPDATE_LIMIT: Duration = Duration::from_secs(30);

impl Container {
    /// Signals every process of it.
    pub(super) fn kill_all(&mut self, signal: i32) -> Result<()> {
        if signal == libc::SIGKILL {
            self.freezer = Freezer::Thawed;
        }
        self.cgroup.kill_all(signal)
    }

    /// Thaws a paused container, of which something shall die.
    pub(super) fn thaw_to_die(&mut self) -> Result<()> {
        match std::mem::take(&mut self.freezer) {
            Freezer::Thawed => Ok(()),
            _ => self.cgroup.thaw(),
        }
    }
}

impl Shim {
    /// Freezes a running container.
    pub async fn pause(self: Arc<Self>, id: String) -> Result<()> {
        let doing = || format!("pause container {id:?}");
        self.until(|state| state.container(&id).map_or(true, |container| !container.telling)).await;
        let cgroup = {
            let mut state = self.lock();
            let container = state.container_mut(&id)?;
            match container.state() {
                State::Running => {}
                state => return Err(precondition(format!("it is {}", name(state)))).doing(doing),
            }
            container.cgroup.freeze().doing(doing)?;
            container.freezer = Freezer::Freezing;
            container.cgroup.clone()
        };
        let end = Instant::now() + FREEZE_LIMIT;
        let mut pause = Duration::from_micros(500);
        let late = loop {
            {
                let mut state = self.lock();
                let container = state.container_mut(&id)?;
                // Thawed meanwhile, for it was to die.
                if container.freezer != Freezer::Freezing {
                    return Err(precondition("it was killed".into())).doing(doing);
                }
                match cgroup.frozen() {
                    Ok(true) => {
                        container.freezer = Freezer::Frozen;
                        self.queue.push(Event::Paused { container_id: id });
                        return Ok(());
                    }
                    Ok(false) if Instant::now() < end => {
                        // v1: what forked meanwhile is not frozen yet.
                        if !cgroup.cgroups().unified {
                            let _ = cgroup.freeze();
                        }
                    }
                    late => {
                        let text = format!("not frozen after {FREEZE_LIMIT:?}");
                        let error = late.err().unwrap_or(Error::new(Kind::DeadlineExceeded, text));
                        let thawed = container.thaw_to_die().err();
                        break Error::all(error, thawed);
                    }
                }
            }
            sleep(pause).await;
            pause = (pause * 2).min(Duration::from_millis(50));
        };
        // It runs on, perhaps with limits that systemd has not heard of.
        self.tell_untold(&id).await;
        Err(late).doing(doing)
    }

    /// Thaws a paused container.
    pub async fn resume(self: Arc<Self>, id: String) -> Result<()> {
        let doing = || format!("resume container {id:?}");
        {
            let mut state = self.lock();
            let container = state.container_mut(&id)?;
            match container.state() {
                State::Paused => {}
                state => return Err(precondition(format!("it is {}", name(state)))).doing(doing),
            }
            container.cgroup.thaw().doing(doing)?;
            container.freezer = Freezer::Thawed;
            self.queue.push(Event::Resumed { container_id: id.clone() });
        }
        self.tell_untold(&id).await;
        Ok(())
    }

    /// Changes a container's limits. `json` is OCI's LinuxResources.
    pub async fn update(self: Arc<Self>, id: String, json: Vec<u8>) -> Result<()> {
        let doing = || format!("update container {id:?}");
        let resources = plan::spec::parse_resources(&json).doing(doing)?;
        let updates = Arc::clone(&self.lock().container(&id)?.updates);
        let _alone = updates.lock().await;
        let cgroup = {
            let state = self.lock();
            let container = state.container(&id)?;
            if container.state() == State::Stopped {
                return Err(precondition("it is stopped".into())).doing(doing);
            }
            container.cgroup.clone()
        };
        for field in ignored(&resources, cgroup.cgroups().unified) {
            log::warn!("update container {id:?}: {field} has no effect here");
        }
        let version = self.version_for(&cgroup, &resources).await.doing(doing)?;
        let mut update = cgroup.update_by(&resources, version).doing(doing)?;
        let properties = std::mem::take(&mut update.properties);
        if let Err(error) = self.tell(&id, &cgroup, properties).await {
            self.keep_untold(&id, &error, update.old_properties());
            return Err(error).doing(doing);
        }
        let result = self.carry_out(&cgroup, &update).await;
        if result.is_err() {
            self.untell(&id, &cgroup, update.old_properties()).await;
        }
        result.doing(doing)
    }

    /// All of an update, or nothing of it.
    async fn carry_out(&self, cgroup: &Cgroup, update: &Update) -> Result<()> {
        let mut left = Vec::new();
        let error = match cgroup.apply(&update.direct) {
            Err(error) => error,
            Ok(()) => {
                let Err(error) = self.write(&update.ops).await else { return Ok(()) };
                for op in &update.undo {
                    let undone = self.write(std::slice::from_ref(op)).await;
                    let hangs = |error: &Error| error.kind() == Kind::DeadlineExceeded;
                    let give_up = undone.as_ref().is_err_and(hangs);
                    left.extend(undone.err());
                    if give_up {
                        // Another would hang as well.
                        break;
                    }
                }
                error
            }
        };
        left.extend(cgroup.set_back(update).err());
        let left = left.into_iter().map(|error| error.doing("set back"));
        Err(Error::all(cgroup::coded(error), left))
    }

    /// Writes in a child.
    async fn write(&self, ops: &[Op]) -> Result<()> {
        if ops.is_empty() {
            return Ok(());
        }
        let ops = ops.iter().cloned().chain([Op::Exit]).collect();
        launch::run(self.reaper(), Plan { ops, ..Plan::default() }, UPDATE_LIMIT).await
    }
}
