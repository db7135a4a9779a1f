//! `tmpcopyup`: a directory of the rootfs with all that is in it, into a mount that nobody sees yet.
//!
//! Names, contents, modes and owners, as runc has it; no times, no extended attributes (so no file
//! capabilities), and hard links become files of their own. Hostile processes may change the tree
//! meanwhile: each entry is opened beneath its directory, without links or other mounts, and is what
//! it is when it is open. Nothing here may allocate; see the module's head.

use std::ffi::CStr;

use nix::errno::Errno;

use super::path::{entries, open_beneath};
use super::report::Call;
use super::{At, Fail, Fd};
use crate::sys::raw;

/// Each directory is a frame on the stack and four descriptors.
const DEEPEST: u32 = 64;
/// The kernel's own limit is a little less than 2 GB.
const CHUNK: usize = 1 << 30;

/// Everything in `from` into `to`. `mode`: `to` gets that of `from` itself.
pub(super) fn tree(from: i32, to: i32, mode: bool) -> Result<(), Fail> {
    // Each mode is that of the file it is copied from.
    let mask = raw::umask(0);
    let copied = directory(from, to, DEEPEST);
    raw::umask(mask);
    copied?;
    if mode {
        let stat = raw::fstat(from).at(Call::Fstat)?;
        let root = open_beneath(to, c".", libc::O_RDONLY | libc::O_DIRECTORY)?;
        raw::fchmod(root.0, stat.st_mode & 0o7777).at(Call::Fchmod)?;
    }
    Ok(())
}

fn directory(from: i32, to: i32, left: u32) -> Result<(), Fail> {
    let Some(left) = left.checked_sub(1) else {
        return Err(Fail(Call::TooDeep, Errno::ELOOP));
    };
    let from = open_beneath(from, c".", libc::O_RDONLY | libc::O_DIRECTORY)?;
    entries(from.0, &mut |name, _| entry(from.0, to, name, left).map(|()| false)).map(drop)
}

fn entry(from: i32, to: i32, name: &CStr, left: u32) -> Result<(), Fail> {
    let path = match open_beneath(from, name, libc::O_PATH | libc::O_NOFOLLOW) {
        // Taken away since it was listed.
        Err(Fail(_, Errno::ENOENT)) => return Ok(()),
        path => path?,
    };
    let stat = raw::fstat(path.0).at(Call::Fstat)?;
    let mode = stat.st_mode & 0o7777;
    match stat.st_mode & libc::S_IFMT {
        libc::S_IFDIR => {
            raw::mkdirat(to, name, 0o700).at(Call::Mkdirat)?;
            let to = open_beneath(to, name, libc::O_RDONLY | libc::O_DIRECTORY)?;
            directory(path.0, to.0, left)?;
            give(&to, &stat, mode)
        }
        libc::S_IFREG => {
            let flags = libc::O_RDONLY | libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_NOCTTY;
            let from = open_beneath(from, name, flags)?;
            let opened = raw::fstat(from.0).at(Call::Fstat)?;
            if (opened.st_dev, opened.st_ino) != (stat.st_dev, stat.st_ino) {
                return Err(Fail(Call::OtherNode, Errno::EAGAIN));
            }
            let flags = libc::O_CREAT | libc::O_EXCL | libc::O_NOFOLLOW | libc::O_WRONLY;
            let to = Fd(raw::openat(to, name, flags, 0o600).at(Call::Open)?);
            while raw::sendfile(to.0, from.0, CHUNK).at(Call::Sendfile)? > 0 {}
            give(&to, &stat, mode)
        }
        libc::S_IFLNK => {
            // The kernel has no longer ones; the last byte stays NUL.
            let mut text = [0u8; libc::PATH_MAX as usize];
            let room = text.split_last_mut().map(|(_, room)| room).unwrap_or_default();
            raw::readlink_fd(path.0, room).at(Call::Readlinkat)?;
            let link = CStr::from_bytes_until_nul(&text).unwrap_or(c"");
            raw::symlinkat(link, to, name).at(Call::Symlinkat)?;
            owner(raw::chown_at(to, name, stat.st_uid, stat.st_gid)).map(drop)
        }
        kind => {
            raw::mknodat(to, name, kind | mode, stat.st_rdev).at(Call::Mknodat)?;
            owner(raw::chown_at(to, name, stat.st_uid, stat.st_gid)).map(drop)
        }
    }
}

/// The mode last: a change of owner takes set-user-ID away.
fn give(file: &Fd, stat: &libc::stat, mode: u32) -> Result<(), Fail> {
    let given = owner(raw::chown_fd(file.0, stat.st_uid, stat.st_gid))?;
    // Else it would be a way to become the container's root.
    let mode = if given { mode } else { mode & 0o1777 };
    raw::fchmod(file.0, mode).at(Call::Fchmod).map(drop)
}

/// Whether it could be given. An id that the container's user namespace has no number for cannot:
/// the file stays its root's, which is who would own what it copied itself.
fn owner(changed: Result<i32, Errno>) -> Result<bool, Fail> {
    match changed {
        Ok(_) => Ok(true),
        Err(Errno::EINVAL | Errno::EPERM) => Ok(false),
        Err(errno) => Err(Fail(Call::Fchownat, errno)),
    }
}
