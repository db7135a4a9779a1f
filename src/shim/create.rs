//! Create, Start and Exec: from a bundle or a process' JSON to a process that runs.
//!
//! What a failed step leaves is undone before its error is returned.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use oci_spec::runtime::{Process as OciProcess, Spec};

use super::{Shim, check_ids, exit, home};
use crate::api::{CreateContainer, StdioPaths, Target};
use crate::bundle::{self, ContainerRecord, RECORD_VERSION};
use crate::cgroup::Cgroup;
use crate::container::{Container, ExecBase, Freezer};
use crate::error::{Doing, Error, Kind, Result};
use crate::events::{Event, Exit};
use crate::launch::{self, Child};
use crate::namespaces;
use crate::plan::{self, Facts, Input, SandboxFiles};
use crate::process::{Begin, Process};
use crate::stdio::{Kind as StdioKind, Stdio};
use crate::sys;

/// How long the cgroup of a failed Create may take to go.
const REMOVE_LIMIT: Duration = Duration::from_secs(10);
/// What a shell says of a program that it cannot find, or not run.
const NOT_FOUND: u32 = 127;
const NOT_RUN: u32 = 126;

/// Facts of the host that do not change.
#[derive(Clone, Copy, Debug)]
pub(super) struct Host {
    last_cap: u8,
    overlay_lowerdir_plus: bool,
}

impl Host {
    /// `scratch`: a directory to try an overlay in.
    fn probe(scratch: &Path) -> Result<Host> {
        let path = "/proc/sys/kernel/cap_last_cap";
        let text = std::fs::read_to_string(path).doing(|| format!("read {path}"))?;
        let last_cap = text
            .trim()
            .parse()
            .map_err(|_| Error::new(Kind::Unknown, format!("{path}: {text:?}")))?;
        Ok(Host { last_cap, overlay_lowerdir_plus: probe_overlay(scratch) })
    }
}

/// Whether overlay takes `lowerdir+`: an older one says no only when the mount is made.
fn probe_overlay(scratch: &Path) -> bool {
    let dirs = [scratch.join("overlay-probe-a"), scratch.join("overlay-probe-b")];
    let made = dirs.iter().all(|dir| std::fs::create_dir_all(dir).is_ok());
    let params = || -> Result<bool> {
        let [a, b] = [plan::cpath("lowerdir+", &dirs[0])?, plan::cpath("lowerdir+", &dirs[1])?];
        let params = [(c"lowerdir+", Some(a.as_c_str())), (c"lowerdir+", Some(b.as_c_str()))];
        Ok(sys::mount::new_mount(c"overlay", &params, 0).is_ok())
    };
    let works = made && params().unwrap_or(false);
    for dir in dirs {
        let _ = std::fs::remove_dir(dir);
    }
    works
}

/// A namespace that the spec names by its path.
struct Joined {
    index: usize,
    file: File,
    ours: bool,
}

impl Shim {
    /// Makes a container up to the point where its program would run; the pid of its init.
    pub async fn create(self: Arc<Self>, request: CreateContainer) -> Result<u32> {
        let id = request.id.clone();
        bundle::check_id(&id)?;
        {
            let mut state = self.lock();
            if state.containers.contains_key(&id) || state.creating.contains_key(&id) {
                return Err(Error::new(Kind::AlreadyExists, format!("container {id:?} exists")));
            }
            if state.sandbox.as_ref().is_some_and(|sandbox| sandbox.ready().is_none()) {
                return Err(Error::new(Kind::FailedPrecondition, "the sandbox is not ready"));
            }
            state.creating.insert(id.clone(), None);
        }
        let result = self.make(request).await;
        self.lock().creating.remove(&id);
        self.rest();
        result.doing(|| format!("create container {id:?}"))
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
        let cgroup_path = plan::cgroup::path(&spec, &self.settings.namespace, &request.id)?;
        let layout = self.layout()?;
        let joined = joined_namespaces(&spec)?;
        let facts = self.facts(&request, &joined, layout.cgroups(&cgroup_path), &spec)?;
        let plan = plan::container(&spec, &facts)?;
        log::debug!("plan of {:?}:\n{plan}", request.id);
        let resources =
            spec.linux().as_ref().and_then(|linux| linux.resources().clone()).unwrap_or_default();
        let limits = plan::cgroup::limits(&resources, facts.cgroups.unified, None)?;
        let owner = (request.options.io_uid, request.options.io_gid);
        let kind = stdio_kind(&spec, request.stdio.terminal);
        let (stdio, fds) = Stdio::open(&request.stdio, kind, owner)?;
        let cgroup = Cgroup::create(&facts.cgroups, &limits)?;
        let made = self.park(&request, plan, joined, fds, &cgroup, stdio).await;
        let made = made.and_then(|init| {
            let base = ExecBase::new(&spec, facts);
            self.register(&request, base, cgroup.clone(), init)
        });
        if made.is_err() {
            let removed = self.remove_cgroup(&cgroup).await;
            let forgotten = bundle::forget_container(home(self), &request.id, &request.bundle);
            for error in [removed.err(), forgotten.err()].into_iter().flatten() {
                log::warn!("after a failed create of {:?}: {error}", request.id);
            }
        }
        made
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
                let host = Host::probe(&request.bundle)?;
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
        let state = self.lock();
        let sandbox = state.sandbox.as_ref().and_then(|sandbox| Some((sandbox, sandbox.ready()?)));
        let sandbox = match sandbox {
            Some((sandbox, ready)) => {
                Some(SandboxFiles { dir: sandbox.files(), shm: ready.shm()?.is_some() })
            }
            None => None,
        };
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
        })
    }

    /// Clones the init and waits until it is parked.
    async fn park(
        self: &Arc<Self>,
        request: &CreateContainer,
        plan: plan::Plan,
        joined: Vec<Joined>,
        fds: [Option<OwnedFd>; 3],
        cgroup: &Cgroup,
        mut stdio: Stdio,
    ) -> Result<(Child, Stdio)> {
        let mut inputs = stdio_inputs(fds);
        let names = joined.into_iter().filter(|namespace| !namespace.ours);
        inputs.extend(
            names.map(|namespace| (Input::Namespace(namespace.index), namespace.file.into())),
        );
        let into = cgroup_inputs(cgroup, &mut inputs)?;
        if plan.inputs.iter().any(|(input, _)| *input == Input::SandboxShm) {
            let shm = match self.lock().sandbox.as_ref().and_then(|sandbox| sandbox.ready()) {
                Some(ready) => ready.shm()?,
                None => None,
            };
            inputs.extend(shm.map(|shm| (Input::SandboxShm, shm)));
        }
        let mut child = launch::launch(&self.reaper, plan, inputs, into)?;
        if let Some(entry) = self.lock().creating.get_mut(&request.id) {
            *entry = Some(Arc::clone(&child.pidfd));
        }
        child.ready().await?;
        if let Some(master) = child.master.take() {
            stdio.attach(master)?;
        }
        Ok((child, stdio))
    }

    /// Puts the record on disk, and only then the container in memory.
    fn register(
        self: &Arc<Self>,
        request: &CreateContainer,
        base: ExecBase,
        cgroup: Cgroup,
        (child, stdio): (Child, Stdio),
    ) -> Result<u32> {
        let pid = child.pid;
        let record = ContainerRecord {
            version: RECORD_VERSION,
            id: request.id.clone(),
            pid,
            start_time: bundle::start_time(pid)?,
            cgroups: cgroup.cgroups().clone(),
            exit_status: None,
            exited_at_ms: None,
        };
        self.write_server_record()?;
        record.write(home(self), &request.bundle)?;
        let exit = child.exit.clone();
        let oom_kills = cgroup.oom_kills().unwrap_or(0);
        let container = Container {
            id: request.id.clone(),
            bundle: request.bundle.clone(),
            init: Process::parked(child, stdio, request.stdio.clone()),
            execs: Default::default(),
            cgroup,
            record,
            base,
            freezer: Freezer::Thawed,
            oom_kills,
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
        exit::watch(self, Target { container: request.id.clone(), exec: None }, exit);
        Ok(pid)
    }

    /// Runs a created process.
    pub async fn start(self: Arc<Self>, target: Target) -> Result<u32> {
        let begun = {
            let mut state = self.lock();
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
                let result = child.go().await.map(|()| child.pid);
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
        result.doing(name)
    }

    /// Start is done: the state, and the event before any exit of the process is published.
    fn settle(&self, target: &Target, result: &Result<u32>, exit: Option<Exit>) {
        let mut state = self.lock();
        let Ok(container) = state.container_mut(&target.container) else { return };
        let Ok(process) = container.process_mut(target.exec.as_deref()) else { return };
        let container_id = target.container.clone();
        match (result, &target.exec) {
            (Err(_), _) => process.failed(exit),
            (Ok(pid), None) => {
                process.started();
                self.queue.push(Event::Start { container_id, pid: *pid });
            }
            (Ok(pid), Some(exec)) => {
                process.started();
                self.queue.push(Event::ExecStarted {
                    container_id,
                    exec_id: exec.clone(),
                    pid: *pid,
                });
            }
        }
    }

    async fn run_exec(self: &Arc<Self>, target: &Target, process: &OciProcess) -> Result<u32> {
        let (base, cgroup, init, paths) = {
            let state = self.lock();
            let container = state.container(&target.container)?;
            let paths = container.process(target.exec.as_deref())?.stdio_paths.clone();
            (container.base.clone(), container.cgroup.clone(), container.init.pidfd()?, paths)
        };
        let plan = plan::exec(
            process,
            base.namespaces,
            &Facts { terminal: paths.terminal, ..base.facts },
        )?;
        log::debug!("plan of {target:?}:\n{plan}");
        let (mut stdio, fds) = Stdio::open(&paths, StdioKind::Relay, (0, 0))?;
        let mut inputs = stdio_inputs(fds);
        let into = cgroup_inputs(&cgroup, &mut inputs)?;
        inputs.push((Input::Init, init.try_clone().doing(|| "dup(pidfd)")?));
        let mut child = launch::launch(&self.reaper, plan, inputs, into)?;
        child.go().await?;
        if let Some(master) = child.master.take() {
            stdio.attach(master)?;
        }
        let pid = child.pid;
        {
            let mut state = self.lock();
            let container = state.container_mut(&target.container)?;
            container.process_mut(target.exec.as_deref())?.launched(pid, child.pidfd, stdio);
        }
        exit::watch(self, target.clone(), child.exit);
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

    /// Removes a cgroup off the loop.
    pub(super) async fn remove_cgroup(&self, cgroup: &Cgroup) -> Result<()> {
        let ops = cgroup.remove()?;
        if ops.is_empty() {
            return Ok(());
        }
        launch::run(&self.reaper, plan::Plan { ops, ..Default::default() }, REMOVE_LIMIT).await
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
        let doing = || format!("linux.namespaces[{index}]: open {path:?}");
        let file = File::open(path).doing(doing).map_err(|e| e.with_kind(Kind::InvalidArgument))?;
        let ours = namespaces::is_ours(&file, namespaces::name(namespace.typ()))?;
        joined.push(Joined { index, file, ours });
    }
    Ok(joined)
}

fn stdio_inputs(fds: [Option<OwnedFd>; 3]) -> Vec<(Input, OwnedFd)> {
    let numbered = fds.into_iter().zip(0u8..);
    numbered.filter_map(|(fd, number)| Some((Input::Stdio(number), fd?))).collect()
}

/// On v2 the directory to be born in; on v1 each hierarchy's `cgroup.procs` goes to the child.
fn cgroup_inputs(cgroup: &Cgroup, inputs: &mut Vec<(Input, OwnedFd)>) -> Result<Option<OwnedFd>> {
    if cgroup.cgroups().unified {
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
