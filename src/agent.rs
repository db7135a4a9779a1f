//! The seccomp agent of a container: gets the descriptor of a filter's notifications, and what process
//! it is of (the specification's `ContainerProcessState`).
//!
//! It must never wait without a deadline, nor hold the descriptor after it was handed over: the agent's
//! end of it would not tell when nobody listens any more.

use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
use serde_json::{Value, json};

use crate::error::{Doing, Error, Kind, Result};
use crate::plan::seccomp::Listener;
use crate::sys;

/// How long an agent may take to have room for one more connection.
const LIMIT: Duration = Duration::from_secs(10);
/// How often it is asked.
const AGAIN: Duration = Duration::from_millis(10);

/// One agent, for one process.
#[derive(Debug)]
pub struct Agent {
    listener: Listener,
    state: Value,
    socket: OwnedFd,
}

impl Agent {
    /// Makes the socket, which belongs to the network namespace that this process is in. `state` is
    /// the specification's `State` of the container; without a `pid` it is of the process itself.
    pub fn new(listener: Listener, state: Value) -> Result<Agent> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let socket = socket(AddressFamily::Unix, SockType::Stream, flags, None);
        Ok(Agent { listener, state, socket: socket.doing(|| "socket(AF_UNIX)")? })
    }

    /// Hands over the descriptor of a process.
    pub async fn take(mut self, pid: u32, notifications: OwnedFd) -> Result<()> {
        if self.state.get("pid").is_none() {
            self.state["pid"] = pid.into();
        }
        let text = json!({
            "ociVersion": self.state["ociVersion"],
            "fds": ["seccompFd"],
            "pid": pid,
            "metadata": self.listener.metadata,
            "state": self.state,
        });
        let (path, fd) = (&self.listener.path, self.socket.as_raw_fd());
        let doing = || format!("linux.seccomp.listenerPath: connect {path:?}");
        let address = UnixAddr::new(path.as_path()).doing(doing)?;
        let connected = async {
            loop {
                match connect(fd, &address) {
                    Ok(()) => return Ok(()),
                    // Its queue is full.
                    Err(Errno::EAGAIN | Errno::EINTR) => tokio::time::sleep(AGAIN).await,
                    Err(errno) => return Err(Error::sys(doing(), errno)),
                }
            }
        };
        let late =
            || Error::new(Kind::DeadlineExceeded, format!("{}: busy for {LIMIT:?}", doing()));
        tokio::time::timeout(LIMIT, connected).await.unwrap_or_else(|_| Err(late()))?;
        // A new connection has room for it.
        sys::raw::send(fd, text.to_string().as_bytes(), Some(notifications.as_raw_fd()))
            .doing(|| format!("send to {path:?}"))
    }
}
