//! System calls that neither nix nor libc wrap, as functions that neither allocate nor block more
//! than the call itself, so that a child after clone may use them too.
//!
//! Descriptors are plain numbers here: a wrong one is an error of the kernel (EBADF), not unsound.
//! Every call that makes a descriptor sets close-on-exec. EINTR is left to the caller: a child has
//! no handlers.

use std::ffi::{CStr, c_char, c_int, c_long, c_uint, c_void};

use nix::errno::Errno;

/// `clone3(2)`: `CLONE_INTO_CGROUP`. libc has it as an int, where it is 0.
pub const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
/// `clone3(2)`: handlers of the parent do not reach the child. libc has it as an int, where it is 0.
pub const CLONE_CLEAR_SIGHAND: u64 = 0x1_0000_0000;

/// The current directory, as a descriptor for the `*at` calls.
pub const CWD: c_int = libc::AT_FDCWD;

const EMPTY: &CStr = c"";

/// `_LINUX_CAPABILITY_VERSION_3` of `capset(2)`.
const CAPABILITY_VERSION_3: u32 = 0x2008_0522;

fn check(ret: c_long) -> Result<c_int, Errno> {
    if ret < 0 { Err(Errno::last()) } else { Ok(ret as c_int) }
}

/// What a register can hold. Widened here, since C's varargs would leave the upper half undefined.
pub trait Arg {
    /// The value as the kernel gets it.
    fn register(self) -> c_long;
}

macro_rules! number_arg {
    ($($t:ty)*) => { $(impl Arg for $t { fn register(self) -> c_long { self as c_long } })* };
}
number_arg!(c_int c_uint u64 usize i64);

impl<T> Arg for *const T {
    fn register(self) -> c_long {
        self as c_long
    }
}

impl<T> Arg for *mut T {
    fn register(self) -> c_long {
        self as c_long
    }
}

/// A system call whose arguments are numbers, or pointers of which `$why` says what keeps them good.
macro_rules! call {
    ($why:literal, $nr:expr $(, $arg:expr)* $(,)?) => {{
        let _: &str = $why;
        // SAFETY: as `$why` says at the call; numbers are checked by the kernel.
        check(unsafe { libc::syscall($nr $(, Arg::register($arg))*) })
    }};
}

mod copy;
mod mount;
mod network;
mod seccomp;
mod signal;
mod task;

pub use copy::*;
pub use mount::*;
pub use network::*;
pub use seccomp::*;
pub use signal::*;
pub use task::*;

/// `openat2(2)`.
pub fn openat2(
    dir: c_int,
    path: &CStr,
    flags: c_int,
    mode: u32,
    resolve: u64,
) -> Result<c_int, Errno> {
    // SAFETY: open_how is plain integers; all zero is its documented empty value.
    let mut how: libc::open_how = unsafe { std::mem::zeroed() };
    how.flags = (flags | libc::O_CLOEXEC) as u64;
    how.mode = u64::from(mode);
    how.resolve = resolve;
    let size = size_of::<libc::open_how>();
    call!(
        "path and how live across the call",
        libc::SYS_openat2,
        dir,
        path.as_ptr(),
        &raw const how,
        size
    )
}

/// `openat(2)`.
pub fn openat(dir: c_int, path: &CStr, flags: c_int, mode: u32) -> Result<c_int, Errno> {
    let flags = flags | libc::O_CLOEXEC;
    call!("path lives across the call", libc::SYS_openat, dir, path.as_ptr(), flags, mode)
}

/// `close(2)`; nobody can do anything about its error.
pub fn close(fd: c_int) {
    let _ = call!("a number", libc::SYS_close, fd);
}

/// `write(2)` of all of `bytes` in one call; a short write is EIO.
pub fn write(fd: c_int, bytes: &[u8]) -> Result<(), Errno> {
    let n =
        call!("the slice lives across the call", libc::SYS_write, fd, bytes.as_ptr(), bytes.len())?;
    if n as usize == bytes.len() { Ok(()) } else { Err(Errno::EIO) }
}

/// `read(2)`.
pub fn read(fd: c_int, buf: &mut [u8]) -> Result<usize, Errno> {
    call!("the slice is ours and writable", libc::SYS_read, fd, buf.as_mut_ptr(), buf.len())
        .map(|n| n as usize)
}

/// `mkdirat(2)`.
pub fn mkdirat(dir: c_int, name: &CStr, mode: u32) -> Result<c_int, Errno> {
    call!("name lives across the call", libc::SYS_mkdirat, dir, name.as_ptr(), mode)
}

/// `mknodat(2)`.
pub fn mknodat(dir: c_int, name: &CStr, mode: u32, dev: u64) -> Result<c_int, Errno> {
    call!("name lives across the call", libc::SYS_mknodat, dir, name.as_ptr(), mode, dev as c_uint)
}

/// `symlinkat(2)`.
pub fn symlinkat(to: &CStr, dir: c_int, name: &CStr) -> Result<c_int, Errno> {
    call!("both strings live across the call", libc::SYS_symlinkat, to.as_ptr(), dir, name.as_ptr())
}

/// `rmdir(2)`, beneath an open directory.
pub fn rmdir(dir: c_int, path: &CStr) -> Result<c_int, Errno> {
    call!("path lives across the call", libc::SYS_unlinkat, dir, path.as_ptr(), libc::AT_REMOVEDIR)
}

/// `fchownat(2)` of the open file itself.
pub fn chown_fd(fd: c_int, uid: u32, gid: u32) -> Result<c_int, Errno> {
    let empty = EMPTY.as_ptr();
    call!("a static string", libc::SYS_fchownat, fd, empty, uid, gid, libc::AT_EMPTY_PATH)
}

/// `fstat(2)`.
pub fn fstat(fd: c_int) -> Result<libc::stat, Errno> {
    // SAFETY: stat is plain integers, so all zero is a value.
    let mut stat: libc::stat = unsafe { std::mem::zeroed() };
    // SAFETY: stat is ours, of the type that libc's fstat fills.
    let ret = unsafe { libc::fstat(fd, &raw mut stat) };
    check(c_long::from(ret)).map(|_| stat)
}

/// The magic number of the file system that an open file lies in: `fstatfs(2)`.
pub fn fs_magic(fd: c_int) -> Result<i64, Errno> {
    // SAFETY: statfs is plain integers, so all zero is a value.
    let mut stat: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: stat is ours, of the type that libc's fstatfs fills.
    let ret = unsafe { libc::fstatfs(fd, &raw mut stat) };
    check(c_long::from(ret)).map(|_| stat.f_type as i64)
}

/// `fsetxattr(2)`.
pub fn fsetxattr(fd: c_int, name: &CStr, value: &[u8]) -> Result<c_int, Errno> {
    let (name, len) = (name.as_ptr(), value.len());
    call!("both live across the call", libc::SYS_fsetxattr, fd, name, value.as_ptr(), len, 0)
}

/// `faccessat(2)` for execution, as the real user.
pub fn may_execute(path: &CStr) -> Result<c_int, Errno> {
    call!("path lives across the call", libc::SYS_faccessat, CWD, path.as_ptr(), libc::X_OK)
}

/// `chdir(2)`.
pub fn chdir(path: &CStr) -> Result<c_int, Errno> {
    call!("path lives across the call", libc::SYS_chdir, path.as_ptr())
}

/// `fchdir(2)`.
pub fn fchdir(fd: c_int) -> Result<c_int, Errno> {
    call!("a number", libc::SYS_fchdir, fd)
}

/// `getcwd(2)`; the kernel's own length, with the final NUL.
pub fn getcwd(buf: &mut [u8]) -> Result<usize, Errno> {
    call!("the slice is ours and writable", libc::SYS_getcwd, buf.as_mut_ptr(), buf.len())
        .map(|n| n as usize)
}

/// `unshare(2)`.
pub fn unshare(flags: c_int) -> Result<c_int, Errno> {
    call!("numbers", libc::SYS_unshare, flags)
}

/// `setns(2)` with a namespace's fd or a pidfd.
pub fn setns(fd: c_int, flags: c_int) -> Result<c_int, Errno> {
    call!("numbers", libc::SYS_setns, fd, flags)
}

/// `sethostname(2)`.
pub fn sethostname(name: &[u8]) -> Result<c_int, Errno> {
    call!("the slice lives across the call", libc::SYS_sethostname, name.as_ptr(), name.len())
}

/// `setdomainname(2)`.
pub fn setdomainname(name: &[u8]) -> Result<c_int, Errno> {
    call!("the slice lives across the call", libc::SYS_setdomainname, name.as_ptr(), name.len())
}

/// `umask(2)`: the mask before.
pub fn umask(mask: u32) -> u32 {
    call!("a number; cannot fail", libc::SYS_umask, mask).unwrap_or(0) as u32
}

/// `setsid(2)`.
pub fn setsid() -> Result<c_int, Errno> {
    call!("no argument", libc::SYS_setsid)
}

/// `dup3(2)`; with `cloexec`, the copy does not survive `execve`.
pub fn dup3(from: c_int, to: c_int, cloexec: bool) -> Result<c_int, Errno> {
    call!("numbers", libc::SYS_dup3, from, to, if cloexec { libc::O_CLOEXEC } else { 0 })
}

/// `fcntl(F_DUPFD_CLOEXEC)`: a copy with a number of at least `least`.
pub fn dup_above(fd: c_int, least: c_int) -> Result<c_int, Errno> {
    call!("numbers", libc::SYS_fcntl, fd, libc::F_DUPFD_CLOEXEC, least)
}

/// Clears close-on-exec, for a descriptor that is already where it belongs.
pub fn keep_on_exec(fd: c_int) -> Result<c_int, Errno> {
    call!("numbers", libc::SYS_fcntl, fd, libc::F_SETFD, 0)
}

/// `close_range(first, last)`.
pub fn close_range(first: c_int, last: c_uint) -> Result<c_int, Errno> {
    call!("numbers", libc::SYS_close_range, first, last, 0)
}

/// `close_range(first, ~0)`.
pub fn close_from(first: c_int) -> Result<c_int, Errno> {
    close_range(first, c_uint::MAX)
}

/// `clone(CLONE_PARENT)`: 0 in the new process, which is a sibling of this one; its pid in this one.
/// Both go on with the same code, on copies of the same memory. Not `clone3`: its flags are in memory,
/// where no seccomp filter sees them, so usual filters have it fail.
pub fn clone_sibling() -> Result<c_int, Errno> {
    // No stack of its own, and no word of any kind to write.
    call!("numbers", libc::SYS_clone, libc::CLONE_PARENT, 0, 0, 0, 0)
}

/// `setgroups(2)`.
pub fn setgroups(gids: &[u32]) -> Result<c_int, Errno> {
    call!("the slice lives across the call", libc::SYS_setgroups, gids.len(), gids.as_ptr())
}

/// `setresgid(2)` of all three.
pub fn setgid(gid: u32) -> Result<c_int, Errno> {
    call!("numbers", libc::SYS_setresgid, gid, gid, gid)
}

/// `setresuid(2)` of all three.
pub fn setuid(uid: u32) -> Result<c_int, Errno> {
    call!("numbers", libc::SYS_setresuid, uid, uid, uid)
}

/// `prctl(2)` with number arguments.
pub fn prctl(option: c_int, a: u64, b: u64) -> Result<c_int, Errno> {
    call!("numbers", libc::SYS_prctl, option, a, b, 0, 0)
}

/// `capset(2)`, version 3, on itself.
pub fn capset(effective: u64, permitted: u64, inheritable: u64) -> Result<c_int, Errno> {
    let header: [u32; 2] = [CAPABILITY_VERSION_3, 0];
    let half = |shift: u32| [effective, permitted, inheritable].map(|set| (set >> shift) as u32);
    let sets: [[u32; 3]; 2] = [half(0), half(32)];
    call!(
        "header and sets have the kernel's layout",
        libc::SYS_capset,
        header.as_ptr(),
        sets.as_ptr()
    )
}

/// `prlimit(2)` on itself.
pub fn set_rlimit(resource: u32, soft: u64, hard: u64) -> Result<c_int, Errno> {
    let limit: [u64; 2] = [soft, hard];
    let null = std::ptr::null::<c_void>();
    call!(
        "limit has the layout of rlimit64",
        libc::SYS_prlimit64,
        0,
        resource,
        limit.as_ptr(),
        null
    )
}

/// `keyctl(KEYCTL_JOIN_SESSION_KEYRING)`.
pub fn join_session_keyring(name: &CStr) -> Result<c_int, Errno> {
    call!(
        "name lives across the call",
        libc::SYS_keyctl,
        libc::KEYCTL_JOIN_SESSION_KEYRING,
        name.as_ptr()
    )
}

/// `ioctl(2)` with a number.
pub fn ioctl(fd: c_int, request: impl Arg, arg: u64) -> Result<c_int, Errno> {
    call!("the request takes a number, not a pointer", libc::SYS_ioctl, fd, request, arg)
}

/// Unlocks the slave of a pty: `TIOCSPTLCK`.
pub fn unlock_pty(master: c_int) -> Result<c_int, Errno> {
    let unlocked: c_int = 0;
    call!(
        "the request reads one int",
        libc::SYS_ioctl,
        master,
        libc::TIOCSPTLCK,
        &raw const unlocked
    )
}

/// `TIOCSWINSZ`.
pub fn set_window_size(tty: c_int, rows: u16, cols: u16) -> Result<c_int, Errno> {
    let size = libc::winsize { ws_row: rows, ws_col: cols, ws_xpixel: 0, ws_ypixel: 0 };
    call!("the request reads one winsize", libc::SYS_ioctl, tty, libc::TIOCSWINSZ, &raw const size)
}

/// `nanosleep(2)`.
pub fn sleep_ms(ms: i64) {
    let time = libc::timespec { tv_sec: ms / 1000, tv_nsec: (ms % 1000) * 1_000_000 };
    let null = std::ptr::null::<c_void>();
    let _ = call!("time lives across the call", libc::SYS_nanosleep, &raw const time, null);
}

/// `exit_group(2)`: no destructor, no buffer, no lock. A seccomp filter may refuse even that: what
/// ends the process then is an instruction, which needs no system call.
pub fn exit(status: c_int) -> ! {
    let _ = call!("a number", libc::SYS_exit_group, status);
    trap()
}

/// SIGILL or SIGTRAP.
fn trap() -> ! {
    // SAFETY: the instruction raises an exception and touches neither memory nor registers.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        std::arch::asm!("ud2", options(noreturn, nostack))
    }
    // SAFETY: as above.
    #[cfg(target_arch = "aarch64")]
    unsafe {
        std::arch::asm!("brk #1", options(noreturn, nostack))
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    std::process::abort()
}

/// Sends one message, with at most one descriptor, on a socket.
pub fn send(socket: c_int, bytes: &[u8], fd: Option<c_int>) -> Result<(), Errno> {
    #[repr(C, align(8))]
    struct Control {
        len: usize,
        level: c_int,
        kind: c_int,
        fd: c_int,
        pad: c_int,
    }
    let mut iov = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    let mut control = Control {
        len: 16 + size_of::<c_int>(),
        level: libc::SOL_SOCKET,
        kind: libc::SCM_RIGHTS,
        fd: fd.unwrap_or(-1),
        pad: 0,
    };
    // SAFETY: msghdr is integers and pointers; all zero means "none" for each.
    let mut msg: libc::msghdr = unsafe { std::mem::zeroed() };
    msg.msg_iov = &raw mut iov;
    msg.msg_iovlen = 1;
    if fd.is_some() {
        msg.msg_control = (&raw mut control).cast();
        msg.msg_controllen = size_of::<Control>() as _;
    }
    call!(
        "msg, iov and control live across the call",
        libc::SYS_sendmsg,
        socket,
        &raw const msg,
        libc::MSG_NOSIGNAL
    )
    .map(|_| ())
}

/// `execve(2)`. Returns only its error.
///
/// # Safety
/// `argv` and `envp` must be arrays of C strings that end with a null pointer.
pub unsafe fn execve(path: &CStr, argv: *const *const c_char, envp: *const *const c_char) -> Errno {
    call!("the caller's contract", libc::SYS_execve, path.as_ptr(), argv, envp)
        .err()
        .unwrap_or(Errno::EIO)
}

/// `execveat(AT_EMPTY_PATH)`. Returns only its error.
///
/// # Safety
/// As [`execve`].
pub unsafe fn exec_fd(fd: c_int, argv: *const *const c_char, envp: *const *const c_char) -> Errno {
    let empty = EMPTY.as_ptr();
    call!("the caller's contract", libc::SYS_execveat, fd, empty, argv, envp, libc::AT_EMPTY_PATH)
        .err()
        .unwrap_or(Errno::EIO)
}
