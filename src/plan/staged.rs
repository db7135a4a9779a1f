//! What comes from the host, on its way into the mount namespace of a user namespace.
//!
//! The kernel locks the mounts of a mount namespace that is copied into another user namespace: nobody
//! there can look beneath them or lift their flags (mount_namespaces(7)). A detached tree that is
//! attached inside has no locks. So all of it is first mounted in a namespace of the host's, copied with
//! that, and taken from the copy. Nothing of the host may be attached inside by another way.

use std::path::{Path, PathBuf};

use libc::{MOUNT_ATTR_NODEV, MOUNT_ATTR_NOEXEC, MOUNT_ATTR_NOSUID, MS_PRIVATE, MS_UNBINDABLE};

use super::mounts::{self, Entry};
use super::options::param;
use super::paths::{cpath, target};
use super::rootfs::{self, Rootfs};
use super::{Attr, Missing, Op, Plan, Slot};
use crate::error::Result;

/// The directory of the rootfs among the others, which have numbers.
const ROOTFS: &str = "rootfs";

/// Mounts that wait at a place which the rootfs will cover.
#[derive(Debug)]
pub(super) struct Staged {
    path: PathBuf,
    mounts: Vec<Slot>,
    /// What no mount can be copied with.
    late: Vec<Op>,
}

/// Mounts the rootfs and what the entries have open. In the host's user namespace, once nothing
/// propagates.
pub(super) fn stage(plan: &mut Plan, entries: &[Entry], mut root: Rootfs) -> Result<Staged> {
    let path = root.path.clone();
    let mut late = Vec::new();
    for op in &mut plan.ops {
        let copy = op.clone();
        if let Op::SetAttr { attr, .. } = op
            && attr.propagation == MS_UNBINDABLE
        {
            attr.propagation = MS_PRIVATE;
            late.push(copy);
        }
    }
    let (mount, dir) = (plan.slot(), plan.slot());
    let at = cpath("root.path", &path)?;
    plan.ops.extend([
        Op::NewMount {
            fstype: c"tmpfs".into(),
            params: vec![param("source=staged")?, param("mode=700")?],
            attr: MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC,
            into: mount,
        },
        Op::SetAttr { mount, attr: Attr { propagation: MS_PRIVATE, ..Attr::default() } },
        Op::AttachRootfs { mount, path: at.clone() },
        Op::OpenRootfs { path: at, into: dir },
    ]);
    let mounts: Vec<Slot> = mounts::opened(entries).collect();
    for (i, mount) in mounts.iter().enumerate() {
        let target = target("a staged mount", &i.to_string(), Missing::LikeSource)?;
        let source = c"staged".to_owned();
        plan.ops.push(Op::Attach { mount: *mount, source, root: dir, target });
    }
    let target = target("the staged rootfs", ROOTFS, Missing::Directory)?;
    plan.ops.push(Op::MakeDir { root: dir, target, mode: 0o700 });
    root.path = path.join(ROOTFS);
    rootfs::attach(plan, root)?;
    Ok(Staged { path, mounts, late })
}

impl Staged {
    /// Takes all of it from the copy, and attaches the rootfs where it belongs. Inside.
    pub fn take(self, plan: &mut Plan) -> Result<Slot> {
        let take = |name: &str, into: Slot| -> Result<Op> {
            Ok(Op::TakeTree { path: cpath("root.path", &self.path.join(Path::new(name)))?, into })
        };
        for (i, mount) in self.mounts.iter().enumerate() {
            plan.ops.push(take(&i.to_string(), *mount)?);
        }
        plan.ops.extend(self.late.iter().cloned());
        let (mount, root) = (plan.slot(), plan.slot());
        let path = cpath("root.path", &self.path)?;
        plan.ops.extend([
            take(ROOTFS, mount)?,
            Op::AttachRootfs { mount, path: path.clone() },
            Op::OpenRootfs { path, into: root },
        ]);
        Ok(root)
    }
}
