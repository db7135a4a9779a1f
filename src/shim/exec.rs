//! Exec: another process in a container, from its JSON to its program.
//!
//! What a failed step leaves is dead before its error is returned.

use std::sync::Arc;
use std::time::Duration;

use oci_spec::runtime::Process as OciProcess;
use tokio::time::timeout;

use super::create::{cgroup_inputs, stdio_inputs};
use super::{Shim, check_ids, exit};
use crate::api::{StdioPaths, Target};
use crate::error::{Doing, Error, Kind, Result};
use crate::events::Event;
use crate::launch;
use crate::plan::{self, Facts, Input};
use crate::process::Process;
use crate::stdio::{Kind as StdioKind, Stdio};
use crate::user;

/// How long an exec may take to reach its program: its container may be hung, or hostile.
const EXEC_LIMIT: Duration = Duration::from_secs(120);

impl Shim {
    /// Starts the program of a registered exec.
    pub(super) async fn run_exec(
        self: &Arc<Self>,
        target: &Target,
        process: &OciProcess,
    ) -> Result<u32> {
        let (base, cgroup, init, init_pid, paths) = {
            let state = self.lock();
            let container = state.container(&target.container)?;
            let paths = container.process(target.exec.as_deref())?.stdio_paths.clone();
            let init = &container.init;
            (container.base.clone(), container.cgroup.clone(), init.pidfd()?, init.pid, paths)
        };
        let agent = self.agent(&target.container, &base, init_pid)?;
        let owner = user::owner(base.facts.user_map.as_ref(), Some(process), base.pipe_owner);
        let plan = plan::exec(
            process,
            base.namespaces,
            &Facts { terminal: paths.terminal, ..base.facts },
        )?;
        launch::log_plan(&target.container, &plan);
        let id = target.exec.as_deref().unwrap_or_default();
        let logger = self.start_logger(&paths, id, owner, base.loggers.as_deref()).await?;
        let (mut stdio, fds) =
            Stdio::open_with(&paths, StdioKind::Relay, owner, logger, &self.streams)?;
        let mut inputs = stdio_inputs(fds);
        let into = cgroup_inputs(&cgroup.for_process(init_pid)?, &mut inputs, &plan)?;
        inputs.push((Input::Init, init.try_clone().doing(|| "dup(pidfd)")?));
        let mut child = launch::launch(&self.reaper, plan, inputs, into)?;
        child.agent = agent;
        let started = match timeout(EXEC_LIMIT, child.go()).await {
            Ok(started) => started,
            Err(_) => {
                Err(Error::new(Kind::DeadlineExceeded, format!("no answer within {EXEC_LIMIT:?}")))
            }
        };
        let attached = started
            .and_then(|()| child.master.take().map_or(Ok(()), |master| stdio.attach(master)));
        if let Err(error) = attached {
            child.kill().await;
            return Err(error);
        }
        let pid = child.pid;
        {
            let mut state = self.lock();
            let container = state.container_mut(&target.container)?;
            container.process_mut(target.exec.as_deref())?.launched(
                pid,
                Arc::clone(&child.pidfd),
                stdio,
            );
        }
        exit::watch(self, target.clone(), child.exit.clone());
        Ok(pid)
    }

    /// Registers an exec. `json` is OCI's Process.
    pub fn exec(&self, target: Target, json: &[u8], stdio: StdioPaths) -> Result<()> {
        check_ids(&target)?;
        let Some(exec) = target.exec else { return Err(Error::invalid("exec id: empty")) };
        let mut state = self.lock();
        let container = state.container_mut(&target.container)?;
        if container.execs.contains_key(&exec) || exec == container.id {
            return Err(Error::new(Kind::AlreadyExists, format!("exec {exec:?} exists")));
        }
        container.check_exec()?;
        let (process, warnings) = plan::spec::parse_process(json)?;
        for warning in warnings {
            log::warn!("process of exec {exec:?}: {warning}");
        }
        container.execs.insert(exec.clone(), Process::registered(process, stdio));
        self.queue.push(Event::ExecAdded { container_id: target.container, exec_id: exec });
        Ok(())
    }
}
