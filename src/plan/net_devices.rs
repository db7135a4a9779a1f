//! `linux.netDevices`: devices of the host that a container gets.
//!
//! A plan of its own, for a child that still has the host's rights over them when the container has
//! its network namespace. It must never name a device as the kernel would not.

use std::collections::BTreeMap;
use std::ffi::CString;

use libc::CLONE_NEWNET;
use oci_spec::runtime::{LinuxNamespaceType, Spec};

use super::paths::cstring;
use super::{Input, Op, Plan};
use crate::error::{Error, Result};

/// The kernel's `IFNAMSIZ`, without the NUL.
const LONGEST: usize = 15;

/// What moves the devices, if there are any. [`Input::Namespace`] 0 is the container's network
/// namespace.
pub fn net_devices(spec: &Spec) -> Result<Option<Plan>> {
    let Some(linux) = spec.linux() else { return Ok(None) };
    let devices: BTreeMap<_, _> = linux.net_devices().iter().flatten().collect();
    if devices.is_empty() {
        return Ok(None);
    }
    let mut listed = linux.namespaces().iter().flatten();
    if !listed.any(|namespace| namespace.typ() == LinuxNamespaceType::Network) {
        return Err(Error::invalid("linux.netDevices: there is no network namespace to move to"));
    }
    let mut plan = Plan::default();
    plan.input(Input::Report);
    let host = plan.input(Input::HostLinks);
    let ns = plan.input(Input::Namespace(0));
    plan.ops.push(Op::Setns { ns, flags: CLONE_NEWNET });
    let mut taken: Vec<CString> = Vec::new();
    for (name, device) in devices {
        let field = format!("linux.netDevices[{name:?}]");
        let to = device.name().as_deref().filter(|to| !to.is_empty()).unwrap_or(name);
        let (name, to) = (checked(&field, name)?, checked(&format!("{field}.name"), to)?);
        if taken.contains(&to) {
            return Err(Error::invalid(format!("{field}: a second device of the name {to:?}")));
        }
        taken.push(to.clone());
        plan.ops.push(Op::BringDevice { host, ns, name, to });
    }
    plan.ops.push(Op::Exit);
    Ok(Some(plan))
}

fn checked(field: &str, name: &str) -> Result<CString> {
    // With a `%` it is a pattern, of which the kernel makes a name that nobody told us.
    let odd = |c: char| c.is_ascii_whitespace() || matches!(c, '/' | ':' | '%');
    if name.is_empty() || name.len() > LONGEST || [".", ".."].contains(&name) || name.contains(odd)
    {
        return Err(Error::invalid(format!("{field}: {name:?} is no name of a network device")));
    }
    cstring(field, name)
}
