//! What the planner must know of the host, found out once.
//!
//! It must never take a version for a feature: what can be tried is tried.

use std::path::Path;

use nix::errno::Errno;

use crate::error::{Doing, Error, Kind, Result};
use crate::sys::probe;
use crate::{check, plan};

/// Facts of the host that do not change.
#[derive(Clone, Copy, Debug)]
pub(super) struct Host {
    pub last_cap: u8,
    pub overlay_lowerdir_plus: bool,
    pub modules: plan::Modules,
    pub walks_into_cgroup: bool,
}

impl Host {
    /// `scratch`: a directory to try an overlay in. `unified`: cgroups are version 2.
    pub fn probe(scratch: &Path, unified: bool) -> Result<Host> {
        let path = "/proc/sys/kernel/cap_last_cap";
        let text = std::fs::read_to_string(path).doing(|| format!("read {path}"))?;
        let last_cap = text
            .trim()
            .parse()
            .map_err(|_| Error::new(Kind::Unknown, format!("{path}: {text:?}")))?;
        let overlay_lowerdir_plus = check::lowerdir_plus(scratch).unwrap_or(false);
        // To ask costs a fork.
        let walks_into_cgroup = unified && probe::clone_into_cgroup().is_err();
        Ok(Host { last_cap, overlay_lowerdir_plus, modules: check::modules(), walks_into_cgroup })
    }
}

/// What may be the reason that root was refused something, told beside the refusal: nobody who reads
/// `EPERM` thinks of the profile that the whole node agent runs under.
pub(super) fn refused(error: Error) -> Error {
    if !matches!(error.errno(), Some(Errno::EPERM | Errno::EACCES)) {
        return error;
    }
    let profile =
        check::own_profile().map(|name| format!("AppArmor confines the shim as {name:?}"));
    // `none [integrity] confidentiality`: kernel_lockdown(7).
    let lockdown = std::fs::read_to_string("/sys/kernel/security/lockdown").unwrap_or_default();
    let mode = lockdown.split(['[', ']']).nth(1).filter(|mode| *mode != "none");
    let lockdown = mode.map(|mode| format!("the kernel's lockdown is {mode:?}"));
    let reasons: Vec<String> = profile.into_iter().chain(lockdown).collect();
    if reasons.is_empty() { error } else { error.because(reasons.join(", ")) }
}
