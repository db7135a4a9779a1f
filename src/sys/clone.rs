//! `clone3(2)`, or `clone(2)`: the one place where this process becomes two.
//!
//! It must never be called from a process with more than one thread: the child has a copy of every
//! lock, held or not.

use std::ffi::c_long;
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
/// never returns. `cgroup` is a cgroup v2 directory for `CLONE_INTO_CGROUP`. Without one, `clone(2)`
/// does where `clone3` is refused: filters that cannot look at its flags refuse all of it.
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
        pid if pid < 0 => match Errno::last() {
            Errno::ENOSYS | Errno::EPERM if cgroup.is_none() => {
                // SAFETY: the caller's contract.
                unsafe { clone_old(namespaces, child, argument) }
            }
            errno => Err(errno),
        },
        // The kernel has just put a new descriptor in pidfd; nobody else owns it.
        pid => Ok(cloned(pid, pidfd)),
    }
}

fn cloned(pid: c_long, pidfd: RawFd) -> Cloned {
    // SAFETY: called with what a clone has just made.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    Cloned { pid: pid as u32, pidfd }
}

/// The same by `clone(2)`. It cannot clear handlers: the child does that while no signal can reach it.
///
/// # Safety
/// As [`clone3`].
unsafe fn clone_old<T: ?Sized>(
    namespaces: u64,
    child: fn(&mut T) -> !,
    argument: &mut T,
) -> Result<Cloned, Errno> {
    let mut pidfd: RawFd = -1;
    let flags = namespaces | (libc::CLONE_PIDFD | libc::SIGCHLD) as u64;
    let mask = raw::set_signal_mask(u64::MAX)?;
    let (none, pidfd_at) = (0usize, &raw mut pidfd);
    // SAFETY: without CLONE_VM the child has its own copy of this memory, and without a stack given
    // goes on with a copy of this one; pidfd lives across the call.
    let pid = unsafe { libc::syscall(libc::SYS_clone, flags, none, pidfd_at, none, none) };
    if pid == 0 {
        if raw::clear_handlers().and_then(|()| raw::set_signal_mask(mask)).is_err() {
            raw::exit(127);
        }
        child(argument)
    }
    let result = Errno::result(pid);
    raw::set_signal_mask(mask)?;
    result.map(|pid| cloned(pid, pidfd))
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

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;
    use crate::sys::fd::{Whom, wait};

    /// Ends with what is not as after `CLONE_CLEAR_SIGHAND`, as bits.
    fn look(mask: &mut u64) -> ! {
        let of = |signal| raw::handler(signal).unwrap_or(u64::MAX);
        let handled = of(libc::SIGUSR1) != libc::SIG_DFL as u64;
        let ignored = of(libc::SIGPIPE) != libc::SIG_IGN as u64;
        let masked = raw::set_signal_mask(*mask) != Ok(*mask);
        raw::exit(i32::from(handled) | i32::from(ignored) << 1 | i32::from(masked) << 2)
    }

    #[test]
    fn a_child_of_clone_has_the_mask_and_no_handler() {
        let flag = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
        let handler = signal_hook::flag::register(libc::SIGUSR1, flag).unwrap();
        let mut mask = raw::set_signal_mask(1 << (libc::SIGUSR2 - 1)).unwrap();
        let ours = raw::set_signal_mask(mask).unwrap();
        for mask in [&mut mask, &mut ours.clone()] {
            raw::set_signal_mask(*mask).unwrap();
            // SAFETY: `look` makes system calls only.
            let child = unsafe { clone_old(0, look, mask) }.unwrap();
            let ended = loop {
                if let Some(ended) = wait(Whom::Pidfd(child.pidfd.as_fd())).unwrap() {
                    break ended;
                }
            };
            assert_eq!((ended.pid, ended.status), (child.pid, 0));
            assert_eq!(raw::set_signal_mask(*mask), Ok(*mask));
        }
        signal_hook::low_level::unregister(handler);
    }
}
