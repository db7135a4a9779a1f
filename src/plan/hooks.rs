//! `hooks` of the spec: what each is, and the plans that run them.
//!
//! A hook of the runtime's namespaces is a program of the host with all rights. One of the
//! container's, found in the container, must never get a right that the container has not: its plan
//! is that of an exec.

use std::ffi::CString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use libc::{CLONE_NEWPID, CLONE_NEWUSER, MS_PRIVATE};
use oci_spec::runtime::{Hook as OciHook, Process, Spec};

use super::paths::{cpath, cstring};
use super::{Attr, Facts, Input, Op, Plan, process, rootfs};
use crate::error::{Error, Result};

/// One program of the list of one kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hook {
    /// Its place in the spec and its path, for errors: `hooks.poststop[0] "/bin/true"`.
    pub name: String,
    /// `None`: as long as it takes.
    pub timeout: Option<Duration>,
    path: CString,
    args: Vec<CString>,
    env: Vec<CString>,
}

/// All of a spec, each kind in its order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hooks {
    pub prestart: Vec<Hook>,
    pub create_runtime: Vec<Hook>,
    pub create_container: Vec<Hook>,
    pub start_container: Vec<Hook>,
    pub poststart: Vec<Hook>,
    pub poststop: Vec<Hook>,
}

impl Hooks {
    /// Those of a spec; what is wrong with one is said before any of them runs.
    pub fn of(spec: &Spec) -> Result<Hooks> {
        let Some(hooks) = spec.hooks() else { return Ok(Hooks::default()) };
        #[allow(deprecated)] // In the specification all the same, and in use.
        let before = hooks.prestart();
        Ok(Hooks {
            prestart: list("prestart", before)?,
            create_runtime: list("createRuntime", hooks.create_runtime())?,
            create_container: list("createContainer", hooks.create_container())?,
            start_container: list("startContainer", hooks.start_container())?,
            poststart: list("poststart", hooks.poststart())?,
            poststop: list("poststop", hooks.poststop())?,
        })
    }

    /// Whether some run before the root is changed: the init stops for them.
    pub fn before_pivot(&self) -> bool {
        let lists = [&self.prestart, &self.create_runtime, &self.create_container];
        lists.iter().any(|list| !list.is_empty())
    }

    /// Whether some run on the host, where they look for the rootfs at `root.path`.
    pub fn on_host(&self) -> bool {
        let lists = [&self.prestart, &self.create_runtime, &self.poststart, &self.poststop];
        lists.iter().any(|list| !list.is_empty())
    }
}

fn list(kind: &str, hooks: &Option<Vec<OciHook>>) -> Result<Vec<Hook>> {
    let hooks = hooks.iter().flatten().enumerate();
    hooks.map(|(i, hook)| one(&format!("hooks.{kind}[{i}]"), hook)).collect()
}

fn one(field: &str, hook: &OciHook) -> Result<Hook> {
    if !hook.path().is_absolute() {
        return Err(Error::invalid(format!("{field}.path: {:?} is not absolute", hook.path())));
    }
    let timeout = match hook.timeout() {
        Some(seconds) if seconds <= 0 => {
            let text = format!("{field}.timeout: {seconds} is not greater than zero");
            return Err(Error::invalid(text));
        }
        seconds => seconds.map(|seconds| Duration::from_secs(seconds.unsigned_abs())),
    };
    let path = cpath(format_args!("{field}.path"), hook.path())?;
    let text = |name: &str, list: &Option<Vec<String>>| -> Result<Vec<CString>> {
        let list = list.iter().flatten().enumerate();
        list.map(|(i, text)| cstring(format_args!("{field}.{name}[{i}]"), text)).collect()
    };
    let mut args = text("args", hook.args())?;
    if args.is_empty() {
        args.push(path.clone());
    }
    for (i, entry) in hook.env().iter().flatten().enumerate() {
        if entry.split_once('=').is_none_or(|(name, _)| name.is_empty()) {
            let text = format!("{field}.env[{i}]: {entry:?} is not of the form NAME=value");
            return Err(Error::invalid(text));
        }
    }
    let env = text("env", hook.env())?;
    Ok(Hook { name: format!("{field} {:?}", hook.path()), timeout, path, args, env })
}

/// A hook in the runtime's namespaces. `back`: the `CLONE_NEW*` of those that this process has left
/// for the pod's, and the hook goes back to.
pub fn runtime(hook: &Hook, bundle: &Path, back: &[i32]) -> Result<Plan> {
    let mut plan = Plan::default();
    plan.input(Input::Report);
    for flags in back {
        let ns = plan.input(Input::HostNamespace(*flags));
        plan.ops.push(Op::Setns { ns, flags: *flags });
    }
    program(&mut plan, hook, cpath("the bundle", bundle)?, false);
    Ok(plan)
}

/// A hook in the container's namespaces before its root is changed: all rights, as it is the host's
/// program, in the container's cgroup. It starts in the container's rootfs. `namespaces` must not have
/// a PID namespace that others share: they could get at the host's root through it.
pub fn create_container(hook: &Hook, spec: &Spec, namespaces: i32, facts: &Facts) -> Result<Plan> {
    let mut plan = Plan::default();
    plan.input(Input::Report);
    process::join_cgroups(&mut plan, facts);
    let ns = plan.input(Input::Init);
    plan.ops.push(Op::Setns { ns, flags: namespaces });
    if namespaces & CLONE_NEWUSER != 0 {
        plan.ops.push(Op::UserRoot);
    }
    let root = cpath("root.path", &rootfs::path(spec, facts)?)?;
    program(&mut plan, hook, root, namespaces & CLONE_NEWPID != 0);
    Ok(plan)
}

/// A hook in the container, with the rights of its process. Without an environment of its own it
/// has that of the process, as runc does it.
pub fn start_container(
    hook: &Hook,
    process: &Process,
    namespaces: i32,
    facts: &Facts,
) -> Result<Plan> {
    let mut like = process.clone();
    like.set_args(Some(vec![hook.path.to_string_lossy().into_owned()]));
    like.set_terminal(Some(false));
    let facts = Facts { terminal: false, ..facts.clone() };
    let mut plan = super::exec(&like, namespaces, &facts)?;
    plan.args = hook.args.clone();
    if !hook.env.is_empty() {
        plan.env = hook.env.clone();
        plan.ops.retain(|op| !matches!(op, Op::Home { .. }));
    }
    for op in &mut plan.ops {
        if let Op::FindExecutable { candidates } = op {
            *candidates = vec![hook.path.clone()];
        }
    }
    Ok(plan)
}

/// The steps up to the program. Its session is its own, so that it can be killed whole.
fn program(plan: &mut Plan, hook: &Hook, cwd: CString, birth: bool) {
    plan.ops.push(Op::ResetSignals);
    process::stdio(plan);
    plan.ops.extend([
        Op::Umask { mask: 0o022 },
        Op::Chdir { path: cwd.clone(), retry: true },
        Op::Chdir { path: cwd, retry: false },
        Op::FindExecutable { candidates: vec![hook.path.clone()] },
        Op::CloseFds,
    ]);
    if birth {
        plan.ops.push(Op::Birth);
    }
    plan.ops.extend([Op::Setsid, Op::Exec]);
    (plan.args, plan.env) = (hook.args.clone(), hook.env.clone());
}

/// Mounts the rootfs at `root.path` on the host, where hooks of the runtime's namespaces look for
/// it; also that path. `None`: containerd gave no mounts, so it is there.
///
/// Private, so that nothing that is mounted in it travels on.
pub fn mount_rootfs(spec: &Spec, facts: &Facts) -> Result<Option<(Plan, PathBuf)>> {
    if facts.rootfs.is_empty() {
        return Ok(None);
    }
    let mut plan = Plan::default();
    plan.input(Input::Report);
    let opened = rootfs::open(&mut plan, spec, facts, None)?;
    if opened.is_unfinished() {
        // They would be mounted over the host's own layers.
        let text = "rootfs: id-mapped layers, with hooks that look for it on the host,";
        return Err(Error::unimplemented(text));
    }
    let path = opened.path.clone();
    let root = rootfs::attach(&mut plan, opened)?;
    // What is attached below a shared mount becomes shared by it.
    let attr = Attr { propagation: MS_PRIVATE, recursive: true, ..Attr::default() };
    plan.ops.extend([Op::SetAttr { mount: root, attr }, Op::Exit]);
    Ok(Some((plan, path)))
}

/// Takes it away again.
pub fn unmount_rootfs(path: &Path) -> Result<Plan> {
    super::alone(std::iter::once(Ok(Op::Unmount { path: cpath("root.path", path)? })))
}
