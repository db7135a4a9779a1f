//! A container's cgroup in the hands of its user, who may then make cgroups below it (systemd in a container does).
//!
//! It must never give away a limit: only what the kernel says is for it.

use std::fs;

use nix::errno::Errno;
use nix::fcntl::AtFlags;
use nix::unistd::{Uid, fchownat};

use super::dir::Dir;
use crate::error::{Doing, Error, Result};

/// The kernel's list of the files that go with a cgroup.
const LIST: &str = "/sys/kernel/cgroup/delegate";
/// The same before Linux 4.15.
const OLD_LIST: &str = "cgroup.procs\ncgroup.subtree_control\ncgroup.threads\n";

pub(super) fn give(dir: &Dir, uid: u32) -> Result<()> {
    let give = |name: &str| {
        fchownat(dir, name, Some(Uid::from_raw(uid)), None, AtFlags::AT_SYMLINK_NOFOLLOW)
    };
    give(".").doing(|| format!("chown({:?}, {uid})", dir.path()))?;
    let list = fs::read_to_string(LIST).unwrap_or_else(|_| OLD_LIST.into());
    for name in list.lines() {
        match give(name) {
            // Of a controller that this cgroup has not.
            Ok(()) | Err(Errno::ENOENT) => {}
            Err(errno) => {
                let path = dir.path().join(name);
                return Err(Error::sys(format_args!("chown({path:?}, {uid})"), errno));
            }
        }
    }
    Ok(())
}
