//! From `linux.cgroupsPath` and `linux.resources` to a cgroup's path, the writes to its files, in
//! order, and its device filter.
//!
//! The conversions for v2 are a de facto ABI: tools compare what they read here with what runc
//! writes. Pure: it must never look at a cgroup; what it must know of one is in [`Live`].

use std::fmt;
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use oci_spec::runtime::{LinuxRdma, LinuxResources, Spec};

use super::device_filter::{self, Insn};
use super::systemd;
use crate::error::{Error, Result};

mod device_list;
mod ignored;
mod owner;
mod v1;
mod v2;

#[cfg(test)]
mod tests;

pub use ignored::ignored;
pub use owner::owner;
pub(super) use v2::{spread, swap_max, weight};

/// One `write(2)` to a file of the cgroup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Write {
    /// Its name; the part before the first dot is the controller's.
    pub file: String,
    /// What is written.
    pub value: String,
    /// Errors that leave the container as it was asked for. ENOENT also means that the controller
    /// is not there at all.
    pub tolerate: &'static [Errno],
    /// Not written where this file exists beside it.
    pub unless: Option<&'static str>,
}

impl Write {
    pub(crate) fn new(file: impl Into<String>, value: impl ToString) -> Write {
        Write { file: file.into(), value: value.to_string(), tolerate: &[], unless: None }
    }

    fn tolerate(self, tolerate: &'static [Errno]) -> Write {
        Write { tolerate, ..self }
    }

    fn unless(self, file: &'static str) -> Write {
        Write { unless: Some(file), ..self }
    }

    /// Whether the value's first word names a device or an interface: the file has a line for each.
    pub(crate) fn is_keyed(&self, first: &str) -> bool {
        let named = ["misc.max", "rdma.max", "net_prio.ifpriomap"].contains(&self.file.as_str());
        named || first.contains(':')
    }

    /// The controller that the file belongs to.
    pub fn controller(&self) -> &str {
        self.file.split_once('.').map_or(&self.file, |(controller, _)| controller)
    }
}

impl fmt::Display for Write {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} = {:?}", self.file, self.value)?;
        if let Some(file) = self.unless {
            write!(f, " unless {file}")?;
        }
        if !self.tolerate.is_empty() {
            write!(f, " or {:?}", self.tolerate)?;
        }
        Ok(())
    }
}

/// What a spec's resources ask for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// In order.
    pub writes: Vec<Write>,
    /// On v2, unless every device is allowed. On v1 the rules are among the writes.
    pub device_filter: Option<Vec<Insn>>,
    /// On v2, to whom it is given: see [`owner`].
    pub owner: Option<u32>,
}

/// What an update must know of the cgroup as it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Live {
    /// v1: `memory.limit_in_bytes`.
    pub memory_limit: u64,
    /// v2: that of `cpu.max`. None: no limit.
    pub quota: Option<i64>,
    /// v2: that of `cpu.max`.
    pub period: Option<u64>,
    /// v2: that of `cpu.idle`.
    pub idle: bool,
}

/// Where a container's cgroup is. An absolute path is below the hierarchies' mounts; a relative one
/// is below the cgroup that the shim itself is in, as with runc (`cgroup::Layout` puts it there).
pub fn path(spec: &Spec, namespace: &str, id: &str) -> Result<PathBuf> {
    let given = spec.linux().as_ref().and_then(|linux| linux.cgroups_path().as_deref());
    let Some(given) = given.filter(|path| !path.as_os_str().is_empty()) else {
        return clean(&Path::new("/").join(namespace).join(id));
    };
    match systemd::unit_of(given)? {
        Some(unit) => Ok(unit.path),
        None => clean(given),
    }
}

/// A container's path must name a cgroup of its own and stay where it is said to be.
fn clean(path: &Path) -> Result<PathBuf> {
    let mut clean = PathBuf::new();
    for component in path.components() {
        match component {
            Component::RootDir => clean.push("/"),
            Component::Normal(name) => clean.push(name),
            Component::CurDir => {}
            Component::ParentDir | Component::Prefix(_) => {
                return Err(Error::invalid(format!("cgroup path {path:?}: \"..\" is refused")));
            }
        }
    }
    if clean.file_name().is_none() {
        return Err(Error::invalid(format!("cgroup path {path:?} names no cgroup")));
    }
    Ok(clean)
}

/// The writes that give a cgroup its limits. `live` is given for an update, which leaves the
/// devices as they are: containerd sends a container's default rules along.
pub fn limits(resources: &LinuxResources, unified: bool, live: Option<Live>) -> Result<Limits> {
    let mut limits = Limits::default();
    if live.is_none() {
        let rules = device_filter::rules(resources.devices().as_deref().unwrap_or_default())?;
        if !unified {
            limits.writes = device_list::writes(&rules)?;
        } else if !device_filter::allows_all(&rules) {
            limits.device_filter = Some(device_filter::compile(&rules));
        }
    }
    if unified {
        v2::limits(resources, live, &mut limits.writes)?;
    } else {
        v1::limits(resources, live, &mut limits.writes)?;
    }
    Ok(limits)
}

/// A value where 0 is "not set".
fn set<T: Default + PartialEq + Copy>(value: Option<T>) -> Option<T> {
    value.filter(|value| *value != T::default())
}

/// An amount of memory; 0 is "not set", -1 "no limit".
pub(super) fn bytes(name: &str, value: Option<i64>) -> Result<Option<i64>> {
    match set(value) {
        Some(value) if value < -1 => Err(Error::invalid(format!("memory {name} {value}"))),
        value => Ok(value),
    }
}

/// `max` on v2 for what the spec gives as a negative number.
fn or_max(value: i64) -> String {
    if value < 0 { "max".into() } else { value.to_string() }
}

/// 0 is a limit since version 1.3 of the spec, but systemd cannot say 0, so runc makes it 1
/// everywhere: a container of one process.
pub(super) fn pids_max(limit: i64) -> String {
    or_max(if limit == 0 { 1 } else { limit })
}

/// The range that the spec gives; 0 is "not set".
pub(super) fn io_weight(weight: Option<u16>) -> Result<Option<u16>> {
    let Some(weight) = set(weight) else { return Ok(None) };
    if !(10..=1000).contains(&weight) {
        return Err(Error::invalid(format!("blockIO weight {weight} is not in 10..1000")));
    }
    Ok(Some(weight))
}

/// `2MB`: it becomes part of a file's name.
fn page_size(size: &str) -> Result<&str> {
    let digits = size.strip_suffix('B').map(|s| s.trim_end_matches(['K', 'M', 'G']));
    match digits {
        Some(d) if !d.is_empty() && d.len() + 2 == size.len() && decimal(d) => Ok(size),
        _ => Err(Error::invalid(format!("hugepageLimits: page size {size:?}"))),
    }
}

fn decimal(text: &str) -> bool {
    text.bytes().all(|b| b.is_ascii_digit())
}

/// A name of a device or an interface: a blank in it would make it two words for the kernel.
fn word(name: &str) -> Result<&str> {
    if name.is_empty() || name.contains(|c: char| c.is_whitespace() || c.is_control()) {
        return Err(Error::invalid(format!("{name:?} is not a device's name")));
    }
    Ok(name)
}

/// `rdma.max` is the same file on v1 and v2.
fn rdma(resources: &LinuxResources, writes: &mut Vec<Write>) -> Result<()> {
    let Some(devices) = resources.rdma() else { return Ok(()) };
    let mut devices: Vec<(&String, &LinuxRdma)> = devices.iter().collect();
    devices.sort_by_key(|(name, _)| *name);
    for (name, limit) in devices {
        let mut value = word(name)?.to_string();
        if let Some(handles) = limit.hca_handles() {
            value += &format!(" hca_handle={handles}");
        }
        if let Some(objects) = limit.hca_objects() {
            value += &format!(" hca_object={objects}");
        }
        writes.push(Write::new("rdma.max", value));
    }
    Ok(())
}
