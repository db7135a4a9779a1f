//! Descriptors of the parent: message sockets to children, signals through pidfds, opens that
//! cannot follow a link.

use std::ffi::CStr;
use std::io::IoSliceMut;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, ControlMessageOwned, MsgFlags, SockFlag, SockType, recvmsg, socketpair,
};

use super::raw;

/// A pair of sockets that keep message boundaries, close-on-exec; the first is non-blocking.
pub fn message_pair() -> Result<(OwnedFd, OwnedFd), Errno> {
    let (ours, theirs) =
        socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
    let flags = nix::fcntl::OFlag::O_NONBLOCK;
    nix::fcntl::fcntl(&ours, nix::fcntl::FcntlArg::F_SETFL(flags))?;
    Ok((ours, theirs))
}

/// A message of 8 bytes and a descriptor, if one came with it.
pub type Message = ([u8; 8], Option<OwnedFd>);

/// One message of 8 bytes and the descriptor that came with it. `None`: the peer is gone.
pub fn receive(socket: BorrowedFd<'_>) -> Result<Option<Message>, Errno> {
    let mut bytes = [0u8; 8];
    let mut space = nix::cmsg_space!([RawFd; 1]);
    let mut iov = [IoSliceMut::new(&mut bytes)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let msg = recvmsg::<()>(socket.as_raw_fd(), &mut iov, Some(&mut space), flags)?;
    let fd = msg.cmsgs()?.find_map(|cmsg| match cmsg {
        ControlMessageOwned::ScmRights(fds) => fds.first().copied(),
        _ => None,
    });
    // SAFETY: the kernel has just installed this descriptor for us; nobody else owns it.
    let fd = fd.map(|fd| unsafe { OwnedFd::from_raw_fd(fd) });
    Ok(if msg.bytes == 8 { Some((bytes, fd)) } else { None })
}

/// A `NETLINK_ROUTE` socket of the network namespace that this process is in.
pub fn route_socket() -> Result<OwnedFd, Errno> {
    owned(raw::route_socket()?)
}

/// Opens with `RESOLVE_NO_SYMLINKS`, close-on-exec.
pub fn open_no_symlinks(path: &CStr, flags: i32) -> Result<OwnedFd, Errno> {
    owned(raw::openat2(raw::CWD, path, flags, 0, libc::RESOLVE_NO_SYMLINKS)?)
}

/// `pidfd_open(2)`.
pub fn pidfd_open(pid: u32) -> Result<OwnedFd, Errno> {
    // SAFETY: numbers only.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    if fd < 0 { Err(Errno::last()) } else { owned(fd as RawFd) }
}

/// `pidfd_send_signal(2)`: never hits a process that reuses the pid.
pub fn pidfd_signal(pidfd: impl AsFd, signal: i32) -> Result<(), Errno> {
    let fd = pidfd.as_fd().as_raw_fd();
    let null = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: null siginfo is allowed; the rest are numbers.
    let ret = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, fd, signal, null, 0) };
    if ret < 0 { Err(Errno::last()) } else { Ok(()) }
}

/// `pidfd_getfd(2)`: a copy of another process' descriptor, close-on-exec.
pub fn pidfd_getfd(pidfd: impl AsFd, number: i32) -> Result<OwnedFd, Errno> {
    // SAFETY: numbers only.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_getfd, pidfd.as_fd().as_raw_fd(), number, 0) };
    if fd < 0 { Err(Errno::last()) } else { owned(fd as RawFd) }
}

/// `ioctl(NS_GET_USERNS)`: the user namespace that a namespace belongs to.
pub fn user_namespace_of(ns: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    /// `_IO(0xb7, 1)` of `linux/nsfs.h`.
    const NS_GET_USERNS: u64 = 0xb701;
    owned(raw::ioctl(ns.as_raw_fd(), NS_GET_USERNS, 0)?)
}

/// Takes ownership of a descriptor that a raw call has just made.
pub(super) fn owned(fd: RawFd) -> Result<OwnedFd, Errno> {
    // SAFETY: callers pass what the kernel has just returned to them and to nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// How a child ended, as wait(2) tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended {
    pub pid: u32,
    /// Its exit code, or 128 + the signal's number: real-time ones too, which nix has no name for.
    pub status: u32,
}

/// Whom [`wait`] asks about.
#[derive(Clone, Copy, Debug)]
pub enum Whom<'a> {
    /// The child of this pidfd.
    Pidfd(BorrowedFd<'a>),
    /// The child with this pid.
    Pid(u32),
    /// Any child; it stays a zombie (`WNOWAIT`).
    PeekAny,
}

/// `waitid(2)` with `WEXITED | WNOHANG`. `None`: nobody has ended.
pub fn wait(whom: Whom<'_>) -> Result<Option<Ended>, Errno> {
    let mut flags = libc::WEXITED | libc::WNOHANG;
    let (kind, id) = match whom {
        Whom::Pidfd(fd) => (libc::P_PIDFD, fd.as_raw_fd() as libc::id_t),
        Whom::Pid(pid) => (libc::P_PID, pid),
        Whom::PeekAny => {
            flags |= libc::WNOWAIT;
            (libc::P_ALL, 0)
        }
    };
    // SAFETY: siginfo_t is plain integers; all zero is "nobody", as waitid(2) has it.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    // SAFETY: info is ours and of the type that the call fills.
    Errno::result(unsafe { libc::waitid(kind, id, &raw mut info, flags) })?;
    // SAFETY: waitid fills the fields of SIGCHLD, or leaves them zero.
    let pid = unsafe { info.si_pid() };
    // SAFETY: as above.
    let status = unsafe { info.si_status() } as u32;
    let status = if info.si_code == libc::CLD_EXITED { status } else { 128 + status };
    Ok((pid != 0).then_some(Ended { pid: pid as u32, status }))
}

/// How a process has ended that somebody else has waited for: `ioctl(PIDFD_GET_INFO)`. `None`: nobody
/// has, yet. A kernel before 6.15 does not know, and says so by an error.
pub fn ended(pidfd: impl AsFd) -> Result<Option<u32>, Errno> {
    /// `_IOWR(0xff, 11, struct pidfd_info)` of `linux/pidfd.h`, for the first 64 bytes of it.
    const PIDFD_GET_INFO: u64 = 0xc040_ff0b;
    const PIDFD_INFO_EXIT: u64 = 1 << 3;
    #[derive(Default)]
    #[repr(C)]
    struct Info {
        mask: u64,
        cgroup: u64,
        ids: [u32; 11],
        exit_code: i32,
    }
    let mut info = Info { mask: PIDFD_INFO_EXIT, ..Info::default() };
    let fd = pidfd.as_fd().as_raw_fd();
    // SAFETY: the number says how long `info` is, which the kernel reads and fills.
    let result = unsafe { libc::syscall(libc::SYS_ioctl, fd, PIDFD_GET_INFO, &raw mut info) };
    Errno::result(result)?;
    if info.mask & PIDFD_INFO_EXIT == 0 {
        return Ok(None);
    }
    let code = info.exit_code;
    let signal = libc::WTERMSIG(code);
    let status = if signal == 0 { libc::WEXITSTATUS(code) } else { 128 + signal };
    Ok(Some(status as u32))
}
