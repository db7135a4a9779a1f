//! `linux.intelRdt`: a container's share of caches and memory bandwidth, by a group of the kernel's
//! resctrl file system; as runc has it (libcontainer/intelrdt).
//!
//! It must never name a directory outside of the file system, nor one that is part of it.

use std::path::{Path, PathBuf};

use oci_spec::runtime::{LinuxIntelRdt, Spec};

use super::paths::{cpath, cstring};
use super::{Facts, Op, Plan, alone};
use crate::error::{Error, Result};

/// Directories of the file system that are no groups.
const RESERVED: [&str; 5] = [".", "..", "info", "mon_groups", "mon_data"];
/// A file name of the kernel's.
const LONGEST_NAME: usize = 255;

/// What a spec asks for, in paths below the file system's root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rdt {
    /// The group: of the class of service that the spec names, or the container's own.
    pub group: PathBuf,
    /// A group for monitoring alone, in the other one.
    pub monitor: Option<PathBuf>,
    /// Lines for the group's `schemata`; empty: it stays as it is.
    pub schemata: String,
    /// The spec names the class of service: the group may be others' as well.
    pub named: bool,
}

impl Rdt {
    /// What the spec asks for, if it asks at all. `root`: where the file system is mounted.
    pub fn of(spec: &Spec, id: &str, root: &Path) -> Result<Option<Rdt>> {
        let Some(rdt) = spec.linux().as_ref().and_then(|linux| linux.intel_rdt().as_ref()) else {
            return Ok(None);
        };
        let name = rdt.clos_id().as_deref().filter(|name| !name.is_empty());
        let group = match name {
            // The class of service of everything that has none.
            Some("/") => root.to_path_buf(),
            name => root.join(component(name.unwrap_or(id))?),
        };
        let monitor =
            (rdt.enable_monitoring() == &Some(true)).then(|| group.join("mon_groups").join(id));
        Ok(Some(Rdt { group, monitor, schemata: schemata(rdt)?, named: name.is_some() }))
    }

    /// The group has to be there: the spec says no more of it than its name.
    pub fn must_exist(&self) -> bool {
        self.named && self.schemata.is_empty()
    }

    /// The groups, from the outer to the inner.
    pub fn groups(&self) -> Vec<PathBuf> {
        [Some(&self.group), self.monitor.as_ref()].into_iter().flatten().cloned().collect()
    }

    /// What goes with the container, innermost first. `made`: the group was not there before.
    pub fn to_remove(&self, made: bool) -> Vec<PathBuf> {
        let group = (made || !self.named).then_some(&self.group);
        self.monitor.iter().chain(group).cloned().collect()
    }

    /// Makes a group, which must not be there. Of its own, for what is there already may be others'.
    pub fn make(group: &Path) -> Result<Plan> {
        alone([Ok(Op::MakeGroup { path: cpath("linux.intelRdt", group)? })].into_iter())
    }

    /// All lines in one write: the kernel takes all of them or none.
    pub fn limit(&self) -> Result<Option<Plan>> {
        if self.schemata.is_empty() {
            return Ok(None);
        }
        super::write(&[(self.group.join("schemata"), self.schemata.clone())]).map(Some)
    }
}

/// The process itself into its container's groups; what it forks is in them as well.
pub(super) fn join(plan: &mut Plan, facts: &Facts) -> Result<()> {
    for group in &facts.rdt {
        let path = cpath("linux.intelRdt", &group.join("tasks"))?;
        plan.ops.push(Op::WriteFile { path, data: c"0".into() });
    }
    Ok(())
}

fn component(name: &str) -> Result<&str> {
    let bad = RESERVED.contains(&name) || name.len() > LONGEST_NAME;
    if bad || name.contains(['/', '\n', '\0']) {
        return Err(Error::invalid(format!("linux.intelRdt.closID: {name:?} names no group")));
    }
    Ok(name)
}

fn schemata(rdt: &LinuxIntelRdt) -> Result<String> {
    let (l3, mb) = (rdt.l3_cache_schema().as_deref(), rdt.mem_bw_schema().as_deref());
    let (l3, mb) = (l3.unwrap_or_default(), mb.unwrap_or_default());
    // As the specification has it: where both are given, bandwidth is a matter of its own field.
    let of_l3 = l3.lines().filter(|line| mb.is_empty() || !line.starts_with("MB:"));
    let more = rdt.schemata().iter().flatten().map(String::as_str);
    let lines = of_l3.chain(mb.lines()).chain(more).filter(|line| !line.is_empty());
    let text: String = lines.flat_map(|line| [line, "\n"]).collect();
    cstring("linux.intelRdt", &text)?;
    Ok(text)
}

#[cfg(test)]
mod tests;
