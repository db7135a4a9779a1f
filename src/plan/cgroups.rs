//! The `cgroup` mount: what a container sees of the cgroups, on version 1 and 2.
//!
//! It must never show more than the container's own part of a hierarchy.

use std::path::Path;

use libc::{MOUNT_ATTR_RDONLY, MS_SLAVE};

use super::mounts::{Kind, PLAIN, bind, new};
use super::options::{Options, param};
use super::{Attr, CgroupDir, Facts};
use crate::error::{Error, Result};

/// What one `cgroup` mount comes to; a name is that of a file in its destination. `own`: the
/// container has a new cgroup namespace, so that what is mounted in it begins with its own part.
pub(super) fn entries(
    source: &Path,
    options: Options,
    facts: &Facts,
    own: bool,
) -> Result<Vec<(Option<String>, Kind)>> {
    if !facts.cgroups.unified {
        return hierarchies(&options, facts, own);
    }
    if own {
        return Ok(vec![(None, new("cgroup2", source, &options)?)]);
    }
    let dir = facts.cgroups.dirs.first();
    let dir = dir.ok_or_else(|| Error::invalid("the container has no cgroup to mount"))?;
    // The file system's own options are those that the host mounted it with.
    let options = Options { params: Vec::new(), ..options };
    Ok(vec![(None, bind(&options, &dir.path, facts)?)])
}

/// cgroup v1: a tmpfs, one directory for each hierarchy in it, and the names of single controllers
/// as links to the hierarchy that several share.
fn hierarchies(options: &Options, facts: &Facts, own: bool) -> Result<Vec<(Option<String>, Kind)>> {
    let set = PLAIN | (options.new_mount() & MOUNT_ATTR_RDONLY);
    let propagation = options.propagation.last().map_or(0, |(flag, _)| *flag);
    let params = vec![param("source=tmpfs")?, param("mode=755")?];
    let attr = Attr { set, propagation, ..Attr::default() };
    let mut all = vec![(None, Kind::New { fstype: "tmpfs".into(), params, attr })];
    let mut links = Vec::new();
    for CgroupDir { controllers, mountpoint, path } in &facts.cgroups.dirs {
        let name = mountpoint.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if name.contains(',') {
            let link = |one: &str| (Some(one.into()), Kind::Symlink { to: name.clone() });
            links.extend(name.split(',').map(link));
        }
        let kind = if own {
            let mut params = vec![param("source=cgroup")?];
            params.extend(controllers.iter().map(|c| param(c)).collect::<Result<Vec<_>>>()?);
            let attr = Attr { set, ..Attr::default() };
            Kind::New { fstype: "cgroup".into(), params, attr }
        } else {
            let clear = MOUNT_ATTR_RDONLY & !set;
            let slave = Attr { propagation: MS_SLAVE, recursive: true, ..Attr::default() };
            let attrs = vec![Attr { set, clear, ..Attr::default() }, slave];
            Kind::Bind { source: path.clone(), recursive: false, attrs, mount: None, ids: None }
        };
        all.push((Some(name), kind));
    }
    all.extend(links);
    Ok(all)
}
