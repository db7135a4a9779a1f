//! systemd's cgroup driver as text and values: from `slice:prefix:name` to a scope, its place among the
//! cgroups, and its properties; as runc has them (opencontainers/cgroups, `systemd/`).
//!
//! The syntax of the path alone decides. Pure: it must never ask systemd for anything.

use std::fmt;
use std::path::{Path, PathBuf};

use oci_spec::runtime::Spec;
use zvariant::Value;

use crate::error::{Error, Kind, Result};

mod annotations;
mod limits;
mod text;

#[cfg(test)]
mod tests;

pub use limits::{asks_for_version, limits, of_files, rounded};

/// Where a path without a slice has its scope.
const DEFAULT_SLICE: &str = "system.slice";
/// systemd's `UNIT_NAME_MAX`, and what a file name may have.
const LONGEST_NAME: usize = 255;

/// A scope: the unit of systemd that holds a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unit {
    /// `cri-containerd-ID.scope`.
    pub name: String,
    /// `kubepods-pod1.slice`.
    pub slice: String,
    /// Its cgroup, below the mount of the hierarchy.
    pub path: PathBuf,
}

/// One property of a unit, of the type that systemd wants.
#[derive(Clone, Debug, PartialEq)]
pub struct Property {
    pub name: String,
    pub value: Value<'static>,
}

impl Property {
    pub(crate) fn new(name: impl Into<String>, value: impl Into<Value<'static>>) -> Property {
        Property { name: name.into(), value: value.into() }
    }
}

impl fmt::Display for Property {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} = {}", self.name, self.value)
    }
}

/// The unit that a spec's `linux.cgroupsPath` names. `None`: it is a path.
pub fn unit(spec: &Spec) -> Result<Option<Unit>> {
    let path = spec.linux().as_ref().and_then(|linux| linux.cgroups_path().as_deref());
    path.map_or(Ok(None), unit_of)
}

/// The same, of the path itself. An absolute one may have colons in it.
pub(super) fn unit_of(path: &Path) -> Result<Option<Unit>> {
    let text = path.to_string_lossy();
    let parts: Vec<&str> = text.split(':').collect();
    let (false, [slice, prefix, name]) = (path.is_absolute(), parts.as_slice()) else {
        return Ok(None);
    };
    let doing = |error: Error| error.doing(format_args!("linux.cgroupsPath {text:?}"));
    if name.is_empty() {
        return Err(doing(Error::invalid("it names no unit")));
    }
    if name.ends_with(".slice") {
        return Err(doing(Error::invalid("a slice: systemd has no processes in one")));
    }
    let slice = if slice.is_empty() { DEFAULT_SLICE } else { slice };
    let name = format!("{prefix}-{name}.scope");
    let path = slice_path(slice).map_err(doing)?.join(check_name(&name).map_err(doing)?);
    Ok(Some(Unit { name, slice: slice.into(), path }))
}

/// The cgroup of a slice: `a-b.slice` is in `a.slice`, and `-.slice` is the root.
pub fn slice_path(slice: &str) -> Result<PathBuf> {
    let invalid = || Error::invalid(format!("{slice:?} is not the name of a slice"));
    let name = check_name(slice)?.strip_suffix(".slice").ok_or_else(invalid)?;
    let mut path = PathBuf::from("/");
    if name == "-" {
        return Ok(path);
    }
    if name.split('-').any(str::is_empty) {
        return Err(invalid());
    }
    let ends = name.match_indices('-').map(|(at, _)| at).chain([name.len()]);
    path.extend(ends.map(|end| format!("{}.slice", &name[..end])));
    Ok(path)
}

/// A unit's name as one component of a path. systemd puts `_` before what could be taken for a file of
/// the kernel's, and the cgroup is then not where its name says.
fn check_name(name: &str) -> Result<&str> {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b":-_.\\@".contains(&b);
    let reserved = name.starts_with(['_', '.']) || name.starts_with("cgroup.");
    if name.len() > LONGEST_NAME || !name.bytes().all(allowed) || reserved {
        let shown: String = name.chars().take(LONGEST_NAME).collect();
        return Err(Error::invalid(format!("{shown:?} is not the name of a unit")));
    }
    Ok(name)
}

/// What a new scope gets, but for its first process. `version`: systemd's, where it matters.
pub fn scope(unit: &Unit, id: &str, spec: &Spec, version: u32) -> Result<Vec<Property>> {
    let mut all = vec![
        Property::new("Description", format!("container {id}")),
        Property::new("Slice", unit.slice.clone()),
        // All that is below is ours.
        Property::new("Delegate", true),
        Property::new("DefaultDependencies", false),
        // A scope whose processes were killed has failed, and would stay.
        Property::new("CollectMode", "inactive-or-failed"),
    ];
    let accounts = ["MemoryAccounting", "CPUAccounting", "IOAccounting", "TasksAccounting"];
    all.extend(accounts.map(|name| Property::new(name, true)));
    let mut last = Vec::new();
    let resources = spec.linux().as_ref().and_then(|linux| linux.resources().as_ref());
    if let Some(resources) = resources {
        last.extend(limits(resources, None, version)?);
        last.extend(limits::oom_policy(resources, version)?);
    }
    // A pod's annotations do not lift its limits: systemd would write them to the files at its next
    // reload.
    for property in annotations::properties(spec)? {
        // systemd takes a list that comes twice for one.
        all.retain(|other| other.name != property.name);
        let what = annotations::limited(&property.name);
        if last.iter().all(|limit| limit.name != what) {
            all.push(property);
        }
    }
    all.extend(last);
    Ok(all)
}

/// The driver is what the path says; the option may not say otherwise.
pub fn check_driver(spec: &Spec, option: bool) -> Result<()> {
    if !option || unit(spec)?.is_some() {
        return Ok(());
    }
    let path = spec.linux().as_ref().and_then(|linux| linux.cgroups_path().as_deref());
    let path = path.map(|path| path.to_string_lossy()).unwrap_or_default();
    Err(Error::new(
        Kind::InvalidArgument,
        format!("the option systemd_cgroup: linux.cgroupsPath {path:?} is not slice:prefix:name"),
    ))
}
