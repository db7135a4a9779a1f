//! Moves bytes from one end to another until the source ends, waiting on readiness only.
//!
//! A full sink stops the reading (backpressure), so nothing is lost and nothing piles up: at most
//! one page is ever held, and only if a sink took less than it had promised. It must never spin:
//! each turn either moves bytes or waits. It must never block, and the kernel leaves one hole: a
//! writer to a pipe that faults on memory or a file that hangs (FUSE, NFS, userfaultfd) holds the
//! pipe's mutex, and even a non-blocking read waits for it. Direct FIFOs and ptys are immune.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::{read, write};
use tokio::io::unix::AsyncFdReadyGuard;
use tokio::task::consume_budget;
use tokio::time::sleep;

use crate::sys;
use crate::sys::io::Polled;

/// What a pipe takes whole or not at all once it polls writable: one slot.
const PAGE: usize = libc::PIPE_BUF;

/// More than any pipe holds by default; the kernel moves what is there.
const SPLICE_MAX: usize = 1 << 20;

/// How often a closed end is tried again. tokio never forgets that an end was closed, but a pty
/// whose slave is opened again, or a FIFO, is alive again.
const RETRY: Duration = Duration::from_millis(50);

/// Where bytes go.
#[derive(Clone, Copy, Debug)]
pub enum Sink<'a> {
    /// A pipe, FIFO or pty: non-blocking, waited for.
    Polled(&'a Polled),
    /// A regular file or `/dev/null`: always writable.
    File(&'a OwnedFd),
}

/// How bytes go.
#[derive(Clone, Copy, Debug)]
enum Way {
    /// Page references change hands; both ends are pipes.
    Splice,
    /// Through a page on the stack: ptys copy anyway, and O_APPEND files refuse `splice(2)`.
    Copy,
}

/// A source, a sink, and what is between them. Dropping `run` half-way loses nothing.
#[derive(Debug)]
pub struct Relay<'a> {
    from: &'a Polled,
    to: Sink<'a>,
    way: Way,
    /// Read from the source but not yet taken by the sink; not allocated unless needed.
    unsent: Vec<u8>,
}

impl<'a> Relay<'a> {
    /// Between two pipes or FIFOs, without a copy.
    pub fn splice(from: &'a Polled, to: &'a Polled) -> Self {
        Relay { from, to: Sink::Polled(to), way: Way::Splice, unsent: Vec::new() }
    }

    /// Between any two ends.
    pub fn copy(from: &'a Polled, to: Sink<'a>) -> Self {
        Relay { from, to, way: Way::Copy, unsent: Vec::new() }
    }

    /// Moves until the source ends. EPIPE: nobody reads the sink any more. Another error is the
    /// source's; `run` may be called again (EIO of a pty that no process has open).
    pub async fn run(&mut self) -> io::Result<()> {
        loop {
            // Other tasks get their turn however fast the source is.
            consume_budget().await;
            let from = match self.unsent.is_empty() {
                true => Some(self.from.readable().await?),
                false => None,
            };
            let to = match self.to {
                Sink::Polled(fd) => Some(fd.writable().await?),
                Sink::File(_) => None,
            };
            match self.step() {
                Ok(0) => return Ok(()),
                Ok(_) | Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => self.wait_again(from, to).await?,
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// One move. 0: the source has ended.
    fn step(&mut self) -> Result<usize, Errno> {
        if let Way::Splice = self.way {
            return sys::io::splice(self.from.as_fd(), self.to.as_fd(), SPLICE_MAX);
        }
        if !self.unsent.is_empty() {
            let unsent = std::mem::take(&mut self.unsent);
            return self.put(&unsent);
        }
        // Read only what the sink will take: then nothing has to be kept.
        if !ready(self.to.as_fd(), PollFlags::POLLOUT)? {
            return Err(Errno::EAGAIN);
        }
        let mut page = [0; PAGE];
        match read(self.from.get_ref(), &mut page)? {
            0 => Ok(0),
            n => self.put(&page[..n]),
        }
    }

    /// Writes, and keeps what was not taken.
    fn put(&mut self, bytes: &[u8]) -> Result<usize, Errno> {
        let taken = match write(self.to.as_fd(), bytes) {
            Ok(n) => n,
            Err(Errno::EAGAIN | Errno::EINTR) => 0,
            Err(Errno::EPIPE) => return Err(Errno::EPIPE),
            // A full disk, or a pty that no process has open. Bytes get lost, but the writer
            // must not stall nor die of it.
            Err(_) => bytes.len(),
        };
        self.unsent = bytes[taken..].to_vec();
        if taken == 0 { Err(Errno::EAGAIN) } else { Ok(taken) }
    }

    /// EAGAIN does not say which end: ask both, and forget the readiness of the one that is not.
    async fn wait_again(&self, from: Option<Guard<'_>>, to: Option<Guard<'_>>) -> io::Result<()> {
        let mut stuck = false;
        if let Some(mut guard) = from
            && !ready(self.from.as_fd(), PollFlags::POLLIN)?
        {
            stuck |= guard.ready().is_read_closed();
            guard.clear_ready();
        }
        if let Some(mut guard) = to
            && !ready(self.to.as_fd(), PollFlags::POLLOUT)?
        {
            stuck |= guard.ready().is_write_closed();
            guard.clear_ready();
        }
        if stuck {
            sleep(RETRY).await;
        }
        Ok(())
    }
}

type Guard<'a> = AsyncFdReadyGuard<'a, OwnedFd>;

impl AsFd for Sink<'_> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Sink::Polled(fd) => fd.as_fd(),
            Sink::File(fd) => fd.as_fd(),
        }
    }
}

/// Whether a call for `event` would not wait now; errors and hang-ups count, the call reports them.
fn ready(fd: BorrowedFd<'_>, event: PollFlags) -> Result<bool, Errno> {
    let mut fds = [PollFd::new(fd, event)];
    match poll(&mut fds, PollTimeout::ZERO) {
        Ok(n) => Ok(n > 0),
        Err(Errno::EINTR) => Ok(false),
        Err(errno) => Err(errno),
    }
}
