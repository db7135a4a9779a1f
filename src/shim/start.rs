//! Start: a parked init, or a registered exec, runs its program.
//!
//! The state is settled and the event queued before any exit of the process is published.

use std::sync::Arc;
use std::time::SystemTime;

use super::Shim;
use super::host::refused;
use crate::api::Target;
use crate::error::{Doing, Error, Result};
use crate::events::{Event, Exit};
use crate::process::Begin;

/// What a shell says of a program that it cannot find, or not run.
const NOT_FOUND: u32 = 127;
const NOT_RUN: u32 = 126;

impl Shim {
    /// Runs a created process.
    pub async fn start(self: Arc<Self>, target: Target) -> Result<u32> {
        let begun = {
            let mut state = self.lock();
            state.check_namespaces()?;
            let container = state.container_mut(&target.container)?;
            if target.exec.is_some() {
                container.process(target.exec.as_deref())?;
                container.check_exec()?;
            }
            container.process_mut(target.exec.as_deref())?.begin()
        };
        let name = || match &target.exec {
            Some(exec) => format!("start exec {exec:?} of container {:?}", target.container),
            None => format!("start container {:?}", target.container),
        };
        let result = match begun.doing(name)? {
            Begin::Init(mut child) => {
                let result = self.start_init(&target.container, &mut child).await;
                self.settle(&target, &result, None);
                result
            }
            Begin::Exec(process) => {
                let result = self.run_exec(&target, &process).await;
                let status = |e: &Error| {
                    if e.errno() == Some(nix::errno::Errno::ENOENT) { NOT_FOUND } else { NOT_RUN }
                };
                let exit = result
                    .as_ref()
                    .err()
                    .map(|e| Exit { status: status(e), at: SystemTime::now() });
                self.settle(&target, &result, exit);
                result
            }
        };
        self.changed.notify_waiters();
        self.rest();
        result.map_err(refused).doing(name)
    }

    /// Start is done: the state, and the event before any exit of the process is published.
    fn settle(&self, target: &Target, result: &Result<u32>, exit: Option<Exit>) {
        let mut state = self.lock();
        let Ok(container) = state.container_mut(&target.container) else { return };
        let Ok(process) = container.process_mut(target.exec.as_deref()) else { return };
        let container_id = target.container.clone();
        match (result, &target.exec) {
            (Err(_), _) => process.failed(exit),
            // Ended meanwhile: its exit is out, and no start may follow it.
            (Ok(_), _) if !process.started() => {}
            (Ok(pid), None) => {
                self.queue.push(Event::Start { container_id, pid: *pid });
            }
            (Ok(pid), Some(exec)) => {
                self.queue.push(Event::ExecStarted {
                    container_id,
                    exec_id: exec.clone(),
                    pid: *pid,
                });
            }
        }
    }
}
