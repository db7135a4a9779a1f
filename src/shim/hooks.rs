//! When each kind of hook runs, and what becomes of the container if one fails.
//!
//! It must never hold a state that State, Kill or Delete would have to wait for: hooks are raced
//! with the end of the init, so that to kill it is to end them.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::time::Duration;

use libc::CLONE_NEWPID;
use oci_spec::runtime::Spec;
use tokio::time::sleep;

use super::Shim;
use super::create::cgroup_inputs;
use crate::api::CreateContainer;
use crate::cgroup::Cgroup;
use crate::container::{ExecBase, Later};
use crate::error::{Doing, Error, Result};
use crate::hooks::{self, Launch, State};
use crate::launch::{self, Child};
use crate::plan::hooks::{Hook, Hooks};
use crate::plan::{self, Facts, Input, Plan};
use crate::reaper::{ExitWatch, ended};
use crate::user;

/// How long a rootfs may take to be mounted on the host, or to be taken away.
const MOUNT_LIMIT: Duration = Duration::from_secs(60);
/// How long a poststart hook may go on without its container.
const WITHOUT_INIT: Duration = Duration::from_secs(5);
/// How long a poststop hook may take that nobody waits for: of a failed Create, or when the shim ends.
const UNDO_LIMIT: Duration = Duration::from_secs(10);

/// A spec's hooks while Create is at work.
#[derive(Debug)]
pub(super) struct Creation {
    prestart: Vec<Hook>,
    create_runtime: Vec<Hook>,
    /// Each with its plan.
    create_container: Vec<(Hook, Plan)>,
    /// Mounts the rootfs on the host, and where.
    mount: Option<(Plan, PathBuf)>,
    /// The init stops for hooks.
    stops: bool,
    /// It has.
    begun: bool,
    /// `createContainer` hooks stay out of the container's PID namespace.
    hidden: bool,
    later: Later,
}

impl Creation {
    /// What the hooks of a spec ask for, if it has any. Where the rootfs shall be on the host,
    /// `facts` are changed to find it there.
    pub fn plan(spec: &Spec, facts: &mut Facts) -> Result<Option<Creation>> {
        let hooks = Hooks::of(spec)?;
        if hooks == Hooks::default() {
            return Ok(None);
        }
        let Some(process) = spec.process() else {
            return Err(Error::invalid("process is missing"));
        };
        let on_host = hooks.on_host().then(|| plan::hooks::mount_rootfs(spec, facts));
        let mount = on_host.transpose()?.flatten();
        if mount.is_some() {
            facts.rootfs.clear();
        }
        let base = ExecBase::new(spec, facts.clone());
        let (namespaces, facts) = (base.namespaces, &base.facts);
        // Its root is the host's: in a PID namespace that others share it would be their way out.
        let hidden = !base.own_pid_namespace;
        let unseen = if hidden { namespaces & !CLONE_NEWPID } else { namespaces };
        let stops = hooks.before_pivot();
        let before_pivot = |hook| {
            let plan = plan::hooks::create_container(&hook, spec, unseen, facts)?;
            Ok((hook, plan))
        };
        let at_start = |hook| {
            let plan = plan::hooks::start_container(&hook, process, namespaces, facts)?;
            Ok((hook, plan))
        };
        let create = hooks.create_container.into_iter().map(before_pivot);
        let start = hooks.start_container.into_iter().map(at_start);
        let annotations = spec.annotations().iter().flatten();
        Ok(Some(Creation {
            prestart: hooks.prestart,
            create_runtime: hooks.create_runtime,
            create_container: create.collect::<Result<_>>()?,
            mount,
            stops,
            hidden,
            begun: false,
            later: Later {
                annotations: annotations.map(|(k, v)| (k.clone(), v.clone())).collect(),
                start: start.collect::<Result<_>>()?,
                poststart: hooks.poststart,
                poststop: hooks.poststop,
            },
        }))
    }

    /// Where the rootfs shall be on the host, if it shall.
    pub fn rootfs_mount(&self) -> Option<PathBuf> {
        self.mount.as_ref().map(|(_, path)| path.clone())
    }

    /// What the container keeps, if there is anything.
    pub fn later(&self) -> Option<Box<Later>> {
        let Later { start, poststart, poststop, .. } = &self.later;
        let empty = start.is_empty() && poststart.is_empty() && poststop.is_empty();
        (!empty).then(|| Box::new(self.later.clone()))
    }

    /// Whether the init stops for some of them.
    pub fn stops(&self) -> bool {
        self.stops
    }
}

/// Why a hook is not waited for any more.
async fn killed(mut init: ExitWatch) -> &'static str {
    ended(&mut init).await;
    "the init was killed"
}

impl Shim {
    /// Mounts the rootfs where hooks look for it.
    pub(super) async fn mount_for_hooks(&self, creation: &Creation) -> Result<()> {
        let Some((plan, path)) = &creation.mount else { return Ok(()) };
        let users = user::inputs(&self.reaper, plan).await?;
        let mounted = launch::run_with(&self.reaper, plan.clone(), users, MOUNT_LIMIT).await;
        mounted.doing(|| format!("mount the rootfs on the host at {path:?}"))
    }

    /// Takes it away.
    pub(super) async fn unmount_rootfs(&self, path: Option<&Path>) -> Result<()> {
        let Some(path) = path else { return Ok(()) };
        launch::run(&self.reaper, plan::hooks::unmount_rootfs(path)?, MOUNT_LIMIT).await
    }

    /// `prestart`, `createRuntime` and `createContainer`, for which the init has stopped. On an error
    /// it is dead, and so is what was in its cgroup.
    pub(super) async fn create_hooks(
        &self,
        request: &CreateContainer,
        creation: &mut Creation,
        child: &mut Child,
        cgroup: &Cgroup,
    ) -> Result<()> {
        creation.begun = true;
        let result = self.run_create_hooks(request, creation, child, cgroup).await;
        match result {
            Ok(()) => child.resume(),
            Err(_) => {
                child.kill().await;
                self.kill_leftovers(&request.id, cgroup).await;
            }
        }
        result
    }

    async fn run_create_hooks(
        &self,
        request: &CreateContainer,
        creation: &Creation,
        child: &Child,
        cgroup: &Cgroup,
    ) -> Result<()> {
        let state = State::new(&request.id, &request.bundle, &creation.later.annotations);
        let here = state.at("creating", Some(child.pid));
        for hook in creation.prestart.iter().chain(&creation.create_runtime) {
            self.on_host(hook, &here, killed(child.exit.clone())).await?;
        }
        let pid = if creation.hidden { child.pid } else { hooks::pid_inside(child.pid)? };
        let there = state.at("creating", Some(pid));
        for (hook, plan) in &creation.create_container {
            let launch = inside(plan, child, cgroup)?;
            hooks::run(&self.reaper, hook, launch, &there, killed(child.exit.clone())).await?;
        }
        Ok(())
    }

    /// A hook in the host's namespaces.
    async fn on_host(
        &self,
        hook: &Hook,
        state: &State<'_>,
        abandoned: impl Future<Output = &'static str>,
    ) -> Result<()> {
        let host = self.pod.host()?;
        let back: Vec<i32> = host.iter().map(|(flag, _)| *flag).collect();
        let plan = plan::hooks::runtime(hook, state.bundle, &back)?;
        let inputs = host.into_iter().map(|(flag, fd)| (Input::HostNamespace(flag), fd)).collect();
        let launch = Launch { plan, inputs, cgroup: None, agent: None };
        hooks::run(&self.reaper, hook, launch, state, abandoned).await
    }

    /// Start of an init: its hooks, its program, and the hooks after it. On an error it is dead.
    pub(super) async fn start_init(&self, id: &str, child: &mut Child) -> Result<u32> {
        let (hooks, cgroup, bundle, base) = {
            let mut state = self.lock();
            let container = state.container_mut(id)?;
            let hooks = container.hooks.take();
            container.hooks = hooks.as_ref().and_then(|hooks| hooks.after_start());
            let base = hooks.as_ref().map(|_| container.base.clone()).unwrap_or_default();
            (hooks, container.cgroup.clone(), container.bundle.clone(), base)
        };
        let Some(hooks) = hooks else { return child.go().await.map(|()| child.pid) };
        let state = State::new(id, &bundle, &hooks.annotations);
        let result = async {
            if !hooks.start.is_empty() {
                let there = state.at("created", Some(hooks::pid_inside(child.pid)?));
                for (hook, plan) in &hooks.start {
                    let mut launch = inside(plan, child, &cgroup)?;
                    // It has the container's filter.
                    launch.agent = self.agent(id, &base, child.pid)?;
                    let abandoned = killed(child.exit.clone());
                    hooks::run(&self.reaper, hook, launch, &there, abandoned).await?;
                }
            }
            child.go().await?;
            let here = state.at("running", Some(child.pid));
            for hook in &hooks.poststart {
                let abandoned = async {
                    let why = killed(child.exit.clone()).await;
                    sleep(WITHOUT_INIT).await;
                    why
                };
                self.on_host(hook, &here, abandoned).await?;
            }
            Ok(child.pid)
        };
        let result = result.await;
        if result.is_err() {
            child.kill().await;
        }
        result
    }

    /// `poststop`, of a container that is gone. Each runs, whatever becomes of the others.
    /// `made`: Create went well, and its client waits for Delete.
    pub(super) async fn poststop_hooks(&self, id: &str, bundle: &Path, later: &Later, made: bool) {
        let state = State::new(id, bundle, &later.annotations).at("stopped", None);
        for hook in &later.poststop {
            let abandoned = async {
                self.until(|state| state.ending || !made).await;
                sleep(UNDO_LIMIT).await;
                "nobody waits for it"
            };
            if let Err(error) = self.on_host(hook, &state, abandoned).await {
                log::warn!("container {id:?}: {error}");
            }
        }
    }

    /// Undoes what hooks did to a Create that failed, once all else is undone.
    pub(super) async fn undo_hooks(
        &self,
        request: &CreateContainer,
        creation: &Creation,
    ) -> Result<()> {
        if creation.begun {
            let (bundle, later) = (&request.bundle, &creation.later);
            self.poststop_hooks(&request.id, bundle, later, false).await;
        }
        let path = creation.mount.as_ref().map(|(_, path)| path.as_path());
        self.unmount_rootfs(path).await
    }
}

/// A hook in the namespaces and the cgroup of a container.
fn inside(plan: &Plan, init: &Child, cgroup: &Cgroup) -> Result<Launch> {
    let init = init.pidfd.try_clone().doing(|| "dup(pidfd)")?;
    let mut inputs = vec![(Input::Init, init)];
    let cgroup = cgroup_inputs(cgroup, &mut inputs, plan)?;
    Ok(Launch { plan: plan.clone(), inputs, cgroup, agent: None })
}
