//! Detached mounts of the parent.
//!
//! It must never attach one where other mount namespaces would see it, but for `attach_at`, which
//! says so.

use std::ffi::CStr;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;

use super::fd::owned;
use super::raw;

/// A new file system of `fstype`, attached nowhere.
pub fn new_mount(
    fstype: &CStr,
    params: &[(&CStr, Option<&CStr>)],
    attr: u64,
) -> Result<OwnedFd, Errno> {
    let fs = owned(raw::fsopen(fstype)?)?;
    for (key, value) in params {
        raw::fsconfig(fs.as_raw_fd(), key, *value)?;
    }
    raw::fscreate(fs.as_raw_fd())?;
    owned(raw::fsmount(fs.as_raw_fd(), attr)?)
}

/// A copy of an open mount. Of a detached one: kernel 6.15, EINVAL before.
pub fn clone_mount(mount: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    owned(raw::clone_tree(mount.as_raw_fd(), c"", false)?)
}

/// A copy of the mount at `path`, attached nowhere.
pub fn clone_path(path: &CStr) -> Result<OwnedFd, Errno> {
    owned(raw::clone_tree(raw::CWD, path, false)?)
}

/// Attaches a mount in this process' own mount namespace: the host sees it.
pub fn attach_at(mount: BorrowedFd<'_>, path: &CStr) -> Result<(), Errno> {
    let target = super::fd::open_no_symlinks(path, libc::O_PATH | libc::O_DIRECTORY)?;
    raw::attach(mount.as_raw_fd(), target.as_raw_fd()).map(|_| ())
}
