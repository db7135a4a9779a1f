//! What connects 0, 1 and 2 of one process to what its client named: containerd's FIFOs or a log.
//!
//! The life of each descriptor is the point here: a write end of a FIFO kept too long hangs
//! containerd, one dropped too early loses a container's last words or kills it with EPIPE.
//! Dropping a [`Stdio`] ends its tasks and closes everything. It must never block the loop.

use std::os::fd::OwnedFd;
use std::time::Duration;

use nix::fcntl::OFlag;
use nix::unistd::{Gid, Uid, fchown, pipe2};
use tokio::io::Interest;
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::timeout;

use crate::api::StdioPaths;
use crate::console::Console;
use crate::error::{Doing, Error, Result};
use crate::fifo::{Fifo, Stream, let_go, open_log, open_null, set_nonblocking};
use crate::relay::{Relay, Sink};
use crate::sys::io::Polled;

/// Who writes to the FIFOs of stdout and stderr.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The process itself: a container's init that may see a file of the host's `/run`. A FIFO
    /// only; a log file is never given to a container, which could truncate it.
    DirectInit,
    /// The shim, from an anonymous pipe.
    Relay,
}

/// The stdio of one process. See the module text.
#[derive(Debug)]
pub struct Stdio {
    /// Our write end of stdin's FIFO: while we hold it, the relay sees no EOF between two clients.
    stdin_writer: Option<OwnedFd>,
    stdin_relay: Option<AbortHandle>,
    /// Read ends, never read, of FIFOs that the process itself writes to: without them it would
    /// get EPIPE while containerd restarts.
    direct: Vec<OwnedFd>,
    /// What waits for the pty's master.
    terminal: Option<(Option<Polled>, Output)>,
    console: Option<Console>,
    /// Whether the process has exited. Each output holds a receiver for as long as it moves bytes.
    exited: watch::Sender<bool>,
    tasks: JoinSet<()>,
}

impl Stdio {
    /// Opens what `paths` name, starts the relays, and gives the descriptors for 0, 1 and 2 of the
    /// process: to be dropped here once it has them. With a terminal there are none:
    /// [`Stdio::attach`] follows. The pipes belong to `owner`. Within the runtime only.
    pub fn open(
        paths: &StdioPaths,
        kind: Kind,
        owner: (u32, u32),
    ) -> Result<(Stdio, [Option<OwnedFd>; 3])> {
        let mut stdio = Stdio {
            stdin_writer: None,
            stdin_relay: None,
            direct: Vec::new(),
            terminal: None,
            console: None,
            exited: watch::Sender::new(false),
            tasks: JoinSet::new(),
        };
        if paths.terminal {
            let stdin = stdio.open_stdin(&paths.stdin).doing(|| "stdin")?;
            let stdout = Stream::parse(&paths.stdout).and_then(Output::open).doing(|| "stdout")?;
            stdio.terminal = Some((stdin, stdout));
            return Ok((stdio, [None, None, None]));
        }
        // A client that logs to a file may name it for stdout alone and mean both.
        let stdout = Stream::parse(&paths.stdout).doing(|| "stdout")?;
        let stderr = match (Stream::parse(&paths.stderr).doing(|| "stderr")?, &stdout) {
            (Stream::Null, Stream::File(path)) => Stream::File(path.clone()),
            (stderr, _) => stderr,
        };
        let fds = [
            stdio.stdin(&paths.stdin, owner).doing(|| "stdin")?,
            stdio.output(stdout, kind, owner).doing(|| "stdout")?,
            stdio.output(stderr, kind, owner).doing(|| "stderr")?,
        ];
        Ok((stdio, fds.map(Some)))
    }

    /// Takes the master of the process's pty and starts its relays.
    pub fn attach(&mut self, master: OwnedFd) -> Result<()> {
        let Some((stdin, stdout)) = self.terminal.take() else {
            return Err(Error::invalid("a pty for a process without a terminal"));
        };
        let console = Console::new(master).doing(|| "console")?;
        if let Some(from) = stdin {
            let input = console.clone().input(from);
            // Its error has no one to go to: the terminal is gone, and the output knows.
            self.stdin_relay = Some(self.tasks.spawn(async { drop(input.await) }));
        }
        let (output, exited) = (console.clone(), self.exited.subscribe());
        self.tasks.spawn(async move {
            output.output(stdout.sink(), exited).await;
            stdout.let_go().await;
        });
        self.console = Some(console);
        Ok(())
    }

    /// CloseIO: the process reads what is on its way, then EOF. Twice is as good as once.
    pub fn close_stdin(&mut self) {
        self.stdin_writer = None;
    }

    /// ResizePty: without a terminal, or after the exit, nothing to do and no error.
    pub fn resize(&self, columns: u16, rows: u16) -> Result<()> {
        match &self.console {
            Some(console) if !*self.exited.borrow() => console.resize(columns, rows),
            _ => Ok(()),
        }
    }

    /// The process has ended: nothing reads stdin any more, and its own FIFOs are let go. What its
    /// children still write goes on being relayed.
    pub fn exited(&mut self) {
        self.exited.send_replace(true);
        self.stdin_writer = None;
        if let Some(relay) = self.stdin_relay.take() {
            relay.abort();
        }
        for held in self.direct.drain(..) {
            self.tasks.spawn(let_go(held));
        }
    }

    /// Delete: waits until all output is in the FIFOs, but not longer than `limit` (a daemonised
    /// child may keep the pipe for ever), then closes everything. A client that reads has a FIFO
    /// open and gets the rest of it, then EOF.
    pub async fn drain(mut self, limit: Duration) {
        self.exited();
        drop(timeout(limit, self.exited.closed()).await);
        self.tasks.shutdown().await;
    }

    /// The read end of stdin's FIFO; keeps a write end.
    fn open_stdin(&mut self, uri: &str) -> Result<Option<Polled>> {
        let path = match Stream::parse(uri)? {
            Stream::Null => return Ok(None),
            Stream::Fifo(path) => path,
            Stream::File(path) => return Err(Error::invalid(format!("{path:?} is a log file"))),
        };
        let fifo = Fifo::open(path)?;
        let from = polled(fifo.end(OFlag::O_RDONLY)?, Interest::READABLE)?;
        self.stdin_writer = Some(fifo.end(OFlag::O_WRONLY)?);
        Ok(Some(from))
    }

    /// Always relayed: an EOF can only be given on a pipe of our own.
    fn stdin(&mut self, uri: &str, owner: (u32, u32)) -> Result<OwnedFd> {
        let Some(from) = self.open_stdin(uri)? else { return open_null() };
        let (theirs, ours) = pipe(owner)?;
        set_nonblocking(&ours)?;
        let to = polled(ours, Interest::WRITABLE)?;
        self.stdin_relay = Some(self.tasks.spawn(async move {
            // EPIPE: the process has closed its stdin. That ends the relay like EOF does.
            drop(Relay::splice(&from, &to).run().await);
        }));
        Ok(theirs)
    }

    fn output(&mut self, stream: Stream<'_>, kind: Kind, owner: (u32, u32)) -> Result<OwnedFd> {
        match (stream, kind) {
            (Stream::Null, _) => open_null(),
            (Stream::Fifo(path), Kind::DirectInit) => {
                let fifo = Fifo::open(path)?;
                let held = fifo.end(OFlag::O_RDONLY)?;
                let theirs = fifo.blocking_write_end(&held)?;
                self.direct.push(held);
                Ok(theirs)
            }
            (stream, _) => self.relay(Output::open(stream)?, owner),
        }
    }

    fn relay(&mut self, output: Output, owner: (u32, u32)) -> Result<OwnedFd> {
        let (ours, theirs) = pipe(owner)?;
        set_nonblocking(&ours)?;
        let from = polled(ours, Interest::READABLE)?;
        let moving = self.exited.subscribe();
        self.tasks.spawn(async move {
            let mut relay = match &output {
                Output::Fifo(to) => Relay::splice(&from, to),
                Output::File(_) => Relay::copy(&from, output.sink()),
            };
            // An error leaves nothing to do but what EOF does: close both sides.
            drop(relay.run().await);
            drop((from, moving));
            output.let_go().await;
        });
        Ok(theirs)
    }
}

/// Where the shim writes what it relays.
#[derive(Debug)]
enum Output {
    /// Open for reading too: no EPIPE, and nothing lost, while containerd restarts.
    Fifo(Polled),
    /// A log file, or `/dev/null`.
    File(OwnedFd),
}

impl Output {
    fn open(stream: Stream<'_>) -> Result<Output> {
        Ok(match stream {
            // A terminal's output must go somewhere, or its processes stall.
            Stream::Null => Output::File(open_null()?),
            Stream::File(path) => Output::File(open_log(&path)?),
            Stream::Fifo(path) => {
                Output::Fifo(polled(Fifo::open(path)?.end(OFlag::O_RDWR)?, Interest::WRITABLE)?)
            }
        })
    }

    fn sink(&self) -> Sink<'_> {
        match self {
            Output::Fifo(fd) => Sink::Polled(fd),
            Output::File(fd) => Sink::File(fd),
        }
    }

    async fn let_go(self) {
        if let Output::Fifo(fd) = self {
            let_go(fd.into_inner()).await;
        }
    }
}

fn polled(fd: OwnedFd, interest: Interest) -> Result<Polled> {
    Polled::new(fd, interest).doing(|| "epoll_ctl(EPOLL_CTL_ADD)")
}

/// An anonymous pipe: (read end, write end).
fn pipe((uid, gid): (u32, u32)) -> Result<(OwnedFd, OwnedFd)> {
    let (read, write) = pipe2(OFlag::O_CLOEXEC).doing(|| "pipe2(O_CLOEXEC)")?;
    if (uid, gid) != (0, 0) {
        // Both ends are one inode.
        fchown(&read, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))
            .doing(|| format!("fchown(pipe, {uid}, {gid})"))?;
    }
    Ok((read, write))
}
