//! Ops about user and time namespaces.
//!
//! Nothing here may allocate; see the module's head.

use std::ffi::CStr;

use super::report::Call;
use super::{At, Fail, Fd, path};
use crate::sys::raw;

/// `CLONE_NEWTIME`, which libc lacks for some targets.
const CLONE_NEWTIME: i32 = 0x80;

/// From here on what this process makes belongs to the container's root. Groups first: they are
/// the host's.
pub(super) fn root() -> Result<(), Fail> {
    raw::setgroups(&[]).at(Call::Setgroups)?;
    raw::setgid(0).at(Call::Setgid)?;
    raw::setuid(0).at(Call::Setuid)?;
    // fs.suid_dumpable may have let others in again.
    raw::prctl(libc::PR_SET_DUMPABLE, 0, 0).at(Call::Prctl).map(drop)
}

/// unshare(2) makes a time namespace for children only. This process enters it too, for whether
/// `execve` would is a matter of the kernel's version.
pub(super) fn time_offsets(offsets: &CStr) -> Result<(), Fail> {
    if !offsets.is_empty() {
        path::write_file(c"/proc/self/timens_offsets", offsets.to_bytes())?;
    }
    let file = c"/proc/self/ns/time_for_children";
    let ns = Fd(raw::openat(raw::CWD, file, libc::O_RDONLY, 0).at(Call::Open)?);
    raw::setns(ns.0, CLONE_NEWTIME).at(Call::Setns).map(drop)
}
