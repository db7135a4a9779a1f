//! The mount calls, old and new. As the module above: no allocation, no state.

use std::ffi::{CStr, c_char, c_int, c_uint};

use nix::errno::Errno;

use super::{Arg, EMPTY, check};

/// `open_tree(2)` with `OPEN_TREE_CLONE`; an empty path means `dir` itself.
pub fn clone_tree(dir: c_int, path: &CStr, recursive: bool) -> Result<c_int, Errno> {
    let mut flags = libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC | libc::AT_EMPTY_PATH as c_uint;
    if recursive {
        flags |= libc::AT_RECURSIVE as c_uint;
    }
    call!("path lives across the call", libc::SYS_open_tree, dir, path.as_ptr(), flags)
}

/// `move_mount(2)` of an open mount onto an open file or directory.
pub fn attach(mount: c_int, target: c_int) -> Result<c_int, Errno> {
    let empty = EMPTY.as_ptr();
    let flags = libc::MOVE_MOUNT_F_EMPTY_PATH | libc::MOVE_MOUNT_T_EMPTY_PATH;
    call!("static strings", libc::SYS_move_mount, mount, empty, target, empty, flags)
}

/// `mount_setattr(2)` on an open mount.
pub fn set_mount_attr(
    mount: c_int,
    set: u64,
    clear: u64,
    propagation: u64,
    recursive: bool,
) -> Result<c_int, Errno> {
    let attr = libc::mount_attr { attr_set: set, attr_clr: clear, propagation, userns_fd: 0 };
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    let (empty, size) = (EMPTY.as_ptr(), size_of::<libc::mount_attr>());
    call!(
        "attr lives across the call",
        libc::SYS_mount_setattr,
        mount,
        empty,
        flags,
        &raw const attr,
        size
    )
}

/// `mount_setattr(2)` with `MOUNT_ATTR_IDMAP`: files show the ids that `user_namespace` maps theirs to.
pub fn map_ids(mount: c_int, user_namespace: c_int, recursive: bool) -> Result<c_int, Errno> {
    let attr = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_IDMAP,
        attr_clr: 0,
        propagation: 0,
        userns_fd: user_namespace as u64,
    };
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    let (empty, size) = (EMPTY.as_ptr(), size_of::<libc::mount_attr>());
    call!(
        "attr lives across the call",
        libc::SYS_mount_setattr,
        mount,
        empty,
        flags,
        &raw const attr,
        size
    )
}

/// `fsopen(2)`.
pub fn fsopen(fstype: &CStr) -> Result<c_int, Errno> {
    call!("fstype lives across the call", libc::SYS_fsopen, fstype.as_ptr(), libc::FSOPEN_CLOEXEC)
}

/// `fsconfig(2)`: a string, or a flag where there is no value.
pub fn fsconfig(fs: c_int, key: &CStr, value: Option<&CStr>) -> Result<c_int, Errno> {
    let (cmd, value) = match value {
        Some(value) => (libc::FSCONFIG_SET_STRING, value.as_ptr()),
        None => (libc::FSCONFIG_SET_FLAG, std::ptr::null()),
    };
    call!("both strings live across the call", libc::SYS_fsconfig, fs, cmd, key.as_ptr(), value, 0)
}

/// `fsconfig(FSCONFIG_CMD_CREATE)`.
pub fn fscreate(fs: c_int) -> Result<c_int, Errno> {
    let null = std::ptr::null::<c_char>();
    call!(
        "null is what the command wants",
        libc::SYS_fsconfig,
        fs,
        libc::FSCONFIG_CMD_CREATE,
        null,
        null,
        0
    )
}

/// `fsmount(2)`.
pub fn fsmount(fs: c_int, attr: u64) -> Result<c_int, Errno> {
    call!("numbers", libc::SYS_fsmount, fs, libc::FSMOUNT_CLOEXEC, attr as c_uint)
}

/// `mount(2)`.
pub fn mount(
    source: Option<&CStr>,
    target: &CStr,
    fstype: Option<&CStr>,
    flags: u64,
    data: Option<&CStr>,
) -> Result<c_int, Errno> {
    let ptr = |s: Option<&CStr>| s.map_or(std::ptr::null(), CStr::as_ptr);
    let (source, fstype, data) = (ptr(source), ptr(fstype), ptr(data));
    call!(
        "all strings live across the call",
        libc::SYS_mount,
        source,
        target.as_ptr(),
        fstype,
        flags,
        data
    )
}

/// `umount2(2)`.
pub fn umount(target: &CStr, flags: c_int) -> Result<c_int, Errno> {
    call!("target lives across the call", libc::SYS_umount2, target.as_ptr(), flags)
}

/// `pivot_root(2)`.
pub fn pivot_root(new: &CStr, old: &CStr) -> Result<c_int, Errno> {
    call!("both strings live across the call", libc::SYS_pivot_root, new.as_ptr(), old.as_ptr())
}
