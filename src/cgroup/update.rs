//! Changes to the limits of a live cgroup, and the way back.
//!
//! It must never write what can block: that comes out as ops for a child. A change that fails is
//! undone, so the values that the files had are read first; as runc does, the old limits are then
//! written back.

use std::path::PathBuf;

use nix::errno::Errno;
use oci_spec::runtime::{LinuxMemory, LinuxResources};

use super::dir::Dir;
use super::{Cgroup, absent, c_string, opened};
use crate::error::{Error, Kind, Result};
use crate::plan::Op;
use crate::plan::cgroup::{Live, Write, limits};
use crate::plan::systemd::{self, Property};

/// A change to a live cgroup.
#[derive(Debug, Default)]
pub struct Update {
    /// What systemd is told first, of a scope.
    pub properties: Vec<Property>,
    /// For [`Cgroup::apply`]: these never block.
    pub direct: Vec<Write>,
    /// For a child; empty: no child is needed.
    pub ops: Vec<Op>,
    /// What takes the ops back: for a child each.
    pub undo: Vec<Op>,
    /// What takes the direct ones back.
    old: Vec<Write>,
}

impl Update {
    /// The properties that the files stood for before it.
    pub fn old_properties(&self) -> Vec<Property> {
        let direct = self.old.iter().map(|write| (write.file.as_str(), write.value.as_str()));
        let undo = self.undo.iter().filter_map(|op| match op {
            Op::WriteFile { path, data } => {
                let name = path.to_str().ok()?.rsplit('/').next()?;
                Some((name, data.to_str().ok()?))
            }
            _ => None,
        });
        systemd::of_files(direct.chain(undo))
    }
}

impl Cgroup {
    /// What an update takes. The devices stay as they are.
    pub fn update(&self, resources: &LinuxResources) -> Result<Update> {
        self.update_by(resources, 0)
    }

    /// The same, by systemd of this version where the cgroup is a scope's.
    pub fn update_by(&self, resources: &LinuxResources, version: u32) -> Result<Update> {
        let memory = self.dir_of("memory").map(Dir::open).transpose()?.flatten();
        if let (Some(dir), Some(wanted)) = (&memory, resources.memory()) {
            check_usage(dir, wanted)?;
        }
        let live = Some(self.live(memory.as_ref())?);
        let mut update = Update::default();
        let rounded = self.unit().map(|_| systemd::rounded(resources, live));
        if self.unit().is_some() {
            update.properties = systemd::limits(resources, live, version)?;
        }
        let limits = limits(rounded.as_ref().unwrap_or(resources), self.cgroups.unified, live)?;
        for write in limits.writes {
            let direct = write.file == "pids.max" || write.controller() == "cpu";
            let Some((dir, path)) = self.target(&write)? else { continue };
            let old = old(&dir, &write)?;
            if direct {
                update.old.extend(old.map(|value| Write::new(write.file.as_str(), value)));
                update.direct.push(write);
            } else {
                let undo = old.map(|value| write_op(&path, &value)).transpose()?;
                let kept = weights_of_devices(&dir, &write)?;
                let kept = kept.iter().map(|line| write_op(&path, line));
                let kept = kept.collect::<Result<Vec<_>>>()?;
                update.undo.extend(kept.iter().cloned());
                update.undo.extend(undo);
                update.ops.push(write_op(&path, &write.value)?);
                update.ops.extend(kept);
            }
        }
        // Backwards: what had to come first must go last.
        update.undo.reverse();
        Ok(update)
    }

    fn live(&self, memory: Option<&Dir>) -> Result<Live> {
        let limit = memory.map(|dir| dir.number("memory.limit_in_bytes")).transpose()?.flatten();
        let mut live = Live { memory_limit: limit.unwrap_or(u64::MAX), ..Live::default() };
        if let (true, Some(at)) = (self.cgroups.unified, self.dir_of("cpu")) {
            let dir = opened(at)?;
            live.idle = dir.number("cpu.idle")? == Some(1);
            let max = dir.read("cpu.max")?.unwrap_or_default();
            let mut words = max.split_whitespace();
            live.quota = words.next().and_then(|quota| quota.parse().ok());
            live.period = words.next().and_then(|period| period.parse().ok());
        }
        Ok(live)
    }

    /// Takes the direct writes of a failed update back.
    pub fn set_back(&self, update: &Update) -> Result<()> {
        for write in &update.old {
            // Some values limit each other. What is refused now for its neighbour's sake is written
            // once more.
            let _ = self.apply(std::slice::from_ref(write));
        }
        self.apply(&update.old)
    }

    /// The file that a write goes to. None: it is not needed here.
    fn target(&self, write: &Write) -> Result<Option<(Dir, PathBuf)>> {
        if let Some(at) = self.dir_of(write.controller()) {
            let dir = opened(at)?;
            if write.unless.is_some_and(|other| dir.has(other)) {
                return Ok(None);
            }
            if dir.has(&write.file) {
                return Ok(Some((dir, at.path.join(&write.file))));
            }
        }
        absent(write).map(|()| None)
    }
}

fn write_op(path: &std::path::Path, value: &str) -> Result<Op> {
    use std::os::unix::ffi::OsStrExt;
    let path = c_string(path.as_os_str().as_bytes())?;
    Ok(Op::WriteFile { path, data: c_string(value.as_bytes())? })
}

/// What takes a write back. None: the file cannot be read, so it has no value (`memory.reclaim`).
fn old(dir: &Dir, write: &Write) -> Result<Option<String>> {
    let text = match dir.read(&write.file) {
        Ok(Some(text)) => text,
        Err(e) if !matches!(e.errno(), Some(Errno::EACCES | Errno::EINVAL)) => return Err(e),
        _ => return Ok(None),
    };
    let key = write.value.split(' ').next().filter(|key| write.is_keyed(key));
    Ok(Some(match (write.file.as_str(), key) {
        (file, Some(key)) => match text.lines().find(|line| line.split(' ').next() == Some(key)) {
            Some(line) => line.into(),
            None => format!("{key} {}", unset(file)),
        },
        ("memory.oom_control", _) => {
            let on = text.lines().any(|line| line == "oom_kill_disable 1");
            u8::from(on).to_string()
        }
        // An empty cpuset is one line too; a write of nothing would be none.
        _ => text.lines().next().unwrap_or_default().to_owned() + "\n",
    }))
}

/// BFQ forgets its devices' weights when the weight of all others changes.
fn weights_of_devices(dir: &Dir, write: &Write) -> Result<Vec<String>> {
    if write.file != "io.bfq.weight" || write.value.contains(':') {
        return Ok(Vec::new());
    }
    let text = dir.read(&write.file)?.unwrap_or_default();
    Ok(text.lines().filter(|line| line.contains(':')).map(Into::into).collect())
}

/// A device that a file does not list has this.
fn unset(file: &str) -> &'static str {
    match file {
        "io.max" => "rbps=max wbps=max riops=max wiops=max",
        "io.weight" | "io.bfq.weight" => "default",
        "io.latency" => "target=0",
        _ => "0",
    }
}

/// What the kernel refuses of a limit is the request's fault, or that of the container's state.
pub(crate) fn coded(error: Error) -> Error {
    match error.errno() {
        _ if error.kind() != Kind::Unknown => error,
        Some(Errno::EINVAL | Errno::ERANGE | Errno::ENODEV | Errno::ENOENT) => {
            error.with_kind(Kind::InvalidArgument)
        }
        Some(Errno::EBUSY | Errno::ENOSPC) => error.with_kind(Kind::FailedPrecondition),
        _ => error,
    }
}

/// `checkBeforeUpdate`: rather refuse a limit than let the kernel kill for it. On v1 the kernel
/// never kills for a new limit; it refuses itself (EBUSY).
fn check_usage(dir: &Dir, wanted: &LinuxMemory) -> Result<()> {
    if wanted.check_before_update() != Some(true) {
        return Ok(());
    }
    let Some(usage) = dir.number("memory.current")? else { return Ok(()) };
    for (name, limit) in [("limit", wanted.limit()), ("swap", wanted.swap())] {
        if let Some(limit) = limit.filter(|limit| *limit > 0 && *limit as u64 <= usage) {
            return Err(Error::new(
                Kind::FailedPrecondition,
                format!("memory {name} {limit} is not above the usage {usage}"),
            ));
        }
    }
    Ok(())
}
