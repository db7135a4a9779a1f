//! Create: from a bundle to a process that is parked before its program.
//!
//! What a failed step leaves is undone before its error is returned.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use oci_spec::runtime::Spec;

use super::hooks::Creation;
use super::host::{Host, refused};
use super::systemd::Scope;
use super::{Shim, exit, home, oom};
use crate::agent::Agent;
use crate::api::{CreateContainer, Target};
use crate::bundle::{self, ContainerRecord, RECORD_VERSION};
use crate::cgroup::Cgroup;
use crate::container::{Container, ExecBase, Freezer, Later};
use crate::error::{Doing, Error, Kind, Result};
use crate::events::Event;
use crate::launch::{self, Child};
use crate::namespaces;
use crate::plan::{self, Facts, Input, Op, SandboxFiles};
use crate::process::Process;
use crate::rdt;
use crate::stdio::{Kind as StdioKind, Stdio};
use crate::{sys, user};

/// How long a cgroup may take to go, or a good part of those that its container made in it.
const REMOVE_LIMIT: Duration = Duration::from_secs(10);

/// How long the network devices of a Create may take to be moved.
const DEVICES_LIMIT: Duration = Duration::from_secs(30);

/// An id that Create is at work on; it is free again however the work ends.
struct Creating<'a> {
    shim: &'a Shim,
    id: &'a str,
}

impl Drop for Creating<'_> {
    fn drop(&mut self) {
        self.shim.lock().creating.remove(self.id);
        self.shim.changed.notify_waiters();
    }
}

/// What a container keeps of its Create.
struct Parts {
    base: ExecBase,
    cgroup: Cgroup,
    record: ContainerRecord,
    hooks: Option<Box<Later>>,
}

/// A namespace that the spec names by its path.
pub(super) struct Joined {
    pub index: usize,
    pub file: File,
    pub ours: bool,
}

impl Shim {
    /// Makes a container up to the point where its program would run; the pid of its init.
    pub async fn create(self: Arc<Self>, request: CreateContainer) -> Result<u32> {
        let id = request.id.clone();
        bundle::check_id(&id)?;
        {
            let mut state = self.lock();
            if state.ending {
                return Err(super::unavailable());
            }
            if state.containers.contains_key(&id) || state.creating.contains_key(&id) {
                return Err(Error::new(Kind::AlreadyExists, format!("container {id:?} exists")));
            }
            if state.sandbox.as_ref().is_some_and(|sandbox| sandbox.ready().is_none()) {
                return Err(Error::new(Kind::FailedPrecondition, "the sandbox is not ready"));
            }
            state.creating.insert(id.clone(), None);
        }
        let creating = Creating { shim: &self, id: &id };
        let result = self.make(request).await;
        drop(creating);
        self.rest();
        result.map_err(refused).doing(|| format!("create container {id:?}"))
    }

    async fn make(self: &Arc<Self>, request: CreateContainer) -> Result<u32> {
        if !request.checkpoint.is_empty() {
            return Err(Error::unimplemented("restore from a checkpoint"));
        }
        if request.options.no_pivot_root {
            return Err(Error::unimplemented("the option no_pivot_root"));
        }
        let (spec, warnings) = plan::spec::parse(&bundle::config(&request.bundle)?)?;
        for warning in warnings {
            log::warn!("config.json of {:?}: {warning}", request.id);
        }
        plan::systemd::check_driver(&spec, request.options.systemd_cgroup)?;
        let unit = plan::systemd::unit(&spec)?;
        self.check_unit(unit.as_ref())?;
        let cgroup_path = plan::cgroup::path(&spec, &self.settings.namespace, &request.id)?;
        let layout = self.layout()?;
        let joined = joined_namespaces(&spec)?;
        let cgroups = layout.cgroups(&cgroup_path);
        let mut facts = self.facts(&request, &joined, cgroups.clone(), &spec)?;
        self.user_facts(&mut facts, &spec, &joined).await?;
        let groups = self.rdt(&spec, &request.id)?;
        facts.rdt = groups.as_ref().map(plan::Rdt::groups).unwrap_or_default();
        let hooks = Creation::plan(&spec, &mut facts)?;
        let plan = plan::container(&spec, &facts)?;
        let devices = plan::net_devices(&spec)?;
        launch::log_plan(&request.id, &plan);
        let resources =
            spec.linux().as_ref().and_then(|linux| linux.resources().clone()).unwrap_or_default();
        for field in plan::cgroup::ignored(&resources, facts.cgroups.unified) {
            log::warn!("container {:?}: linux.resources.{field} has no effect here", request.id);
        }
        let resources = match unit {
            Some(_) => plan::systemd::rounded(&resources, None),
            None => resources,
        };
        let mut limits = plan::cgroup::limits(&resources, facts.cgroups.unified, None)?;
        limits.owner = plan::cgroup::owner(&spec, facts.user_map.as_ref(), facts.cgroups.unified)?;
        let owner = (request.options.io_uid, request.options.io_gid);
        let owner = user::owner(facts.user_map.as_ref(), spec.process().as_ref(), owner);
        let kind = stdio_kind(&spec, request.stdio.terminal);
        let allowed = request.options.loggers.as_deref();
        let logger = self.start_logger(&request.stdio, &request.id, owner, allowed).await?;
        let (stdio, fds) = Stdio::open_with(&request.stdio, kind, owner, logger, &self.streams)?;
        let base = ExecBase {
            pipe_owner: owner,
            loggers: request.options.loggers.clone(),
            ..ExecBase::new(&spec, facts)
        };
        let (cgroup, scope) = match &unit {
            None => (Cgroup::create(&cgroups, &limits)?, None),
            Some(unit) => self.start_scope(unit, &request.id, &spec, &cgroups, limits).await?,
        };
        let parts = (base, (cgroup, scope), hooks, groups);
        self.launch(&request, (plan, devices), joined, fds, stdio, parts).await
    }

    /// Parks the init in its cgroup and makes it known; removes the cgroup if that fails.
    async fn launch(
        self: &Arc<Self>,
        request: &CreateContainer,
        (plan, devices): (plan::Plan, Option<plan::Plan>),
        joined: Vec<Joined>,
        fds: [Option<OwnedFd>; 3],
        stdio: Stdio,
        (base, (cgroup, mut scope), mut hooks, groups): (
            ExecBase,
            (Cgroup, Option<Scope>),
            Option<Creation>,
            Option<plan::Rdt>,
        ),
    ) -> Result<u32> {
        let mut record = ContainerRecord {
            version: RECORD_VERSION,
            id: request.id.clone(),
            cgroups: cgroup.cgroups().clone(),
            unit: cgroup.unit().map(Into::into),
            rootfs_mount: hooks.as_ref().and_then(Creation::rootfs_mount),
            resctrl: groups.as_ref().map(|rdt| rdt.to_remove(false)).unwrap_or_default(),
            ..ContainerRecord::default()
        };
        let made = async {
            // On disk before there is a process that `delete` would have to find.
            self.write_server_record()?;
            record.write(home(self), &request.bundle)?;
            if let Some(rdt) = &groups
                && rdt::make(&self.reaper, rdt, self.resctrl()).await?
            {
                record.resctrl = rdt.to_remove(true);
                record.write(home(self), &request.bundle)?;
            }
            if let Some(hooks) = &hooks {
                self.mount_for_hooks(hooks).await?;
            }
            let agent = self.agent(&request.id, &base, 0)?;
            let inputs = (fds, &cgroup, &mut hooks);
            let init = self.park(request, (plan, devices), joined, inputs, (stdio, agent)).await?;
            if let Some(scope) = scope.take() {
                scope.leave_to(&cgroup).await?;
            }
            let later = hooks.as_ref().and_then(Creation::later);
            let parts =
                Parts { base, cgroup: cgroup.clone(), record: record.clone(), hooks: later };
            self.register(request, parts, init).await
        };
        let made = made.await;
        // Dead, or it would be asked to end.
        if let Some(scope) = scope {
            scope.end().await;
        }
        if made.is_err()
            && let Err(error) = self.undo(request, &cgroup, &record, hooks.as_ref()).await
        {
            log::warn!("after a failed create of {:?}: {error}", request.id);
        }
        made
    }

    /// What a failed Create has made; it stays on record if it cannot be removed.
    async fn undo(
        &self,
        request: &CreateContainer,
        cgroup: &Cgroup,
        record: &ContainerRecord,
        hooks: Option<&Creation>,
    ) -> Result<()> {
        let mut errors = Vec::new();
        errors.extend(self.remove_cgroup(cgroup).await.err());
        errors.extend(rdt::remove(&self.reaper, &record.resctrl).await.err());
        if let Some(hooks) = hooks {
            errors.extend(self.undo_hooks(request, hooks).await.err());
        }
        if errors.is_empty() {
            return bundle::forget_container(home(self), &request.id, &request.bundle);
        }
        Error::join(errors)
    }

    fn facts(
        &self,
        request: &CreateContainer,
        joined: &[Joined],
        cgroups: plan::Cgroups,
        spec: &Spec,
    ) -> Result<Facts> {
        let host = match self.host.get() {
            Some(host) => *host,
            None => {
                let host = Host::probe(&request.bundle, cgroups.unified)?;
                *self.host.get_or_init(|| host)
            }
        };
        let listed = spec
            .linux()
            .as_ref()
            .and_then(|linux| linux.namespaces().as_ref().map(Vec::len))
            .unwrap_or(0);
        let mut ours = vec![false; listed];
        for namespace in joined.iter().filter(|namespace| namespace.ours) {
            ours[namespace.index] = true;
        }
        let seccomp = self.filter(&request.id, spec)?;
        let state = self.lock();
        let sandbox = state.sandbox.as_ref().and_then(|sandbox| Some((sandbox, sandbox.ready()?)));
        let sandbox = sandbox
            .map(|(sandbox, ready)| SandboxFiles { dir: sandbox.files(), shm: ready.has_shm() });
        Ok(Facts {
            bundle: request.bundle.clone(),
            rootfs: request.rootfs.clone(),
            overlay_lowerdir_plus: host.overlay_lowerdir_plus,
            ours,
            cgroups,
            last_cap: host.last_cap,
            sandbox,
            keyring: if request.options.no_new_keyring {
                String::new()
            } else {
                request.id.clone()
            },
            terminal: request.stdio.terminal,
            modules: host.modules,
            walks_into_cgroup: host.walks_into_cgroup,
            shared: plan::Shared::default(),
            seccomp,
            user_map: None,
            user_owns_network: false,
            rdt: Vec::new(),
        })
    }

    /// Clones the init and waits until it is parked.
    async fn park(
        self: &Arc<Self>,
        request: &CreateContainer,
        (plan, devices): (plan::Plan, Option<plan::Plan>),
        joined: Vec<Joined>,
        (fds, cgroup, hooks): ([Option<OwnedFd>; 3], &Cgroup, &mut Option<Creation>),
        (mut stdio, agent): (Stdio, Option<Agent>),
    ) -> Result<(Child, Stdio)> {
        let mut inputs = stdio_inputs(fds);
        let names = joined.into_iter().filter(|namespace| !namespace.ours);
        inputs.extend(
            names.map(|namespace| (Input::Namespace(namespace.index), namespace.file.into())),
        );
        let into = cgroup_inputs(cgroup, &mut inputs, &plan)?;
        if plan.inputs.iter().any(|(input, _)| *input == Input::SandboxShm) {
            let shm = match self.lock().sandbox.as_ref().and_then(|sandbox| sandbox.ready()) {
                Some(ready) => ready.shm()?,
                None => None,
            };
            inputs.extend(shm.map(|shm| (Input::SandboxShm, shm)));
        }
        inputs.extend(user::inputs(&self.reaper, &plan).await?);
        let mut child = launch::launch(&self.reaper, plan, inputs, into)?;
        child.agent = agent;
        let hooks = hooks.as_mut().filter(|hooks| hooks.stops());
        let stop = if hooks.is_some() { Op::Hooks } else { Op::Ready };
        self.reach(&request.id, &mut child, &stop).await?;
        if let Some(plan) = devices {
            self.bring_devices(&child, plan).await?;
        }
        if let Some(hooks) = hooks {
            self.create_hooks(request, hooks, &mut child, cgroup).await?;
            child.ready().await?;
        }
        if let Some(master) = child.master.take() {
            stdio.attach(master)?;
        }
        Ok((child, stdio))
    }

    /// From now on a Create ends with this child.
    pub(super) fn to_be_killed(&self, id: &str, child: &Child) {
        if let Some(entry) = self.lock().creating.get_mut(id) {
            *entry = Some(Arc::clone(&child.pidfd));
        }
        // A Delete may wait for a child to kill.
        self.changed.notify_waiters();
    }

    /// Waits until a child has stopped at this step. Its plan may go on in another process before:
    /// it is that one that Kill has to find.
    async fn reach(&self, id: &str, child: &mut Child, stop: &Op) -> Result<()> {
        loop {
            self.to_be_killed(id, child);
            if child.reached(stop).await? {
                return Ok(());
            }
        }
    }

    /// Devices of the host into the network namespace of an init that waits.
    async fn bring_devices(&self, init: &Child, plan: plan::Plan) -> Result<()> {
        let path = format!("/proc/{}/ns/net", init.pid);
        let ns = File::open(&path).doing(|| format!("open {path}"))?;
        let links = self.outside(sys::fd::route_socket).doing(|| "socket(NETLINK_ROUTE)")?;
        let inputs = vec![(Input::HostLinks, links), (Input::Namespace(0), ns.into())];
        let moved = launch::run_with(&self.reaper, plan, inputs, DEVICES_LIMIT).await;
        moved.doing(|| "linux.netDevices")
    }

    /// Puts the pid on disk, and only then the container in memory.
    async fn register(
        self: &Arc<Self>,
        request: &CreateContainer,
        mut parts: Parts,
        (mut child, stdio): (Child, Stdio),
    ) -> Result<u32> {
        let pid = child.pid;
        let record = &mut parts.record;
        (record.pid, record.start_time) = (pid, bundle::start_time(pid)?);
        record.write(home(self), &request.bundle)?;
        let exit = child.exit.clone();
        if self.lock().sandbox.as_ref().is_some_and(|sandbox| sandbox.ready().is_none()) {
            child.kill().await;
            return Err(Error::new(Kind::FailedPrecondition, "the sandbox was stopped"));
        }
        let Parts { base, cgroup, record, hooks } = parts;
        let container = Container {
            id: request.id.clone(),
            bundle: request.bundle.clone(),
            init: Process::parked(child, stdio, request.stdio.clone()),
            execs: Default::default(),
            oom_kills: cgroup.oom_kills().unwrap_or(0),
            slice: oom::slice(&self.lock(), &cgroup),
            cgroup: cgroup.clone(),
            record,
            base,
            hooks,
            untold: Vec::new(),
            telling: false,
            updates: Arc::default(),
            last: None,
            freezer: Freezer::Thawed,
            deleting: false,
        };
        self.lock().containers.insert(request.id.clone(), container);
        self.queue.push(Event::Create {
            container_id: request.id.clone(),
            bundle: request.bundle.to_string_lossy().into_owned(),
            rootfs: request.rootfs.clone(),
            stdin: request.stdio.stdin.clone(),
            stdout: request.stdio.stdout.clone(),
            stderr: request.stdio.stderr.clone(),
            terminal: request.stdio.terminal,
            pid,
        });
        oom::watch(self, &request.id, &cgroup, exit.clone());
        exit::watch(self, Target { container: request.id.clone(), exec: None }, exit);
        Ok(pid)
    }

    /// Removes a cgroup off the loop.
    pub(super) async fn remove_cgroup(&self, cgroup: &Cgroup) -> Result<()> {
        self.stop_scope(cgroup).await;
        loop {
            let mut ops = cgroup.remove()?;
            if ops.is_empty() {
                return Ok(());
            }
            ops.push(Op::Exit);
            let plan = plan::Plan { ops, ..Default::default() };
            launch::run(&self.reaper, plan, REMOVE_LIMIT).await?;
        }
    }
}

/// Opens every namespace that the spec names by path. None of them is on a disk that may hang.
fn joined_namespaces(spec: &Spec) -> Result<Vec<Joined>> {
    let listed =
        spec.linux().as_ref().and_then(|linux| linux.namespaces().as_deref()).unwrap_or_default();
    let mut joined = Vec::new();
    for (index, namespace) in listed.iter().enumerate() {
        let Some(path) = namespace.path().as_ref().filter(|path| !path.as_os_str().is_empty())
        else {
            continue;
        };
        let doing = || format!("linux.namespaces[{index}]");
        let file = namespaces::open(path).doing(doing);
        let file = file.map_err(|e| e.with_kind(Kind::InvalidArgument))?;
        let ours = namespaces::is_ours(&file, namespaces::name(namespace.typ()))?;
        joined.push(Joined { index, file, ours });
    }
    Ok(joined)
}

pub(super) fn stdio_inputs(fds: [Option<OwnedFd>; 3]) -> Vec<(Input, OwnedFd)> {
    let numbered = fds.into_iter().zip(0u8..);
    numbered.filter_map(|(fd, number)| Some((Input::Stdio(number), fd?))).collect()
}

/// On v2 the directory to be born in; on v1, and where the plan wants it, each hierarchy's `cgroup.procs` goes to the child.
pub(super) fn cgroup_inputs(
    cgroup: &Cgroup,
    inputs: &mut Vec<(Input, OwnedFd)>,
    plan: &plan::Plan,
) -> Result<Option<OwnedFd>> {
    let walks = plan.inputs.iter().any(|(input, _)| matches!(input, Input::CgroupProcs(_)));
    if cgroup.cgroups().unified && !walks {
        return cgroup.dir_fd().map(Some);
    }
    let procs = cgroup.procs()?.into_iter().enumerate();
    inputs.extend(procs.map(|(index, fd)| (Input::CgroupProcs(index), fd)));
    Ok(None)
}

/// Whether a container may hold containerd's own FIFO: not where a label or a profile of its own
/// would keep it from opening it again, nor with a capability that reads the FIFO's file system
/// through it (`open_by_handle_at`).
fn stdio_kind(spec: &Spec, terminal: bool) -> StdioKind {
    use oci_spec::runtime::Capability;
    let process = spec.process().as_ref();
    let labelled = process
        .is_some_and(|p| p.selinux_label().as_deref().is_some_and(|label| !label.is_empty()));
    let profile = process.and_then(|p| p.apparmor_profile().as_deref()).unwrap_or_default();
    let usual =
        ["", "unconfined", "cri-containerd.apparmor.d", "docker-default"].contains(&profile);
    let reads_all = process.and_then(|p| p.capabilities().as_ref()).is_some_and(|caps| {
        let sets = [
            caps.bounding(),
            caps.effective(),
            caps.permitted(),
            caps.inheritable(),
            caps.ambient(),
        ];
        sets.into_iter().flatten().any(|set| set.contains(&Capability::DacReadSearch))
    });
    if terminal || labelled || !usual || reads_all {
        StdioKind::Relay
    } else {
        StdioKind::DirectInit
    }
}
