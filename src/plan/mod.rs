//! Plans: what a child will do after clone, decided beforehand as data.
//!
//! Everything below is pure: an OCI spec and a few [`Facts`] go in, a [`Plan`] comes out, and the
//! same input gives the same text. It must never do I/O, read a clock or log.

use std::ffi::CString;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use libc::{
    CLONE_NEWPID, CLONE_NEWUSER, MOUNT_ATTR_RDONLY, MS_REC, MS_SHARED, MS_SLAVE, MS_UNBINDABLE,
};
use oci_spec::runtime::{Linux, Process, Spec};

use crate::error::{Error, Result};

pub mod cgroup;
mod cgroups;
pub mod device_filter;
mod devices;
mod holder;
pub mod hooks;
mod logger;
mod mounts;
mod namespaces;
mod net_devices;
pub mod op;
mod options;
mod paths;
mod process;
mod rdt;
mod rootfs;
pub mod seccomp;
pub mod spec;
mod staged;
pub mod systemd;
mod time;
mod user;

pub use holder::{Holder, holder};
pub use logger::logger;
pub use namespaces::sysctl_file;
pub use net_devices::net_devices;
pub use op::{Attr, Missing, Op, Param, Slot, Target};
pub use options::mount_options;
pub use paths::cpath;
use process::End;
pub use process::capability_names;
pub use process::label::Modules;
pub use process::schedule::{Set, Shared, initial_affinity};
pub use rdt::Rdt;
pub use user::{IdMap, IdRange, map_file, user_namespace};

/// A descriptor that the parent opens before clone and puts in a slot.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Input {
    /// The socket on which child and parent speak. Always there.
    Report,
    /// 0, 1 or 2 of the new process; of a logger 3, 4 and 5 as well.
    Stdio(u8),
    /// The `cgroup.procs` of a hierarchy, by its index in the cgroup's list of directories.
    CgroupProcs(usize),
    /// A namespace that the spec names by path, by its index in `linux.namespaces`.
    Namespace(usize),
    /// The pidfd of the container's init, for an exec.
    Init,
    /// The host's namespace of one `CLONE_NEW*`, for a hook while this process is in the pod's.
    HostNamespace(i32),
    /// A user namespace with the mappings of this index in [`Plan::users`].
    User(usize),
    /// A copy of the pod's `/dev/shm` for this container, attached nowhere: a child in a mount
    /// namespace of its own could not make it before kernel 6.15.
    SandboxShm,
    /// An executable file.
    Executable,
    /// A socket for the network devices of the host's namespace.
    HostLinks,
}

/// What the parent knows about the host and the pod when it plans: all that a decision needs
/// beside the spec. Gathered by `host` and the callers; nothing in it is looked up later.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// The bundle directory, absolute.
    pub bundle: PathBuf,
    /// The container's rootfs as containerd's mounts; empty: `root.path` is already one.
    pub rootfs: Vec<RootfsMount>,
    /// Whether `fsconfig(2)` of overlay takes `lowerdir+` (kernel 6.8, probed).
    pub overlay_lowerdir_plus: bool,
    /// For each entry of `linux.namespaces` that has a path: whether it is the namespace that the
    /// shim itself is in, so that a child need not join it. Other entries: false.
    pub ours: Vec<bool>,
    /// The cgroup hierarchies of the host and the container's directory in each.
    pub cgroups: Cgroups,
    /// Nobody can be born in a cgroup here (no `CLONE_INTO_CGROUP`): on v2 as well a child walks in.
    pub walks_into_cgroup: bool,
    /// `/proc/sys/kernel/cap_last_cap`.
    pub last_cap: u8,
    /// What the pod gives its containers and containerd may have left out of the spec.
    pub sandbox: Option<SandboxFiles>,
    /// The session keyring's name is `_ses.<this>`; empty: keep the shim's keyring.
    pub keyring: String,
    /// Whether stdin, stdout and stderr of the process are a pty.
    pub terminal: bool,
    /// The kernel's security modules.
    pub modules: Modules,
    /// Of an exec: what its container's spec says of every process.
    pub shared: Shared,
    /// `linux.seccomp`, compiled; also for execs.
    pub seccomp: Option<Arc<seccomp::Filter>>,
    /// The mappings of the container's user namespace; of one that the spec names by path, as the
    /// kernel has them.
    pub user_map: Option<IdMap>,
    /// The network namespace that the spec names by path belongs to that user namespace.
    pub user_owns_network: bool,
    /// The groups of resctrl that every process of the container is in, from the outer to the inner.
    pub rdt: Vec<PathBuf>,
}

/// One mount of `CreateTaskRequest.rootfs` (containerd's `types.Mount`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RootfsMount {
    /// `overlay`, `bind`, or any file system's name.
    pub fstype: String,
    /// Device or directory.
    pub source: String,
    /// Where, below the rootfs; empty: the rootfs itself.
    pub target: String,
    /// As `mount -o` takes them.
    pub options: Vec<String>,
}

/// Files of the sandbox that containers see; CRI mounts its own only if they exist, and removes them when it restarts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SandboxFiles {
    /// Directory with `hostname`, `hosts` and `resolv.conf`.
    pub dir: PathBuf,
    /// The pod has its own `/dev/shm`, on [`Input::SandboxShm`].
    pub shm: bool,
}

/// The cgroup hierarchies in use, and one container's directory in each.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Cgroups {
    /// Only the unified hierarchy, version 2, is in use.
    pub unified: bool,
    /// On v2 one entry. On v1 one for each mounted hierarchy (named ones too), sorted by
    /// mountpoint, without the hybrid `unified`.
    pub dirs: Vec<CgroupDir>,
}

/// One hierarchy and the container's directory in it.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct CgroupDir {
    /// `["cpu", "cpuacct"]`; `["name=systemd"]`; on v2 what `cgroup.controllers` lists.
    pub controllers: Vec<String>,
    /// Where the hierarchy is mounted on the host: `/sys/fs/cgroup/cpu,cpuacct`.
    pub mountpoint: PathBuf,
    /// The container's directory, absolute on the host, below `mountpoint`.
    pub path: PathBuf,
}

/// What a child will do, step by step.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// `CLONE_NEW*` for `clone3(2)`.
    pub namespaces: i32,
    /// The PID namespace to join around the clone, if any.
    pub pid_namespace: Option<Input>,
    /// The steps, in order.
    pub ops: Vec<Op>,
    /// `argv` of the program that `Exec` or `ExecFd` runs.
    pub args: Vec<CString>,
    /// Its environment. With [`Op::Home`] the last entry is `HOME=`, in whose place the child puts
    /// what it finds.
    pub env: Vec<CString>,
    /// Where each of the parent's descriptors goes.
    pub inputs: Vec<(Input, Slot)>,
    /// How many slots there are.
    pub slots: u16,
    /// The user namespaces that the parent makes beforehand.
    pub users: Vec<IdMap>,
}

impl Plan {
    /// A slot that nothing uses yet.
    pub fn slot(&mut self) -> Slot {
        let slot = Slot(self.slots);
        self.slots += 1;
        slot
    }

    /// The slot of a descriptor that the parent brings.
    pub fn input(&mut self, input: Input) -> Slot {
        if let Some((_, slot)) = self.inputs.iter().find(|(have, _)| *have == input) {
            return *slot;
        }
        let slot = self.slot();
        self.inputs.push((input, slot));
        slot
    }

    /// The slot of a user namespace with these mappings, one for all that want them.
    fn user_namespace(&mut self, map: &IdMap) -> Slot {
        let known = self.users.iter().position(|have| have == map);
        let index = known.unwrap_or_else(|| {
            self.users.push(map.clone());
            self.users.len() - 1
        });
        self.input(Input::User(index))
    }
}

/// The init of a container.
pub fn container(spec: &Spec, facts: &Facts) -> Result<Plan> {
    let Some(linux) = spec.linux() else { return Err(Error::invalid("linux is missing")) };
    let Some(process) = spec.process() else { return Err(Error::invalid("process is missing")) };
    if linux.seccomp().is_some() && facts.seccomp.is_none() {
        return Err(Error::invalid("linux.seccomp has not been compiled"));
    }
    let flow = rootfs_propagation(linux)?;

    let mut plan = Plan::default();
    plan.input(Input::Report);
    let namespaces = namespaces::resolve(&mut plan, linux, facts)?;
    let user = namespaces.user.as_ref();
    if let Some(user) = user {
        user::check_user(process, &user.map)?;
    }
    let mut entries = mounts::resolve(spec, facts, &namespaces)?;

    process::join_cgroups(&mut plan, facts);
    rdt::join(&mut plan, facts)?;
    plan.ops.push(Op::ResetAffinity);
    if namespaces.unshare != 0 {
        plan.ops.push(Op::Unshare { flags: namespaces.unshare });
    }
    process::early(&mut plan, process, facts)?;
    let born = namespaces.inside & CLONE_NEWPID != 0;
    process::schedule::apply(&mut plan, process, &Shared::of(linux), born)?;
    // Opened while the mounts of this new namespace are still peers of the host's: a slave's clone
    // could never carry a mount back to the host, as `rshared` wants.
    mounts::open(&mut plan, &mut entries, user)?;
    let mut rootfs = rootfs::open(&mut plan, spec, facts, user)?;
    plan.ops.push(Op::Propagate { flags: MS_REC | MS_SLAVE });
    rootfs.finish(&mut plan);
    let rootfs = match user {
        Some(_) => Way::Staged(staged::stage(&mut plan, &entries, rootfs)?),
        None => Way::Straight(rootfs),
    };
    let first = plan.ops.len();
    if let Some(user) = user {
        mounts::make_dev(&mut plan, linux, &mut entries, user)?;
    }
    enter(&mut plan, linux, &namespaces)?;

    let root = match rootfs {
        Way::Straight(rootfs) => rootfs::attach(&mut plan, rootfs)?,
        Way::Staged(staged) => staged.take(&mut plan)?,
    };
    if user.is_some() {
        plan.ops.push(Op::UserRoot);
    }
    let late = mounts::attach(&mut plan, &entries, root)?;
    if user.is_none() && !mounts::binds(&entries, "/dev") {
        devices::make(&mut plan, linux, root, None)?;
    }
    let mut pty = None;
    if facts.terminal {
        let opened = process::pty(&mut plan, process, root)?;
        plan.ops.push(Op::AttachConsole { pty: opened, root });
        pty = Some(opened);
    }
    process::make_cwd(&mut plan, process, root)?;
    // All mounts are there, and nothing is read-only or masked yet: as runc has it.
    if hooks::Hooks::of(spec)?.before_pivot() {
        plan.ops.push(Op::Hooks);
    }
    plan.ops.extend(late);
    if spec.root().as_ref().and_then(|root| root.readonly()).unwrap_or(false) {
        let attr = Attr { set: MOUNT_ATTR_RDONLY, ..Attr::default() };
        plan.ops.push(Op::SetAttr { mount: root, attr });
    }
    namespaces::sysctls(&mut plan, linux, namespaces.own)?;
    paths::restrict(&mut plan, linux, root)?;
    process::label::mounts(&mut plan, linux, facts, first)?;
    namespaces::names(&mut plan, spec, namespaces.own)?;
    plan.ops.push(Op::Pivot { root });
    if let Some(flags) = flow {
        plan.ops.push(Op::Propagate { flags });
    }
    process::run(&mut plan, process, pty, facts)?;
    process::end(&mut plan, process, facts, End::Parked);
    if user.is_some() {
        user::limits_first(&mut plan);
    }
    // A child reports a step by its number in 16 bits.
    if plan.ops.len() > usize::from(u16::MAX) {
        return Err(Error::invalid(format!("the spec asks for {} steps", plan.ops.len())));
    }
    Ok(plan)
}

/// How the rootfs comes to its place.
enum Way {
    Straight(rootfs::Rootfs),
    /// With all that the host gives.
    Staged(staged::Staged),
}

/// Into the namespaces that are joined, and into those that are made inside a user namespace.
fn enter(plan: &mut Plan, linux: &Linux, all: &namespaces::Namespaces) -> Result<()> {
    plan.ops.extend(all.joins.iter().cloned());
    if let Some(user) = &all.user {
        user.enter(plan, all.inside);
    }
    time::offsets(plan, linux, all.new)?;
    if all.inside & CLONE_NEWPID != 0 {
        plan.ops.push(Op::Birth);
    }
    Ok(())
}

/// Another process in a container. `namespaces`: the `CLONE_NEW*` of those to join.
///
/// All of it happens outside of the container's PID namespace, but for the last steps: a container
/// with `CAP_SYS_PTRACE` could use what it sees there.
pub fn exec(process: &Process, namespaces: i32, facts: &Facts) -> Result<Plan> {
    let mut plan = Plan::default();
    plan.input(Input::Report);
    process::join_cgroups_of_exec(&mut plan, process, facts)?;
    rdt::join(&mut plan, facts)?;
    process::early(&mut plan, process, facts)?;
    let born = namespaces & CLONE_NEWPID != 0;
    process::schedule::apply(&mut plan, process, &facts.shared, born)?;
    if namespaces != 0 {
        let ns = plan.input(Input::Init);
        plan.ops.push(Op::Setns { ns, flags: namespaces });
    }
    if namespaces & CLONE_NEWUSER != 0 {
        if let Some(map) = &facts.user_map {
            user::check_user(process, map)?;
        }
        plan.ops.push(Op::UserRoot);
    }
    let mut pty = None;
    if facts.terminal {
        let root = plan.slot();
        plan.ops.push(Op::OpenRootfs { path: c"/".into(), into: root });
        pty = Some(process::pty(&mut plan, process, root)?);
    }
    process::run(&mut plan, process, pty, facts)?;
    // A process enters a PID namespace by its birth only.
    process::end(&mut plan, process, facts, if born { End::Born } else { End::Here });
    user::limits_first(&mut plan);
    Ok(plan)
}

/// Removes directories of a cgroup: the kernel may take its time, which the loop has not.
pub fn remove(dirs: &[PathBuf]) -> Result<Plan> {
    let path = |dir: &PathBuf| Ok(Op::Rmdir { path: paths::cpath("a cgroup", dir)? });
    alone(dirs.iter().map(path))
}

/// Writes files of a cgroup that is in use, which may block as well.
pub fn write(files: &[(PathBuf, String)]) -> Result<Plan> {
    let file = |(path, text): &(PathBuf, String)| {
        let (field, data) = (path.display(), paths::cstring(path.display(), text)?);
        Ok(Op::WriteFile { path: paths::cpath(field, path)?, data })
    };
    alone(files.iter().map(file))
}

fn alone(ops: impl Iterator<Item = Result<Op>>) -> Result<Plan> {
    let mut plan = Plan::default();
    plan.input(Input::Report);
    plan.ops = ops.collect::<Result<_>>()?;
    plan.ops.push(Op::Exit);
    Ok(plan)
}

/// `linux.rootfsPropagation`, as flags for the new root. Private and slave are what it is already;
/// applied once more they would undo the `rshared` of a mount in it.
fn rootfs_propagation(linux: &Linux) -> Result<Option<u64>> {
    match linux.rootfs_propagation().as_deref().unwrap_or_default() {
        "" | "private" | "rprivate" | "slave" | "rslave" => Ok(None),
        "shared" => Ok(Some(MS_SHARED)),
        "rshared" => Ok(Some(MS_SHARED | MS_REC)),
        "unbindable" => Ok(Some(MS_UNBINDABLE)),
        "runbindable" => Ok(Some(MS_UNBINDABLE | MS_REC)),
        other => Err(Error::invalid(format!("linux.rootfsPropagation: {other:?} is unknown"))),
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "clone {}", op::namespaces(self.namespaces))?;
        if let Some(input) = &self.pid_namespace {
            writeln!(f, "in pid namespace of {input:?}")?;
        }
        for (input, slot) in &self.inputs {
            writeln!(f, "input {slot} {input:?}")?;
        }
        for (i, map) in self.users.iter().enumerate() {
            writeln!(f, "user namespace {i}: {map}")?;
        }
        for (i, op) in self.ops.iter().enumerate() {
            writeln!(f, "{:3} {op}", i + 1)?;
        }
        if !self.args.is_empty() {
            writeln!(f, "args {:?}", self.args)?;
            // Names only: a value may be a secret, and this text goes to the log.
            let name = |entry: &CString| {
                let text = entry.to_string_lossy();
                text.split_once('=').map_or(text.to_string(), |(name, _)| name.to_owned())
            };
            let names: Vec<String> = self.env.iter().map(name).collect();
            writeln!(f, "env {}", names.join(" "))?;
        }
        Ok(())
    }
}
