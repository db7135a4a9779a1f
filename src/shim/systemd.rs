//! Containers in scopes of systemd: their start, their limits, their end.
//!
//! A scope needs a process to start with. It is a stub of ours, for the container's own must have its
//! limits and its cgroup namespace from its first instruction on: it is born in the scope's cgroup when
//! all of that is written. The stub must never outlive Create.

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU32;
use std::time::Duration;

use nix::errno::Errno;
use oci_spec::runtime::{LinuxResources, Spec};

use super::Shim;
use crate::cgroup::{Cgroup, Stats};
use crate::container::{Container, Freezer};
use crate::error::{Error, Kind, Result};
use crate::launch::{self, Child};
use crate::plan::cgroup::{Limits, Write};
use crate::plan::systemd::{self as units, Property, Unit};
use crate::plan::{self, Op, Plan};
use crate::reaper::ended;
use crate::systemd::{Systemd, socket_to};

/// For systemd to answer, whatever else it is doing.
const LIMIT: Duration = Duration::from_secs(10);
/// The same at a scope's end, which it finds out by itself as well.
const STOP_LIMIT: Duration = Duration::from_secs(5);

/// A scope that holds nothing yet but its stub.
#[derive(Debug)]
pub(super) struct Scope {
    stub: Child,
    /// The limit that does not count the stub.
    pids: Option<Write>,
}

impl Scope {
    /// Ends the stub, and leaves the scope to the container's processes.
    pub async fn leave_to(mut self, cgroup: &Cgroup) -> Result<()> {
        self.stub.kill().await;
        match cgroup.apply(self.pids.as_slice()) {
            // They have ended, and the scope with them.
            Err(error) if error.kind() == Kind::NotFound => Ok(()),
            result => result,
        }
    }

    /// Ends the stub, for nothing came after it.
    pub async fn end(mut self) {
        self.stub.kill().await;
    }
}

/// Whether systemd may know nothing of what it was told.
fn unheard(error: &Error) -> bool {
    [Kind::DeadlineExceeded, Kind::Unavailable].contains(&error.kind())
}

impl Container {
    /// Keeps limits for later, in place of older ones.
    fn hold_back(&mut self, properties: Vec<Property>) {
        let new = |name: &str| properties.iter().any(|property| property.name == name);
        self.untold.retain(|property| !new(&property.name));
        self.untold.extend(properties);
    }
}

impl Shim {
    fn systemd(
        &self,
        limit: Duration,
    ) -> Result<Systemd<'_, impl Fn(&Path) -> Result<UnixStream, Errno> + Sync>> {
        // systemd's end of a connection would keep the pod's network namespace alive.
        let open = |path: &Path| self.outside(|| socket_to(path));
        Systemd::new(&self.settings.systemd, open, limit)
    }

    /// Whether a scope can be had here.
    pub(super) fn check_unit(&self, unit: Option<&Unit>) -> Result<()> {
        if unit.is_none() {
            return Ok(());
        }
        self.systemd(LIMIT)?;
        match self.layout()?.unified() {
            true => Ok(()),
            false => Err(Error::unimplemented("the systemd cgroup driver on cgroup v1")),
        }
    }

    /// Makes a scope with its limits, and a stub in it.
    pub(super) async fn start_scope(
        &self,
        unit: &Unit,
        id: &str,
        spec: &Spec,
        cgroups: &plan::Cgroups,
        limits: Limits,
    ) -> Result<(Cgroup, Option<Scope>)> {
        let systemd = self.systemd(LIMIT)?;
        let cgroup = Cgroup::from_record(cgroups.clone()).in_unit(Some(unit.name.clone()));
        let plan = Plan { ops: vec![Op::Ready, Op::Exit], ..Plan::default() };
        let mut stub = launch::launch(&self.reaper, plan, Vec::new(), None)?;
        // Whoever wants an end of this Create kills the stub, and need not wait for systemd.
        self.to_be_killed(id, &stub);
        stub.ready().await?;
        let pid = stub.pid;
        let inside = || cgroup.pids().is_ok_and(|pids| pids.contains(&pid));
        let job = AtomicU32::new(0);
        let start = async {
            let resources = spec.linux().as_ref().and_then(|linux| linux.resources().as_ref());
            let version = match resources {
                Some(resources) => self.version_for(&cgroup, resources).await?,
                None => 0,
            };
            let properties = units::scope(unit, id, spec, version)?;
            systemd.start(unit, pid, &properties, inside, &job).await
        };
        let mut killed = stub.exit.clone();
        let started = tokio::select! {
            biased;
            started = start => started,
            _ = ended(&mut killed) => {
                Err(Error::new(Kind::Unknown, format!("start unit {:?}: it was killed", unit.name)))
            }
        };
        if let Err(error) = started {
            // Run later, it would take whoever has the stub's pid by then.
            systemd.cancel(job.into_inner()).await;
            stub.kill().await;
            return Err(error);
        }
        let (limits, pids) = beside_stub(limits);
        let filled = match inside() {
            true => cgroup.fill(&limits),
            false => Err(Error::new(
                Kind::Unknown,
                format!("start unit {:?}: its cgroup is not {:?}", unit.name, unit.path),
            )),
        };
        if let Err(error) = filled {
            stub.kill().await;
            self.stop_scope(&cgroup).await;
            return Err(error);
        }
        Ok((cgroup, Some(Scope { stub, pids })))
    }

    /// Stops a container's scope. It is no error if systemd does not answer: a scope without
    /// processes is forgotten by itself, and a dead bus must not keep a pod from being deleted.
    pub(super) async fn stop_scope(&self, cgroup: &Cgroup) {
        let Some(unit) = cgroup.unit() else { return };
        let stopped = match self.systemd(STOP_LIMIT) {
            Ok(systemd) => systemd.stop(unit).await,
            Err(error) => Err(error),
        };
        if let Err(error) = stopped {
            log::warn!("{error}");
        }
    }

    /// systemd's version, where it makes a difference for these resources; else 0.
    pub(super) async fn version_for(
        &self,
        cgroup: &Cgroup,
        resources: &LinuxResources,
    ) -> Result<u32> {
        match cgroup.unit() {
            Some(_) if units::asks_for_version(resources) => self.systemd(LIMIT)?.version().await,
            _ => Ok(0),
        }
    }

    /// Tells systemd of new limits, and before them of what it has not heard yet: now, or once the
    /// container is thawed. What it has not heard is given up only when it has, or has refused it.
    pub(super) async fn tell(
        &self,
        id: &str,
        cgroup: &Cgroup,
        properties: Vec<Property>,
    ) -> Result<()> {
        let Some(unit) = cgroup.unit() else { return Ok(()) };
        self.until(|state| state.container(id).map_or(true, |container| !container.telling)).await;
        let older = {
            let mut state = self.lock();
            let container = state.container_mut(id)?;
            if container.freezer != Freezer::Thawed {
                container.hold_back(properties);
                return Ok(());
            }
            container.telling = true;
            container.untold.clone()
        };
        // A call of its own: one that refuses what is new takes nothing of it all.
        let first = async { self.systemd(LIMIT)?.set(unit, &older).await }.await;
        let heard = first.as_ref().map_or_else(|error| !unheard(error), |()| true);
        let told = match first {
            Err(error) if !heard => Err(error),
            first => {
                if let Err(error) = first {
                    log::warn!("container {id:?}: {error}");
                }
                async { self.systemd(LIMIT)?.set(unit, &properties).await }.await
            }
        };
        if let Ok(container) = self.lock().container_mut(id) {
            container.telling = false;
            if heard {
                container.untold.clear();
            }
        }
        self.changed.notify_waiters();
        told
    }

    /// Takes back what systemd was told of. The files have it already; if systemd cannot be reached, it
    /// hears of it with the next limits.
    pub(super) async fn untell(&self, id: &str, cgroup: &Cgroup, properties: Vec<Property>) {
        let Err(error) = self.tell(id, cgroup, properties.clone()).await else { return };
        log::warn!("update container {id:?}: set back: {error}");
        self.keep_untold(id, &error, properties);
    }

    /// After a call without an answer: what systemd has to hear, whether or not it has heard that.
    pub(super) fn keep_untold(&self, id: &str, error: &Error, properties: Vec<Property>) {
        if unheard(error)
            && let Ok(container) = self.lock().container_mut(id)
        {
            container.hold_back(properties);
        }
    }

    /// What had to wait for the thaw. The limits are in force already: the files have them. If systemd
    /// cannot be reached, it hears of them with the next ones.
    pub(super) async fn tell_untold(&self, id: &str) {
        let cgroup = match self.lock().container(id) {
            Ok(container) if !container.untold.is_empty() => container.cgroup.clone(),
            _ => return,
        };
        if let Err(error) = self.tell(id, &cgroup, Vec::new()).await {
            log::warn!("container {id:?} is thawed: {error}");
        }
    }
}

/// The limits while the stub is there as well, and the one to be written when it is not.
fn beside_stub(mut limits: Limits) -> (Limits, Option<Write>) {
    let mut pids = None;
    for write in limits.writes.iter_mut().filter(|write| write.file == "pids.max") {
        if let Ok(max) = write.value.trim().parse::<u64>() {
            pids = Some(write.clone());
            write.value = max.saturating_add(1).to_string();
        }
    }
    (limits, pids)
}

/// Keeps the numbers of a container whose init has ended, before systemd removes its cgroup.
pub(super) fn keep_numbers(container: &mut Container) {
    if container.cgroup.unit().is_none() {
        return;
    }
    let read = container.cgroup.stats().ok().filter(|stats| stats.memory.is_some());
    // Too late for all but what is known.
    let mut last = read.unwrap_or_else(|| Stats { unified: true, ..Stats::default() });
    let memory = last.memory.get_or_insert_default();
    let kills = memory.events.entry("oom_kill".into()).or_default();
    *kills = (*kills).max(container.oom_kills);
    container.last = Some(Box::new(last));
}

/// The path of a `cgroup_parent`: that of a slice, if it names one.
pub(super) fn parent(given: &Path) -> Result<PathBuf> {
    match given.file_name().and_then(|name| name.to_str()) {
        Some(name) if name.ends_with(".slice") => units::slice_path(name),
        _ => Ok(given.into()),
    }
}
