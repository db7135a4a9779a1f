//! `/dev` of a container: the default devices, those of the spec, and the links everyone expects.
//!
//! It must never touch a `/dev` that is the host's: one bound from there has what it needs.

use std::ffi::CString;

use libc::{S_IFBLK, S_IFCHR, S_IFIFO, S_IFMT};
use oci_spec::runtime::{Linux, LinuxDeviceType as Type};

use super::paths::{clean, cstring, target};
use super::user::User;
use super::{Missing, Op, Plan, Slot, Target};
use crate::error::{Error, Result};

/// Path, major, minor; character devices, mode 0666.
const DEFAULT: [(&str, u32, u32); 6] = [
    ("/dev/null", 1, 3),
    ("/dev/random", 1, 8),
    ("/dev/full", 1, 7),
    ("/dev/tty", 5, 0),
    ("/dev/zero", 1, 5),
    ("/dev/urandom", 1, 9),
];

const LINKS: [(&str, &str); 6] = [
    // The container's own devpts, whatever the rootfs has there.
    ("/dev/ptmx", "pts/ptmx"),
    ("/dev/fd", "/proc/self/fd"),
    ("/dev/stdin", "/proc/self/fd/0"),
    ("/dev/stdout", "/proc/self/fd/1"),
    ("/dev/stderr", "/proc/self/fd/2"),
    ("/dev/core", "/proc/kcore"),
];

/// Nodes and links. Before the root turns read-only. With `user`, `root` is not the container's root
/// but its `/dev`, before the child enters that user namespace: nobody in one can make a node.
pub(super) fn make(plan: &mut Plan, linux: &Linux, root: Slot, user: Option<&User>) -> Result<()> {
    let given = linux.devices().as_deref().unwrap_or_default();
    let paths: Vec<String> = given.iter().map(|device| clean(device.path())).collect();
    for (path, major, minor) in DEFAULT {
        if paths.iter().all(|given| given != path) {
            let target = place(path, path, user)?;
            let (uid, gid) = owner(path, (0, 0), user)?;
            let mode = S_IFCHR | 0o666;
            plan.ops.push(Op::MakeNode { root, target, mode, major, minor, uid, gid });
        }
    }
    for (i, (device, path)) in given.iter().zip(&paths).enumerate() {
        let field = format!("linux.devices[{i}]");
        // No path: the entry is there for the cgroup's rules. The ptmx is a link.
        if device.path().as_os_str().is_empty() || path == "/dev/ptmx" {
            continue;
        }
        if path == "/" {
            return Err(Error::invalid(format!("{field}.path is the root")));
        }
        let kind = match device.typ() {
            Type::B => S_IFBLK,
            Type::C | Type::U => S_IFCHR,
            Type::P => S_IFIFO,
            Type::A => return Err(Error::invalid(format!("{field}.type is not one device's"))),
        };
        let number = |name: &str, value: i64| match u32::try_from(value) {
            Ok(number) => Ok(number),
            Err(_) if kind == S_IFIFO => Ok(0),
            Err(_) => Err(Error::invalid(format!("{field}.{name}: {value} is out of range"))),
        };
        let given = (device.uid().unwrap_or(0), device.gid().unwrap_or(0));
        let (uid, gid) = owner(&field, given, user)?;
        plan.ops.push(Op::MakeNode {
            root,
            target: place(&format!("{field}.path"), path, user)?,
            mode: kind | (device.file_mode().unwrap_or(0o666) & !S_IFMT),
            major: number("major", device.major())?,
            minor: number("minor", device.minor())?,
            uid,
            gid,
        });
    }
    for (path, to) in LINKS {
        let target = place(path, path, user)?;
        let to: CString = cstring(path, to)?;
        plan.ops.push(Op::Symlink { root, target, to });
    }
    Ok(())
}

/// The target, beneath `/dev` if that is where the targets begin.
fn place(field: &str, path: &str, user: Option<&User>) -> Result<Target> {
    if user.is_none() {
        return target(field, path, Missing::Directory);
    }
    match path.strip_prefix("/dev/") {
        Some(name) => target(field, name, Missing::Directory),
        None => Err(Error::unimplemented(format!(
            "{field}: {path:?}: outside of /dev, with a user namespace, a device"
        ))),
    }
}

/// The owner in the host's ids.
fn owner(field: &str, (uid, gid): (u32, u32), user: Option<&User>) -> Result<(u32, u32)> {
    let Some(user) = user else { return Ok((uid, gid)) };
    let mapped = user.map.uid(uid).zip(user.map.gid(gid));
    let text = || format!("{field}: {uid}:{gid} is not mapped in the user namespace");
    mapped.ok_or_else(|| Error::invalid(text()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn nodes(devices: Value) -> Result<Vec<String>> {
        let linux: Linux = serde_json::from_value(json!({"devices": devices})).unwrap();
        let mut plan = Plan::default();
        make(&mut plan, &linux, Slot(0), None)?;
        Ok(plan.ops.iter().map(|op| op.to_string()).filter(|op| op.contains("mknod")).collect())
    }

    #[test]
    fn the_spec_wins_over_the_defaults() {
        let all = nodes(json!([
            {"path": "/dev//null", "type": "c", "major": 1, "minor": 3, "fileMode": 0o20600, "uid": 5},
            {"path": "/dev/sda", "type": "b", "major": 8, "gid": 6},
            {"path": "/dev/pipe", "type": "p", "major": -1},
            {"path": "/dev/u", "type": "u", "major": 4, "minor": 64},
            {"path": "/dev/ptmx", "type": "c", "major": 5, "minor": 2},
            {"path": "", "type": "c"}
        ]));
        let all = all.unwrap();
        let want = [
            "mknod \"/dev/null\" 0o20600 1:3 owner 5:0",
            "mknod \"/dev/sda\" 0o60666 8:0 owner 0:6",
            "mknod \"/dev/pipe\" 0o10666 0:0 owner 0:0",
            "mknod \"/dev/u\" 0o20666 4:64 owner 0:0",
        ];
        assert_eq!(all[5..], want);
        assert_eq!(all[0], "mknod \"/dev/random\" 0o20666 1:8 owner 0:0");
    }

    #[test]
    fn refusals() {
        for (device, want) in [
            (json!({"path": "/x", "type": "a"}), "linux.devices[0].type is not one device's"),
            (json!({"path": "/..", "type": "c"}), "linux.devices[0].path is the root"),
            (
                json!({"path": "/x", "type": "c", "major": -1}),
                "linux.devices[0].major: -1 is out of range",
            ),
        ] {
            assert_eq!(nodes(json!([device])).unwrap_err().to_string(), want);
        }
    }
}
