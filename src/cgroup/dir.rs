//! One directory of a cgroup hierarchy, held open.
//!
//! It must never leave the hierarchy: paths are resolved below its mount, without symlinks.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::dir::Type;
use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, open, openat, openat2};
use nix::sys::stat::{Mode, fchmod, mkdirat};
use nix::unistd::write;

use crate::error::{Doing, Error, Result};
use crate::plan::CgroupDir;

/// `ENOTSUPP`, the kernel's own: some files answer with it, and libc has no name for it.
const ENOTSUPP: i32 = 524;

#[derive(Debug)]
pub(super) struct Dir {
    fd: OwnedFd,
    path: PathBuf,
}

/// A cgroup's path below its hierarchy's mount.
pub(super) fn below(at: &CgroupDir) -> Result<&Path> {
    let below = at.path.strip_prefix(&at.mountpoint);
    below.map_err(|_| Error::invalid(format!("cgroup {:?} is not in {:?}", at.path, at.mountpoint)))
}

/// Without the calls by which `read_to_string` first asks for a size: a reading of a container is
/// some forty files, every second.
fn read_all(mut file: File) -> io::Result<String> {
    let mut text = Vec::new();
    let mut chunk = [0; 4096];
    loop {
        match file.read(&mut chunk) {
            Ok(0) => break,
            Ok(n) => text.extend_from_slice(&chunk[..n]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    String::from_utf8(text).map_err(|_| io::Error::from(io::ErrorKind::InvalidData))
}

impl Dir {
    /// The root of a hierarchy.
    pub fn mount(mountpoint: &Path) -> Result<Dir> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let fd = open(mountpoint, flags, Mode::empty())
            .doing(|| format!("open({mountpoint:?}, O_DIRECTORY)"))?;
        Ok(Dir { fd, path: mountpoint.into() })
    }

    /// A cgroup; None: there is no such cgroup.
    pub fn open(at: &CgroupDir) -> Result<Option<Dir>> {
        Dir::mount(&at.mountpoint)?.descend(below(at)?)
    }

    /// A cgroup below this one, by a relative path.
    pub fn descend(&self, below: &Path) -> Result<Option<Dir>> {
        if below.as_os_str().is_empty() {
            return Ok(Some(Dir { fd: self.dup()?, path: self.path.clone() }));
        }
        let fd = self.open_below(below)?;
        Ok(fd.map(|fd| Dir { fd, path: self.path.join(below) }))
    }

    fn open_below(&self, below: &Path) -> Result<Option<OwnedFd>> {
        let how =
            OpenHow::new().flags(OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC).resolve(
                ResolveFlag::RESOLVE_BENEATH
                    | ResolveFlag::RESOLVE_NO_SYMLINKS
                    | ResolveFlag::RESOLVE_NO_XDEV,
            );
        match openat2(&self.fd, below, how) {
            Ok(fd) => Ok(Some(fd)),
            Err(Errno::ENOENT | Errno::ENODEV) => Ok(None),
            Err(errno) => {
                Err(Error::sys(format_args!("openat2({:?})", self.path.join(below)), errno))
            }
        }
    }

    /// Makes a cgroup directly below this one; true: it was not there before.
    pub fn make(&self, name: &OsStr) -> Result<(Dir, bool)> {
        let path = self.path.join(name);
        let made = match mkdirat(&self.fd, name, Mode::from_bits_truncate(0o755)) {
            Ok(()) => true,
            Err(Errno::EEXIST) => false,
            Err(errno) => return Err(Error::sys(format_args!("mkdir({path:?}, 0755)"), errno)),
        };
        let dir = self.descend(Path::new(name))?.ok_or_else(|| {
            Error::sys(format_args!("open({path:?}, O_DIRECTORY)"), Errno::ENOENT)
        })?;
        if made {
            // Users in the container read its limits here, whatever the shim's umask is.
            fchmod(&dir.fd, Mode::from_bits_truncate(0o755))
                .doing(|| format!("fchmod({path:?}, 0755)"))?;
        }
        Ok((dir, made))
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn into_fd(self) -> OwnedFd {
        self.fd
    }

    fn dup(&self) -> Result<OwnedFd> {
        self.fd.try_clone().doing(|| format!("dup of {:?}", self.path))
    }

    /// Opens one of its files.
    pub fn file(&self, name: &str, flags: OFlag) -> Result<OwnedFd, Errno> {
        let flags = flags | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC | OFlag::O_NOCTTY;
        openat(&self.fd, name, flags, Mode::empty())
    }

    /// Whether it has a file of this name.
    pub fn has(&self, name: &str) -> bool {
        self.file(name, OFlag::O_PATH).is_ok()
    }

    /// What a file says. None: the kernel does not have it, or the cgroup has gone meanwhile.
    pub fn read(&self, name: &str) -> Result<Option<String>> {
        let doing = |error| Error::io(format_args!("read {:?}", self.path.join(name)), &error);
        let missing = |errno| matches!(errno, Errno::ENOENT | Errno::ENODEV | Errno::EOPNOTSUPP);
        let file = match self.file(name, OFlag::O_RDONLY) {
            Ok(fd) => fd,
            Err(errno) if missing(errno) => return Ok(None),
            Err(errno) => return Err(doing(errno.into())),
        };
        match read_all(file.into()) {
            Ok(text) => Ok(Some(text)),
            Err(error) => match error.raw_os_error() {
                Some(ENOTSUPP) => Ok(None),
                Some(raw) if missing(Errno::from_raw(raw)) => Ok(None),
                _ => Err(doing(error)),
            },
        }
    }

    /// One number; `max` is the highest.
    pub fn number(&self, file: &str) -> Result<Option<u64>> {
        Ok(self.read(file)?.and_then(|text| match text.trim() {
            "max" => Some(u64::MAX),
            text => text.parse().ok(),
        }))
    }

    /// The same, 0 where the kernel does not have it.
    pub fn count(&self, file: &str) -> Result<u64> {
        Ok(self.number(file)?.unwrap_or(0))
    }

    /// A file with a name and a number on each line.
    pub fn table(&self, file: &str) -> Result<BTreeMap<String, u64>> {
        let text = self.read(file)?.unwrap_or_default();
        let row = |line: &str| {
            let (name, value) = line.split_once(' ')?;
            Some((name.to_string(), value.trim().parse().ok()?))
        };
        Ok(text.lines().filter_map(row).collect())
    }

    /// Writes a file in one `write(2)`.
    pub fn write(&self, name: &str, value: &str) -> Result<(), Errno> {
        let fd = self.file(name, OFlag::O_WRONLY)?;
        loop {
            match write(&fd, value.as_bytes()) {
                Err(Errno::EINTR) => {}
                Ok(n) if n != value.len() => return Err(Errno::EIO),
                done => return done.map(drop),
            }
        }
    }

    /// The names of the cgroups in it.
    pub fn children(&self) -> Result<Vec<OsString>> {
        self.list(Type::Directory)
    }

    /// The names of its files or its child cgroups; none if it has gone.
    fn list(&self, kind: Type) -> Result<Vec<OsString>> {
        let doing = || format!("list {:?}", self.path);
        // A new open file: a duplicate would share the position with `self.fd`.
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let mut dir = nix::dir::Dir::openat(&self.fd, ".", flags, Mode::empty()).doing(doing)?;
        let mut names = Vec::new();
        for entry in dir.iter() {
            let entry = entry.doing(doing)?;
            let name = entry.file_name().to_bytes();
            if entry.file_type() == Some(kind) && name != b"." && name != b".." {
                names.push(OsStr::from_bytes(name).into());
            }
        }
        Ok(names)
    }

    /// The names of its files.
    pub fn files(&self) -> Result<Vec<String>> {
        let names = self.list(Type::File)?;
        Ok(names.into_iter().filter_map(|name| name.into_string().ok()).collect())
    }

    /// Looks at this cgroup and all below it, at each after its parent. It goes by one name at a
    /// time: a container can nest cgroups deeper than a path may be long.
    pub fn walk(self, look: &mut dyn FnMut(&Dir) -> Result<()>) -> Result<()> {
        let mut here = self;
        look(&here)?;
        // What is still to be looked at in each from the top down to `here`.
        let mut left = vec![here.list(Type::Directory)?];
        while let Some(names) = left.last_mut() {
            if let Some(name) = names.pop() {
                // Gone since its parent was read: so are those below it.
                let Some(fd) = here.open_below(Path::new(&name))? else { continue };
                // Not a new path for each: their lengths would add up to the square of the depth.
                let mut path = std::mem::take(&mut here.path);
                path.push(&name);
                here = Dir { fd, path };
                look(&here)?;
                left.push(here.list(Type::Directory)?);
                continue;
            }
            left.pop();
            if !left.is_empty() {
                here = here.up()?;
            }
        }
        Ok(())
    }

    /// Its parent. The kernel moves no cgroup to another one.
    fn up(mut self) -> Result<Dir> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let fd = openat(&self.fd, "..", flags, Mode::empty());
        let fd = fd.doing(|| format!("open({:?}, O_DIRECTORY)", self.path.join("..")))?;
        self.path.pop();
        Ok(Dir { fd, path: self.path })
    }
}

impl AsFd for Dir {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
