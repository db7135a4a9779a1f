//! A container: its bundle, its cgroup, its init and its execs.
//!
//! Its state is its init's state. It must never hold anything of the spec that only Create needs:
//! a spec costs tens of kilobytes for as long as the container lives.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use oci_spec::runtime::{LinuxNamespaceType, Spec};
use serde_json::{Value, json};

use crate::api::State;
use crate::bundle::ContainerRecord;
use crate::cgroup::{Cgroup, Slice, Stats};
use crate::error::{Error, Kind, Result};
use crate::namespaces;
use crate::plan::hooks::Hook;
use crate::plan::seccomp::Listener;
use crate::plan::systemd::Property;
use crate::plan::{Facts, Plan, Shared};
use crate::process::Process;

/// See the module text.
#[derive(Debug)]
pub struct Container {
    pub id: String,
    pub bundle: PathBuf,
    pub init: Process,
    pub execs: BTreeMap<String, Process>,
    pub cgroup: Cgroup,
    pub record: ContainerRecord,
    /// What an exec inherits from the container's spec.
    pub base: ExecBase,
    /// Hooks that are still to come.
    pub hooks: Option<Box<Later>>,
    pub freezer: Freezer,
    /// Properties that systemd is told when it is thawed.
    pub untold: Vec<Property>,
    /// systemd is being told of new limits: it must not freeze now.
    pub telling: bool,
    /// Held by an Update from its first write on: the way back of one must not undo another.
    pub updates: Arc<tokio::sync::Mutex<()>>,
    /// Its last numbers, once its init has ended: systemd removes the cgroup of a scope.
    pub last: Option<Box<Stats>>,
    /// OOM kills that have been published.
    pub oom_kills: u64,
    /// Of a scope: the slice that it is in.
    pub slice: Option<Arc<Slice>>,
    /// Delete is at work on it.
    pub deleting: bool,
}

/// What of a spec's hooks comes after Create.
#[derive(Clone, Debug)]
pub struct Later {
    pub annotations: BTreeMap<String, String>,
    /// Each `startContainer` hook with its plan, which needs the process of the spec.
    pub start: Vec<(Hook, Plan)>,
    pub poststart: Vec<Hook>,
    pub poststop: Vec<Hook>,
}

impl Later {
    /// What is left of it once Start is at work: plans cost kilobytes.
    pub fn after_start(&self) -> Option<Box<Later>> {
        let left = Later {
            annotations: self.annotations.clone(),
            start: Vec::new(),
            poststart: Vec::new(),
            poststop: self.poststop.clone(),
        };
        (!left.poststop.is_empty()).then(|| Box::new(left))
    }
}

/// See [`Container::base`].
#[derive(Clone, Debug, Default)]
pub struct ExecBase {
    /// Those of Create, without what only a rootfs needs.
    pub facts: Facts,
    /// `CLONE_NEW*` of the init's namespaces that an exec joins.
    pub namespaces: i32,
    /// The kernel ends every process of the container with its init.
    pub own_pid_namespace: bool,
    /// What a seccomp agent is told of the container: the specification's `State`, without what
    /// changes. Only where there is one.
    pub told: Option<Value>,
    /// `io_uid` and `io_gid` of the container's options.
    pub pipe_owner: (u32, u32),
    /// See [`crate::api::Options::loggers`].
    pub loggers: Option<Vec<PathBuf>>,
}

impl ExecBase {
    /// What a container's spec means for its execs.
    pub fn new(spec: &Spec, facts: Facts) -> ExecBase {
        let listed = spec.linux().as_ref().and_then(|linux| linux.namespaces().as_deref());
        let mut base = ExecBase::default();
        for (index, namespace) in listed.unwrap_or_default().iter().enumerate() {
            let joined = namespace.path().as_ref().is_some_and(|path| !path.as_os_str().is_empty());
            let ours = joined && facts.ours.get(index).copied().unwrap_or(false);
            // Those that the shim is in itself are joined all the same: it may have left them by
            // the time of an exec. But not the host's PID and user namespaces.
            let host = [LinuxNamespaceType::Pid, LinuxNamespaceType::User];
            if !ours || !host.contains(&namespace.typ()) {
                base.namespaces |= namespaces::flag(namespace.typ());
            }
            base.own_pid_namespace |= !joined && namespace.typ() == LinuxNamespaceType::Pid;
        }
        base.told = listener(&facts).map(|_| {
            json!({"ociVersion": spec.version(), "annotations": spec.annotations(), "bundle": facts.bundle})
        });
        base.facts = Facts { rootfs: Vec::new(), ours: Vec::new(), sandbox: None, ..facts };
        base.facts.shared = spec.linux().as_ref().map(Shared::of).unwrap_or_default();
        base
    }
}

/// Where the container's seccomp agent is, if its filter needs one.
pub fn listener(facts: &Facts) -> Option<&Listener> {
    facts.seccomp.as_ref()?.listener.as_ref()
}

/// What Pause and Resume have made of the cgroup.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Freezer {
    #[default]
    Thawed,
    Freezing,
    Frozen,
}

impl Container {
    /// What State says of its init.
    pub fn state(&self) -> State {
        self.frozen_or(self.init.state())
    }

    /// A process of a paused container is paused.
    pub fn frozen_or(&self, state: State) -> State {
        match (self.freezer, state) {
            (Freezer::Freezing, State::Running) => State::Pausing,
            (Freezer::Frozen, State::Running) => State::Paused,
            (_, state) => state,
        }
    }

    /// A process of it. `None`: the init.
    pub fn process(&self, exec: Option<&str>) -> Result<&Process> {
        match exec {
            None => Ok(&self.init),
            Some(id) => self.execs.get(id).ok_or_else(|| no_exec(&self.id, id)),
        }
    }

    /// The same, to change it.
    pub fn process_mut(&mut self, exec: Option<&str>) -> Result<&mut Process> {
        match exec {
            None => Ok(&mut self.init),
            Some(id) => self.execs.get_mut(id).ok_or_else(|| no_exec(&self.id, id)),
        }
    }

    /// Whether an exec may be added or started.
    pub fn check_exec(&self) -> Result<()> {
        match self.state() {
            State::Created | State::Running if !self.deleting => Ok(()),
            State::Stopped => Err(precondition(format!(
                "container {:?}: its init process is not running",
                self.id
            ))),
            state => Err(precondition(format!("container {:?} is {}", self.id, name(state)))),
        }
    }
}

fn no_exec(container: &str, exec: &str) -> Error {
    Error::new(Kind::NotFound, format!("container {container:?} has no exec {exec:?}"))
}

/// A state in an error's text.
pub fn name(state: State) -> &'static str {
    match state {
        State::Created => "created",
        State::Running => "running",
        State::Stopped => "stopped",
        State::Paused => "paused",
        State::Pausing => "pausing",
    }
}

/// The wrong state for a verb.
pub fn precondition(text: String) -> Error {
    Error::new(Kind::FailedPrecondition, text)
}
