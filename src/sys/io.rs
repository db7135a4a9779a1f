//! Calls that move bytes or set terminals, and descriptors in the event loop.
//!
//! None of them may block: callers pass non-blocking ends.

use std::io;
use std::ops::Deref;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::ptr;

use nix::errno::Errno;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// A descriptor whose readiness the event loop knows. It cannot be exchanged for another.
#[derive(Debug)]
pub struct Polled(AsyncFd<OwnedFd>);

impl Polled {
    /// Puts a non-blocking descriptor into the event loop; within a runtime only.
    pub fn new(fd: OwnedFd, interest: Interest) -> io::Result<Polled> {
        // SAFETY: an `OwnedFd` gives the same open descriptor until it is dropped, and nobody gets
        // it by `&mut`: `Deref` lends it shared, `into_inner` deregisters first.
        let polled = unsafe { AsyncFd::register_with_interest(fd, interest) };
        Ok(Polled(polled?))
    }

    /// Takes the descriptor out of the event loop.
    pub fn into_inner(self) -> OwnedFd {
        self.0.into_inner()
    }
}

impl Deref for Polled {
    type Target = AsyncFd<OwnedFd>;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl AsFd for Polled {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.get_ref().as_fd()
    }
}

/// `splice(2)` between two pipes or FIFOs, without waiting. 0: the source has ended.
pub fn splice(from: BorrowedFd<'_>, to: BorrowedFd<'_>, len: usize) -> Result<usize, Errno> {
    let (from, to) = (from.as_raw_fd(), to.as_raw_fd());
    // A pipe's own O_NONBLOCK is honoured only since 5.1; the flag always was.
    let flags = libc::SPLICE_F_NONBLOCK;
    // SAFETY: both descriptors are borrowed, so they stay open; null offsets are what pipes need,
    // and no user memory is passed.
    let moved = unsafe { libc::splice(from, ptr::null_mut(), to, ptr::null_mut(), len, flags) };
    // -1 is the only negative return.
    usize::try_from(moved).map_err(|_| Errno::last())
}

/// `ioctl(pty, TIOCSWINSZ)`: the size of a terminal in characters.
pub fn set_window_size(pty: BorrowedFd<'_>, columns: u16, rows: u16) -> Result<(), Errno> {
    let size = libc::winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCSWINSZ reads one `winsize`, which lives on this stack frame during the call.
    let result = unsafe { libc::ioctl(pty.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) };
    Errno::result(result).map(drop)
}
