//! The holder of a pod's namespaces. It sees nothing, owns nothing and may do nothing, as containers
//! with `CAP_SYS_PTRACE` can look into it.

use libc::{
    CLONE_NEWNS, CLONE_NEWPID, MOUNT_ATTR_NODEV, MOUNT_ATTR_NOEXEC, MOUNT_ATTR_NOSUID,
    MOUNT_ATTR_RDONLY, MS_PRIVATE, MS_REC, MS_SLAVE,
};

use super::user::User;
use super::{Attr, Facts, Input, Op, Plan, namespaces, options, paths, process};
use crate::error::Result;

/// What a holder holds.
#[derive(Clone, Copy, Debug, Default)]
pub struct Holder<'a> {
    /// The namespaces that are born with it (`CLONE_NEW*`), beside its mount namespace.
    pub namespaces: i32,
    /// The mappings of the user namespace `Input::Namespace(0)`, to which they then belong.
    pub user: Option<&'a super::IdMap>,
    /// For a UTS namespace that is born with it.
    pub hostname: Option<&'a str>,
    /// Kernel parameters of the namespaces that are born with it.
    pub sysctls: &'a [(String, String)],
}

/// See the module text.
pub fn holder(args: &[&str], holds: Holder<'_>, facts: &Facts) -> Result<Plan> {
    const NOBODY: u32 = 65534;
    let mut plan = Plan { namespaces: CLONE_NEWNS, ..Plan::default() };
    plan.input(Input::Report);
    let exe = plan.input(Input::Executable);
    let user = holds.user.map(|map| User { ns: plan.input(Input::Namespace(0)), map: map.clone() });
    process::join_cgroups(&mut plan, facts);
    let (mount, root) = (plan.slot(), plan.slot());
    let path = paths::cpath("the bundle", &facts.bundle)?;
    let params = ["source=holder", "mode=555", "nr_blocks=1", "nr_inodes=1"];
    plan.ops.extend([
        Op::NewMount {
            fstype: c"tmpfs".into(),
            params: params.iter().map(|p| options::param(p)).collect::<Result<_>>()?,
            attr: MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC,
            into: mount,
        },
        Op::SetAttr { mount, attr: Attr { propagation: MS_PRIVATE, ..Attr::default() } },
        Op::Propagate { flags: MS_REC | MS_SLAVE },
    ]);
    match &user {
        None => plan.namespaces |= holds.namespaces,
        Some(user) => {
            user.enter(&mut plan, holds.namespaces);
            if holds.namespaces & CLONE_NEWPID != 0 {
                plan.ops.push(Op::Birth);
            }
        }
    }
    plan.ops.extend([
        Op::AttachRootfs { mount, path: path.clone() },
        Op::OpenRootfs { path, into: root },
    ]);
    if user.is_some() {
        plan.ops.push(Op::UserRoot);
    }
    for (key, value) in holds.sysctls {
        let path = paths::cstring(key, &namespaces::sysctl_file(key, holds.namespaces)?)?;
        plan.ops.push(Op::Sysctl { path, value: paths::cstring(key, value)? });
    }
    if let Some(name) = holds.hostname {
        plan.ops.push(Op::Hostname { name: paths::cstring("hostname", name)? });
    }
    plan.ops.extend([Op::Pivot { root }, Op::ResetSignals, Op::Setsid]);
    process::stdio(&mut plan);
    // Where nobody is not mapped, the container's root: without a right, it is nobody.
    let nobody = |id: Option<u32>| if user.is_some() && id.is_none() { 0 } else { NOBODY };
    let map = user.as_ref().map(|user| &user.map);
    plan.ops.extend([
        Op::BoundingSet { keep: 0 },
        Op::Groups { gids: Vec::new() },
        Op::Gid { gid: nobody(map.and_then(|map| map.gid(NOBODY))) },
        Op::Uid { uid: nobody(map.and_then(|map| map.uid(NOBODY))) },
        Op::Capset { effective: 0, permitted: 0, inheritable: 0 },
        Op::Ambient { caps: 0 },
        Op::NoNewPrivs,
        Op::CloseFds,
        Op::ExecFd { exe },
    ]);
    let text = |arg: &&str| paths::cstring("an argument of the holder", arg);
    plan.args = args.iter().map(text).collect::<Result<_>>()?;
    Ok(plan)
}
