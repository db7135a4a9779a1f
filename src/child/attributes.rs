//! Ops about how a process is scheduled and what it is labelled with.
//!
//! Nothing here may allocate; see the module's head.

use std::ffi::CString;

use nix::errno::Errno;

use super::report::Call;
use super::{At, Fail, Fd};
use crate::plan::op::Scheduler;
use crate::sys::raw;

/// As many as any kernel has: it leaves out those that are not there, or not in the cpuset.
const EVERY_CPU: [u64; 128] = [u64::MAX; 128];

/// Whoever started the shim may have pinned it. As in runc, it is no error if that cannot be undone.
pub(super) fn reset_affinity() -> Result<(), Fail> {
    let _ = raw::sched_setaffinity(&EVERY_CPU);
    Ok(())
}

pub(super) fn scheduler(s: &Scheduler) -> Result<(), Fail> {
    raw::sched_setattr(s.policy, s.flags, s.nice, s.priority, s.times)
        .at(Call::SchedSetattr)
        .map(drop)
}

pub(super) fn io_priority(class: u32, level: u32) -> Result<(), Fail> {
    const CLASS_SHIFT: u32 = 13;
    raw::ioprio_set(class << CLASS_SHIFT | level).at(Call::IoprioSet).map(drop)
}

/// One write to the first of these files that is there, beneath a procfs that nobody else has.
/// Opened and written to at once: the kernel refuses a writer with other rights than the opener's.
pub(super) fn label(files: &[CString], text: &[u8]) -> Result<(), Fail> {
    const PROC_SUPER_MAGIC: i64 = 0x9fa0;
    const BENEATH: u64 =
        libc::RESOLVE_BENEATH | libc::RESOLVE_NO_XDEV | libc::RESOLVE_NO_MAGICLINKS;
    let fs = Fd(raw::fsopen(c"proc").at(Call::Fsopen)?);
    raw::fscreate(fs.0).at(Call::Fscreate)?;
    let attr = libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV | libc::MOUNT_ATTR_NOEXEC;
    let proc = Fd(raw::fsmount(fs.0, attr).at(Call::Fsmount)?);
    let mut found = Err(Errno::ENOENT);
    for file in files {
        found = raw::openat2(proc.0, file, libc::O_WRONLY, 0, BENEATH).map(Fd);
        if !matches!(found, Err(Errno::ENOENT)) {
            break;
        }
    }
    let file = found.at(Call::Openat2)?;
    if raw::fs_magic(file.0).at(Call::Fstatfs)? != PROC_SUPER_MAGIC {
        return Err(Fail(Call::NotProc, Errno::EPERM));
    }
    raw::write(file.0, text).at(Call::Write)
}

/// The label of a mount's root directory.
pub(super) fn file_label(mount: i32, label: &[u8]) -> Result<(), Fail> {
    let flags = libc::O_RDONLY | libc::O_DIRECTORY;
    let root = Fd(raw::openat(mount, c".", flags, 0).at(Call::Open)?);
    raw::fsetxattr(root.0, c"security.selinux", label).at(Call::Fsetxattr).map(drop)
}
