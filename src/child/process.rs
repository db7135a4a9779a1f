//! Ops about the process itself: its terminal, user, capabilities, program.
//!
//! Nothing here may allocate; see the module's head.

use std::ffi::{CStr, CString};

use nix::errno::Errno;

use super::report::{Call, GO, Report};
use super::{At, Fail, Fd, Frozen, path};
use crate::plan::seccomp::Filter;
use crate::sys::raw;

const KEEP_ON_EXEC: bool = false;
/// Capabilities are bits of a u64; the kernel's highest says EINVAL beyond it.
const CAPS: u64 = 64;
/// Signals 1 to 64.
const SIGNALS: i32 = 64;

/// A kernel without keyrings has none to inherit.
pub(super) fn join_keyring(name: &CStr) -> Result<(), Fail> {
    match raw::join_session_keyring(name) {
        Ok(_) | Err(Errno::ENOSYS) => Ok(()),
        Err(errno) => Err(Fail(Call::Keyctl, errno)),
    }
}

/// Lowering needs CAP_SYS_RESOURCE; a value that is already there needs no write.
pub(super) fn oom_score(adj: i32) -> Result<(), Fail> {
    let mut text = [0u8; 8];
    let wanted = decimal(adj, &mut text);
    let file = c"/proc/self/oom_score_adj";
    match path::write_file(file, wanted) {
        Err(fail @ Fail(_, Errno::EACCES | Errno::EPERM)) => {
            let fd = Fd(raw::openat(raw::CWD, file, libc::O_RDONLY, 0).at(Call::Open)?);
            let mut now = [0u8; 16];
            let n = raw::read(fd.0, &mut now).at(Call::Read)?;
            let now = now.get(..n).unwrap_or_default().trim_ascii_end();
            if now == wanted { Ok(()) } else { Err(fail) }
        }
        result => result,
    }
}

/// A small number in decimal.
fn decimal(number: i32, text: &mut [u8; 8]) -> &[u8] {
    let mut rest = number.unsigned_abs();
    let mut start = text.len();
    loop {
        start = start.saturating_sub(1);
        if let Some(digit) = text.get_mut(start) {
            *digit = b'0'.saturating_add((rest % 10) as u8);
        }
        rest /= 10;
        if rest == 0 || start <= 1 {
            break;
        }
    }
    if number < 0 {
        start = start.saturating_sub(1);
        if let Some(sign) = text.get_mut(start) {
            *sign = b'-';
        }
    }
    text.get(start..).unwrap_or_default()
}

/// The slave of a new pty; its master goes to the parent.
pub(super) fn open_pty(
    f: &Frozen<'_>,
    root: i32,
    size: Option<(u16, u16)>,
    owner: u32,
    index: u16,
) -> Result<i32, Fail> {
    let master = path::ptmx(root)?;
    raw::unlock_pty(master.0).at(Call::Ioctl)?;
    // By the master, never by a path below /dev/pts (CVE-2025-52565).
    let flags = (libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC) as u64;
    let slave = raw::ioctl(master.0, libc::TIOCGPTPEER, flags).at(Call::Ioctl)?;
    if let Some((rows, cols)) = size {
        raw::set_window_size(slave, rows, cols).at(Call::Ioctl)?;
    }
    if owner != 0 {
        raw::chown_fd(slave, owner, u32::MAX).at(Call::Fchownat)?;
    }
    Report::Master { op: index }.send_with(f.fd(f.report)?, master.0).at(Call::Send)?;
    Ok(slave)
}

/// Ends this process; the plan goes on in a new one, a child of the shim as this one is.
pub(super) fn birth(report: i32, index: u16) -> Result<(), Fail> {
    let pid = raw::clone_sibling().at(Call::Clone)?;
    if pid == 0 {
        return Ok(());
    }
    Report::Born { op: index, pid }.send(report).at(Call::Write)?;
    raw::exit(0)
}

pub(super) fn dup(from: i32, to: i32) -> Result<(), Fail> {
    if from == to {
        return raw::keep_on_exec(to).at(Call::Dup3).map(drop);
    }
    raw::dup3(from, to, KEEP_ON_EXEC).at(Call::Dup3).map(drop)
}

/// Permission bits in octal, as a C string.
pub(super) fn octal(mode: u32) -> [u8; 5] {
    let digit = |shift: u32| b'0'.saturating_add(((mode >> shift) & 7) as u8);
    [digit(9), digit(6), digit(3), digit(0), 0]
}

/// Never a device: `/dev/null` belongs to all (CVE-2026-88265).
pub(super) fn chown_stdio(uid: u32) -> Result<(), Fail> {
    for fd in 0..=2 {
        let stat = raw::fstat(fd).at(Call::Fstat)?;
        if stat.st_mode & libc::S_IFMT != libc::S_IFIFO || stat.st_uid == uid {
            continue;
        }
        match raw::chown_fd(fd, uid, u32::MAX) {
            Ok(_) | Err(Errno::EPERM | Errno::EROFS | Errno::EINVAL) => {}
            Err(errno) => return Err(Fail(Call::Fchownat, errno)),
        }
    }
    Ok(())
}

pub(super) fn bounding_set(keep: u64) -> Result<(), Fail> {
    for cap in 0..CAPS {
        if raw::prctl(libc::PR_CAPBSET_READ, cap, 0).is_err() {
            return Ok(());
        }
        if keep & (1 << cap) == 0 {
            raw::prctl(libc::PR_CAPBSET_DROP, cap, 0).at(Call::Prctl)?;
        }
    }
    Ok(())
}

pub(super) fn ambient(caps: u64) -> Result<(), Fail> {
    raw::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL as u64, 0).at(Call::Prctl)?;
    for cap in (0..CAPS).filter(|cap| caps & (1 << cap) != 0) {
        raw::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_RAISE as u64, cap).at(Call::Prctl)?;
    }
    Ok(())
}

/// The directory may be closed to root, or to the user: tried before and after the change.
pub(super) fn chdir(f: &mut Frozen<'_>, path: &CStr, retry: bool) -> Result<(), Fail> {
    if !retry && !f.state.chdir_pending {
        return Ok(());
    }
    match raw::chdir(path) {
        Err(Errno::EACCES | Errno::EPERM) if retry => {
            f.state.chdir_pending = true;
            Ok(())
        }
        result => result.at(Call::Chdir).map(drop),
    }
}

/// The kernel's getcwd says `(unreachable)/…` for a directory outside the root.
pub(super) fn verify_cwd() -> Result<(), Fail> {
    let mut buf = [0u8; 4096];
    match raw::getcwd(&mut buf) {
        Ok(_) if buf.first() == Some(&b'/') => Ok(()),
        Ok(_) => Err(Fail(Call::OutsideRoot, Errno::EPERM)),
        // ERANGE: a path longer than the buffer; it would begin with a slash or not all the same,
        // so refuse it. ENOENT: removed meanwhile.
        Err(errno) => Err(Fail(Call::Getcwd, errno)),
    }
}

/// The first candidate that is a file and may be executed. As exec does: EACCES beats ENOENT.
pub(super) fn find_executable(candidates: &[CString]) -> Result<&CString, Fail> {
    let mut worst = Fail(Call::Access, Errno::ENOENT);
    for path in candidates {
        match executable(path) {
            Ok(()) => return Ok(path),
            Err(Errno::ENOENT | Errno::ENOTDIR) => {}
            Err(errno) => worst = Fail(Call::Access, errno),
        }
    }
    Err(worst)
}

fn executable(path: &CStr) -> Result<(), Errno> {
    let fd = Fd(raw::openat(raw::CWD, path, libc::O_PATH, 0)?);
    match raw::fstat(fd.0)?.st_mode & libc::S_IFMT {
        libc::S_IFREG => raw::may_execute(path).map(drop),
        libc::S_IFDIR => Err(Errno::EISDIR),
        _ => Err(Errno::EACCES),
    }
}

pub(super) fn reset_signals() -> Result<(), Fail> {
    for signal in (1..=SIGNALS).filter(|s| ![libc::SIGKILL, libc::SIGSTOP].contains(s)) {
        raw::default_signal(signal).at(Call::Sigaction)?;
    }
    raw::unblock_signals().at(Call::Sigprocmask).map(drop)
}

/// Parks the child. If the parent is gone, so is the reason to live.
pub(super) fn ready(report: i32, index: u16) -> Result<(), Fail> {
    Report::Ready { op: index }.send(report).at(Call::Write)?;
    wait(report);
    Ok(())
}

/// From here on the filter has its say. Its listener is told of by a number and fetched by the parent:
/// to send it would take a call that may wait for that very listener.
pub(super) fn seccomp(report: i32, filter: &Filter, index: u16) -> Result<(), Fail> {
    let fd = raw::add_filter(filter.flags, &filter.program).at(Call::Seccomp)?;
    if filter.listener.is_some() {
        Report::Listener { op: index, fd }.send(report).at(Call::Write)?;
        wait(report);
        raw::close(fd);
    }
    Ok(())
}

/// Waits for the parent's word.
fn wait(report: i32) {
    let mut word = [0u8; 1];
    loop {
        match raw::read(report, &mut word) {
            Ok(1) if word == GO => return,
            Err(Errno::EINTR) => {}
            _ => raw::exit(0),
        }
    }
}

pub(super) fn exec(f: &Frozen<'_>) -> Result<(), Fail> {
    let path = f.state.executable.ok_or(Fail(Call::Slot, Errno::ENOENT))?;
    // SAFETY: `Frozen::new` ended both arrays with null; their strings live as long as the plan.
    Err(Fail(Call::Execve, unsafe { raw::execve(path, f.argv.as_ptr(), f.envp.as_ptr()) }))
}

pub(super) fn exec_fd(f: &Frozen<'_>, exe: i32) -> Result<(), Fail> {
    // SAFETY: as in `exec`.
    Err(Fail(Call::Execve, unsafe { raw::exec_fd(exe, f.argv.as_ptr(), f.envp.as_ptr()) }))
}

/// `HOME` into the last entry of the environment: passwd(5)'s sixth field of the first line whose
/// third is `uid`; `/` where there is none, as every runtime does.
pub(super) fn home(f: &mut Frozen<'_>, uid: u32) -> Result<(), Fail> {
    let mut out = Buffer { bytes: &mut f.home, len: 0 };
    out.extend(b"HOME=");
    let found = match raw::openat2(
        raw::CWD,
        c"/etc/passwd",
        libc::O_RDONLY | libc::O_NONBLOCK,
        0,
        libc::RESOLVE_NO_MAGICLINKS,
    ) {
        Ok(fd) => scan_passwd(&Fd(fd), uid, &mut out)?,
        Err(_) => false,
    };
    if !found {
        out.len = 5;
        out.extend(b"/");
    }
    out.extend(b"\0");
    let text = f.home.as_ptr().cast();
    let last = f.envp.len().saturating_sub(2);
    if let Some(entry) = f.envp.get_mut(last) {
        *entry = text;
    }
    Ok(())
}

struct Buffer<'a> {
    bytes: &'a mut [u8],
    len: usize,
}

impl Buffer<'_> {
    /// Appends; what does not fit is cut, and the last byte stays for the NUL.
    fn extend(&mut self, more: &[u8]) {
        for byte in more {
            if let Some(place) = self.bytes.get_mut(self.len) {
                *place = *byte;
                self.len = self.len.saturating_add(1).min(HOME_LAST);
            }
        }
    }
}

/// A container's /etc/passwd may be as long as it likes; 1 MiB of it are read.
const PASSWD_BLOCKS: u32 = 1024;
const HOME_LAST: usize = super::HOME_LEN - 1;

fn scan_passwd(fd: &Fd, uid: u32, out: &mut Buffer<'_>) -> Result<bool, Fail> {
    if raw::fstat(fd.0).at(Call::Fstat)?.st_mode & libc::S_IFMT != libc::S_IFREG {
        return Ok(false);
    }
    let (mut field, mut number, mut digits) = (0u32, 0u64, 0u32);
    let mut buf = [0u8; 1024];
    for _ in 0..PASSWD_BLOCKS {
        let n = raw::read(fd.0, &mut buf).at(Call::Read)?;
        for byte in buf.get(..n).unwrap_or_default() {
            let matched = field > 2 && digits > 0 && number == u64::from(uid);
            match byte {
                b'\n' if matched && field >= 5 && out.len > 5 => return Ok(true),
                b':' if matched && field == 5 && out.len > 5 => return Ok(true),
                b'\n' => (field, number, digits, out.len) = (0, 0, 0, 5),
                b':' => field = field.saturating_add(1),
                b'0'..=b'9' if field == 2 => {
                    number = number
                        .saturating_mul(10)
                        .saturating_add(u64::from(byte.saturating_sub(b'0')));
                    digits = digits.saturating_add(1);
                }
                _ if field == 2 => number = u64::MAX,
                byte if field == 5 && matched => out.extend(&[*byte]),
                _ => {}
            }
        }
        if n == 0 {
            let matched = field >= 5 && digits > 0 && number == u64::from(uid);
            return Ok(matched && out.len > 5);
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::decimal;

    #[test]
    fn numbers_in_decimal() {
        for number in [0, 1, -1, 10, 999, -998, 1000, -1000] {
            assert_eq!(decimal(number, &mut [0; 8]), number.to_string().as_bytes());
        }
    }
}
