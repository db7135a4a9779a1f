//! Running our own binary again: the read-only mount it runs from, the detached process, the
//! descriptors it inherits.
//!
//! The child of [`spawn`] makes system calls only: no allocation, no lock, no panic.

use std::ffi::{CStr, CString, c_char, c_int, c_long, c_uint, c_ulong};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
use nix::sys::wait::waitpid;
use nix::unistd::{Pid, pipe2, read};

use super::raw;

/// `linux/prctl.h`; musl's libc has none of these.
const PR_SCHED_CORE: c_int = 62;
const PR_SCHED_CORE_CREATE: c_ulong = 1;
const PR_SCHED_CORE_SCOPE_THREAD_GROUP: c_ulong = 1;

/// One more than the highest signal number of Linux.
const SIGNALS_END: c_long = 65;
/// Of a kernel's signal set, in bytes.
const SIGSET_SIZE: usize = 8;

/// What a child after fork reports when it could not become the program.
const REPORT_LEN: usize = 8;

/// The calls of a child before its program runs, as its report numbers them.
const STEPS: [&str; 4] = ["setsid", "dup3", "close_range", "execveat"];

fn check(ret: c_long) -> Result<RawFd, Errno> {
    // A descriptor or zero: both fit.
    Errno::result(ret).map(|fd| fd as RawFd)
}

/// `open_tree(path, OPEN_TREE_CLONE)`: a detached copy of one mount with `path` as its root, made
/// read-only. Follows a symlink at the end, `/proc/self/exe` too. Sets close-on-exec.
///
/// While such a descriptor is open, its holder can make the mount writable again; once it is
/// closed nobody can.
pub fn clone_mount_readonly(path: &CStr) -> Result<OwnedFd, Errno> {
    let flags = (libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC) as c_ulong;
    // SAFETY: `path` is NUL-terminated and outlives the call, the other arguments are integers.
    let ret = unsafe {
        libc::syscall(libc::SYS_open_tree, c_long::from(libc::AT_FDCWD), path.as_ptr(), flags)
    };
    let fd = check(ret)?;
    // SAFETY: the call has just made this descriptor, so nobody else owns it.
    let tree = unsafe { OwnedFd::from_raw_fd(fd) };
    let attr = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_RDONLY,
        attr_clr: 0,
        propagation: 0,
        userns_fd: 0,
    };
    let size = size_of::<libc::mount_attr>();
    // SAFETY: the empty path and `attr` outlive the call, and `size` is the size of `attr`.
    let ret = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            c_long::from(tree.as_raw_fd()),
            c"".as_ptr(),
            c_long::from(libc::AT_EMPTY_PATH),
            &raw const attr,
            size,
        )
    };
    check(ret)?;
    Ok(tree)
}

/// A program to run, and all that it gets.
#[derive(Debug)]
pub struct Program<'a> {
    /// A directory, or with an empty `name` the file itself.
    pub dir: BorrowedFd<'a>,
    pub name: &'a CStr,
    pub args: &'a [CString],
    pub env: &'a [CString],
    /// Its descriptors 0, 1, 2, …; it gets no other.
    pub fds: &'a [BorrowedFd<'a>],
}

/// Everything that [`become_program`] needs, where it needs no allocation to reach it.
struct Frozen<'a> {
    dir: RawFd,
    name: &'a CStr,
    argv: &'a [*const c_char],
    envp: &'a [*const c_char],
    fds: &'a [RawFd],
    report: RawFd,
}

/// Runs `program` as a session leader with no signal blocked or ignored, and returns once its
/// `execveat(2)` is done. The name of the call that failed is in the error.
pub fn spawn(program: &Program<'_>) -> Result<Pid, (&'static str, Errno)> {
    let in_pipe = |errno| ("pipe2", errno);
    let (reader, writer) = pipe2(OFlag::O_CLOEXEC).map_err(in_pipe)?;
    // Above the targets 0, 1, 2, …: no dup3 of the child overwrites a source that is still to come.
    let first = program.fds.len() as RawFd;
    let above =
        |fd: BorrowedFd<'_>| above(fd, first).map_err(|errno| ("fcntl(F_DUPFD_CLOEXEC)", errno));
    let dir = above(program.dir)?;
    let report = above(writer.as_fd())?;
    drop(writer);
    let sources = program.fds.iter().map(|fd| above(*fd)).collect::<Result<Vec<_>, _>>()?;
    let frozen = Frozen {
        dir: dir.as_raw_fd(),
        name: program.name,
        argv: &pointers(program.args),
        envp: &pointers(program.env),
        fds: &sources.iter().map(AsRawFd::as_raw_fd).collect::<Vec<_>>(),
        report: report.as_raw_fd(),
    };
    // SAFETY: the child makes system calls only, which is sound after fork in any process.
    let pid = match Errno::result(unsafe { libc::fork() }).map_err(|errno| ("fork", errno))? {
        0 => become_program(&frozen),
        pid => Pid::from_raw(pid),
    };
    drop(report);
    let mut message = [0; REPORT_LEN];
    match read(&reader, &mut message) {
        Ok(REPORT_LEN) => {
            let _ = waitpid(pid, None);
            Err(parse_report(message))
        }
        // End of file: close-on-exec has closed the other end.
        _ => Ok(pid),
    }
}

/// A copy of `fd` with a number of at least `first`. Sets close-on-exec.
fn above(fd: BorrowedFd<'_>, first: RawFd) -> Result<OwnedFd, Errno> {
    let fd = fcntl(fd, FcntlArg::F_DUPFD_CLOEXEC(first))?;
    // SAFETY: the call has just made this descriptor, so nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn pointers(strings: &[CString]) -> Vec<*const c_char> {
    strings.iter().map(|s| s.as_ptr()).chain([std::ptr::null()]).collect()
}

fn parse_report(message: [u8; REPORT_LEN]) -> (&'static str, Errno) {
    let [a, b, c, d, step, ..] = message;
    let name = STEPS.get(usize::from(step)).copied().unwrap_or("spawn");
    (name, Errno::from_raw(i32::from_le_bytes([a, b, c, d])))
}

/// The child's half of [`spawn`].
fn become_program(frozen: &Frozen<'_>) -> ! {
    let Err((step, errno)) = try_become_program(frozen);
    let [a, b, c, d] = (errno as i32).to_le_bytes();
    let message = [a, b, c, d, step, 0, 0, 0];
    // SAFETY: `message` outlives the call and has the length that is given.
    unsafe { libc::write(frozen.report, message.as_ptr().cast(), REPORT_LEN) };
    // SAFETY: ends this process without a handler of the parent's.
    unsafe { libc::_exit(127) }
}

fn try_become_program(frozen: &Frozen<'_>) -> Result<std::convert::Infallible, (u8, Errno)> {
    // SAFETY: no arguments.
    Errno::result(unsafe { libc::setsid() }).map_err(|errno| (0, errno))?;
    default_signals();
    let mut target = 0;
    for source in frozen.fds {
        // SAFETY: integers only. Clears close-on-exec of the copy.
        Errno::result(unsafe { libc::dup3(*source, target, 0) }).map_err(|errno| (1, errno))?;
        target += 1;
    }
    let (first, last, flags) = (target as c_uint, c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC);
    // SAFETY: integers only; nothing is closed before the exec, which nothing outlives.
    let ret = unsafe { libc::syscall(libc::SYS_close_range, first, last, flags) };
    check(ret).map_err(|errno| (2, errno))?;
    let flags = if frozen.name.is_empty() { libc::AT_EMPTY_PATH } else { 0 };
    // SAFETY: the name and both arrays are NUL-terminated and live in the parent's frame, of which
    // this process has a copy.
    let ret = unsafe {
        libc::syscall(
            libc::SYS_execveat,
            c_long::from(frozen.dir),
            frozen.name.as_ptr(),
            frozen.argv.as_ptr(),
            frozen.envp.as_ptr(),
            c_long::from(flags),
        )
    };
    check(ret).map_err(|errno| (3, errno))?;
    Err((3, Errno::UnknownErrno))
}

/// An exec keeps what is ignored and blocked: neither containerd's choice nor ours may reach the
/// server (an ignored SIGCHLD would lose every exit status).
///
/// By the bare call: libc's keeps two of the numbers to itself, and they are inherited too.
fn default_signals() {
    // `struct sigaction` of the kernel, on every machine: SIG_DFL, no flags, an empty mask.
    let default = [0_u64; 4];
    let null = std::ptr::null_mut::<u64>();
    for signal in 1..SIGNALS_END {
        // SAFETY: `default` outlives the call, and a null old action is allowed.
        unsafe {
            libc::syscall(libc::SYS_rt_sigaction, signal, default.as_ptr(), null, SIGSET_SIZE)
        };
    }
    let none = 0_u64;
    // SAFETY: `none` outlives the call, and a null old set is allowed.
    unsafe {
        libc::syscall(
            libc::SYS_rt_sigprocmask,
            c_long::from(libc::SIG_SETMASK),
            &raw const none,
            null,
            SIGSET_SIZE,
        )
    };
}

/// The descriptor `fd` that this process was started with, from now on close-on-exec.
/// EBADF if there is none. Call it once for each number, before anything else opens a file.
pub fn inherited(fd: RawFd) -> Result<OwnedFd, Errno> {
    // SAFETY: `fcntl` below says EBADF if it is not open, and nothing is closed before that.
    let borrowed = unsafe { BorrowedFd::borrow_raw(fd) };
    fcntl(borrowed, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
    // SAFETY: it is open, and by this function's contract nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Ignores SIGCHLD: the kernel then reaps children itself.
pub fn ignore_sigchld() {
    // SAFETY: SIG_IGN runs no code of ours.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_IGN) };
}

/// `prctl(PR_SCHED_CORE_CREATE)` for this process; its children inherit the cookie.
pub fn create_core_cookie() -> Result<(), Errno> {
    let this: c_ulong = 0;
    let unused: c_ulong = 0;
    // SAFETY: integers only, and the pointer is null.
    let ret = unsafe {
        libc::prctl(
            PR_SCHED_CORE,
            PR_SCHED_CORE_CREATE,
            this,
            PR_SCHED_CORE_SCOPE_THREAD_GROUP,
            unused,
        )
    };
    Errno::result(ret).map(drop)
}

/// Closes every descriptor of this process.
pub fn close_all() {
    // Cannot fail with these numbers; nobody is left to tell, either.
    let _ = raw::close_from(0);
}

/// Allows this process no system call but the one that it sleeps in, and sleeps.
pub fn sleep_for_ever() -> ! {
    let statement =
        |code: u32, jt: u8, jf: u8, k: u32| libc::sock_filter { code: code as u16, jt, jf, k };
    let load = |offset: u32| statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, offset);
    let allow_if = |nr: i64, to_allow: u8| {
        statement(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, to_allow, 0, nr as u32)
    };
    let answer = |action: u32| statement(libc::BPF_RET | libc::BPF_K, 0, 0, action);
    // Numbers of another architecture mean other calls, and need not be told apart: only exits and
    // sleeps are allowed, and the rest is refused whatever it means.
    let filter = [
        load(0),
        allow_if(libc::SYS_ppoll, 3),
        allow_if(libc::SYS_rt_sigreturn, 2),
        allow_if(libc::SYS_exit_group, 1),
        answer(libc::SECCOMP_RET_ERRNO | libc::EPERM as u32),
        answer(libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_ptr().cast_mut() };
    // SAFETY: the kernel copies the program, which lives across the call, and only reads it.
    unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) };
    loop {
        // SAFETY: no descriptors, no timeout, no mask: null for each is what the call wants.
        unsafe { libc::syscall(libc::SYS_ppoll, 0usize, 0usize, 0usize, 0usize, 0usize) };
    }
}
