//! A cgroup removed with all below it, and a group of resctrl.
//!
//! A container may have nested its cgroups deeper than a path may be long, and made more than there
//! is time for: nothing here goes by more than one name, and there is an end to each go. It must never
//! leave the cgroup, nor hold more descriptors for more depth; and, for a child, never allocate.

use std::ffi::CStr;

use nix::errno::Errno;

use super::path::{entries, open_beneath, open_directory};
use super::report::Call;
use super::{At, Fail, Fd};
use crate::sys::raw;

/// What is removed in one go: on v1 there is one for each hierarchy, 20 µs and more for each cgroup, and
/// `delete` has less than a second left when it begins its last.
const AT_ONCE: u32 = 2_000;
const DIRECTORY: i32 = libc::O_RDONLY | libc::O_DIRECTORY;

/// What is to be done next.
enum Next {
    /// There are cgroups in this one.
    Down(Fd),
    /// There are no more here.
    Up,
    /// Enough for this time.
    End,
}

/// Removes a cgroup and what is below it; `false`: not all, there is too much for one go. `wait` is
/// asked whether to try once more what is busy, and waits before: the kernel takes the last process
/// apart. It is told how many times that has been.
pub(crate) fn remove(path: &CStr, wait: &mut dyn FnMut(u32) -> bool) -> Result<bool, Fail> {
    let mut here = match open_directory(path) {
        Err(Fail(_, Errno::ENOENT)) => return Ok(true),
        opened => opened?,
    };
    let (mut depth, mut left) = (0u64, AT_ONCE);
    loop {
        match clear(&here, &mut left, wait)? {
            Next::Down(below) => {
                depth = depth.saturating_add(1);
                here = below;
            }
            Next::Up if depth > 0 => {
                depth = depth.saturating_sub(1);
                // What was opened beneath the top is beneath it still: the kernel does not move a
                // cgroup to another parent.
                here = Fd(raw::openat(here.0, c"..", DIRECTORY, 0).at(Call::Open)?);
            }
            Next::Up => break,
            Next::End => return Ok(false),
        }
    }
    drop(here);
    let mut tries = 0;
    while !removed(raw::CWD, path)? {
        again(&mut tries, wait)?;
    }
    Ok(true)
}

/// Removes a directory that has no others in it: of resctrl.
pub(crate) fn rmdir(path: &CStr, wait: &mut dyn FnMut(u32) -> bool) -> Result<(), Fail> {
    let mut tries = 0;
    loop {
        match raw::rmdir(raw::CWD, path) {
            Ok(_) | Err(Errno::ENOENT) => return Ok(()),
            Err(Errno::EBUSY) => again(&mut tries, wait)?,
            Err(errno) => return Err(Fail(Call::Rmdir, errno)),
        }
    }
}

/// A child's way to wait: longer each time, 1 s in all.
pub(super) fn wait(tries: u32) -> bool {
    let more = tries < 10;
    if more {
        raw::sleep_ms(1_i64.wrapping_shl(tries));
    }
    more
}

/// Removes what is in one cgroup, up to the first that has others in it.
fn clear(here: &Fd, left: &mut u32, wait: &mut dyn FnMut(u32) -> bool) -> Result<Next, Fail> {
    let mut next = Next::Up;
    entries(here.0, &mut |name, kind| {
        if kind != libc::DT_DIR {
            return Ok(false);
        }
        if let Some(below) = remove_one(here, name, wait)? {
            next = Next::Down(below);
            return Ok(true);
        }
        *left = left.saturating_sub(1);
        if *left == 0 {
            next = Next::End;
        }
        Ok(*left == 0)
    })?;
    Ok(next)
}

/// Removes a cgroup, or opens it because there are others in it.
fn remove_one(
    here: &Fd,
    name: &CStr,
    wait: &mut dyn FnMut(u32) -> bool,
) -> Result<Option<Fd>, Fail> {
    let mut tries = 0;
    while !removed(here.0, name)? {
        let below = match open_beneath(here.0, name, DIRECTORY) {
            Err(Fail(_, Errno::ENOENT)) => return Ok(None),
            below => below?,
        };
        if entries(below.0, &mut |_, kind| Ok(kind == libc::DT_DIR))? {
            // Another one, which is at its beginning.
            return open_beneath(below.0, c".", DIRECTORY).map(Some);
        }
        again(&mut tries, wait)?;
    }
    Ok(None)
}

/// `false`: it is busy, by what is in it.
fn removed(dir: i32, name: &CStr) -> Result<bool, Fail> {
    match raw::rmdir(dir, name) {
        // ENODEV: somebody else is removing it.
        Ok(_) | Err(Errno::ENOENT | Errno::ENODEV) => Ok(true),
        Err(Errno::EBUSY | Errno::ENOTEMPTY) => Ok(false),
        Err(errno) => Err(Fail(Call::Rmdir, errno)),
    }
}

fn again(tries: &mut u32, wait: &mut dyn FnMut(u32) -> bool) -> Result<(), Fail> {
    if !wait(*tries) {
        return Err(Fail(Call::Rmdir, Errno::EBUSY));
    }
    *tries = tries.saturating_add(1);
    Ok(())
}
