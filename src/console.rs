//! The shim's side of a terminal: the pty's master.
//!
//! The master must outlive the output: closing it hangs the terminal up and throws away what was
//! not read. Nothing here grows with requests (CVE-2022-23471).

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;
use tokio::io::Interest;
use tokio::sync::watch;
use tokio::time::sleep;

use crate::error::{Doing, Result};
use crate::fifo::set_nonblocking;
use crate::relay::{Relay, Sink};
use crate::sys;
use crate::sys::io::Polled;

/// How often a terminal that no process has open is read again while its process lives.
const REOPENED: Duration = Duration::from_millis(250);

/// A pty's master. Clones are the same open file.
#[derive(Clone, Debug)]
pub struct Console {
    master: Arc<Polled>,
}

impl Console {
    /// Takes the master, which nobody else may use.
    pub fn new(master: OwnedFd) -> Result<Console> {
        set_nonblocking(&master)?;
        let master = Polled::new(master, Interest::READABLE | Interest::WRITABLE)
            .doing(|| "epoll_ctl of the pty's master")?;
        Ok(Console { master: Arc::new(master) })
    }

    /// Tells the terminal, and so the processes in its foreground, its size.
    pub fn resize(&self, columns: u16, rows: u16) -> Result<()> {
        sys::io::set_window_size(self.master.as_fd(), columns, rows)
            .doing(|| format!("ioctl(TIOCSWINSZ, {columns}x{rows})"))
    }

    /// Moves what processes write, to the end: no process has the terminal open, and `exited`.
    pub async fn output(self, to: Sink<'_>, mut exited: watch::Receiver<bool>) {
        let mut relay = Relay::copy(&self.master, to);
        // EIO: no process has the terminal open, and all it held has been read. Before the exit
        // that is no end: an init may close its terminal and open /dev/console later.
        while let Err(error) = relay.run().await {
            if error.raw_os_error() != Some(Errno::EIO as i32) || *exited.borrow() {
                break;
            }
            tokio::select! {
                _ = exited.wait_for(|exited| *exited) => {}
                () = sleep(REOPENED) => {}
            }
        }
    }

    /// Moves what the client types until it closes its end. Nothing is sent then: a terminal has
    /// no end of input but the character the user types.
    pub async fn input(self, from: Polled) -> io::Result<()> {
        Relay::copy(&from, Sink::Polled(&self.master)).run().await
    }
}
