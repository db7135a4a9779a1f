//! Paths beneath a rootfs, which hostile processes may be changing while they are resolved.
//!
//! Everything goes through `openat2(RESOLVE_IN_ROOT)` and then by descriptor. A path beneath the
//! rootfs must never be passed to a call that follows it by name.

use std::ffi::CStr;

use nix::errno::Errno;

use super::report::Call;
use super::{At, Fail, Fd};
use crate::plan::{Missing, Target};
use crate::sys::raw;

const IN_ROOT: u64 = libc::RESOLVE_IN_ROOT | libc::RESOLVE_NO_MAGICLINKS;
const PROC_SUPER_MAGIC: i64 = 0x9fa0;
/// openat2(2): EAGAIN when a rename or mount raced with the resolution; a hostile container can
/// make that happen for ever.
const RESOLVE_TRIES: u32 = 128;
const ENTRIES_LEN: usize = 4096;
/// `struct linux_dirent64`: the record's length, a byte of the type, and its name.
const RECORD_LEN: usize = 16;
const NAME: usize = 19;

/// Opens a path beneath `root`.
fn open_in(root: i32, path: &CStr, flags: i32, no_symlinks: bool) -> Result<Fd, Errno> {
    let resolve = IN_ROOT | if no_symlinks { libc::RESOLVE_NO_SYMLINKS } else { 0 };
    let mut left = RESOLVE_TRIES;
    loop {
        match raw::openat2(root, path, flags, 0, resolve) {
            Err(Errno::EAGAIN) if left > 0 => left = left.saturating_sub(1),
            Err(errno) => return Err(errno),
            Ok(fd) => return Ok(Fd(fd)),
        }
    }
}

/// A host directory, not through any symlink.
pub(super) fn open_no_symlinks(path: &CStr) -> Result<Fd, Fail> {
    host_directory(path, libc::O_PATH)
}

/// The same, to be read.
pub(super) fn open_directory(path: &CStr) -> Result<Fd, Fail> {
    host_directory(path, libc::O_RDONLY)
}

fn host_directory(path: &CStr, flags: i32) -> Result<Fd, Fail> {
    let flags = flags | libc::O_DIRECTORY;
    raw::openat2(raw::CWD, path, flags, 0, libc::RESOLVE_NO_SYMLINKS).at(Call::Openat2).map(Fd)
}

/// The last component of a path without a trailing slash.
fn name(path: &CStr) -> &CStr {
    let bytes = path.to_bytes_with_nul();
    let start = bytes.iter().rposition(|b| *b == b'/').map_or(0, |i| i.saturating_add(1));
    bytes.get(start..).and_then(|rest| CStr::from_bytes_with_nul(rest).ok()).unwrap_or(path)
}

fn path_of(target: &Target) -> &CStr {
    target.prefixes.last().map_or(c".", |p| p.as_c_str())
}

/// What a target names, if it exists.
pub(super) fn existing(root: i32, target: &Target) -> Result<Option<Fd>, Fail> {
    match open_in(root, path_of(target), libc::O_PATH, target.no_symlinks) {
        Ok(fd) => not_the_root(root, fd).map(Some),
        Err(Errno::ENOENT | Errno::ENOTDIR) => Ok(None),
        Err(errno) => Err(Fail(Call::Openat2, errno)),
    }
}

/// A link in the image may lead to the root itself. What is mounted there would not be seen by the
/// init, whose root lies beneath, but be the root of every exec: `setns` looks down through mounts.
fn not_the_root(root: i32, fd: Fd) -> Result<Fd, Fail> {
    let (root, target) = (raw::fstat(root).at(Call::Fstat)?, raw::fstat(fd.0).at(Call::Fstat)?);
    if (root.st_dev, root.st_ino) == (target.st_dev, target.st_ino) {
        return Err(Fail(Call::RootItself, Errno::EBUSY));
    }
    Ok(fd)
}

/// A target to mount on, made if the plan says so. `source`: the mount that it shall look like.
pub(super) fn mount_point(root: i32, target: &Target, source: Option<i32>) -> Result<Fd, Fail> {
    let found = open_in(root, path_of(target), libc::O_PATH, target.no_symlinks);
    let fd = match found {
        Err(Errno::ENOENT) if target.missing != Missing::Fail => {
            let directory = match (target.missing, source) {
                (Missing::Directory, _) => true,
                (Missing::LikeSource, Some(source)) => {
                    raw::fstat(source).at(Call::Fstat)?.st_mode & libc::S_IFMT == libc::S_IFDIR
                }
                _ => false,
            };
            make(root, target, directory, 0o755)?;
            open_in(root, path_of(target), libc::O_PATH, target.no_symlinks).at(Call::Openat2)?
        }
        found => found.at(Call::Openat2)?,
    };
    let fd = not_the_root(root, fd)?;
    // Nothing may cover the files that security settings are written to (CVE-2019-16884).
    if !target.inside_proc && raw::fs_magic(fd.0).at(Call::Fstatfs)? == PROC_SUPER_MAGIC {
        return Err(Fail(Call::InsideProc, Errno::EPERM));
    }
    Ok(fd)
}

/// Makes every missing component. Each is made by name in a directory that was resolved beneath
/// the root, so that a symlink planted meanwhile is found, never followed (CVE-2024-45310).
fn make(root: i32, target: &Target, directory: bool, mode: u32) -> Result<(), Fail> {
    let mut parent: &CStr = c".";
    let mut left = target.prefixes.len();
    for prefix in &target.prefixes {
        left = left.saturating_sub(1);
        let flags = libc::O_PATH | libc::O_DIRECTORY;
        let dir = open_in(root, parent, flags, target.no_symlinks).at(Call::Openat2)?;
        let made = if left > 0 || directory {
            let mode = if left == 0 { mode } else { 0o755 };
            raw::mkdirat(dir.0, name(prefix), mode).at(Call::Mkdirat).map(drop)
        } else {
            let flags = libc::O_CREAT | libc::O_EXCL | libc::O_NOFOLLOW | libc::O_WRONLY;
            raw::openat(dir.0, name(prefix), flags, 0o644).at(Call::Open).map(|fd| drop(Fd(fd)))
        };
        match made {
            Err(Fail(_, Errno::EEXIST)) | Ok(()) => {}
            Err(fail) => return Err(fail),
        }
        parent = prefix;
    }
    Ok(())
}

/// Makes a directory and those above it; what is there stays as it is.
pub(super) fn make_dir(root: i32, target: &Target, mode: u32) -> Result<(), Fail> {
    match open_in(root, path_of(target), libc::O_PATH | libc::O_DIRECTORY, target.no_symlinks) {
        Ok(_) => Ok(()),
        Err(Errno::ENOENT) => make(root, target, true, mode),
        Err(errno) => Err(Fail(Call::Openat2, errno)),
    }
}

/// The directory that a target lies in, made if it is missing, and the target's name there.
fn parent_of(root: i32, target: &Target) -> Result<(Fd, &CStr), Fail> {
    let above = target.prefixes.len().saturating_sub(2);
    let parent = match target.prefixes.get(above) {
        Some(prefix) if target.prefixes.len() > 1 => prefix.as_c_str(),
        _ => c".",
    };
    let flags = libc::O_PATH | libc::O_DIRECTORY;
    let dir = match open_in(root, parent, flags, target.no_symlinks) {
        Err(Errno::ENOENT) => {
            make_above(root, target)?;
            open_in(root, parent, flags, target.no_symlinks)
        }
        found => found,
    };
    Ok((dir.at(Call::Openat2)?, name(path_of(target))))
}

fn make_above(root: i32, target: &Target) -> Result<(), Fail> {
    let mut parent: &CStr = c".";
    let above = target.prefixes.len().saturating_sub(1);
    for prefix in target.prefixes.iter().take(above) {
        let flags = libc::O_PATH | libc::O_DIRECTORY;
        let dir = open_in(root, parent, flags, target.no_symlinks).at(Call::Openat2)?;
        match raw::mkdirat(dir.0, name(prefix), 0o755) {
            Ok(_) | Err(Errno::EEXIST) => {}
            Err(errno) => return Err(Fail(Call::Mkdirat, errno)),
        }
        parent = prefix;
    }
    Ok(())
}

/// A device node or FIFO with exactly this mode, whatever the umask.
pub(super) fn make_node(
    root: i32,
    target: &Target,
    mode: u32,
    dev: u64,
    owner: (u32, u32),
) -> Result<(), Fail> {
    let (dir, name) = parent_of(root, target)?;
    let mask = raw::umask(0);
    let made = raw::mknodat(dir.0, name, mode, dev);
    raw::umask(mask);
    if !matches!(made, Ok(_) | Err(Errno::EEXIST)) {
        return made.at(Call::Mknodat).map(drop);
    }
    let node = Fd(raw::openat(dir.0, name, libc::O_PATH | libc::O_NOFOLLOW, 0).at(Call::Open)?);
    let stat = raw::fstat(node.0).at(Call::Fstat)?;
    // A container of the same pod may share the directory and swap the name.
    if stat.st_mode & libc::S_IFMT != mode & libc::S_IFMT || stat.st_rdev != dev {
        return Err(Fail(Call::OtherNode, Errno::EEXIST));
    }
    if made.is_err() || owner == (0, 0) {
        return Ok(());
    }
    raw::chown_fd(node.0, owner.0, owner.1).at(Call::Fchownat).map(drop)
}

/// A symlink; whatever has the name already stays.
pub(super) fn symlink(root: i32, target: &Target, to: &CStr) -> Result<(), Fail> {
    let (dir, name) = parent_of(root, target)?;
    match raw::symlinkat(to, dir.0, name) {
        Ok(_) | Err(Errno::EEXIST) => Ok(()),
        Err(errno) => Err(Fail(Call::Symlinkat, errno)),
    }
}

/// `/dev/console`, made if it is missing; a symlink there is an error (CVE-2025-52565).
pub(super) fn console(root: i32) -> Result<Fd, Fail> {
    let dir = open_in(root, c"dev", libc::O_PATH | libc::O_DIRECTORY, false).at(Call::Openat2)?;
    let flags = libc::O_CREAT | libc::O_EXCL | libc::O_NOFOLLOW | libc::O_WRONLY;
    match raw::openat(dir.0, c"console", flags, 0o600) {
        Ok(fd) => raw::close(fd),
        Err(Errno::EEXIST) => {}
        Err(errno) => return Err(Fail(Call::Open, errno)),
    }
    let fd = Fd(raw::openat(dir.0, c"console", libc::O_PATH | libc::O_NOFOLLOW, 0).at(Call::Open)?);
    let kind = raw::fstat(fd.0).at(Call::Fstat)?.st_mode & libc::S_IFMT;
    if kind == libc::S_IFLNK {
        return Err(Fail(Call::OtherNode, Errno::ELOOP));
    }
    if raw::fs_magic(fd.0).at(Call::Fstatfs)? == PROC_SUPER_MAGIC {
        return Err(Fail(Call::InsideProc, Errno::EPERM));
    }
    Ok(fd)
}

/// Opens the pty multiplexer of the rootfs' own devpts.
pub(super) fn ptmx(root: i32) -> Result<Fd, Fail> {
    const DEVPTS_SUPER_MAGIC: i64 = 0x1cd1;
    let check = |fd: &Fd| {
        if raw::fs_magic(fd.0).at(Call::Fstatfs)? != DEVPTS_SUPER_MAGIC {
            return Err(Fail(Call::NotDevpts, Errno::ENODEV));
        }
        if raw::fstat(fd.0).at(Call::Fstat)?.st_rdev != libc::makedev(5, 2) {
            return Err(Fail(Call::NotPtmx, Errno::ENODEV));
        }
        Ok(())
    };
    // Looked at before it is opened, for the open of a planted device does things; and after.
    check(&open_in(root, c"dev/pts/ptmx", libc::O_PATH, true).at(Call::Openat2)?)?;
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_NONBLOCK;
    let fd = open_in(root, c"dev/pts/ptmx", flags, true).at(Call::Openat2)?;
    check(&fd)?;
    Ok(fd)
}

/// Writes a host file in one call.
pub(super) fn write_file(path: &CStr, data: &[u8]) -> Result<(), Fail> {
    let fd = Fd(raw::openat(raw::CWD, path, libc::O_WRONLY | libc::O_NOFOLLOW, 0).at(Call::Open)?);
    raw::write(fd.0, data).at(Call::Write)
}

/// What lies in an open directory; neither through a link nor in another mount.
pub(super) fn open_beneath(dir: i32, name: &CStr, flags: i32) -> Result<Fd, Fail> {
    const HERE: u64 = libc::RESOLVE_BENEATH | libc::RESOLVE_NO_SYMLINKS | libc::RESOLVE_NO_XDEV;
    raw::openat2(dir, name, flags, 0, HERE).at(Call::Openat2).map(Fd)
}

/// The names in an open directory that is at its beginning, each with its `d_type`, until `look` says
/// that it has seen enough; whether it did.
pub(super) fn entries(
    dir: i32,
    look: &mut dyn FnMut(&CStr, u8) -> Result<bool, Fail>,
) -> Result<bool, Fail> {
    let mut entries = [0u8; ENTRIES_LEN];
    loop {
        let len = match raw::getdents(dir, &mut entries) {
            // Removed since it was opened.
            Err(Errno::ENOENT) => 0,
            len => len.at(Call::Getdents)?,
        };
        let mut rest = entries.get(..len).unwrap_or_default();
        if rest.is_empty() {
            return Ok(false);
        }
        while let Some([low, high, kind]) = rest.get(RECORD_LEN..NAME) {
            let name = rest.get(NAME..).and_then(|name| CStr::from_bytes_until_nul(name).ok());
            if let Some(name) = name.filter(|name| ![c".", c".."].contains(name))
                && look(name, *kind)?
            {
                return Ok(true);
            }
            let next = usize::from(u16::from_ne_bytes([*low, *high]));
            rest = rest.get(next.max(NAME)..).unwrap_or_default();
        }
    }
}

/// Takes a mount away. Twice is as good as once.
pub(super) fn unmount(path: &CStr) -> Result<(), Fail> {
    match raw::umount(path, libc::MNT_DETACH | libc::UMOUNT_NOFOLLOW) {
        Ok(_) | Err(Errno::EINVAL | Errno::ENOENT) => Ok(()),
        Err(errno) => Err(Fail(Call::Umount, errno)),
    }
}
