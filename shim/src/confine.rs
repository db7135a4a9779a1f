//! Where the server runs and how it is weighed: set on `start` itself, which the server inherits.
//!
//! Done before the server exists, so that no moment of it is outside.

use std::fs;
use std::io;
use std::os::unix::process::parent_id;
use std::path::{Component, Path, PathBuf};

use containerd_shim_rs::error::{Doing, Error, Result};
use containerd_shim_rs::sys::exe;
use nix::errno::Errno;
use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};

const CGROUP_ROOT: &str = "/sys/fs/cgroup";
const OOM_SCORE_ADJ_MAX: i32 = 1000;

/// A core-scheduling cookie, if containerd's configuration asks for it (`SCHED_CORE`).
pub fn core_scheduling() -> Result<()> {
    if std::env::var_os("SCHED_CORE").is_none_or(|value| value.is_empty()) {
        return Ok(());
    }
    match exe::create_core_cookie() {
        // ENODEV: no SMT, so nothing to protect from. EINVAL: a kernel without it.
        Err(Errno::ENODEV | Errno::EINVAL) => Ok(()),
        done => done.doing(|| "prctl(PR_SCHED_CORE_CREATE)"),
    }
}

/// One more than containerd's `oom_score_adj`: the kernel shall end a shim before containerd.
pub fn oom_score() -> Result<()> {
    let path = format!("/proc/{}/oom_score_adj", parent_id());
    // The parent may be outside our PID namespace, or gone.
    let Ok(text) = fs::read_to_string(&path) else { return Ok(()) };
    let score =
        text.trim().parse::<i32>().map_err(|_| Error::invalid(format!("{path} is {text:?}")))?;
    let score = (score + 1).min(OOM_SCORE_ADJ_MAX);
    match fs::write("/proc/self/oom_score_adj", score.to_string()) {
        // Without CAP_SYS_RESOURCE no process may go below what it once was.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(()),
        done => done.doing(|| format!("write {score} to /proc/self/oom_score_adj")),
    }
}

/// Joins `shim_cgroup`: on v1 in every hierarchy that has it. Nobody has it: an error.
pub fn join_cgroup(cgroup: &str) -> Result<()> {
    if cgroup.is_empty() {
        return Ok(());
    }
    let below = Path::new(cgroup.trim_start_matches('/'));
    if below.components().any(|part| !matches!(part, Component::Normal(_))) {
        return Err(Error::invalid(format!("shim_cgroup {cgroup:?} is not a path")));
    }
    let roots = hierarchies().doing(|| "find the cgroup hierarchies")?;
    let procs: Vec<PathBuf> = roots
        .iter()
        .map(|root| root.join(below).join("cgroup.procs"))
        .filter(|path| path.exists())
        .collect();
    if procs.is_empty() {
        return Err(Error::invalid(format!("shim_cgroup {cgroup:?} does not exist")));
    }
    for path in procs {
        fs::write(&path, "0").doing(|| format!("write 0 to {path:?}"))?;
    }
    Ok(())
}

/// The mountpoints of the hierarchies in use: the only one of v2, or all of v1.
fn hierarchies() -> Result<Vec<PathBuf>> {
    let root = statfs(CGROUP_ROOT).doing(|| format!("statfs {CGROUP_ROOT:?}"))?;
    if root.filesystem_type() == CGROUP2_SUPER_MAGIC {
        return Ok(vec![PathBuf::from(CGROUP_ROOT)]);
    }
    let mounts =
        fs::read_to_string("/proc/self/mountinfo").doing(|| "read /proc/self/mountinfo")?;
    Ok(mounts.lines().filter_map(v1_mountpoint).map(PathBuf::from).collect())
}

/// The mountpoint of a line of mountinfo, if it is a whole hierarchy of cgroup v1.
fn v1_mountpoint(line: &str) -> Option<&str> {
    let (mount, filesystem) = line.split_once(" - ")?;
    let mut fields = mount.split(' ').skip(3);
    let (root, mountpoint) = (fields.next()?, fields.next()?);
    (root == "/" && filesystem.starts_with("cgroup ")).then_some(mountpoint)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_v1_hierarchies_count() {
        let v1 = "30 23 0:26 / /sys/fs/cgroup/cpu rw,nosuid shared:9 - cgroup cgroup rw,cpu";
        let v2 = "31 23 0:27 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw";
        let part = "32 23 0:26 /docker/x /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu";
        assert_eq!(v1_mountpoint(v1), Some("/sys/fs/cgroup/cpu"));
        assert_eq!((v1_mountpoint(v2), v1_mountpoint(part)), (None, None));
    }

    #[test]
    fn a_cgroup_that_is_not_there_or_leads_out_is_an_error() {
        for cgroup in ["/shims/../..", "..", "/no/such/shim/cgroup"] {
            assert!(join_cgroup(cgroup).is_err(), "{cgroup}");
        }
        assert!(join_cgroup("").is_ok());
    }
}
