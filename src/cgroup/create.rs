//! Makes a container's cgroup.
//!
//! Every cgroup that it made goes again if a later step fails. It must never write to a cgroup
//! that has processes, except to enable controllers for the cgroups below it.

use std::fs;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use nix::errno::Errno;

use super::dir::{Dir, below};
use super::{Cgroup, coded, delegate, frozen, pids};
use crate::error::{Doing, Error, Kind, Result};
use crate::plan::cgroup::{Limits, Write};
use crate::plan::{CgroupDir, Cgroups};
use crate::sys::bpf::set_device_filter;

/// The cgroups made so far; what is still in it when it is dropped is removed.
#[derive(Default)]
struct Made(Vec<PathBuf>);

impl Drop for Made {
    fn drop(&mut self) {
        for path in self.0.iter().rev() {
            // Whoever has put something in there meanwhile keeps it. The error that brought us
            // here is the one that is told.
            let _ = fs::remove_dir(path);
        }
    }
}

pub(super) fn create(cgroups: &Cgroups, limits: &Limits) -> Result<Cgroup> {
    let cgroup = Cgroup::from_record(cgroups.clone());
    let mut made = Made::default();
    for at in &cgroups.dirs {
        let dir = hierarchy(at, cgroups.unified, limits, &mut made)
            .doing(|| format!("make cgroup {:?}", at.path))?;
        if cgroups.unified {
            hand_out(&dir, limits)?;
        }
    }
    cgroup.apply(&limits.writes)?;
    made.0.clear();
    Ok(cgroup)
}

/// v2: the owner and the device filter.
fn hand_out(dir: &Dir, limits: &Limits) -> Result<()> {
    if let Some(uid) = limits.owner {
        delegate::give(dir, uid)?;
    }
    let Some(program) = &limits.device_filter else { return Ok(()) };
    let program: Vec<u64> = program.iter().map(|insn| insn.encode()).collect();
    let set = set_device_filter(dir.as_fd(), &program);
    set.doing(|| format!("device filter of {:?}", dir.path()))
}

/// v2: systemd hands on only the controllers that it knows, so those above are asked for the rest.
pub(super) fn fill(cgroup: &Cgroup, limits: &Limits) -> Result<()> {
    for at in &cgroup.cgroups().dirs {
        let gone = || Error::sys(format_args!("open cgroup {:?}", at.path), Errno::ENOENT);
        let mut dir = Dir::mount(&at.mountpoint)?;
        for name in below(at)? {
            enable_controllers(&dir, limits)?;
            dir = dir.descend(Path::new(name))?.ok_or_else(gone)?;
            check_type(&dir, limits)?;
        }
        if frozen(&dir, true)? {
            return Err(Error::new(Kind::FailedPrecondition, format!("{:?} is frozen", at.path)));
        }
        hand_out(&dir, limits)?;
    }
    cgroup.apply(&limits.writes)
}

/// Makes the cgroup in one hierarchy, with those above it.
fn hierarchy(at: &CgroupDir, unified: bool, limits: &Limits, made: &mut Made) -> Result<Dir> {
    let mut dir = Dir::mount(&at.mountpoint)?;
    let mut new = true;
    for name in below(at)? {
        if unified {
            enable_controllers(&dir, limits)?;
        }
        let child;
        (child, new) = dir.make(name)?;
        if new {
            made.0.push(child.path().into());
        }
        if unified {
            check_type(&child, limits)?;
        } else if at.controllers.iter().any(|name| name == "cpuset") {
            inherit_cpuset(&dir, &child)?;
        }
        dir = child;
    }
    if dir.path() == at.mountpoint {
        return Err(Error::invalid("the root of a hierarchy is nobody's"));
    }
    // A process in there would get this container's limits, and be killed with it.
    let there = if new { Vec::new() } else { pids(at)? };
    if !there.is_empty() {
        let text = format!("{:?} exists and has {} processes", at.path, there.len());
        return Err(Error::new(Kind::FailedPrecondition, text));
    }
    // Left so by a crash, or because one above it is: the container would never start.
    if frozen(&dir, unified)? {
        return Err(Error::new(Kind::FailedPrecondition, format!("{:?} is frozen", at.path)));
    }
    Ok(dir)
}

fn words(dir: &Dir, file: &str) -> Result<Vec<String>> {
    let text = dir.read(file)?.unwrap_or_default();
    Ok(text.split_whitespace().map(Into::into).collect())
}

/// The controllers that know threads.
const THREADED: [&str; 4] = ["cpu", "cpuset", "pids", "perf_event"];

/// Hands every controller that a cgroup has on to its children. Most often they have them already,
/// and nothing is written.
fn enable_controllers(dir: &Dir, limits: &Limits) -> Result<()> {
    let enabled = words(dir, "cgroup.subtree_control")?;
    let have = words(dir, "cgroup.controllers")?;
    let missing = have.iter().filter(|name| !enabled.contains(name)).map(|name| format!("+{name}"));
    let mut missing: Vec<String> = missing.collect();
    if missing.is_empty() || dir.write("cgroup.subtree_control", &missing.join(" ")).is_ok() {
        return Ok(());
    }
    // The first that knows threads makes a cgroup with processes a threaded one: then there is no way to any other.
    missing.sort_by_key(|name| THREADED.contains(&&name[1..]));
    for name in missing {
        // One that cannot be had (cpu with realtime processes about, any with processes in the
        // cgroup) is no loss without a limit.
        let Err(errno) = dir.write("cgroup.subtree_control", &name) else { continue };
        let needs = |write: &Write| {
            name[1..] == *write.controller() && !write.tolerate.contains(&Errno::ENOENT)
        };
        if let Some(write) = limits.writes.iter().find(|write| needs(write)) {
            let path = dir.path().join("cgroup.subtree_control");
            let error = Error::sys(format_args!("write {name:?} to {path:?}"), errno);
            let text = match errno {
                Errno::EBUSY | Errno::EOPNOTSUPP => {
                    format!("{}: {:?} has processes of its own", write.file, dir.path())
                }
                _ => write.file.clone(),
            };
            return Err(coded(error).doing(text));
        }
    }
    Ok(())
}

/// Below a cgroup with threads or processes of its own, only controllers that know threads work.
fn check_type(dir: &Dir, limits: &Limits) -> Result<()> {
    let kind = dir.read("cgroup.type")?.unwrap_or_default();
    let kind = kind.trim();
    if !matches!(kind, "domain invalid" | "domain threaded" | "threaded") {
        return Ok(());
    }
    if let Some(write) = limits.writes.iter().find(|w| !THREADED.contains(&w.controller())) {
        let text = format!("{:?} is of type {kind:?}, without {:?}", dir.path(), write.file);
        return Err(Error::new(Kind::FailedPrecondition, text));
    }
    if kind == "domain invalid" {
        let done = dir.write("cgroup.type", "threaded");
        done.doing(|| format!("write \"threaded\" to {:?}", dir.path().join("cgroup.type")))?;
    }
    Ok(())
}

/// v1: a process cannot enter a cpuset without processors or memory nodes (ENOSPC).
fn inherit_cpuset(parent: &Dir, child: &Dir) -> Result<()> {
    for file in ["cpuset.cpus", "cpuset.mems"] {
        let has = child.read(file)?.is_some_and(|list| !list.trim().is_empty());
        let Some(list) = parent.read(file)?.filter(|_| !has) else { continue };
        match child.write(file, list.trim()) {
            // Another shim was quicker, and processes are in it by now.
            Err(Errno::EBUSY) => {}
            done => done.doing(|| {
                format!("write {:?} to {:?}", list.trim(), Path::join(child.path(), file))
            })?,
        }
    }
    Ok(())
}
