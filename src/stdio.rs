//! What connects 0, 1 and 2 of one process to what its client named: containerd's FIFOs, a log or a
//! logger.
//!
//! The life of each descriptor is the point here: a write end of a FIFO kept too long hangs
//! containerd, one dropped too early loses a container's last words or kills it with EPIPE.
//! Dropping a [`Stdio`] ends its tasks and closes everything. It must never block the loop.

mod logger;
mod remote;
mod uri;

use std::os::fd::OwnedFd;
use std::sync::Arc;
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
use crate::fifo::{Fifo, let_go, open_log, open_null, set_nonblocking};
use crate::reaper::ended;
use crate::relay::{Relay, Sink};
use crate::sys::io::Polled;
use remote::Held;

pub use logger::Logger;
pub use remote::{Client, End, Life, Streams, Way};
pub use uri::{Program, Stream};

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
    logger: Option<Logger>,
    streams: Arc<Streams>,
    /// What clients have as streams: stdin until it is closed, and outputs.
    remote_stdin: Option<Held>,
    remote: Vec<Held>,
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
        Self::open_with(paths, kind, owner, None, &Arc::default())
    }

    /// The same, with the logger that `paths` names, if it names one, and with streams.
    pub fn open_with(
        paths: &StdioPaths,
        kind: Kind,
        owner: (u32, u32),
        logger: Option<Logger>,
        streams: &Arc<Streams>,
    ) -> Result<(Stdio, [Option<OwnedFd>; 3])> {
        let mut stdio = Stdio {
            stdin_writer: None,
            stdin_relay: None,
            direct: Vec::new(),
            terminal: None,
            console: None,
            logger: None,
            streams: Arc::clone(streams),
            remote_stdin: None,
            remote: Vec::new(),
            exited: watch::Sender::new(false),
            tasks: JoinSet::new(),
        };
        let writers = stdio.take_logger(paths, logger)?;
        if paths.terminal {
            let stdin = stdio.open_stdin(&paths.stdin).doing(|| "stdin")?;
            let stdout = match writers {
                // A terminal has no stderr: the logger sees its end at once.
                Some([stdout, _]) => Output::pipe(stdout),
                None => Stream::parse(&paths.stdout).and_then(|stream| stdio.open_output(stream)),
            };
            let stdout = stdout.doing(|| "stdout")?;
            stdio.terminal = Some((stdin, stdout));
            return Ok((stdio, [None, None, None]));
        }
        if let Some([stdout, stderr]) = writers {
            let stdin = stdio.stdin(&paths.stdin, owner).doing(|| "stdin")?;
            return Ok((stdio, [stdin, stdout, stderr].map(Some)));
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
            output.clone().output(stdout.sink(), exited.clone()).await;
            // Without its logger it must go somewhere all the same, or its processes stall.
            if let (Output::Pipe(_), Ok(null)) = (&stdout, open_null()) {
                return output.output(Sink::File(&null), exited).await;
            }
            drop(exited);
            stdout.let_go().await;
        });
        self.console = Some(console);
        Ok(())
    }

    /// CloseIO: the process reads what is on its way, then EOF. Twice is as good as once.
    pub fn close_stdin(&mut self) {
        self.stdin_writer = None;
        if let Some(held) = self.remote_stdin.take() {
            held.close();
        }
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
        self.remote_stdin = None;
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
        let all_out = async {
            self.exited.closed().await;
            self.left().await;
        };
        drop(timeout(limit, all_out).await);
        self.tasks.shutdown().await;
        if let Some(logger) = self.logger.take() {
            logger.end().await;
        }
    }

    /// Whether clients have its outputs as streams.
    pub fn is_remote(&self) -> bool {
        !self.remote.is_empty()
    }

    /// Resolves when no client reads a stream any more: it has all, or is gone. Nobody is waited
    /// for who is not there.
    pub fn left(&self) -> impl Future<Output = ()> + Send + use<> {
        let left: Vec<_> = self.remote.iter().map(Held::left).collect();
        async {
            for left in left {
                left.await;
            }
        }
    }

    /// The pipes to the logger, which is watched from now on. One that is named is there, and it
    /// alone.
    fn take_logger(
        &mut self,
        paths: &StdioPaths,
        logger: Option<Logger>,
    ) -> Result<Option<[OwnedFd; 2]>> {
        let is_logger =
            |uri: &str| Stream::parse(uri).map(|stream| matches!(stream, Stream::Logger(_)));
        let named = is_logger(&paths.stdout).doing(|| "stdout")?;
        let other = !paths.stderr.is_empty() && paths.stderr != paths.stdout;
        if other && (named || is_logger(&paths.stderr).doing(|| "stderr")?) {
            return Err(Error::invalid("stderr: a logger reads stdout as well, or neither"));
        }
        let Some(mut logger) = logger.filter(|_| named) else {
            return if named { Err(Error::unimplemented("a logger here")) } else { Ok(None) };
        };
        let [Some(stdout), Some(stderr)] = std::mem::take(&mut logger.writers) else {
            return Err(Error::invalid("a logger that has a process already"));
        };
        let (name, mut exit) = (logger.name.clone(), logger.exit.clone());
        // Held to the logger's end: Delete waits for that as it does for all output.
        let moving = self.exited.subscribe();
        self.tasks.spawn(async move {
            let end = ended(&mut exit).await;
            // One that has read to the end may be faster than the news of its process' end.
            if !*moving.borrow() && end.status != 0 {
                log::warn!("the logger {name:?} ended before its process, status {}", end.status);
            }
        });
        self.logger = Some(logger);
        Ok(Some([stdout, stderr]))
    }

    /// The read end of stdin's FIFO; keeps a write end.
    fn open_stdin(&mut self, uri: &str) -> Result<Option<Polled>> {
        let path = match Stream::parse(uri)? {
            Stream::Null => return Ok(None),
            Stream::Fifo(path) => path,
            Stream::Remote { socket, id } => {
                let theirs = self.remote_stdin(socket, &id, (0, 0))?;
                set_nonblocking(&theirs)?;
                return Ok(Some(polled(theirs, Interest::READABLE)?));
            }
            Stream::File(path) => return Err(Error::invalid(format!("{path:?} is a log file"))),
            Stream::Logger(program) => {
                return Err(Error::invalid(format!("{:?} is a logger", program.path)));
            }
        };
        let fifo = Fifo::open(path)?;
        let from = polled(fifo.end(OFlag::O_RDONLY)?, Interest::READABLE)?;
        self.stdin_writer = Some(fifo.end(OFlag::O_WRONLY)?);
        Ok(Some(from))
    }

    /// Always relayed: an EOF can only be given on a pipe of our own.
    fn stdin(&mut self, uri: &str, owner: (u32, u32)) -> Result<OwnedFd> {
        if let Stream::Remote { socket, id } = Stream::parse(uri)? {
            return self.remote_stdin(socket, &id, owner);
        }
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

    /// The read end of a pipe that a client fills.
    fn remote_stdin(&mut self, socket: &str, id: &str, owner: (u32, u32)) -> Result<OwnedFd> {
        let (theirs, ours) = pipe(owner)?;
        self.remote_stdin = Some(self.streams.add((socket, id), Way::In, ours)?);
        Ok(theirs)
    }

    /// The write end of a pipe that a client empties.
    fn remote(&mut self, socket: &str, id: &str, owner: (u32, u32)) -> Result<OwnedFd> {
        let (ours, theirs) = pipe(owner)?;
        self.remote.push(self.streams.add((socket, id), Way::Out, ours)?);
        Ok(theirs)
    }

    /// Where a terminal's output goes.
    fn open_output(&mut self, stream: Stream<'_>) -> Result<Output> {
        match stream {
            Stream::Remote { socket, id } => Output::pipe(self.remote(socket, &id, (0, 0))?),
            stream => Output::open(stream),
        }
    }

    fn output(&mut self, stream: Stream<'_>, kind: Kind, owner: (u32, u32)) -> Result<OwnedFd> {
        match (stream, kind) {
            (Stream::Null, _) => open_null(),
            (Stream::Fifo(path), Kind::DirectInit) => {
                let fifo = Fifo::open(path)?;
                let held = fifo.end(OFlag::O_RDONLY)?;
                let theirs = fifo.blocking_write_end(&held)?;
                give(&theirs, owner)?;
                self.direct.push(held);
                Ok(theirs)
            }
            (Stream::Remote { socket, id }, _) => self.remote(socket, &id, owner),
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
                Output::Fifo(to) | Output::Pipe(to) => Relay::splice(&from, to),
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
    /// To a logger: without one it is broken.
    Pipe(Polled),
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
            Stream::Logger(_) => return Err(Error::unimplemented("a logger here")),
            Stream::Remote { .. } => return Err(Error::unimplemented("a stream here")),
        })
    }

    fn pipe(fd: OwnedFd) -> Result<Output> {
        set_nonblocking(&fd)?;
        Ok(Output::Pipe(polled(fd, Interest::WRITABLE)?))
    }

    fn sink(&self) -> Sink<'_> {
        match self {
            Output::Fifo(fd) | Output::Pipe(fd) => Sink::Polled(fd),
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
fn pipe(owner: (u32, u32)) -> Result<(OwnedFd, OwnedFd)> {
    let (read, write) = pipe2(OFlag::O_CLOEXEC).doing(|| "pipe2(O_CLOEXEC)")?;
    // Both ends are one inode.
    give(&read, owner)?;
    Ok((read, write))
}

/// Gives a pipe or FIFO to a user, who can open it again then.
fn give(pipe: &OwnedFd, (uid, gid): (u32, u32)) -> Result<()> {
    if (uid, gid) == (0, 0) {
        return Ok(());
    }
    fchown(pipe, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))
        .doing(|| format!("fchown(pipe, {uid}, {gid})"))
}
