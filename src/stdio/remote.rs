//! The ends of processes' stdio that clients reach by an id, each over a connection of its own
//! (`ttrpc+unix://`).
//!
//! A client may be there before its end, go, and come again; what was read for one that went away
//! waits for the next. It must never know how a client speaks, nor hold more than one window.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::errno::Errno;
use nix::unistd::{read, write};
use tokio::io::Interest;
use tokio::sync::{Notify, watch};

use super::polled;
use crate::error::{Error, Kind, Result};
use crate::fifo::set_nonblocking;
use crate::sys::io::Polled;

/// What is read from a pipe at once.
const CHUNK: usize = 16 << 10;

/// All ends of this server.
#[derive(Debug, Default)]
pub struct Streams {
    /// Where clients connect: an address must name it. Empty: any may be named.
    socket: PathBuf,
    ends: Mutex<BTreeMap<String, Arc<End>>>,
    added: Notify,
}

/// Where the bytes of an end go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// From the client: stdin.
    In,
    /// To the client.
    Out,
}

/// How long an end goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Life {
    Open,
    /// CloseIO: what its client still sends is taken, a next client is not.
    Closing,
    Gone,
}

/// Our side of the pipe to one process, and what is between it and a client.
#[derive(Debug)]
pub struct End {
    pub way: Way,
    pipe: Polled,
    /// Taken from one side, not yet given to the other.
    unsent: Mutex<Vec<u8>>,
    life: watch::Sender<Life>,
    clients: watch::Sender<Clients>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Clients {
    connected: usize,
    /// How many there ever were: the newest is served.
    newest: usize,
}

/// A client that is connected to an end.
#[derive(Debug)]
pub struct Client {
    pub end: Arc<End>,
    number: usize,
}

/// An end that a process has. Dropped, it is gone.
#[derive(Debug)]
pub struct Held {
    streams: Arc<Streams>,
    id: String,
    end: Arc<End>,
}

impl Streams {
    /// For clients that connect to `socket`.
    pub fn new(socket: PathBuf) -> Streams {
        Streams { socket, ..Streams::default() }
    }

    /// Waits for the end `id`.
    pub async fn end(&self, id: &str) -> Arc<End> {
        loop {
            // Made before the look, so that none is missed.
            let added = self.added.notified();
            if let Some(end) = self.find(id) {
                return end;
            }
            added.await;
        }
    }

    /// The end `id`, if it is there.
    pub fn find(&self, id: &str) -> Option<Arc<End>> {
        self.lock().get(id).map(Arc::clone)
    }

    /// Makes an end, whose pipe nobody else may use.
    pub(super) fn add(
        self: &Arc<Self>,
        (server, id): (&str, &str),
        way: Way,
        pipe: OwnedFd,
    ) -> Result<Held> {
        if !self.socket.as_os_str().is_empty() && self.socket.as_os_str() != server {
            return Err(Error::unimplemented(format!("a stream of another server, {server:?},")));
        }
        set_nonblocking(&pipe)?;
        let interest = if way == Way::In { Interest::WRITABLE } else { Interest::READABLE };
        let end = Arc::new(End {
            way,
            pipe: polled(pipe, interest)?,
            unsent: Mutex::default(),
            life: watch::Sender::new(Life::Open),
            clients: watch::Sender::default(),
        });
        let mut ends = self.lock();
        if ends.contains_key(id) {
            return Err(Error::new(Kind::AlreadyExists, format!("stream {id:?} exists")));
        }
        ends.insert(id.to_string(), Arc::clone(&end));
        drop(ends);
        self.added.notify_waiters();
        Ok(Held { streams: Arc::clone(self), id: id.to_string(), end })
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Arc<End>>> {
        self.ends.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Held {
    /// CloseIO: the process sees EOF once the client has ended its input as well.
    pub(super) fn close(self) {
        self.end.life.send_replace(Life::Closing);
    }

    /// Resolves when no client is connected: each has read to the end, or has gone.
    pub(super) fn left(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut clients = self.end.clients.subscribe();
        async move {
            // An error: the end is gone.
            drop(clients.wait_for(|clients| clients.connected == 0).await);
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.streams.lock().remove(&self.id);
        self.end.life.send_if_modified(|life| {
            let open = *life == Life::Open;
            if open {
                *life = Life::Gone;
            }
            open
        });
    }
}

impl End {
    /// Connects a client; an older one is not served any more.
    pub fn connect(self: Arc<Self>) -> Client {
        let mut number = 0;
        self.clients.send_modify(|clients| {
            clients.connected += 1;
            clients.newest += 1;
            number = clients.newest;
        });
        Client { end: self, number }
    }

    /// What waits to be given on.
    pub fn unsent(&self) -> MutexGuard<'_, Vec<u8>> {
        self.unsent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The client has the first `n` bytes of what waited.
    pub fn given(&self, n: usize) {
        cut(&mut self.unsent(), n);
    }

    /// How long it goes on.
    pub fn life(&self) -> Life {
        *self.life.borrow()
    }

    /// Waits until the pipe has something, and takes at most `limit` bytes of it. None: it has
    /// ended.
    pub async fn fill(&self, limit: usize) -> Option<()> {
        loop {
            let mut guard = self.pipe.readable().await.ok()?;
            let mut bytes = vec![0; limit.min(CHUNK)];
            match read(self.pipe.get_ref(), &mut bytes) {
                Ok(0) => return None,
                Ok(n) => {
                    bytes.truncate(n);
                    *self.unsent() = bytes;
                    return Some(());
                }
                Err(Errno::EAGAIN) => guard.clear_ready(),
                Err(Errno::EINTR) => {}
                Err(_) => return None,
            }
        }
    }

    /// Waits until the pipe takes something of what waits. None: nobody reads it any more.
    pub async fn flush(&self) -> Option<()> {
        loop {
            let mut guard = self.pipe.writable().await.ok()?;
            let mut unsent = self.unsent();
            match write(self.pipe.get_ref(), &unsent) {
                Ok(n) => cut(&mut unsent, n),
                Err(Errno::EAGAIN) => {
                    guard.clear_ready();
                    continue;
                }
                Err(Errno::EINTR) => continue,
                Err(_) => return None,
            }
            return Some(());
        }
    }
}

/// Removes the first `n` bytes, and the memory with the last.
fn cut(bytes: &mut Vec<u8>, n: usize) {
    match n < bytes.len() {
        true => drop(bytes.drain(..n)),
        false => *bytes = Vec::new(),
    }
}

impl Client {
    /// Resolves when it shall be served no longer: a newer one has come, or the end is gone.
    pub async fn dismissed(&self) {
        let mut clients = self.end.clients.subscribe();
        let mut life = self.end.life.subscribe();
        tokio::select! {
            _ = clients.wait_for(|clients| clients.newest != self.number) => {}
            _ = life.wait_for(|life| *life == Life::Gone) => {}
        }
    }

    /// Resolves when CloseIO has come.
    pub async fn closing(&self) {
        let mut life = self.end.life.subscribe();
        drop(life.wait_for(|life| *life != Life::Open).await);
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.end.clients.send_modify(|clients| clients.connected -= 1);
    }
}
