//! To whom a container's cgroup is given ("cgroup ownership" of the specification). Pure.

use std::path::Path;

use libc::MOUNT_ATTR_RDONLY;
use oci_spec::runtime::{LinuxNamespaceType, Spec};

use crate::error::Result;
use crate::plan::IdMap;
use crate::plan::options::Options;

/// The user of the container's process, in the host's ids, if the container may make cgroups of its own: on v2, in a
/// new cgroup namespace, with the cgroups mounted so that they can be written.
pub fn owner(spec: &Spec, map: Option<&IdMap>, unified: bool) -> Result<Option<u32>> {
    let namespaces = spec.linux().as_ref().and_then(|linux| linux.namespaces().as_deref());
    let own = namespaces.unwrap_or_default().iter().any(|namespace| {
        let path = namespace.path().as_ref().filter(|path| !path.as_os_str().is_empty());
        namespace.typ() == LinuxNamespaceType::Cgroup && path.is_none()
    });
    if !unified || !own {
        return Ok(None);
    }
    let mut writable = false;
    for mount in spec.mounts().iter().flatten() {
        if mount.typ().as_deref().is_some_and(|typ| typ == "cgroup" || typ == "cgroup2")
            && mount.destination().components().eq(Path::new("/sys/fs/cgroup").components())
        {
            let options = Options::parse(mount.options().as_deref().unwrap_or_default())?;
            writable |= options.new_mount() & MOUNT_ATTR_RDONLY == 0;
        }
    }
    let user = spec.process().as_ref().map_or(0, |process| process.user().uid());
    // A user that is not mapped owns nothing; that the process cannot run as it is said elsewhere.
    let user = map.map_or(Some(user), |map| map.uid(user));
    Ok(user.filter(|_| writable))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::plan::IdRange;

    fn given(change: impl FnOnce(&mut Value), unified: bool, map: Option<&IdMap>) -> Option<u32> {
        let mut spec = json!({
            "ociVersion": "1.3.0",
            "process": {"user": {"uid": 7, "gid": 0}, "cwd": "/", "args": ["x"]},
            "mounts": [{"destination": "/sys/fs/cgroup/", "type": "cgroup", "options": ["ro", "rw"]}],
            "linux": {"namespaces": [{"type": "cgroup"}]},
        });
        change(&mut spec);
        owner(&serde_json::from_value(spec).unwrap(), map, unified).unwrap()
    }

    #[test]
    fn only_what_can_be_written_in_a_namespace_of_its_own_is_given() {
        let range = IdRange { inside: 0, outside: 1000, size: 10 };
        let map = IdMap { uids: vec![range], gids: vec![range] };
        assert_eq!(given(|_| (), true, None), Some(7));
        assert_eq!(given(|_| (), true, Some(&map)), Some(1007));
        let unmapped = |spec: &mut Value| spec["process"]["user"]["uid"] = json!(10);
        assert_eq!(given(unmapped, true, Some(&map)), None);
        assert_eq!(given(|_| (), false, None), None);
        let by_path = json!([{"type": "cgroup", "path": "/proc/1/ns/cgroup"}]);
        let joined = |spec: &mut Value| spec["linux"]["namespaces"] = by_path;
        assert_eq!(given(joined, true, None), None);
        let read_only = |spec: &mut Value| spec["mounts"][0]["options"] = json!(["rw", "ro"]);
        assert_eq!(given(read_only, true, None), None);
        let elsewhere = |spec: &mut Value| spec["mounts"][0]["destination"] = json!("/cgroup");
        assert_eq!(given(elsewhere, true, None), None);
    }
}
