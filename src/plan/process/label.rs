//! Security modules: `process.apparmorProfile`, `process.selinuxLabel` and `linux.mountLabel`.
//!
//! A label that cannot be given is an error, never a process or a mount without one.

use std::ffi::CString;

use oci_spec::runtime::{Linux, Process};

use super::super::paths::cstring;
use super::super::{Attr, Facts, Input, Op, Param, Plan, Slot};
use crate::error::{Error, Kind, Result};

/// The security modules that the kernel runs with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Modules {
    pub apparmor: bool,
    /// AppArmor confines the shim itself: it runs inside somebody's container.
    pub confined: bool,
    pub selinux: bool,
}

fn given(text: &Option<String>) -> Option<&str> {
    text.as_deref().filter(|text| !text.is_empty())
}

fn absent(field: &str, label: &str, module: &str) -> Error {
    let text = format!("{field} {label:?}: the kernel does not run with {module}");
    Error::new(Kind::FailedPrecondition, text)
}

/// The label of the process' session keyring. It ends with `execve`, as the kernel has it.
pub(in crate::plan) fn keyring(plan: &mut Plan, process: &Process, facts: &Facts) -> Result<()> {
    match given(process.selinux_label()) {
        Some(label) if facts.modules.selinux => {
            let text = cstring("process.selinuxLabel", label)?;
            plan.ops.push(Op::Label { files: vec![c"thread-self/attr/keycreate".into()], text });
            Ok(())
        }
        _ => Ok(()),
    }
}

/// What the program will run as, from its `execve` on. Both modules keep it over `fork`, for an
/// exec that is born late. While all rights are there, and before no-new-privileges.
pub(in crate::plan) fn program(plan: &mut Plan, process: &Process, facts: &Facts) -> Result<()> {
    if let Some(profile) = given(process.apparmor_profile()) {
        let field = "process.apparmorProfile";
        if facts.modules.apparmor {
            // With no-new-privileges a confined process may get more restrictions, but no others:
            // the profile comes on top of the shim's (apparmor_bprm_creds_for_exec, since 4.17).
            let nested = facts.modules.confined && process.no_new_privileges().unwrap_or(false);
            if nested && profile == "unconfined" {
                let text = format!(
                    "{field} \"unconfined\": AppArmor confines the shim, and with \
                     process.noNewPrivileges nothing sheds its profile"
                );
                return Err(Error::new(Kind::FailedPrecondition, text));
            }
            let verb = if nested { "stack" } else { "exec" };
            // Even `unconfined`: the shim itself may be confined.
            let text = cstring(field, &format!("{verb} {profile}"))?;
            let files = ["thread-self/attr/apparmor/exec", "thread-self/attr/exec"];
            let files = files.iter().map(|file| cstring(field, file)).collect::<Result<_>>()?;
            plan.ops.push(Op::Label { files, text });
        } else if profile != "unconfined" {
            return Err(absent(field, profile, "AppArmor"));
        }
    }
    if let Some(label) = given(process.selinux_label()) {
        let field = "process.selinuxLabel";
        if !facts.modules.selinux {
            return Err(absent(field, label, "SELinux"));
        }
        let text = cstring(field, label)?;
        plan.ops.push(Op::Label { files: vec![c"thread-self/attr/exec".into()], text });
    }
    Ok(())
}

/// Labels the file systems that are made for the container, from the `first` op on.
pub(in crate::plan) fn mounts(
    plan: &mut Plan,
    linux: &Linux,
    facts: &Facts,
    first: usize,
) -> Result<()> {
    unquote(&mut plan.ops);
    let Some(label) = given(linux.mount_label()) else { return Ok(()) };
    if !facts.modules.selinux {
        return Err(absent("linux.mountLabel", label, "SELinux"));
    }
    let label = cstring("linux.mountLabel", label)?;
    let ops = std::mem::take(&mut plan.ops);
    for (i, op) in ops.into_iter().enumerate() {
        match op {
            op if i < first => push_early(plan, op, &label),
            Op::Mount { fstype, params, attr, root, target } if fstype.as_c_str() == c"mqueue" => {
                let mount = plan.slot();
                let source = fstype.clone();
                plan.ops.push(Op::NewMount { fstype, params, attr: attr.set, into: mount });
                if attr.propagation != 0 {
                    let attr = Attr { propagation: attr.propagation, ..Attr::default() };
                    plan.ops.push(Op::SetAttr { mount, attr });
                }
                // One superblock for each IPC namespace: it does not take an option any more.
                plan.ops.push(Op::FileLabel { mount, label: label.clone() });
                plan.ops.push(Op::Attach { mount, source, root, target });
            }
            Op::Mount { fstype, mut params, attr, root, target } => {
                // These label their files themselves.
                if !matches!(fstype.to_bytes(), b"proc" | b"sysfs" | b"cgroup" | b"cgroup2") {
                    add(&mut params, &label);
                }
                plan.ops.push(Op::Mount { fstype, params, attr, root, target });
            }
            Op::NewMount { fstype, mut params, attr, into } => {
                add(&mut params, &label);
                plan.ops.push(Op::NewMount { fstype, params, attr, into });
            }
            Op::Mask { root, target, empty, .. } => {
                let label = Some(label.clone());
                plan.ops.push(Op::Mask { root, target, empty, label });
            }
            op => plan.ops.push(op),
        }
    }
    Ok(())
}

/// The pod's `/dev/shm` is made before any container has a label.
fn push_early(plan: &mut Plan, op: Op, label: &CString) {
    let shm = |slot: Slot| plan.inputs.contains(&(Input::SandboxShm, slot));
    let mount = match &op {
        Op::SetAttr { mount, .. } if shm(*mount) => Some(*mount),
        _ => None,
    };
    plan.ops.push(op);
    plan.ops.extend(mount.map(|mount| Op::FileLabel { mount, label: label.clone() }));
}

fn add(params: &mut Vec<Param>, label: &CString) {
    if !params.iter().any(|param| param.key.as_c_str() == c"context") {
        params.push(Param { key: c"context".into(), value: Some(label.clone()) });
    }
}

/// A label has commas in it, so whoever writes a mount's options (containerd, for the rootfs)
/// quotes it. mount(2) takes the quotes away; fsconfig(2) would have them in the label.
fn unquote(ops: &mut [Op]) {
    const KEYS: [&[u8]; 4] = [b"context", b"fscontext", b"defcontext", b"rootcontext"];
    for op in ops {
        let (Op::Mount { params, .. } | Op::NewMount { params, .. }) = op else { continue };
        for param in params.iter_mut().filter(|param| KEYS.contains(&param.key.to_bytes())) {
            let Some(value) = &mut param.value else { continue };
            let inner = value.to_bytes().strip_prefix(b"\"").and_then(|v| v.strip_suffix(b"\""));
            if let Some(Ok(inner)) = inner.map(CString::new) {
                *value = inner;
            }
        }
    }
}
