//! What the planner must know of the host, found out once.
//!
//! It must never take a version for a feature: what can be tried is tried.

use std::os::fd::AsRawFd;
use std::path::Path;

use nix::errno::Errno;

use crate::error::{Doing, Error, Kind, Result};
use crate::{plan, sys};

/// Facts of the host that do not change.
#[derive(Clone, Copy, Debug)]
pub(super) struct Host {
    pub last_cap: u8,
    pub overlay_lowerdir_plus: bool,
    pub modules: plan::Modules,
}

impl Host {
    /// `scratch`: a directory to try an overlay in.
    pub fn probe(scratch: &Path) -> Result<Host> {
        let path = "/proc/sys/kernel/cap_last_cap";
        let text = std::fs::read_to_string(path).doing(|| format!("read {path}"))?;
        let last_cap = text
            .trim()
            .parse()
            .map_err(|_| Error::new(Kind::Unknown, format!("{path}: {text:?}")))?;
        let overlay_lowerdir_plus = probe_overlay(scratch);
        Ok(Host { last_cap, overlay_lowerdir_plus, modules: modules() })
    }
}

/// AppArmor says so itself. SELinux is there once its file system is mounted and a policy is loaded:
/// before that all runs as `kernel`.
fn modules() -> plan::Modules {
    const SELINUX_MAGIC: i64 = 0xf97c_ff8c;
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let file = std::fs::File::open("/sys/fs/selinux");
    let mounted = file.is_ok_and(|dir| sys::raw::fs_magic(dir.as_raw_fd()) == Ok(SELINUX_MAGIC));
    let label = read("/proc/self/attr/current");
    let label = label.trim_end_matches(['\0', '\n']);
    plan::Modules {
        apparmor: read("/sys/module/apparmor/parameters/enabled").starts_with('Y'),
        confined: own_profile().is_some(),
        selinux: mounted && !["", "kernel"].contains(&label),
    }
}

/// AppArmor's profile of the shim, if it is confined. The older file is that of all modules.
fn own_profile() -> Option<String> {
    let read = |path: &str| std::fs::read_to_string(path).ok();
    let enabled = read("/sys/module/apparmor/parameters/enabled")?;
    let profile = read("/proc/thread-self/attr/apparmor/current")
        .or_else(|| read("/proc/thread-self/attr/current"))?;
    let profile = profile.trim_end_matches(['\0', '\n']);
    let confined = enabled.starts_with('Y') && !["", "unconfined"].contains(&profile);
    confined.then(|| profile.to_owned())
}

/// What may be the reason that root was refused something, told beside the refusal: nobody who reads
/// `EPERM` thinks of the profile that the whole node agent runs under.
pub(super) fn refused(error: Error) -> Error {
    if !matches!(error.errno(), Some(Errno::EPERM | Errno::EACCES)) {
        return error;
    }
    let profile = own_profile().map(|name| format!("AppArmor confines the shim as {name:?}"));
    // `none [integrity] confidentiality`: kernel_lockdown(7).
    let lockdown = std::fs::read_to_string("/sys/kernel/security/lockdown").unwrap_or_default();
    let mode = lockdown.split(['[', ']']).nth(1).filter(|mode| *mode != "none");
    let lockdown = mode.map(|mode| format!("the kernel's lockdown is {mode:?}"));
    let reasons: Vec<String> = profile.into_iter().chain(lockdown).collect();
    if reasons.is_empty() { error } else { error.because(reasons.join(", ")) }
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
