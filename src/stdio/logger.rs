//! A logger: the program that `binary://` names, the pipes to it, and its end.
//!
//! It reads the pipes that the process writes to; nothing passes through the shim. It must never
//! outlive the process' Delete, nor be waited for without a deadline.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::unistd::{pipe2, read};
use tokio::io::Interest;
use tokio::time::timeout;

use super::{pipe, polled};
use crate::error::{Doing, Error, Kind, Result};
use crate::fifo::{open_null, set_nonblocking};
use crate::launch::{self, Child};
use crate::plan::{self, Input};
use crate::reaper::{ExitWatch, Reaper, ended};
use crate::stdio::uri::Program;
use crate::sys;

/// How long a logger may take until it says that it is ready.
const READY_LIMIT: Duration = Duration::from_secs(10);
/// How long it may go on after SIGTERM: with a Delete's wait for its end 12 s, as with containerd's
/// own shim.
const TERM_LIMIT: Duration = Duration::from_secs(2);
/// How long a killed logger may take to be gone; one may hang in the kernel.
const KILL_LIMIT: Duration = Duration::from_secs(1);

/// A logger that is ready. Dropped, it is killed.
#[derive(Debug)]
pub struct Logger {
    /// For errors.
    pub(super) name: String,
    /// What becomes 1 and 2 of the process that it is for.
    pub(super) writers: [Option<OwnedFd>; 2],
    pub(super) exit: ExitWatch,
    pidfd: Arc<OwnedFd>,
}

impl Logger {
    /// Runs `program` for the process `id` and waits until it is ready. The pipes belong to
    /// `owner`. On an error it is dead. Only from the host's namespaces.
    pub async fn start(
        reaper: &Arc<Reaper>,
        program: &Program,
        (id, namespace): (&str, &str),
        owner: (u32, u32),
    ) -> Result<Logger> {
        let doing = || format!("logger {:?}", program.path);
        let plan = plan::logger(&program.path, &program.args, id, namespace).doing(doing)?;
        launch::log_plan(id, &plan);
        let null = open_null()?;
        let (out_reader, out) = pipe(owner)?;
        let (err_reader, err) = pipe(owner)?;
        let (wait, ready) = pipe2(OFlag::O_CLOEXEC).doing(|| "pipe2(O_CLOEXEC)")?;
        let copy = || null.try_clone().doing(|| "dup(\"/dev/null\")");
        let fds = [copy()?, copy()?, copy()?, out_reader, err_reader, ready];
        let inputs = (0u8..).map(Input::Stdio).zip(fds).collect();
        let mut child = launch::launch(reaper, plan, inputs, None).doing(doing)?;
        let started = match timeout(READY_LIMIT, begin(&mut child, wait, program.says_ready)).await
        {
            Ok(started) => started,
            Err(_) => {
                let text = format!("it was not ready within {READY_LIMIT:?}");
                Err(Error::new(Kind::DeadlineExceeded, text))
            }
        };
        if let Err(error) = started {
            drop(timeout(KILL_LIMIT, child.kill()).await);
            return Err(error).doing(doing);
        }
        Ok(Logger {
            name: program.path.clone(),
            writers: [Some(out), Some(err)],
            exit: child.exit.clone(),
            pidfd: Arc::clone(&child.pidfd),
        })
    }

    /// Its pipes are closed on our side and it has had its time: asks it to end, and sees to it.
    pub(super) async fn end(mut self) {
        if self.exit.borrow().is_some() {
            return;
        }
        log::warn!("the logger {:?} goes on after its process: SIGTERM", self.name);
        let _ = sys::fd::pidfd_signal(&self.pidfd, libc::SIGTERM);
        if timeout(TERM_LIMIT, ended(&mut self.exit)).await.is_err() {
            let _ = sys::fd::pidfd_signal(&self.pidfd, libc::SIGKILL);
            drop(timeout(KILL_LIMIT, ended(&mut self.exit)).await);
        }
    }
}

impl Drop for Logger {
    fn drop(&mut self) {
        if self.exit.borrow().is_none() {
            let _ = sys::fd::pidfd_signal(&self.pidfd, libc::SIGKILL);
        }
    }
}

/// From the clone to the word of the program.
async fn begin(child: &mut Child, wait: OwnedFd, says_ready: bool) -> Result<()> {
    child.go().await?;
    set_nonblocking(&wait)?;
    let wait = polled(wait, Interest::READABLE)?;
    loop {
        let mut guard = wait.readable().await.doing(|| "epoll_wait(ready)")?;
        match read(wait.get_ref(), &mut [0]) {
            Ok(0) if says_ready => {
                return Err(Error::new(Kind::Unknown, "it closed its pipe and was not ready"));
            }
            Ok(_) => return Ok(()),
            Err(Errno::EAGAIN) => guard.clear_ready(),
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno).doing(|| "read(ready)"),
        }
    }
}
