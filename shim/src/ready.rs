//! The pipe on which a new server tells `start` that it serves, or why it cannot.
//!
//! One byte 'R', or 'E' and a text; the end without either means that the server died.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use containerd_shim_rs::error::{Doing, Error, Kind, Result};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

const READY: u8 = b'R';
const ERROR: u8 = b'E';
/// Of an error's text; a pipe takes this much at once.
const MAX_TEXT: usize = 2048;

/// What the server said.
#[derive(Debug, PartialEq, Eq)]
pub enum Said {
    Ready,
    Error(String),
    /// It ended without a word.
    Nothing,
}

/// Waits for the server's word, `timeout` at most.
pub fn wait(pipe: OwnedFd, timeout: Duration) -> Result<Said> {
    let deadline = Instant::now() + timeout;
    let mut pipe = File::from(pipe);
    let mut said = Vec::new();
    loop {
        wait_readable(&pipe, deadline)?;
        let mut buf = [0; 512];
        let n = pipe.read(&mut buf).doing(|| "read the server's pipe")?;
        said.extend_from_slice(buf.get(..n).unwrap_or_default());
        match said.split_first() {
            Some((&READY, _)) => return Ok(Said::Ready),
            Some((&ERROR, text)) if n == 0 || text.len() >= MAX_TEXT => {
                return Ok(Said::Error(String::from_utf8_lossy(text).into_owned()));
            }
            Some((&ERROR, _)) => {}
            _ => return Ok(Said::Nothing),
        }
    }
}

fn wait_readable(pipe: &File, deadline: Instant) -> Result<()> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(pipe.as_fd(), PollFlags::POLLIN)], timeout) {
            Ok(0) => {
                return Err(Error::new(
                    Kind::DeadlineExceeded,
                    "the server did not get ready in time",
                ));
            }
            Ok(_) => return Ok(()),
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno).doing(|| "poll the server's pipe"),
        }
    }
}

/// The server's end.
#[derive(Debug)]
pub struct Ready(File);

impl Ready {
    pub fn new(pipe: OwnedFd) -> Self {
        Ready(File::from(pipe))
    }

    /// The server serves. An error: `start` is dead, so nobody will ever know the socket.
    pub fn ready(mut self) -> Result<()> {
        self.0.write_all(&[READY]).doing(|| "tell start that the server is ready")
    }

    /// The server cannot.
    pub fn error(mut self, error: &Error) {
        let mut message = vec![ERROR];
        message.extend(error.to_string().bytes().take(MAX_TEXT));
        let _ = self.0.write_all(&message);
    }
}

#[cfg(test)]
mod tests {
    use nix::unistd::pipe;

    use super::*;

    #[test]
    fn each_word_arrives() {
        let (reader, writer) = pipe().unwrap();
        Ready::new(writer).ready().unwrap();
        assert_eq!(wait(reader, Duration::from_secs(1)).unwrap(), Said::Ready);

        for length in [3, 5000] {
            let (reader, writer) = pipe().unwrap();
            Ready::new(writer).error(&Error::invalid("x".repeat(length)));
            let expected = Said::Error("x".repeat(length.min(MAX_TEXT)));
            assert_eq!(wait(reader, Duration::from_secs(1)).unwrap(), expected);
        }

        let (reader, writer) = pipe().unwrap();
        drop(writer);
        assert_eq!(wait(reader, Duration::from_secs(1)).unwrap(), Said::Nothing);
    }

    #[test]
    fn a_silent_server_is_not_waited_for() {
        let (reader, _writer) = pipe().unwrap();
        let error = wait(reader, Duration::from_millis(20)).unwrap_err();
        assert_eq!(error.kind(), Kind::DeadlineExceeded);
    }

    #[test]
    fn a_server_whose_start_is_gone_learns_it() {
        let (reader, writer) = pipe().unwrap();
        drop(reader);
        assert_eq!(Ready::new(writer).ready().unwrap_err().errno(), Some(Errno::EPIPE));
    }
}
