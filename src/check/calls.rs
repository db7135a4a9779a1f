//! The system calls that the shim makes, and what it does where a newer one is not there.
//!
//! A call is needed where nothing else is as safe: see ARCHITECTURE.md, "Kernels".

use std::fs;
use std::path::{Path, PathBuf};

use nix::errno::Errno;

use super::{Asker, Found, Row, row};
use crate::error::{Error, Kind, Result};
use crate::plan;
use crate::sys::{self, probe};

/// A call: its name, how it is asked, and what is lost without it.
type Call = (&'static str, fn() -> Result<(), Errno>, &'static str);

const NO_CONTAINER: &str = "no container";

/// No container can be made without one of them: none has a substitute that is as safe.
const NEEDED: [Call; 13] = [
    ("openat2", probe::openat2, "no container: no other call stays in a rootfs"),
    ("mount_setattr", probe::mount_setattr, "no container: mounts could travel to the host"),
    ("open_tree", probe::open_tree, NO_CONTAINER),
    ("move_mount", probe::move_mount, NO_CONTAINER),
    ("fsopen", || probe::fsopen(c"tmpfs"), NO_CONTAINER),
    ("fsconfig", probe::fsconfig, NO_CONTAINER),
    ("fsmount", probe::fsmount, NO_CONTAINER),
    ("pidfd_open", probe::pidfd_open, NO_CONTAINER),
    ("pidfd_send_signal", probe::pidfd_send_signal, "no container: a pid may be another's"),
    ("waitid of a pidfd", probe::waitid_pidfd, NO_CONTAINER),
    ("close_range", probe::close_range, NO_CONTAINER),
    ("execveat", probe::execveat, "no server"),
    ("setns of a pidfd", probe::setns_pidfd, "no exec"),
];

/// What there is another way for, or what few ask for.
const WANTED: [Call; 9] = [
    ("clone3", probe::clone3, "clone(2), which resets the handlers of signals one by one"),
    (
        "CLONE_INTO_CGROUP",
        probe::clone_into_cgroup,
        "v2: a process joins its cgroup after its birth, some 10 ms more",
    ),
    (
        "PIDFD_GET_INFO",
        probe::pidfd_get_info,
        "the status of an init that ended with its shim is given as 137",
    ),
    ("pidfd_getfd", probe::pidfd_getfd, "no seccomp agents (SCMP_ACT_NOTIFY)"),
    ("seccomp filters", filters, "no container with a seccomp profile"),
    ("seccomp listeners", probe::seccomp_listener, "no seccomp agents (SCMP_ACT_NOTIFY)"),
    ("overlay", || probe::fsopen(c"overlay"), "no container of an overlay snapshot"),
    (
        "overlay: lowerdir+",
        lowerdir_plus_somewhere,
        "mount(2): the paths of all layers have to fit into 4 KiB",
    ),
    ("copies of a detached mount", probe::clone_of_detached, "/dev/shm is mounted in the bundle"),
];

pub(super) fn rows(asker: Asker) -> Vec<Row> {
    let of = |needed: bool| {
        move |(name, ask, without): &Call| row(name, asker.found(ask()), needed, without)
    };
    let mut rows: Vec<Row> = NEEDED.iter().map(of(true)).collect();
    rows.extend(WANTED.iter().map(of(false)));
    rows.push(mapped_ids(asker));
    rows
}

/// An error that names what no container can do without, and is not there. Asked before anything
/// of a pod is made.
pub fn every_container() -> Result<()> {
    let missing = NEEDED.iter().filter_map(|(name, ask, _)| {
        let errno = ask().err()?;
        Some(format!("{name} ({errno:?})"))
    });
    let missing: Vec<String> = missing.collect();
    if missing.is_empty() {
        return Ok(());
    }
    let text = format!(
        "the kernel lacks, or a seccomp filter refuses, what every container needs: {}; \
         containerd-shim-rs-v2 check says more",
        missing.join(", ")
    );
    Err(Error::new(Kind::FailedPrecondition, text))
}

fn filters() -> Result<(), Errno> {
    let actions = [libc::SECCOMP_RET_KILL_PROCESS, libc::SECCOMP_RET_ERRNO, libc::SECCOMP_RET_LOG];
    actions.into_iter().try_for_each(probe::seccomp_action)
}

/// Where containerd has its snapshots, if it is not told otherwise.
fn mapped_ids(asker: Asker) -> Row {
    let (path, name) = match Path::new("/var/lib/containerd").exists() {
        true => (c"/var/lib/containerd", "/var/lib/containerd"),
        false => (c"/", "/"),
    };
    let found = match asker.found(probe::mapped_ids(path)) {
        Found::Yes(_) => Found::Yes(format!("yes: {name}")),
        Found::No(why) => Found::No(format!("{name}: {why}")),
        unknown => unknown,
    };
    row(
        "id-mapped mounts",
        found,
        false,
        "no pod with a user namespace, unless its snapshots have its ids",
    )
}

/// Whether overlay takes `lowerdir+`: an older one says no only when the mount is made, which needs
/// two directories below `scratch`.
pub fn lowerdir_plus(scratch: &Path) -> Result<bool> {
    let dirs = [scratch.join("overlay-probe-a"), scratch.join("overlay-probe-b")];
    let made = dirs.iter().all(|dir| fs::create_dir_all(dir).is_ok());
    let works = made && overlay(&dirs)?.is_ok();
    for dir in dirs {
        let _ = fs::remove_dir(dir);
    }
    Ok(works)
}

fn overlay([a, b]: &[PathBuf; 2]) -> Result<Result<(), Errno>> {
    let (a, b) = (plan::cpath("lowerdir+", a)?, plan::cpath("lowerdir+", b)?);
    let params = [(c"lowerdir+", Some(a.as_c_str())), (c"lowerdir+", Some(b.as_c_str()))];
    Ok(sys::mount::new_mount(c"overlay", &params, 0).map(drop))
}

/// In a directory of its own, which is gone afterwards.
fn lowerdir_plus_somewhere() -> Result<(), Errno> {
    // Not for the one who cannot mount it: nothing would be known.
    probe::fsopen(c"overlay")?;
    let errno = |error: std::io::Error| Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO));
    // On an overlay as `/tmp` may be no further one might be possible.
    let top = Path::new("/run");
    let top = if top.is_dir() { top.to_owned() } else { std::env::temp_dir() };
    let scratch = top.join(format!("containerd-shim-rs-v2-check-{}", std::process::id()));
    fs::create_dir(&scratch).map_err(errno)?;
    let works = lowerdir_plus(&scratch);
    fs::remove_dir(&scratch).map_err(errno)?;
    if works.unwrap_or(false) { Ok(()) } else { Err(Errno::EINVAL) }
}
