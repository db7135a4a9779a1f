//! What a copy of files takes. As the module above: no allocation, no state.

use std::ffi::{CStr, c_int, c_void};

use nix::errno::Errno;

use super::{Arg, EMPTY, check};

/// The next entries of an open directory, as `struct linux_dirent64`s; 0: there are no more.
pub fn getdents(dir: c_int, buf: &mut [u8]) -> Result<usize, Errno> {
    let (at, len) = (buf.as_mut_ptr(), buf.len());
    call!("the slice is ours and writable", libc::SYS_getdents64, dir, at, len).map(|n| n as usize)
}

/// `readlinkat(2)` of a symlink that is open itself; how many bytes, without a NUL.
pub fn readlink_fd(link: c_int, buf: &mut [u8]) -> Result<usize, Errno> {
    let (at, len, empty) = (buf.as_mut_ptr(), buf.len(), EMPTY.as_ptr());
    call!("the slice is ours and writable", libc::SYS_readlinkat, link, empty, at, len)
        .map(|n| n as usize)
}

/// `sendfile(2)` of at most `count` bytes from where the files are; 0: the end.
pub fn sendfile(to: c_int, from: c_int, count: usize) -> Result<usize, Errno> {
    let null = std::ptr::null::<c_void>();
    call!("numbers", libc::SYS_sendfile, to, from, null, count).map(|n| n as usize)
}

/// `fchmod(2)`.
pub fn fchmod(fd: c_int, mode: u32) -> Result<c_int, Errno> {
    call!("numbers", libc::SYS_fchmod, fd, mode)
}

/// `fchownat(2)` of a name itself, not of what a symlink names.
pub fn chown_at(dir: c_int, name: &CStr, uid: u32, gid: u32) -> Result<c_int, Errno> {
    let (name, flags) = (name.as_ptr(), libc::AT_SYMLINK_NOFOLLOW);
    call!("name lives across the call", libc::SYS_fchownat, dir, name, uid, gid, flags)
}
