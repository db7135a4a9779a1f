//! Opens FIFOs and log files, and lets go of a FIFO without losing its last bytes.
//!
//! No open here may block or follow a last symlink. A FIFO's bytes live as long as one process has
//! it open; its reader sees EOF once nobody has it open for writing.

use std::fs::DirBuilder;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl, open};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::stat::{Mode, SFlag, fstat};
use tokio::time::sleep;

use crate::error::{Doing, Error, Result};
use crate::sys;

/// A FIFO by its inode, open for nothing yet.
#[derive(Debug)]
pub struct Fifo {
    path: OwnedFd,
}

impl Fifo {
    /// Refuses what is no FIFO before it is opened for real, which may block or have effects.
    pub fn open(path: &str) -> Result<Fifo> {
        let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let fd = open(path, flags, Mode::empty())
            .doing(|| format!("open({path:?}, O_PATH|O_NOFOLLOW)"))?;
        if file_type(&fd)? != SFlag::S_IFIFO {
            return Err(Error::invalid(format!("{path:?} is not a FIFO")));
        }
        Ok(Fifo { path: fd })
    }

    /// One end, non-blocking. `O_WRONLY` needs a reader, else ENXIO.
    pub fn end(&self, access: OFlag) -> Result<OwnedFd> {
        reopen(&self.path, access | OFlag::O_NONBLOCK)
    }

    /// The write end for a process: blocking. The caller holds a read end, or this would wait.
    pub fn blocking_write_end(&self, _reader: &OwnedFd) -> Result<OwnedFd> {
        reopen(&self.path, OFlag::O_WRONLY)
    }
}

/// A new open file of the same inode, whose flags are its own.
fn reopen(fd: &OwnedFd, flags: OFlag) -> Result<OwnedFd> {
    let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
    open(path.as_str(), flags | OFlag::O_CLOEXEC, Mode::empty())
        .doing(|| format!("open({path:?}, {flags:?})"))
}

/// Sets O_NONBLOCK, for everybody who shares this open file.
pub fn set_nonblocking(fd: &OwnedFd) -> Result<()> {
    let flags = fcntl(fd, FcntlArg::F_GETFL).doing(|| "fcntl(F_GETFL)")?;
    let flags = OFlag::from_bits_retain(flags) | OFlag::O_NONBLOCK;
    fcntl(fd, FcntlArg::F_SETFL(flags)).doing(|| "fcntl(F_SETFL, O_NONBLOCK)")?;
    Ok(())
}

/// Opens a log file for appending; makes it and its directories.
pub fn open_log(path: &str) -> Result<OwnedFd> {
    if let Some(directory) = Path::new(path).parent() {
        let result = DirBuilder::new().recursive(true).mode(0o755).create(directory);
        result.doing(|| format!("mkdir({directory:?}, 0755)"))?;
    }
    // O_NOFOLLOW: who may write to the log's directory must not choose what root appends to
    // (CVE-2026-53489). O_NONBLOCK: nor hang us with a FIFO.
    let flags = OFlag::O_WRONLY | OFlag::O_APPEND | OFlag::O_CREAT | OFlag::O_NOFOLLOW;
    let quiet = OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
    let fd = open(path, flags | quiet, Mode::from_bits_truncate(0o644))
        .doing(|| format!("open({path:?}, {flags:?})"))?;
    if file_type(&fd)? != SFlag::S_IFREG {
        return Err(Error::invalid(format!("{path:?} is not a regular file")));
    }
    Ok(fd)
}

/// `/dev/null` of the host, from a mount of its own that is read-only: a container's root can write
/// to the device, but not change the mode or the owner of the host's node.
pub fn open_null() -> Result<OwnedFd> {
    let mount = sys::mount::clone_path(c"/dev/null").doing(|| "open_tree(\"/dev/null\")")?;
    sys::raw::set_mount_attr(
        mount.as_raw_fd(),
        libc::MOUNT_ATTR_RDONLY,
        0,
        libc::MS_PRIVATE,
        false,
    )
    .doing(|| "mount_setattr(\"/dev/null\")")?;
    reopen(&mount, OFlag::O_RDWR)
}

fn file_type(fd: &OwnedFd) -> Result<SFlag> {
    let stat = fstat(fd).doing(|| "fstat")?;
    Ok(SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits()))
}

/// Closes a FIFO that was held open for reading, but not before someone else reads it: what the
/// process wrote last while containerd was down waits in it.
///
/// Held by a *write* end: so the poll tells whether there is a reader, and a reader that comes back
/// gets past its blocking open, then the bytes, then EOF.
pub async fn let_go(held: OwnedFd) {
    // Without a descriptor for it, the last bytes are lost; nothing else is.
    let Ok(write_end) = reopen(&held, OFlag::O_WRONLY | OFlag::O_NONBLOCK) else { return };
    drop(held);
    // A write end is not woken when a reader opens; this is the one thing that has to be asked.
    let mut pause = Duration::from_millis(10);
    while !has_reader(&write_end) {
        sleep(pause).await;
        pause = (pause * 2).min(Duration::from_secs(1));
    }
}

/// Whether anyone has the FIFO of this write end open for reading.
fn has_reader(write_end: &OwnedFd) -> bool {
    let mut fds = [PollFd::new(write_end.as_fd(), PollFlags::POLLOUT)];
    match poll(&mut fds, PollTimeout::ZERO) {
        Err(Errno::EINTR) => false,
        // A failing poll cannot be waited for.
        Err(_) => true,
        Ok(_) => !fds[0].revents().is_some_and(|events| events.contains(PollFlags::POLLERR)),
    }
}
