//! How the processes that this one cloned end, and those that were left to it.
//!
//! Each child of ours is waited for by its pidfd. A sweep on SIGCHLD buries what was reparented to
//! us as a subreaper; it must never take the exit status of a child that somebody waits for.

use std::collections::BTreeSet;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use crate::sys::io::Polled;
use nix::errno::Errno;
use tokio::io::Interest;
use tokio::sync::watch;

use crate::error::{Doing, Result};
use crate::events::Exit;
use crate::sys::fd::{Whom, wait};

/// Resolves to how a process ended; any number of clones may wait.
pub type ExitWatch = watch::Receiver<Option<Exit>>;

/// The status of a process whose own is not known.
const UNKNOWN_STATUS: u32 = 255;

/// Who is waited for by name.
#[derive(Debug, Default)]
pub struct Reaper {
    ours: Mutex<BTreeSet<u32>>,
    births: AtomicUsize,
}

impl Reaper {
    /// Waits for a child that has just been cloned. Must be called before anything else is awaited.
    pub fn adopt(self: &Arc<Self>, pid: u32, pidfd: &OwnedFd) -> Result<ExitWatch> {
        let (sender, receiver) = watch::channel(None);
        let ready = pidfd
            .try_clone()
            .and_then(|fd| Polled::new(fd, Interest::READABLE))
            .doing(|| "epoll_ctl(pidfd)")?;
        self.ours().insert(pid);
        let reaper = Arc::clone(self);
        tokio::spawn(async move {
            let exit = wait_for(&ready).await;
            reaper.ours().remove(&pid);
            reaper.sweep();
            sender.send_replace(Some(exit));
        });
        Ok(receiver)
    }

    /// Buries orphans for as long as `sigchld` brings a byte per signal.
    pub async fn run(self: Arc<Self>, sigchld: tokio::net::UnixStream) {
        let mut bytes = [0u8; 64];
        loop {
            if sigchld.readable().await.is_err() {
                return;
            }
            while matches!(sigchld.try_read(&mut bytes), Ok(n) if n > 0) {}
            self.sweep();
        }
    }

    /// Until the guard is dropped, a child may be born that nobody knows yet: no sweeps.
    pub fn expect_birth(self: &Arc<Self>) -> Expecting {
        self.births.fetch_add(1, Ordering::Relaxed);
        Expecting { reaper: Arc::clone(self) }
    }

    /// Buries every dead orphan, up to the first dead child of ours: whoever waits for that one
    /// sweeps again.
    fn sweep(&self) {
        while self.births.load(Ordering::Relaxed) == 0 {
            let Ok(Some(dead)) = wait(Whom::PeekAny) else { return };
            if self.ours().contains(&dead.pid) || wait(Whom::Pid(dead.pid)).is_err() {
                return;
            }
        }
    }

    fn ours(&self) -> MutexGuard<'_, BTreeSet<u32>> {
        self.ours.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// See [`Reaper::expect_birth`].
#[derive(Debug)]
pub struct Expecting {
    reaper: Arc<Reaper>,
}

impl Drop for Expecting {
    fn drop(&mut self) {
        self.reaper.births.fetch_sub(1, Ordering::Relaxed);
        self.reaper.sweep();
    }
}

async fn wait_for(pidfd: &Polled) -> Exit {
    loop {
        let status = match wait(Whom::Pidfd(pidfd.get_ref().as_fd())) {
            Ok(Some(ended)) => ended.status,
            Ok(None) => match pidfd.readable().await {
                Ok(mut guard) => {
                    guard.clear_ready();
                    continue;
                }
                Err(_) => UNKNOWN_STATUS,
            },
            Err(Errno::EINTR) => continue,
            Err(_) => UNKNOWN_STATUS,
        };
        return Exit { status, at: SystemTime::now() };
    }
}

/// Waits for the end of a process.
pub async fn ended(watch: &mut ExitWatch) -> Exit {
    match watch.wait_for(Option::is_some).await {
        Ok(exit) => exit.unwrap_or(Exit { status: UNKNOWN_STATUS, at: SystemTime::now() }),
        Err(_) => Exit { status: UNKNOWN_STATUS, at: SystemTime::now() },
    }
}
