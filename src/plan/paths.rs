//! Paths as text: into C strings, cleaned, split into targets; and what is masked or read-only.
//!
//! It must never look at a file system: whether a path holds a symlink is for the child to find.

use std::ffi::CString;
use std::fmt::Display;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use oci_spec::runtime::Linux;

use super::{Missing, Op, Plan, Slot, Target};
use crate::error::{Error, Result};

/// `PATH_MAX` without its NUL. A longer target would be cut into quadratically many bytes.
const LONGEST: usize = 4095;

/// The files of a procfs that lxcfs covers; nothing else may be mounted inside `/proc`, or what
/// the runtime reads and writes there would be the container's choice (CVE-2019-16884).
const INSIDE_PROC: [&str; 10] = [
    "/proc/cpuinfo",
    "/proc/diskstats",
    "/proc/meminfo",
    "/proc/stat",
    "/proc/swaps",
    "/proc/uptime",
    "/proc/loadavg",
    "/proc/slabinfo",
    "/proc/sys/kernel/ns_last_pid",
    "/proc/sys/crypto/fips_enabled",
];

/// Text for the kernel.
pub(super) fn cstring(what: impl Display, text: &str) -> Result<CString> {
    CString::new(text).map_err(|_| Error::invalid(format!("{what} contains a NUL byte")))
}

/// A path for the kernel.
pub fn cpath(what: impl Display, path: &Path) -> Result<CString> {
    let bytes = path.as_os_str().as_bytes();
    CString::new(bytes).map_err(|_| Error::invalid(format!("{what} contains a NUL byte")))
}

/// The same place without `.`, `..` and repeated slashes, from the root.
pub(super) fn clean(path: &Path) -> String {
    let text = path.to_string_lossy();
    let mut parts: Vec<&str> = Vec::new();
    for part in text.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    format!("/{}", parts.join("/"))
}

/// A host path: absolute as it is, else from the bundle.
pub(super) fn on_host(bundle: &Path, path: &Path) -> PathBuf {
    PathBuf::from(clean(&bundle.join(path)))
}

/// Whether a clean path is beneath another one.
pub(super) fn beneath(path: &str, above: &str) -> bool {
    path.strip_prefix(above.trim_end_matches('/')).is_some_and(|rest| rest.starts_with('/'))
}

/// A clean path as a target.
pub(super) fn target(what: impl Display, path: &str, missing: Missing) -> Result<Target> {
    if path.len() > LONGEST {
        return Err(Error::invalid(format!("{what} is longer than {LONGEST} bytes")));
    }
    let path = path.trim_start_matches('/');
    let ends = path.match_indices('/').map(|(at, _)| at);
    let ends = ends.chain((!path.is_empty()).then_some(path.len()));
    let prefixes = ends.map(|end| cstring(&what, &path[..end])).collect::<Result<_>>()?;
    Ok(Target { prefixes, missing, no_symlinks: false, inside_proc: false })
}

/// Refuses a mount that would cover a procfs or part of it; tells whether the target may lie in
/// one. `proc`: the mount is a procfs.
pub(super) fn check_proc(what: impl Display, destination: &str, proc: bool) -> Result<bool> {
    if destination == "/proc" && !proc {
        return Err(Error::invalid(format!("{what}: only proc can be mounted on \"/proc\"")));
    }
    let listed = INSIDE_PROC.contains(&destination);
    if beneath(destination, "/proc") && !listed {
        return Err(Error::invalid(format!("{what}: {destination:?} is inside /proc")));
    }
    Ok(listed)
}

/// `linux.readonlyPaths` and `linux.maskedPaths`: after all that writes below them.
pub(super) fn restrict(plan: &mut Plan, linux: &Linux, root: Slot) -> Result<()> {
    let readonly = linux.readonly_paths().as_deref().unwrap_or_default();
    for target in targets("linux.readonlyPaths", readonly)? {
        plan.ops.push(Op::Readonly { root, target });
    }
    let masked = targets("linux.maskedPaths", linux.masked_paths().as_deref().unwrap_or_default())?;
    if !masked.is_empty() {
        let empty = plan.slot();
        plan.ops.extend(masked.into_iter().map(|target| Op::Mask {
            root,
            target,
            empty,
            label: None,
        }));
    }
    Ok(())
}

fn targets(field: &str, paths: &[String]) -> Result<Vec<Target>> {
    let mut seen = std::collections::HashSet::new();
    let mut targets = Vec::new();
    for (i, path) in paths.iter().enumerate() {
        let path = clean(Path::new(path));
        if path == "/" {
            return Err(Error::invalid(format!("{field}[{i}] is the root")));
        }
        let target = target(format_args!("{field}[{i}]"), &path, Missing::Fail)?;
        if seen.insert(path) {
            targets.push(Target { inside_proc: true, ..target });
        }
    }
    Ok(targets)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cleaning_never_leaves_the_root() {
        for (path, want) in [
            ("/a//b/./c/", "/a/b/c"),
            ("a/b", "/a/b"),
            ("/a/../../b", "/b"),
            ("../..", "/"),
            ("", "/"),
        ] {
            assert_eq!(clean(Path::new(path)), want, "{path}");
        }
        assert_eq!(on_host(Path::new("/b"), Path::new("rootfs")), Path::new("/b/rootfs"));
        assert_eq!(on_host(Path::new("/b"), Path::new("/r/../s")), Path::new("/s"));
    }

    #[test]
    fn a_target_has_every_prefix() {
        let prefixes = |path| target("x", path, Missing::Fail).unwrap().prefixes;
        assert_eq!(prefixes("/a/bc/d"), [c"a".to_owned(), c"a/bc".into(), c"a/bc/d".into()]);
        assert!(prefixes("/").is_empty());
        let error = target("mounts[0].destination", &"/a".repeat(2048), Missing::Fail).unwrap_err();
        assert_eq!(error.to_string(), "mounts[0].destination is longer than 4095 bytes");
        assert!(target("x", "/a\0b", Missing::Fail).is_err());
    }

    #[test]
    fn proc_stays_what_it_is() {
        assert!(!check_proc("m", "/proc", true).unwrap());
        assert!(!check_proc("m", "/process", false).unwrap());
        assert!(!check_proc("m", "/sys", false).unwrap());
        for file in INSIDE_PROC {
            assert!(check_proc("m", file, false).unwrap(), "{file}");
        }
        for path in ["/proc", "/proc/self/attr", "/proc/sys", "/proc/uptime/x"] {
            assert!(check_proc("m", path, false).is_err(), "{path}");
        }
        assert!(check_proc("m", "/proc/self", true).is_err());
    }

    #[test]
    fn beneath_is_by_component() {
        assert!(beneath("/dev/shm", "/dev") && beneath("/a", "/"));
        assert!(!beneath("/dev", "/dev") && !beneath("/devel", "/dev"));
    }
}
