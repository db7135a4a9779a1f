//! `clone3(2)`: the one place where this process becomes two.
//!
//! It must never be called from a process with more than one thread: the child has a copy of every
//! lock, held or not.

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;

use super::raw;

/// What the parent gets.
#[derive(Debug)]
pub struct Cloned {
    /// The child's pid in the parent's PID namespace.
    pub pid: u32,
    /// Its pidfd, close-on-exec.
    pub pidfd: OwnedFd,
}

/// Clones this process with `CLONE_PIDFD` and `CLONE_CLEAR_SIGHAND`; the child runs `child` and
/// never returns. `cgroup` is a cgroup v2 directory for `CLONE_INTO_CGROUP`.
///
/// # Safety
/// `child` may make system calls only: no allocation, no lock, no log, no unwinding, no libc
/// function with state (nptl and musl cache the thread's ids).
pub unsafe fn clone3<T: ?Sized>(
    namespaces: u64,
    cgroup: Option<BorrowedFd<'_>>,
    child: fn(&mut T) -> !,
    argument: &mut T,
) -> Result<Cloned, Errno> {
    let mut pidfd: RawFd = -1;
    // SAFETY: clone_args is plain integers; all zero is its documented empty value.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = namespaces | libc::CLONE_PIDFD as u64 | raw::CLONE_CLEAR_SIGHAND;
    args.pidfd = &raw mut pidfd as u64;
    args.exit_signal = libc::SIGCHLD as u64;
    if let Some(cgroup) = cgroup {
        args.flags |= raw::CLONE_INTO_CGROUP;
        args.cgroup = cgroup.as_raw_fd() as u64;
    }
    let size = size_of::<libc::clone_args>();
    // SAFETY: without CLONE_VM the child has its own copy of this memory and stack, as after fork;
    // args and pidfd live across the call. What the child may do is the caller's contract.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size) };
    match pid {
        0 => child(argument),
        pid if pid < 0 => Err(Errno::last()),
        pid => {
            // SAFETY: the kernel has just put a new descriptor in pidfd; nobody else owns it.
            let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
            Ok(Cloned { pid: pid as u32, pidfd })
        }
    }
}

/// Runs `work` (which clones once) with `pid_namespace` for its children, then goes back to `home`.
/// Both may be a namespace's fd or a pidfd. Aborts the process if the way back fails: every later
/// child would be born in the wrong namespace.
pub fn with_pid_namespace<T>(
    pid_namespace: BorrowedFd<'_>,
    home: BorrowedFd<'_>,
    work: impl FnOnce() -> Result<T, Errno>,
) -> Result<T, Errno> {
    raw::setns(pid_namespace.as_raw_fd(), libc::CLONE_NEWPID)?;
    let result = work();
    if raw::setns(home.as_raw_fd(), libc::CLONE_NEWPID).is_err() {
        std::process::abort();
    }
    result
}

/// Clones a child of `child::run`, whose module keeps the contract of [`clone3`].
pub fn child_of(
    namespaces: i32,
    cgroup: Option<BorrowedFd<'_>>,
    child: for<'a> fn(&mut crate::child::Frozen<'a>) -> !,
    frozen: &mut crate::child::Frozen<'_>,
) -> Result<Cloned, Errno> {
    // SAFETY: `child::run` makes system calls only, on what `Frozen::new` prepared.
    unsafe { clone3(namespaces as u32 as u64, cgroup, child, frozen) }
}
