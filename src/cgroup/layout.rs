//! Which cgroup hierarchies the host has, and where.
//!
//! Probed once. It must never guess a path: what is not mounted is not used.

use std::fs;
use std::path::{Path, PathBuf};

use crate::error::{Doing, Error, Kind, Result};
use crate::plan::{CgroupDir, Cgroups};

/// Where a host with v2 alone has it.
const UNIFIED_MOUNT: &str = "/sys/fs/cgroup";

/// The hierarchies in use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    unified: bool,
    hierarchies: Vec<Hierarchy>,
}

/// One mounted hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Hierarchy {
    controllers: Vec<String>,
    mountpoint: PathBuf,
    /// The directory of the shim's own cgroup.
    own: PathBuf,
}

/// A line of mountinfo.
struct Mount {
    /// The directory of the file system that is at the mountpoint.
    root: PathBuf,
    mountpoint: PathBuf,
    v2: bool,
    options: Vec<String>,
}

/// A line of `/proc/PID/cgroup`.
struct Own {
    /// Empty for v2.
    controllers: Vec<String>,
    path: PathBuf,
}

impl Layout {
    /// Reads it from `/proc`.
    pub fn probe() -> Result<Layout> {
        let read = |path: &str| fs::read_to_string(path).doing(|| format!("read {path:?}"));
        let mut layout =
            Layout::parse(&read("/proc/self/mountinfo")?, &read("/proc/self/cgroup")?)?;
        if let (true, [hierarchy]) = (layout.unified, layout.hierarchies.as_mut_slice()) {
            let file = hierarchy.mountpoint.join("cgroup.controllers");
            let controllers = fs::read_to_string(&file).doing(|| format!("read {file:?}"))?;
            hierarchy.controllers = controllers.split_whitespace().map(Into::into).collect();
        }
        Ok(layout)
    }

    /// The layout that `/proc/self/mountinfo` and `/proc/self/cgroup` tell of; of v2, without the
    /// controllers.
    pub fn parse(mountinfo: &str, cgroup: &str) -> Result<Layout> {
        let mounts: Vec<Mount> = mountinfo.lines().filter_map(mount).collect();
        let owns: Vec<Own> = cgroup.lines().filter_map(own).collect();
        // What lies on top counts, so the last line of a mountpoint.
        let main = mounts.iter().rfind(|mount| mount.mountpoint == Path::new(UNIFIED_MOUNT));
        let v1 = v1(&mounts, &owns);
        // A v1 hierarchy beside a v2 in the usual place is somebody's private one (VPN clients
        // mount net_cls); names without a controller are no reason for v1 either.
        let controlled =
            v1.iter().any(|h| h.controllers.iter().any(|name| !name.starts_with("name=")));
        if controlled && !main.is_some_and(|main| main.v2) {
            return Ok(Layout { unified: false, hierarchies: v1 });
        }
        let Some(mount) = main.filter(|main| main.v2).or_else(|| mounts.iter().find(|m| m.v2))
        else {
            return Err(Error::new(Kind::FailedPrecondition, "no cgroup hierarchy is mounted"));
        };
        let own = owns.iter().find(|own| own.controllers.is_empty());
        let own = own.map_or_else(|| mount.mountpoint.clone(), |own| place(mount, &own.path));
        let mountpoint = mount.mountpoint.clone();
        Ok(Layout {
            unified: true,
            hierarchies: vec![Hierarchy { controllers: Vec::new(), mountpoint, own }],
        })
    }

    /// Whether only v2 is in use.
    pub fn unified(&self) -> bool {
        self.unified
    }

    /// A cgroup in each hierarchy: see [`crate::plan::cgroup::path`].
    pub fn cgroups(&self, path: &Path) -> Cgroups {
        let dirs = self.hierarchies.iter().map(|hierarchy| {
            let Hierarchy { controllers, mountpoint, own } = hierarchy;
            let base = match path.is_absolute() {
                true => mountpoint.as_path(),
                // v2 gives limits only below a cgroup without processes, and the shim is in its own.
                false if self.unified && own != mountpoint => own.parent().unwrap_or(own),
                false => own.as_path(),
            };
            CgroupDir {
                controllers: controllers.clone(),
                mountpoint: mountpoint.clone(),
                path: base.join(path.strip_prefix("/").unwrap_or(path)),
            }
        });
        Cgroups { unified: self.unified, dirs: dirs.collect() }
    }
}

/// Where a process is on v2.
pub(super) fn of_process(pid: u32) -> Result<Cgroups> {
    let path = format!("/proc/{pid}/cgroup");
    let cgroup = fs::read_to_string(&path).doing(|| format!("read {path}"))?;
    let mountinfo = "/proc/self/mountinfo";
    let mountinfo = fs::read_to_string(mountinfo).doing(|| format!("read {mountinfo}"))?;
    let Layout { unified: true, hierarchies } = Layout::parse(&mountinfo, &cgroup)? else {
        return Err(Error::unimplemented("the cgroup of a process on v1"));
    };
    let line = cgroup.lines().filter_map(self::own).find(|own| own.controllers.is_empty());
    // Outside of what is mounted here: its name would be that of the top.
    if line.is_none_or(|line| line.path.components().any(|c| c.as_os_str() == "..")) {
        return Err(Error::new(Kind::NotFound, format!("{path}: not below the mount")));
    }
    let dirs = hierarchies.into_iter().map(|Hierarchy { controllers, mountpoint, own }| {
        CgroupDir { controllers, mountpoint, path: own }
    });
    Ok(Cgroups { unified: true, dirs: dirs.collect() })
}

/// The mounted v1 hierarchies, sorted by mountpoint.
fn v1(mounts: &[Mount], owns: &[Own]) -> Vec<Hierarchy> {
    let mut found = Vec::new();
    for Own { controllers, path } in owns.iter().filter(|own| !own.controllers.is_empty()) {
        let is_it =
            |mount: &&Mount| !mount.v2 && controllers.iter().all(|c| mount.options.contains(c));
        // A container may have a part of the hierarchy mounted somewhere, too.
        let whole = mounts.iter().filter(is_it).find(|mount| mount.root == Path::new("/"));
        if let Some(mount) = whole.or_else(|| mounts.iter().find(is_it)) {
            found.push(Hierarchy {
                controllers: controllers.clone(),
                mountpoint: mount.mountpoint.clone(),
                own: place(mount, path),
            });
        }
    }
    found.sort_by(|a, b| a.mountpoint.cmp(&b.mountpoint));
    found
}

/// Where a cgroup is seen. One outside of what is mounted (`/..` from within a cgroup namespace)
/// counts as the top.
fn place(mount: &Mount, path: &Path) -> PathBuf {
    let below = path.strip_prefix(&mount.root).ok();
    let inside = below.filter(|below| !below.components().any(|c| c.as_os_str() == ".."));
    match inside {
        Some(below) if !below.as_os_str().is_empty() => mount.mountpoint.join(below),
        _ => mount.mountpoint.clone(),
    }
}

/// `36 31 0:33 /root /mountpoint options fields… - type source superblock-options`
fn mount(line: &str) -> Option<Mount> {
    let (before, after) = line.split_once(" - ")?;
    let mut after = after.split(' ');
    let v2 = match after.next()? {
        "cgroup" => false,
        "cgroup2" => true,
        // Kept to see what lies on top of a mountpoint.
        _ => {
            let mountpoint = unescape(before.split(' ').nth(4)?);
            return Some(Mount { root: PathBuf::new(), mountpoint, v2: false, options: vec![] });
        }
    };
    let mut before = before.split(' ').skip(3);
    let (root, mountpoint) = (unescape(before.next()?), unescape(before.next()?));
    let options = after.nth(1)?.split(',').map(Into::into).collect();
    Some(Mount { root, mountpoint, v2, options })
}

/// `4:cpu,cpuacct:/path`, and `0::/path` for v2.
fn own(line: &str) -> Option<Own> {
    let mut fields = line.splitn(3, ':').skip(1);
    let controllers = fields.next()?;
    let controllers = controllers.split(',').filter(|c| !c.is_empty()).map(Into::into).collect();
    Some(Own { controllers, path: fields.next()?.into() })
}

/// Blank, tab, newline and backslash are `\040` and the like.
fn unescape(field: &str) -> PathBuf {
    let mut text = String::new();
    let mut rest = field;
    while let Some((plain, escaped)) = rest.split_once('\\') {
        text += plain;
        match escaped.get(..3).and_then(|octal| u8::from_str_radix(octal, 8).ok()) {
            Some(byte) if byte.is_ascii() => {
                text.push(byte.into());
                rest = &escaped[3..];
            }
            _ => {
                text.push('\\');
                rest = escaped;
            }
        }
    }
    (text + rest).into()
}
