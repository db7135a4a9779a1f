//! `linux.namespaces`: what is new at clone, what is joined, and what the container has alone.
//!
//! It must never let a container be made in the host's mount namespace, nor set a name or a
//! kernel parameter in a namespace that is not the container's.

use libc::{
    CLONE_NEWCGROUP, CLONE_NEWIPC, CLONE_NEWNET, CLONE_NEWNS, CLONE_NEWPID, CLONE_NEWUSER,
    CLONE_NEWUTS,
};
use oci_spec::runtime::{Linux, LinuxNamespaceType as Type, Spec};

use super::paths::cstring;
use super::user::User;
use super::{Facts, Input, Op, Plan};
use crate::error::{Error, Result};

/// `CLONE_NEWTIME`, which libc lacks for some targets.
pub(super) const CLONE_NEWTIME: i32 = 0x80;

/// What becomes of the namespaces beyond the clone.
#[derive(Debug, Default)]
pub(super) struct Namespaces {
    /// Joins what the spec names by path.
    pub joins: Vec<Op>,
    /// New only once the child is in its cgroups: a cgroup namespace is rooted where its maker is.
    pub unshare: i32,
    /// The types of which the container has one that is not the shim's, new or by path.
    pub own: i32,
    /// The types that are new.
    pub new: i32,
    /// The user namespace, if the container has one.
    pub user: Option<User>,
    /// New only once the child is in the user namespace, to which they then belong.
    pub inside: i32,
}

fn flag(typ: Type) -> i32 {
    match typ {
        Type::Mount => CLONE_NEWNS,
        Type::Cgroup => CLONE_NEWCGROUP,
        Type::Uts => CLONE_NEWUTS,
        Type::Ipc => CLONE_NEWIPC,
        Type::User => CLONE_NEWUSER,
        Type::Pid => CLONE_NEWPID,
        Type::Network => CLONE_NEWNET,
        Type::Time => CLONE_NEWTIME,
    }
}

/// Fills in what the plan's clone needs.
pub(super) fn resolve(plan: &mut Plan, linux: &Linux, facts: &Facts) -> Result<Namespaces> {
    let mut all = Namespaces { user: User::of(plan, linux, facts)?, ..Namespaces::default() };
    let mut seen = 0;
    for (i, entry) in linux.namespaces().iter().flatten().enumerate() {
        let (typ, flag) = (entry.typ(), flag(entry.typ()));
        let field = || format!("linux.namespaces[{i}]");
        if seen & flag != 0 {
            return Err(Error::invalid(format!("{}: a second {typ:?} namespace", field())));
        }
        seen |= flag;
        let path = entry.path().as_ref().filter(|path| !path.as_os_str().is_empty());
        if path.is_some() && facts.ours.get(i).copied().unwrap_or(false) {
            continue;
        }
        match (typ, path) {
            (Type::User, _) => {}
            (Type::Mount, Some(_)) => {
                return Err(Error::unimplemented(field() + ": a mount namespace by path"));
            }
            // Joined around the clone: a process cannot change its own.
            (Type::Pid, Some(_)) => plan.pid_namespace = Some(Input::Namespace(i)),
            (_, Some(_)) => {
                let ns = plan.input(Input::Namespace(i));
                all.joins.push(Op::Setns { ns, flags: flag });
            }
            // A clone cannot; `TimeOffsets` enters it.
            (Type::Time, None) => match all.user {
                Some(_) => all.inside |= flag,
                None => all.unshare |= flag,
            },
            // Host paths are opened in a mount namespace that is still the host's own kind.
            (Type::Mount, None) => plan.namespaces |= flag,
            (_, None) if all.user.is_some() => all.inside |= flag,
            (Type::Cgroup, None) if !facts.cgroups.unified || facts.walks_into_cgroup => {
                all.unshare |= flag;
            }
            (_, None) => plan.namespaces |= flag,
        }
        all.own |= flag;
        all.new |= if path.is_none() { flag } else { 0 };
    }
    if all.new & CLONE_NEWNS == 0 {
        return Err(Error::unimplemented("a container without a mount namespace of its own"));
    }
    Ok(all)
}

/// `hostname` and `domainname`.
pub(super) fn names(plan: &mut Plan, spec: &Spec, own: i32) -> Result<()> {
    let given = |name: &Option<String>| name.clone().filter(|name| !name.is_empty());
    let fields = [("hostname", given(spec.hostname())), ("domainname", given(spec.domainname()))];
    for (field, name) in fields {
        let Some(name) = name else { continue };
        if own & CLONE_NEWUTS == 0 {
            return Err(Error::invalid(format!("{field} needs a UTS namespace of its own")));
        }
        let name = cstring(field, &name)?;
        plan.ops.push(match field {
            "hostname" => Op::Hostname { name },
            _ => Op::Domainname { name },
        });
    }
    Ok(())
}

/// `linux.sysctl`: only what belongs to a namespace that is the container's.
pub(super) fn sysctls(plan: &mut Plan, linux: &Linux, own: i32) -> Result<()> {
    let mut all: Vec<(&String, &String)> = linux.sysctl().iter().flatten().collect();
    all.sort();
    for (key, value) in all {
        let field = format!("linux.sysctl[{key:?}]");
        let path = sysctl_file(key, own).map_err(|e| e.doing(&field))?;
        let path = cstring(&field, &path)?;
        plan.ops.push(Op::Sysctl { path, value: cstring(&field, value)? });
    }
    Ok(())
}

/// The file below `/proc/sys` of a kernel parameter that belongs to one of the namespaces in `own`
/// (`CLONE_NEW*`). Any other would be the host's.
pub fn sysctl_file(key: &str, own: i32) -> Result<String> {
    let path = sysctl_path(key);
    if path.split('/').any(|part| matches!(part, "" | "." | "..")) {
        return Err(Error::invalid("not the name of a kernel parameter"));
    }
    let Some(owner) = sysctl_owner(&path) else {
        return Err(Error::invalid("it belongs to no namespace"));
    };
    if path == "kernel/hostname" {
        return Err(Error::invalid("the spec has the field hostname"));
    }
    if own & owner == 0 {
        let owner = super::op::namespaces(owner);
        return Err(Error::invalid(format!("it needs a namespace of its own: {owner}")));
    }
    Ok(format!("/proc/sys/{path}"))
}

/// The first separator tells which of `.` and `/` separates; the other one is part of a name, as
/// of an interface in `net.ipv4.conf.eno2/100.rp_filter`.
fn sysctl_path(key: &str) -> String {
    if key.find(['.', '/']).is_none_or(|at| key[at..].starts_with('/')) {
        return key.into();
    }
    let swap = |c| match c {
        '.' => '/',
        '/' => '.',
        c => c,
    };
    key.chars().map(swap).collect()
}

fn sysctl_owner(path: &str) -> Option<i32> {
    match path {
        "kernel/msgmax"
        | "kernel/msgmnb"
        | "kernel/msgmni"
        | "kernel/sem"
        | "kernel/shmall"
        | "kernel/shmmax"
        | "kernel/shmmni"
        | "kernel/shm_rmid_forced" => Some(CLONE_NEWIPC),
        "kernel/domainname" | "kernel/hostname" => Some(CLONE_NEWUTS),
        path if path.starts_with("fs/mqueue/") => Some(CLONE_NEWIPC),
        path if path.starts_with("net/") => Some(CLONE_NEWNET),
        path if path.starts_with("user/") => Some(CLONE_NEWUSER),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
