//! `process` of the spec: who it runs as, with what rights, where, and which program.
//!
//! The order of the steps is the security of it (each rule was a bug once): the bounding set
//! before the user, the user before the capabilities, no-new-privileges after them, and nothing
//! that can fail after `Ready`. It must never keep a right that the spec does not name.
//!
//! Where the seccomp filter comes: with no-new-privileges anybody may add one, so it comes when all but
//! the last steps are done; otherwise it takes CAP_SYS_ADMIN, which goes with the user. Either way before
//! the process can be seen in the container's PID namespace or waits for Start: others there may trace
//! it, and a process without the filter would be a way around their own. From the filter on a profile has
//! to allow: `read`, `write`, `execve`, `exit_group`; for an exec `clone` and `setsid` (and `ioctl` for a
//! terminal). Without no-new-privileges also `setsid` for the init, `setresuid`, `prctl`, `capset`,
//! `getcwd`, `chdir`, `openat`, `fstat`, `faccessat2`, `fcntl`, `dup3`, `close` and `close_range`. runc
//! asks for about the same.

use std::ffi::CString;

use oci_spec::runtime::{Capabilities, PosixRlimitType as Limit, Process};

pub(super) mod label;
pub(super) mod schedule;

use super::paths::{clean, cstring, target};
use super::{Facts, Input, Missing, Op, Plan, Slot};
use crate::error::{Error, Result};

/// Where a program without a slash is looked for when the environment has no `PATH`.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Into the container's cgroups, on v1; on v2 the clone itself does it.
pub(super) fn join_cgroups(plan: &mut Plan, facts: &Facts) {
    if !facts.cgroups.unified || facts.walks_into_cgroup {
        for i in 0..facts.cgroups.dirs.len() {
            let procs = plan.input(Input::CgroupProcs(i));
            plan.ops.push(Op::JoinCgroup { procs });
        }
    }
}

/// The same for an exec. One that is not to run on its container's CPUs until it is in there is
/// not born there: on v2 as well it walks in.
pub(super) fn join_cgroups_of_exec(
    plan: &mut Plan,
    process: &Process,
    facts: &Facts,
) -> Result<()> {
    let initial = schedule::initial_affinity(process)?;
    let walks = initial.is_some() && facts.cgroups.unified && !facts.walks_into_cgroup;
    plan.ops.extend(initial.map(|cpus| Op::Affinity { cpus }));
    if walks {
        let procs = plan.input(Input::CgroupProcs(0));
        plan.ops.push(Op::JoinCgroup { procs });
    }
    join_cgroups(plan, facts);
    schedule::exec_affinity(plan, process)
}

/// What is of the process, but must be done while the host's `/proc` and all rights are there.
pub(super) fn early(plan: &mut Plan, process: &Process, facts: &Facts) -> Result<()> {
    if let Some(adj) = process.oom_score_adj() {
        if !(-1000..=1000).contains(&adj) {
            let text = format!("process.oomScoreAdj: {adj} is not between -1000 and 1000");
            return Err(Error::invalid(text));
        }
        plan.ops.push(Op::OomScore { adj });
    }
    label::program(plan, process, facts)?;
    if !facts.keyring.is_empty() {
        label::keyring(plan, process, facts)?;
        let name = cstring("the keyring's name", &format!("_ses.{}", facts.keyring))?;
        plan.ops.push(Op::JoinKeyring { name });
    }
    Ok(())
}

/// The pty of a terminal, from the devpts beneath `root`.
pub(super) fn pty(plan: &mut Plan, process: &Process, root: Slot) -> Result<Slot> {
    let side = |value: u64| {
        u16::try_from(value)
            .map_err(|_| Error::invalid(format!("process.consoleSize: {value} is too large")))
    };
    let size = match process.console_size() {
        Some(size) if size.height() != 0 && size.width() != 0 => {
            Some((side(size.height())?, side(size.width())?))
        }
        _ => None,
    };
    let into = plan.slot();
    plan.ops.push(Op::OpenPty { root, into, size, owner: process.user().uid() });
    Ok(into)
}

/// The working directory, clean.
pub(super) fn cwd(process: &Process) -> Result<String> {
    if !process.cwd().is_absolute() {
        return Err(Error::invalid(format!("process.cwd: {:?} is not absolute", process.cwd())));
    }
    Ok(clean(process.cwd()))
}

/// Makes the working directory. Before the root turns read-only.
pub(super) fn make_cwd(plan: &mut Plan, process: &Process, root: Slot) -> Result<()> {
    let cwd = cwd(process)?;
    if cwd != "/" {
        let mut target = target("process.cwd", &cwd, Missing::Directory)?;
        target.inside_proc = true;
        plan.ops.push(Op::MakeDir { root, target, mode: 0o755 });
    }
    Ok(())
}

/// The rest, inside the container: up to the program itself.
pub(super) fn run(
    plan: &mut Plan,
    process: &Process,
    pty: Option<Slot>,
    facts: &Facts,
) -> Result<()> {
    let user = process.user();
    let gids = user.additional_gids().clone().unwrap_or_default();
    for (field, ids) in
        [("uid", &[user.uid()][..]), ("gid", &[user.gid()]), ("additionalGids", &gids)]
    {
        // setresuid(2) takes it as "leave it as it is": root would stay root.
        if ids.contains(&u32::MAX) {
            return Err(Error::invalid(format!("process.user.{field}: {} is no id", u32::MAX)));
        }
    }
    let umask = user.umask().unwrap_or(0o022);
    if umask & !0o777 != 0 {
        return Err(Error::invalid(format!("process.user.umask: {umask:#o} is no umask")));
    }
    let cwd = cstring("process.cwd", &cwd(process)?)?;
    let candidates = program(plan, process)?;
    let rights = Rights::of(process, facts.last_cap)?;

    plan.ops.push(Op::ResetSignals);
    match pty {
        Some(from) => plan.ops.extend((0..3).map(|to| Op::Dup { from, to })),
        None => stdio(plan),
    }
    plan.ops.push(Op::Umask { mask: umask });
    plan.ops.push(Op::Chdir { path: cwd.clone(), retry: true });
    environment(plan, process)?;
    rlimits(plan, process)?;
    plan.ops.extend([
        Op::BoundingSet { keep: rights.bounding },
        Op::KeepCaps { on: true },
        Op::ChownStdio { uid: user.uid() },
        Op::Groups { gids },
        Op::Gid { gid: user.gid() },
    ]);
    // The last step that has CAP_SYS_ADMIN.
    let privileged = process.no_new_privileges() != Some(true);
    plan.ops.extend(filter(facts).filter(|_| privileged));
    plan.ops.extend([
        Op::Uid { uid: user.uid() },
        Op::Chdir { path: cwd, retry: false },
        Op::VerifyCwd,
        Op::KeepCaps { on: false },
        Op::Capset {
            effective: rights.effective,
            permitted: rights.permitted,
            inheritable: rights.inheritable,
        },
        Op::Ambient { caps: rights.ambient },
    ]);
    if process.no_new_privileges() == Some(true) {
        plan.ops.push(Op::NoNewPrivs);
    }
    // The limit of open files may be below what is open until here.
    plan.ops.extend([Op::CloseFds, Op::FindExecutable { candidates }]);
    Ok(())
}

fn filter(facts: &Facts) -> Option<Op> {
    facts.seccomp.clone().map(|filter| Op::Seccomp { filter })
}

/// How a process comes to its program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// It waits for Start.
    Parked,
    /// Its PID namespace is another's, into which it has to be born.
    Born,
    /// At once.
    Here,
}

/// The last steps. The session is made by the process that stays, for it dies with its leader.
pub(super) fn end(plan: &mut Plan, process: &Process, facts: &Facts, how: End) {
    let mut late = filter(facts).filter(|_| process.no_new_privileges() == Some(true));
    if how == End::Born {
        plan.ops.extend(late.take());
        plan.ops.push(Op::Birth);
    }
    plan.ops.push(Op::Setsid);
    plan.ops.extend(facts.terminal.then_some(Op::ControllingTerminal));
    plan.ops.extend(late);
    plan.ops.extend((how == End::Parked).then_some(Op::Ready));
    plan.ops.push(Op::Exec);
}

/// 0, 1 and 2 as the parent gives them.
pub(super) fn stdio(plan: &mut Plan) {
    for number in 0..3 {
        let from = plan.input(Input::Stdio(number));
        plan.ops.push(Op::Dup { from, to: number.into() });
    }
}

/// `args`, and where its first one may be.
fn program(plan: &mut Plan, process: &Process) -> Result<Vec<CString>> {
    let args = process.args().as_deref().unwrap_or_default();
    let Some(name) = args.first().filter(|name| !name.is_empty()) else {
        return Err(Error::invalid("process.args names no program"));
    };
    let text = |(i, arg): (usize, &String)| cstring(format_args!("process.args[{i}]"), arg);
    plan.args = args.iter().enumerate().map(text).collect::<Result<_>>()?;
    if name.contains('/') {
        return Ok(vec![plan.args[0].clone()]);
    }
    let env = process.env().iter().flatten();
    let path = env.filter_map(|entry| entry.strip_prefix("PATH=")).next_back();
    let path = path.unwrap_or(DEFAULT_PATH);
    // An element that is not absolute would find a program in the working directory.
    let absolute = path.split(':').filter(|element| element.starts_with('/'));
    let file = |element: &str| format!("{}/{name}", element.trim_end_matches('/'));
    absolute.map(|element| cstring("process.env: PATH", &file(element))).collect()
}

/// The last of several entries with one name counts. A missing or empty `HOME` is looked up.
fn environment(plan: &mut Plan, process: &Process) -> Result<()> {
    let env = process.env().as_deref().unwrap_or_default();
    let mut seen = std::collections::HashSet::new();
    let mut kept = Vec::with_capacity(env.len() + 1);
    for (i, entry) in env.iter().enumerate().rev() {
        let field = format!("process.env[{i}]");
        let name = match entry.split_once('=') {
            None => return Err(Error::invalid(format!("{field}: {entry:?} has no \"=\""))),
            Some(("", _)) => return Err(Error::invalid(format!("{field}: {entry:?} has no name"))),
            Some((name, _)) => name,
        };
        let text = cstring(field, entry)?;
        if seen.insert(name) && entry != "HOME=" {
            kept.push(text);
        }
    }
    kept.reverse();
    if !kept.iter().any(|entry| entry.as_bytes().starts_with(b"HOME=")) {
        // The child fills it in.
        kept.push(c"HOME=".into());
        plan.ops.push(Op::Home { uid: process.user().uid() });
    }
    plan.env = kept;
    Ok(())
}

fn rlimits(plan: &mut Plan, process: &Process) -> Result<()> {
    let mut seen = 0u32;
    for (i, limit) in process.rlimits().iter().flatten().enumerate() {
        let resource = resource(limit.typ());
        let (soft, hard) = (limit.soft(), limit.hard());
        let field = format!("process.rlimits[{i}]");
        if seen & (1 << resource) != 0 {
            return Err(Error::invalid(format!("{field}: a second {}", limit.typ())));
        }
        if soft > hard {
            return Err(Error::invalid(format!("{field}: soft {soft} is above hard {hard}")));
        }
        seen |= 1 << resource;
        plan.ops.push(Op::Rlimit { resource, soft, hard });
    }
    Ok(())
}

/// The kernel's numbers; libc's constants differ in type from one C library to the other.
fn resource(typ: Limit) -> u32 {
    match typ {
        Limit::RlimitCpu => 0,
        Limit::RlimitFsize => 1,
        Limit::RlimitData => 2,
        Limit::RlimitStack => 3,
        Limit::RlimitCore => 4,
        Limit::RlimitRss => 5,
        Limit::RlimitNproc => 6,
        Limit::RlimitNofile => 7,
        Limit::RlimitMemlock => 8,
        Limit::RlimitAs => 9,
        Limit::RlimitLocks => 10,
        Limit::RlimitSigpending => 11,
        Limit::RlimitMsgqueue => 12,
        Limit::RlimitNice => 13,
        Limit::RlimitRtprio => 14,
        Limit::RlimitRttime => 15,
    }
}

/// The five sets as bits.
struct Rights {
    bounding: u64,
    effective: u64,
    permitted: u64,
    inheritable: u64,
    ambient: u64,
}

impl Rights {
    /// None given is none: a default would be full rights for who forgot to ask for less.
    fn of(process: &Process, last_cap: u8) -> Result<Rights> {
        let Some(sets) = process.capabilities() else {
            return Ok(Rights {
                bounding: 0,
                effective: 0,
                permitted: 0,
                inheritable: 0,
                ambient: 0,
            });
        };
        let known = u64::MAX >> (63 - u32::from(last_cap.min(63)));
        let bits = |set: &Option<Capabilities>| {
            let names = set.iter().flatten().map(|cap| format!("CAP_{cap}"));
            let caps = names.filter_map(|name| name.parse::<caps::Capability>().ok());
            caps.fold(0, |bits, cap| bits | cap.bitmask()) & known
        };
        let (effective, permitted) = (bits(sets.effective()), bits(sets.permitted()));
        let inheritable = bits(sets.inheritable());
        let beyond = effective & !permitted;
        if let Some(cap) = caps::all().into_iter().find(|cap| beyond & cap.bitmask() != 0) {
            let text = format!("process.capabilities.effective: {cap} is not in permitted");
            return Err(Error::invalid(text));
        }
        // The kernel raises no other ones; runc warns and goes on.
        let ambient = bits(sets.ambient()) & permitted & inheritable;
        Ok(Rights { bounding: bits(sets.bounding()), effective, permitted, inheritable, ambient })
    }
}

/// Every capability that a spec may name.
pub fn capability_names() -> Vec<String> {
    let mut all: Vec<caps::Capability> = caps::all().into_iter().collect();
    all.sort_unstable_by_key(caps::Capability::index);
    all.iter().map(ToString::to_string).collect()
}

#[cfg(test)]
mod tests;
