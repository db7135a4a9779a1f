//! A container's cgroup on the host.
//!
//! The serving process has one thread, so nothing here may block: an empty new cgroup is made and
//! written at once; of a live one only files that never block are written (`cgroup.freeze`,
//! `freezer.state`, `pids.max`, `cpu.*`). Other writes and `rmdir` come back as ops for a child.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::CString;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::OFlag;

use crate::error::{Doing, Error, Kind, Result};
use crate::plan::cgroup::{Limits, Write};
use crate::plan::{CgroupDir, Cgroups, Op};
use crate::sys::fd::{pidfd_open, pidfd_signal};

mod create;
mod delegate;
mod dir;
pub mod layout;
mod oom;
pub mod stats;
mod update;
mod v1;
mod v2;

#[cfg(test)]
mod tests;

use dir::Dir;
pub use layout::Layout;
pub use oom::{Notices, Slice};
pub use stats::Stats;
pub use update::Update;
pub(crate) use update::coded;

/// A container's cgroup. Dropping it leaves the cgroup as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cgroup {
    cgroups: Cgroups,
    unit: Option<String>,
}

/// The numbers of a cgroup that may not be a container's: a pod's.
pub fn stats_of(cgroups: &Cgroups) -> Result<Stats> {
    if cgroups.unified { v2::stats(cgroups) } else { v1::stats(cgroups) }
}

impl Cgroup {
    /// Makes the cgroup with its limits. What exists already must be empty; what was made is
    /// removed if anything fails.
    pub fn create(cgroups: &Cgroups, limits: &Limits) -> Result<Cgroup> {
        create::create(cgroups, limits)
    }

    /// One that was made before, by this process or another.
    pub fn from_record(cgroups: Cgroups) -> Cgroup {
        Cgroup { cgroups, unit: None }
    }

    /// The same, made by systemd for a scope, if there is one.
    pub fn in_unit(self, unit: Option<String>) -> Cgroup {
        Cgroup { unit, ..self }
    }

    /// Gives limits to one that systemd has made, and that holds one process as yet.
    pub fn fill(&self, limits: &Limits) -> Result<()> {
        create::fill(self, limits)
    }

    /// The scope that it belongs to.
    pub fn unit(&self) -> Option<&str> {
        self.unit.as_deref()
    }

    /// Where it is.
    pub fn cgroups(&self) -> &Cgroups {
        &self.cgroups
    }

    /// The `cgroup.procs` of each hierarchy, for [`crate::plan::Input::CgroupProcs`].
    pub fn procs(&self) -> Result<Vec<OwnedFd>> {
        let open = |at: &CgroupDir| {
            let file = opened(at)?.file("cgroup.procs", OFlag::O_WRONLY);
            file.doing(|| format!("open({:?}, O_WRONLY)", at.path.join("cgroup.procs")))
        };
        self.cgroups.dirs.iter().map(open).collect()
    }

    /// The directory, for `CLONE_INTO_CGROUP`: on v2 only.
    pub fn dir_fd(&self) -> Result<OwnedFd> {
        match self.cgroups.dirs.as_slice() {
            [at] if self.cgroups.unified => Ok(opened(at)?.into_fd()),
            _ => Err(Error::unimplemented("a cgroup v1 for clone3")),
        }
    }

    /// Where a process of the container can be born: here, or, if its init has moved on, to make cgroups of its own, where that is. v2 has
    /// no processes in a cgroup that hands controllers on.
    pub fn for_process(self, init: u32) -> Result<Cgroup> {
        if !self.cgroups.unified {
            return Ok(self);
        }
        let handed_on = match Dir::open(self.main()?)? {
            Some(dir) => {
                dir.read("cgroup.subtree_control")?.is_some_and(|list| !list.trim().is_empty())
            }
            None => true,
        };
        if !handed_on {
            return Ok(self);
        }
        let moved = Cgroup::from_record(layout::of_process(init).doing(|| "the cgroup of init")?);
        let (own, there) = (&self.main()?.path, &moved.main()?.path);
        // What is born elsewhere has other limits, and is not there when the container is killed.
        if !there.starts_with(own) {
            let text = format!("init is in cgroup {there:?}, which is not below {own:?}");
            return Err(Error::new(Kind::FailedPrecondition, text));
        }
        Ok(moved)
    }

    /// The hierarchy whose word counts for who is in the cgroup. A container with systemd in it
    /// moves its processes about in `name=systemd`, but not in the others.
    fn main(&self) -> Result<&CgroupDir> {
        let with = |name| self.dir_of(name);
        let main = ["freezer", "devices", "pids", "memory"].into_iter().find_map(with);
        main.or(self.cgroups.dirs.first())
            .ok_or_else(|| Error::new(Kind::FailedPrecondition, "the container has no cgroup"))
    }

    /// On v2 all controllers share the one directory.
    fn dir_of(&self, controller: &str) -> Option<&CgroupDir> {
        let has = |at: &&CgroupDir| at.controllers.iter().any(|name| name == controller);
        self.cgroups.dirs.iter().find(|at| self.cgroups.unified || has(at))
    }

    /// Every process in it and below it; none if it is gone.
    pub fn pids(&self) -> Result<Vec<u32>> {
        pids(self.main()?)
    }

    /// Whether no process is left.
    pub fn empty(&self) -> Result<bool> {
        if self.cgroups.unified {
            let Some(dir) = Dir::open(self.main()?)? else { return Ok(true) };
            return Ok(dir.table("cgroup.events")?.get("populated") != Some(&1));
        }
        Ok(self.pids()?.is_empty())
    }

    /// Starts to freeze every process in it; [`Cgroup::frozen`] says when they are. On v1 a caller
    /// who waits writes it again now and then: a process that forks at the moment slips through.
    pub fn freeze(&self) -> Result<()> {
        self.set_frozen(true)
    }

    /// Thaws it.
    pub fn thaw(&self) -> Result<()> {
        self.set_frozen(false)
    }

    fn set_frozen(&self, on: bool) -> Result<()> {
        let (file, value) = match (self.cgroups.unified, on) {
            (true, true) => ("cgroup.freeze", "1"),
            (true, false) => ("cgroup.freeze", "0"),
            (false, true) => ("freezer.state", "FROZEN"),
            (false, false) => ("freezer.state", "THAWED"),
        };
        let at = self.freezer()?;
        let done = opened(at)?.write(file, value);
        done.doing(|| format!("write {value:?} to {:?}", at.path.join(file)))
    }

    fn freezer(&self) -> Result<&CgroupDir> {
        self.dir_of("freezer").ok_or_else(|| Error::unimplemented("a host without freezer cgroup"))
    }

    /// Whether every process in it stands still.
    pub fn frozen(&self) -> Result<bool> {
        frozen(&opened(self.freezer()?)?, self.cgroups.unified)
    }

    /// Sends a signal to every process in it; SIGKILL also to frozen ones, which it thaws. Where the kernel has no `cgroup.kill`
    /// (v1, v2 before 5.14) a fork may slip through: the caller repeats it until it is empty.
    pub fn kill_all(&self, signal: i32) -> Result<()> {
        let main = self.main()?;
        if signal != libc::SIGKILL {
            return kill_each(main, signal);
        }
        let Some(dir) = Dir::open(main)? else { return Ok(()) };
        if self.cgroups.unified {
            match dir.write("cgroup.kill", "1") {
                // Absent before 5.14; refused in a threaded cgroup.
                Err(Errno::ENOENT | Errno::EOPNOTSUPP) => {}
                Err(Errno::ENODEV) => return Ok(()),
                done => {
                    return done.doing(|| format!("write {:?}", main.path.join("cgroup.kill")));
                }
            }
        }
        // A process that is about to freeze cannot fork. Frozen ones die when they are thawed.
        let freezer = self.dir_of("freezer").is_some();
        let stopped = if freezer { self.freeze() } else { Ok(()) };
        let killed = kill_each(main, signal);
        let thawed = if freezer { self.thaw() } else { Ok(()) };
        let gone = |e: &Error| e.kind() == Kind::NotFound || e.errno() == Some(Errno::ENODEV);
        let errors = [stopped, killed, thawed].into_iter().filter_map(Result::err);
        Error::join(errors.filter(|error| !gone(error)).collect())
    }

    /// Does the writes that need no child.
    pub fn apply(&self, writes: &[Write]) -> Result<()> {
        let mut open: BTreeMap<&Path, Dir> = BTreeMap::new();
        for write in writes {
            let Some(at) = self.dir_of(write.controller()) else {
                absent(write)?;
                continue;
            };
            let dir = match open.entry(&at.path) {
                Entry::Occupied(dir) => dir.into_mut(),
                Entry::Vacant(none) => none.insert(opened(at)?),
            };
            if write.unless.is_some_and(|other| dir.has(other)) {
                continue;
            }
            match dir.write(&write.file, &write.value) {
                Ok(()) => {}
                Err(Errno::ENOENT) => absent(write)?,
                Err(errno) if write.tolerate.contains(&errno) => {}
                Err(errno) => {
                    let (value, file) = (&write.value, at.path.join(&write.file));
                    let error = Error::sys(format_args!("write {value:?} to {file:?}"), errno);
                    return Err(coded(error));
                }
            }
        }
        Ok(())
    }

    /// Removes it in every hierarchy where it is, with what is below it. Parents stay, whoever made
    /// them. Of very many cgroups a child leaves some for the next one: see [`crate::child::cgroup`].
    pub fn remove(&self) -> Result<Vec<Op>> {
        let mut ops = Vec::new();
        for at in &self.cgroups.dirs {
            if Dir::open(at)?.is_some() {
                ops.push(Op::RemoveCgroup { path: c_string(at.path.as_os_str().as_bytes())? });
            }
        }
        Ok(ops)
    }

    /// How many of its processes the kernel has killed for want of memory. `oom` counts less:
    /// it says that a limit was met, not that anyone died.
    pub fn oom_kills(&self) -> Option<u64> {
        let file = if self.cgroups.unified { "memory.events" } else { "memory.oom_control" };
        let dir = Dir::open(self.dir_of("memory")?).ok()??;
        dir.table(file).ok()?.get("oom_kill").copied()
    }

    /// Tells when to look at [`Cgroup::oom_kills`]; within a runtime only. None: the host does not
    /// limit memory by cgroups.
    pub fn oom_notices(&self) -> Result<Option<Notices>> {
        Notices::of(self)
    }

    /// Its numbers.
    pub fn stats(&self) -> Result<Stats> {
        stats_of(&self.cgroups)
    }
}

/// Descriptors that are needed to look at a cgroup.
const SPARE: usize = 16;

/// A cgroup that must be there.
fn opened(at: &CgroupDir) -> Result<Dir> {
    Dir::open(at)?.ok_or_else(|| {
        Error::sys(format_args!("open cgroup {:?}", at.path), Errno::ENOENT)
            .with_kind(Kind::NotFound)
    })
}

/// What it means that a write's file is not there.
fn absent(write: &Write) -> Result<()> {
    if write.tolerate.contains(&Errno::ENOENT) {
        return Ok(());
    }
    let controller = write.controller();
    let what = format!("the host has no {controller:?} cgroup controller, or an older one");
    Err(coded(Error::sys(&write.file, Errno::ENOENT).doing(what)))
}

fn c_string(bytes: &[u8]) -> Result<CString> {
    CString::new(bytes).map_err(|_| Error::invalid("a cgroup's path or value has a zero byte"))
}

fn frozen(dir: &Dir, unified: bool) -> Result<bool> {
    if unified {
        return Ok(dir.table("cgroup.events")?.get("frozen") == Some(&1));
    }
    // FREEZING: not yet. Reading it is what makes the kernel look again.
    Ok(dir.read("freezer.state")?.is_some_and(|state| state.trim() == "FROZEN"))
}

/// Every process of a cgroup and those below it.
fn pids(at: &CgroupDir) -> Result<Vec<u32>> {
    let Some(top) = Dir::open(at)? else { return Ok(Vec::new()) };
    // Of a threaded cgroup, below which all are, the kernel lists the processes in the domain above
    // only, with all others of that.
    let threaded = top.read("cgroup.procs")?.is_none();
    let file = if threaded { "cgroup.threads" } else { "cgroup.procs" };
    let mut pids = BTreeSet::new();
    top.walk(&mut |dir| {
        let text = dir.read(file)?.unwrap_or_default();
        pids.extend(text.lines().filter_map(|pid| pid.parse::<u32>().ok()));
        Ok(())
    })?;
    // 0: a process of another PID namespace.
    pids.remove(&0);
    if threaded {
        // A process whose first thread has ended is in no list but by its others.
        pids = pids.into_iter().filter_map(process_of).collect();
    }
    Ok(pids.into_iter().collect())
}

/// The process that a thread belongs to; none: it has ended.
fn process_of(thread: u32) -> Option<u32> {
    let status = std::fs::read_to_string(format!("/proc/{thread}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("Tgid:"))?.trim().parse().ok()
}

/// A signal to each process by pidfd. A number may have been reused before it was opened, so what is
/// killed is what is still in the cgroup after that.
fn kill_each(at: &CgroupDir, signal: i32) -> Result<()> {
    let all = pids(at)?;
    let (mut rest, mut errors) = (&all[..], Vec::new());
    while !rest.is_empty() {
        let (open, count) = pidfds(rest)?;
        let still: BTreeSet<u32> = pids(at)?.into_iter().collect();
        let open = open.into_iter().map(|(i, pidfd)| (rest[i], pidfd));
        for (pid, pidfd) in open.filter(|(pid, _)| still.contains(pid)) {
            match pidfd_signal(&pidfd, signal) {
                Ok(()) | Err(Errno::ESRCH) => {}
                Err(e) => {
                    errors.push(Error::sys(format_args!("pidfd_send_signal({pid}, {signal})"), e))
                }
            }
        }
        rest = &rest[count..];
    }
    Error::join(errors)
}

/// As many as may be open at once, each with its place in `pids`, and how many of `pids` that is.
fn pidfds(pids: &[u32]) -> Result<(Vec<(usize, OwnedFd)>, usize)> {
    let mut open = Vec::new();
    for (i, pid) in pids.iter().enumerate() {
        match pidfd_open(*pid) {
            Ok(pidfd) => open.push((i, pidfd)),
            // Gone; or gone, and a thread has its number.
            Err(Errno::ESRCH | Errno::EINVAL | Errno::ENOENT) => {}
            // A container may have more processes than we may have files.
            Err(Errno::EMFILE | Errno::ENFILE) if open.len() > SPARE => {
                open.truncate(open.len() - SPARE);
                let count = open.last().map_or(0, |(last, _)| last + 1);
                return Ok((open, count));
            }
            Err(errno) => return Err(Error::sys(format_args!("pidfd_open({pid})"), errno)),
        }
    }
    Ok((open, pids.len()))
}
