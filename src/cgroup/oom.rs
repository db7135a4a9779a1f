//! How the kernel says that a cgroup may have lost a process for want of memory.
//!
//! It costs one descriptor for each container: on v1 an eventfd, on v2 the events file itself,
//! which is polled for POLLPRI. (An inotify instance for each container would meet the host's limit
//! of 128.) A notice is a reason to look at the counter, no more; it must never be counted itself.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::uio::pread;
use nix::unistd::read;
use tokio::io::Interest;

use super::dir::Dir;
use super::{Cgroup, opened};
use crate::error::{Doing, Result};
use crate::plan::CgroupDir;
use crate::sys::io::Polled;

/// The notices of one cgroup, until it is dropped.
#[derive(Debug)]
pub struct Notices {
    polled: Polled,
    unified: bool,
}

impl Notices {
    /// None: the host does not limit memory by cgroups.
    pub(super) fn of(cgroup: &Cgroup) -> Result<Option<Notices>> {
        let Some(at) = cgroup.dir_of("memory") else { return Ok(None) };
        let dir = opened(at)?;
        if cgroup.cgroups.unified {
            return Notices::events(&dir, at, "memory.events");
        }
        let notice = v1(&dir).doing(|| format!("watch memory.oom_control of {:?}", at.path))?;
        let polled = Polled::new(notice, Interest::READABLE).doing(|| "epoll_ctl(eventfd)")?;
        Ok(Some(Notices { polled, unified: false }))
    }

    /// v2: changes of an events file.
    pub(super) fn events(dir: &Dir, at: &CgroupDir, file: &str) -> Result<Option<Notices>> {
        let path = || at.path.join(file);
        let events = match dir.file(file, OFlag::O_RDONLY) {
            Err(Errno::ENOENT) => return Ok(None),
            opened => opened.doing(|| format!("open({:?}, O_RDONLY)", path()))?,
        };
        let polled = Polled::new(events, Interest::PRIORITY);
        let polled = polled.doing(|| format!("epoll_ctl({:?})", path()))?;
        Ok(Some(Notices { polled, unified: true }))
    }

    /// The next notice, of all that came since the last. The first on v2 may be of nothing new.
    pub async fn next(&self) -> Result<()> {
        let interest = if self.unified { Interest::PRIORITY } else { Interest::READABLE };
        let mut ready = self.polled.ready(interest).await.doing(|| "wait for an oom notice")?;
        ready.clear_ready();
        let mut taken = [0; 512];
        let fd = self.polled.as_fd();
        // On v2 too it is the read that takes the notice: the kernel compares what this open file
        // has seen with what there is.
        let done = if self.unified { pread(fd, &mut taken, 0) } else { read(fd, &mut taken[..8]) };
        match done {
            Ok(_) | Err(Errno::EAGAIN | Errno::EINTR) => Ok(()),
            // The cgroup was removed by somebody else.
            Err(errno) => Err(errno).doing(|| "read an oom notice"),
        }
    }
}

/// The kills of all scopes of a slice. systemd removes the cgroup of a scope that is empty, often
/// before anybody could read its counter; that of the slice has counted the kill as well.
#[derive(Debug)]
pub struct Slice {
    at: CgroupDir,
    /// How many of them have been told of.
    told: AtomicU64,
}

impl Slice {
    /// None: the cgroup is no scope's, and stays.
    pub fn of(cgroup: &Cgroup) -> Option<Slice> {
        cgroup.unit()?;
        let at = cgroup.dir_of("memory")?;
        let at = CgroupDir { path: at.path.parent()?.into(), ..at.clone() };
        let slice = Slice { at, told: AtomicU64::new(0) };
        slice.told.store(slice.count()?, Relaxed);
        Some(slice)
    }

    /// Whether a cgroup lies in it.
    pub fn holds(&self, cgroup: &Cgroup) -> bool {
        cgroup.dir_of("memory").is_some_and(|at| at.path.parent() == Some(self.at.path.as_path()))
    }

    /// Whether all that is in it is ours. In `system.slice` are others, whose kills it counts as well.
    pub fn only(&self, ours: impl Fn(&str) -> bool) -> bool {
        let names = Dir::open(&self.at).ok().flatten().and_then(|dir| dir.children().ok());
        names.is_some_and(|names| names.iter().all(|name| name.to_str().is_some_and(&ours)))
    }

    fn count(&self) -> Option<u64> {
        Dir::open(&self.at).ok()??.table("memory.events").ok()?.get("oom_kill").copied()
    }

    /// So many more have been told of, by the counter of a scope.
    pub fn tell(&self, kills: u64) {
        self.told.fetch_add(kills, Relaxed);
    }

    /// How many nobody has told of, which count as told from now on.
    pub fn rest(&self) -> u64 {
        let Some(count) = self.count() else { return 0 };
        count.saturating_sub(self.told.fetch_max(count, Relaxed))
    }
}

/// The registration lives as long as the eventfd.
fn v1(dir: &Dir) -> Result<OwnedFd, Errno> {
    use std::os::fd::AsRawFd;
    let notice = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
    let control = dir.file("memory.oom_control", OFlag::O_RDONLY)?;
    let line = format!("{} {}", notice.as_fd().as_raw_fd(), control.as_raw_fd());
    dir.write("cgroup.event_control", &line)?;
    Ok(notice.into())
}
