//! Whether a system call is there, asked with arguments that let it do nothing.
//!
//! It must never change this process or leave anything: what can only be seen by doing it is done
//! by a child, or to what nobody else can see. The answer to a call that is there is an error of its
//! own making, which says that it looked at its arguments: ENOSYS and EPERM are what a kernel or a
//! seccomp filter says before that.

use std::ffi::{CStr, c_int};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::ptr;

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use nix::unistd::Pid;

use super::fd::{self, Whom, owned};
use super::raw;

/// What a call that is there says to these arguments.
type Asked = Result<(), Errno>;

const NO_FD: c_int = -1;

/// `result` is what the call says of such arguments, or there was nothing wrong with them.
fn knows<T>(result: Result<T, Errno>, answer: Errno) -> Asked {
    match result {
        Err(errno) if errno != answer => Err(errno),
        _ => Ok(()),
    }
}

/// Closes what a call has made.
fn made(result: Result<c_int, Errno>) -> Asked {
    result.and_then(owned).map(drop)
}

fn own_pidfd() -> Result<OwnedFd, Errno> {
    fd::pidfd_open(std::process::id())
}

/// `openat2(2)`, with a flag that every container needs.
pub fn openat2() -> Asked {
    made(raw::openat2(raw::CWD, c"/", libc::O_PATH, 0, libc::RESOLVE_IN_ROOT))
}

/// `open_tree(OPEN_TREE_CLONE)`.
pub fn open_tree() -> Asked {
    knows(raw::clone_tree(NO_FD, c"", false), Errno::EBADF)
}

/// `move_mount(2)`.
pub fn move_mount() -> Asked {
    knows(raw::attach(NO_FD, NO_FD), Errno::EBADF)
}

/// `mount_setattr(2)`.
pub fn mount_setattr() -> Asked {
    knows(raw::set_mount_attr(NO_FD, libc::MOUNT_ATTR_RDONLY, 0, 0, false), Errno::EBADF)
}

/// `fsopen(2)` of a file system.
pub fn fsopen(fstype: &CStr) -> Asked {
    made(raw::fsopen(fstype))
}

/// `fsconfig(2)`.
pub fn fsconfig() -> Asked {
    knows(raw::fsconfig(NO_FD, c"mode", None), Errno::EINVAL)
}

/// `fsmount(2)`.
pub fn fsmount() -> Asked {
    knows(raw::fsmount(NO_FD, 0), Errno::EBADF)
}

/// `clone3(2)`.
pub fn clone3() -> Asked {
    // SAFETY: the size is less than any that the kernel takes, so it reads nothing.
    let result = unsafe { libc::syscall(libc::SYS_clone3, ptr::null::<u8>(), 0usize) };
    knows(Errno::result(result), Errno::EINVAL)
}

/// `clone3(CLONE_INTO_CGROUP)`: EBADF for a cgroup that is none, EINVAL where the flag is not known.
pub fn clone_into_cgroup() -> Asked {
    // SAFETY: clone_args is plain integers; all zero is its documented empty value.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = raw::CLONE_INTO_CGROUP;
    args.cgroup = c_int::MAX as u64;
    let size = size_of::<libc::clone_args>();
    // SAFETY: args lives across the call, which makes no child: no file has this number.
    let result = unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size) };
    match Errno::result(result) {
        Err(Errno::EBADF) => Ok(()),
        Err(errno) => Err(errno),
        // No process can have so many files. If one could, this would be the child, or its parent.
        Ok(0) => raw::exit(0),
        Ok(_) => Err(Errno::EINVAL),
    }
}

/// `pidfd_open(2)`.
pub fn pidfd_open() -> Asked {
    own_pidfd().map(drop)
}

/// `pidfd_send_signal(2)`.
pub fn pidfd_send_signal() -> Asked {
    fd::pidfd_signal(own_pidfd()?, 0)
}

/// `pidfd_getfd(2)`.
pub fn pidfd_getfd() -> Asked {
    knows(fd::pidfd_getfd(own_pidfd()?, c_int::MAX), Errno::EBADF)
}

/// `waitid(P_PIDFD)`: this process is not its own child.
pub fn waitid_pidfd() -> Asked {
    knows(fd::wait(Whom::Pidfd(own_pidfd()?.as_fd())), Errno::ECHILD)
}

/// `ioctl(PIDFD_GET_INFO)`, with the status of a process that has been waited for.
pub fn pidfd_get_info() -> Asked {
    const STATUS: c_int = 7;
    // The exit status of a child that works is 0.
    let pid = fork(|| Err(Errno::from_raw(STATUS)))?;
    let pidfd = fd::pidfd_open(pid.as_raw() as u32);
    let _ = wait(pid);
    match fd::ended(pidfd?)? {
        Some(status) if status == STATUS as u32 => Ok(()),
        _ => Err(Errno::ENODATA),
    }
}

/// `close_range(2)`.
pub fn close_range() -> Asked {
    raw::close_range(NO_FD, u32::MAX).map(drop)
}

/// `execveat(2)`.
pub fn execveat() -> Asked {
    // Not empty: the kernel logs that.
    let args = [c"probe".as_ptr(), ptr::null()];
    // SAFETY: both are arrays of C strings that end with null; no file has this number.
    let errno = unsafe { raw::exec_fd(NO_FD, args.as_ptr(), [ptr::null()].as_ptr()) };
    knows::<()>(Err(errno), Errno::EBADF)
}

/// `setns(2)` with a pidfd: into the namespace that this process is in.
pub fn setns_pidfd() -> Asked {
    raw::setns(own_pidfd()?.as_raw_fd(), libc::CLONE_NEWUTS).map(drop)
}

/// A new namespace (`CLONE_NEW*`), made by a child and gone with it.
pub fn namespace(flag: c_int) -> Asked {
    in_child(|| raw::unshare(flag).map(drop))
}

/// `seccomp(SECCOMP_GET_ACTION_AVAIL)`.
pub fn seccomp_action(action: u32) -> Asked {
    seccomp(libc::SECCOMP_GET_ACTION_AVAIL, &raw const action)
}

/// `seccomp(SECCOMP_GET_NOTIF_SIZES)`: there are listeners.
pub fn seccomp_listener() -> Asked {
    let mut sizes = [0u16; 3];
    seccomp(libc::SECCOMP_GET_NOTIF_SIZES, (&raw mut sizes).cast_const())
}

fn seccomp<T>(operation: u32, of: *const T) -> Asked {
    // SAFETY: of the callers' two operations one reads a u32, the other fills three u16; each brings
    // the address of a local of just that type.
    let result = unsafe { libc::syscall(libc::SYS_seccomp, operation, 0, of) };
    Errno::result(result).map(drop)
}

/// A copy of a mount that is attached nowhere.
pub fn clone_of_detached() -> Asked {
    let mount = super::mount::new_mount(c"tmpfs", &[], 0)?;
    super::mount::clone_mount(mount.as_fd()).map(drop)
}

/// Whether a copy of the mount at `path` can have its ids mapped. The copy is attached nowhere.
pub fn mapped_ids(path: &CStr) -> Asked {
    let mount = super::mount::clone_path(path)?;
    let (family, kind) = (AddressFamily::Unix, SockType::Stream);
    let (ours, theirs) = socketpair(family, kind, None, SockFlag::SOCK_CLOEXEC)?;
    let pid = fork(|| {
        // What is waited for below must come when the parent has gone, too.
        raw::close(ours.as_raw_fd());
        raw::unshare(libc::CLONE_NEWUSER)?;
        raw::write(theirs.as_raw_fd(), &[0])?;
        raw::read(theirs.as_raw_fd(), &mut [0]).map(drop)
    })?;
    drop(theirs);
    let mapped = match raw::read(ours.as_raw_fd(), &mut [0]) {
        Ok(1) => map(pid)
            .and_then(|user| raw::map_ids(mount.as_raw_fd(), user.as_raw_fd(), false).map(drop)),
        // Its own error is the one that counts.
        _ => Ok(()),
    };
    drop(ours);
    wait(pid).and(mapped)
}

/// The user namespace of a child, with a mapping.
fn map(pid: Pid) -> Result<OwnedFd, Errno> {
    let errno = |error: std::io::Error| Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO));
    for map in ["uid_map", "gid_map"] {
        std::fs::write(format!("/proc/{pid}/{map}"), "0 65536 1\n").map_err(errno)?;
    }
    Ok(std::fs::File::open(format!("/proc/{pid}/ns/user")).map_err(errno)?.into())
}

/// Runs `work`, which may make system calls only, in a child; what it says.
fn in_child(work: impl FnOnce() -> Asked) -> Asked {
    wait(fork(work)?)
}

fn fork(work: impl FnOnce() -> Asked) -> Result<Pid, Errno> {
    // SAFETY: the child makes system calls only, which is sound after fork in any process.
    match unsafe { libc::fork() } {
        0 => raw::exit(work().err().map_or(0, |errno| errno as c_int)),
        pid => Errno::result(pid).map(Pid::from_raw),
    }
}

/// The errno that a child of [`fork`] has ended with.
fn wait(pid: Pid) -> Asked {
    use nix::sys::wait::{WaitStatus, waitpid};
    loop {
        match waitpid(pid, None) {
            Ok(WaitStatus::Exited(_, 0)) => return Ok(()),
            Ok(WaitStatus::Exited(_, errno)) => return Err(Errno::from_raw(errno)),
            Ok(_) => return Err(Errno::EINTR),
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_says_what_its_call_said() {
        assert_eq!(in_child(|| Ok(())), Ok(()));
        assert_eq!(in_child(|| Err(Errno::ENOSYS)), Err(Errno::ENOSYS));
        let number = libc::c_long::from(i32::MAX);
        // SAFETY: no kernel has a call of this number.
        let missing = Errno::result(unsafe { libc::syscall(number) });
        assert_eq!(knows(missing, Errno::EBADF), Err(Errno::ENOSYS));
    }
}
