//! Runs one hook: the container's state on its stdin, its last words into the error.
//!
//! It must never wait longer than the hook's own limit, nor for whoever abandons it: a hook is
//! somebody else's program, and may hang. What it leaves running keeps nothing of ours open.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fs::read_to_string;
use std::future::{Future, pending};
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::{Pid, pipe2, read, write};
use serde::Serialize;
use tokio::io::Interest;
use tokio::task::yield_now;
use tokio::time::{sleep, timeout};

use crate::agent::Agent;
use crate::error::{Doing, Error, Kind, Result};
use crate::launch::{self, Child};
use crate::plan::hooks::Hook;
use crate::plan::{Input, Plan};
use crate::reaper::{Reaper, ended};
use crate::sys::io::Polled;

/// The version of the specification that the state on stdin is of.
const OCI_VERSION: &str = "1.3.0";
/// How much of a hook's output an error shows: its end.
const LAST_WORDS: usize = 4096;
/// A pipe holds no more, so that what a hook said before its end is read in so many turns.
const PIPE_TURNS: usize = 64;
/// How long a hook that was killed may take to die: it may hang in the kernel.
const DEATH_LIMIT: Duration = Duration::from_secs(2);

/// OCI's state of a container, as a hook reads it.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct State<'a> {
    pub oci_version: &'static str,
    pub id: &'a str,
    pub status: &'static str,
    /// As those see it who read this; none once it has ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    pub bundle: &'a Path,
    pub annotations: &'a BTreeMap<String, String>,
}

impl<'a> State<'a> {
    /// A container's.
    pub fn new(
        id: &'a str,
        bundle: &'a Path,
        annotations: &'a BTreeMap<String, String>,
    ) -> State<'a> {
        State { oci_version: OCI_VERSION, id, status: "", pid: None, bundle, annotations }
    }

    /// The same container, further on.
    pub fn at(&self, status: &'static str, pid: Option<u32>) -> State<'a> {
        State { status, pid, ..self.clone() }
    }
}

/// What a hook's process is made of.
#[derive(Debug)]
pub struct Launch {
    pub plan: Plan,
    /// What the plan asks for, but for stdio.
    pub inputs: Vec<(Input, OwnedFd)>,
    /// On cgroup v2, for a hook of the container's namespaces.
    pub cgroup: Option<OwnedFd>,
    /// Where the plan has the container's seccomp filter.
    pub agent: Option<Agent>,
}

/// A process' pid in its own PID namespace.
pub fn pid_inside(pid: u32) -> Result<u32> {
    let path = format!("/proc/{pid}/status");
    let text = read_to_string(&path).doing(|| format!("read {path}"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("NSpid:"));
    let inside = line.and_then(|pids| pids.split_whitespace().next_back()?.parse().ok());
    inside.ok_or_else(|| Error::new(Kind::Unknown, format!("{path}: no NSpid")))
}

/// Runs a hook to its end, which must be a good one. It is killed if `abandoned` comes first, whose
/// text says why.
pub async fn run(
    reaper: &Arc<Reaper>,
    hook: &Hook,
    mut launch: Launch,
    state: &State<'_>,
    abandoned: impl Future<Output = &'static str>,
) -> Result<()> {
    let doing = || hook.name.clone();
    let json = serde_json::to_vec(state)
        .map_err(|e| Error::new(Kind::Unknown, format!("encode state: {e}")))
        .doing(doing)?;
    let (stdin, feed) = pipe(false).doing(doing)?;
    let (stdout, output) = pipe(true).doing(doing)?;
    let stderr = stdout.try_clone().doing(|| "dup(pipe)").doing(doing)?;
    let stdio = [stdin, stdout, stderr];
    launch.inputs.extend((0..).map(Input::Stdio).zip(stdio));
    let mut child =
        launch::launch(reaper, launch.plan, launch.inputs, launch.cgroup).doing(doing)?;
    child.agent = launch.agent;
    let mut words = Vec::new();
    let limit = async {
        match hook.timeout {
            Some(limit) => sleep(limit).await,
            None => pending().await,
        }
    };
    let talk = async {
        tokio::join!(say(feed, &json), listen(&output, &mut words));
        pending::<Infallible>().await
    };
    let result = tokio::select! {
        biased;
        status = program(&mut child) => status,
        why = abandoned => Err(Error::new(Kind::Unknown, format!("abandoned: {why}"))),
        () = limit => {
            let text = format!("no end within {:?}", hook.timeout.unwrap_or_default());
            Err(Error::new(Kind::DeadlineExceeded, text))
        }
        never = talk => match never {},
    };
    let status = match result {
        Ok(0) => return Ok(()),
        Ok(status) => status,
        Err(error) => {
            end(&mut child).await;
            return Err(error).doing(doing);
        }
    };
    hear(&output, &mut words);
    let words = one_line(&words);
    let text = match words.is_empty() {
        true => format!("exit status {status}"),
        false => format!("exit status {status}: {words}"),
    };
    Err(Error::new(Kind::Unknown, text)).doing(doing)
}

async fn program(child: &mut Child) -> Result<u32> {
    child.go().await?;
    Ok(ended(&mut child.exit).await.status)
}

/// Kills a hook and all of its session's first group.
async fn end(child: &mut Child) {
    // Until its end is known it is not buried, so the number is still its own.
    if child.exit.borrow().is_none() {
        let _ = killpg(Pid::from_raw(child.pid as i32), Signal::SIGKILL);
    }
    let _ = timeout(DEATH_LIMIT, child.kill()).await;
}

/// A pipe of which our end does not block; `read_here`: it is the one to read from.
fn pipe(read_here: bool) -> Result<(OwnedFd, Polled)> {
    let (read, write) = pipe2(OFlag::O_CLOEXEC).doing(|| "pipe2(O_CLOEXEC)")?;
    let (theirs, ours, interest) = match read_here {
        true => (write, read, Interest::READABLE),
        false => (read, write, Interest::WRITABLE),
    };
    fcntl(&ours, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).doing(|| "fcntl(F_SETFL, O_NONBLOCK)")?;
    let ours = Polled::new(ours, interest).doing(|| "epoll_ctl(pipe)")?;
    Ok((theirs, ours))
}

/// Whoever does not want to read all of it need not.
async fn say(pipe: Polled, mut bytes: &[u8]) {
    let write = |fd: &OwnedFd, bytes: &[u8]| write(fd, bytes).map_err(io::Error::from);
    while !bytes.is_empty() {
        match pipe.async_io(Interest::WRITABLE, |fd| write(fd, bytes)).await {
            Ok(n) => bytes = &bytes[n..],
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return,
        }
    }
}

async fn listen(pipe: &Polled, words: &mut Vec<u8>) {
    loop {
        let mut buf = [0; 4096];
        let read = |fd: &OwnedFd| read(fd, &mut buf).map_err(io::Error::from);
        match pipe.async_io(Interest::READABLE, read).await {
            Ok(0) => return,
            Ok(n) => keep(words, &buf[..n]),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return,
        }
        // One that never stops must not keep the loop to itself.
        yield_now().await;
    }
}

/// What is still in the pipe after the end; a child that the hook left may write on for ever.
fn hear(pipe: &Polled, words: &mut Vec<u8>) {
    for _ in 0..PIPE_TURNS {
        let mut buf = [0; 4096];
        match read(pipe, &mut buf) {
            Ok(n) if n > 0 => keep(words, &buf[..n]),
            Err(Errno::EINTR) => {}
            _ => return,
        }
    }
}

fn keep(words: &mut Vec<u8>, more: &[u8]) {
    words.extend_from_slice(more);
    let surplus = words.len().saturating_sub(LAST_WORDS);
    words.drain(..surplus);
}

/// As an error's text can hold it.
fn one_line(words: &[u8]) -> String {
    let text = String::from_utf8_lossy(words);
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let plain = |c: char| if c.is_control() { ' ' } else { c };
    lines.collect::<Vec<_>>().join("; ").chars().map(plain).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_words_count_and_fit_into_a_line() {
        let mut words = Vec::new();
        keep(&mut words, &[b'x'; 5000]);
        keep(&mut words, b"\n  no such\tdevice\r\n\n\x1b[0mbye\xff\n");
        assert_eq!(words.len(), LAST_WORDS);
        let text = one_line(&words);
        assert!(text.ends_with("x; no such device;  [0mbye\u{fffd}"), "{text:?}");
    }

    #[test]
    fn a_state_is_as_the_specification_wants_it() {
        let annotations = BTreeMap::from([("a".to_owned(), "b".to_owned())]);
        let state = State::new("c", Path::new("/bundle"), &annotations);
        let text = serde_json::to_string(&state.at("creating", Some(7))).unwrap();
        let rest = r#""bundle":"/bundle","annotations":{"a":"b"}}"#;
        let head = r#"{"ociVersion":"1.3.0","id":"c","status":"#;
        assert_eq!(text, format!(r#"{head}"creating","pid":7,{rest}"#));
        let text = serde_json::to_string(&state.at("stopped", None)).unwrap();
        assert_eq!(text, format!(r#"{head}"stopped",{rest}"#));
    }

    #[test]
    fn a_pid_of_ours_is_the_same_inside() {
        assert_eq!(pid_inside(std::process::id()).unwrap(), std::process::id());
    }
}
