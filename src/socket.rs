//! The shim's own socket: listening on it, asking whether somebody else does, removing it.
//!
//! Two processes may do so for one path at a time (a retried `start`, a late `delete`), so every
//! removal happens under a lock of the directory. It must never remove a socket that answers.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::poll::{PollTimeout, poll};
use nix::sys::socket::{
    self, AddressFamily, Backlog, SockFlag, SockType, UnixAddr, connect, socket,
};
use nix::sys::stat::{Mode, fchmod};

use crate::error::{Doing, Error, Result};

/// `sun_path` holds 108 bytes, one of them NUL.
const MAX_PATH: usize = 107;
/// The lock is held for microseconds; whoever holds it longer is stopped.
const LOCK_TIMEOUT: Duration = Duration::from_secs(2);

/// What [`listen`] found.
#[derive(Debug)]
pub enum Listening {
    /// The socket is ours, listening, mode 0600.
    Ours(UnixListener),
    /// Another process serves it.
    Theirs,
}

/// Listens on `path`, in a directory made with mode 0700 if need be. A dead socket is replaced.
pub fn listen(path: &Path) -> Result<Listening> {
    let length = path.as_os_str().len();
    if length > MAX_PATH {
        return Err(Error::invalid(format!(
            "socket {path:?} has {length} bytes, at most {MAX_PATH} fit"
        )));
    }
    let dir =
        path.parent().ok_or_else(|| Error::invalid(format!("socket {path:?} has no directory")))?;
    DirBuilder::new().recursive(true).mode(0o700).create(dir).doing(|| format!("mkdir {dir:?}"))?;
    let _lock = lock(dir)?;
    match bind(path) {
        Err(Errno::EADDRINUSE) => {
            if answers(path)? {
                return Ok(Listening::Theirs);
            }
            unlink(path)?;
            bind(path)
        }
        bound => bound,
    }
    .doing(|| format!("bind {path:?}"))
    .map(Listening::Ours)
}

/// Removes the socket at `path` unless a process serves it. Nothing there is fine.
pub fn remove_stale(path: &Path) -> Result<()> {
    match fs::symlink_metadata(path) {
        Ok(found) if found.file_type().is_socket() => {}
        _ => return Ok(()),
    }
    let Some(dir) = path.parent() else { return Ok(()) };
    let _lock = lock(dir)?;
    if answers(path)? { Ok(()) } else { unlink(path) }
}

/// `bind(2)` and `listen(2)`.
fn bind(path: &Path) -> Result<UnixListener, Errno> {
    let fd = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    // The file gets the mode that the socket has when it is bound: a chmod after that would leave a
    // window, and the umask belongs to the whole process.
    fchmod(&fd, Mode::S_IRUSR | Mode::S_IWUSR)?;
    socket::bind(fd.as_raw_fd(), &UnixAddr::new(path)?)?;
    socket::listen(&fd, Backlog::MAXCONN)?;
    Ok(UnixListener::from(fd))
}

/// Whether a process listens on `path`. Never blocks, even if its queue is full.
fn answers(path: &Path) -> Result<bool> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let probe =
        socket(AddressFamily::Unix, SockType::Stream, flags, None).doing(|| "socket(AF_UNIX)")?;
    let doing = || format!("connect {path:?}");
    let address = UnixAddr::new(path).doing(doing)?;
    match connect(probe.as_raw_fd(), &address) {
        // EAGAIN: the queue of a listener is full.
        Ok(()) | Err(Errno::EAGAIN) => Ok(true),
        Err(Errno::ECONNREFUSED | Errno::ENOENT) => Ok(false),
        Err(errno) => Err(errno).doing(doing),
    }
}

fn unlink(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).doing(|| format!("unlink {path:?}"))
        }
        _ => Ok(()),
    }
}

/// Locks the directory itself, so that no lock file stays behind.
fn lock(dir: &Path) -> Result<Flock<File>> {
    let deadline = Instant::now() + LOCK_TIMEOUT;
    let mut file = File::open(dir).doing(|| format!("open {dir:?}"))?;
    loop {
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Ok(lock),
            Err((again, Errno::EWOULDBLOCK)) if Instant::now() < deadline => file = again,
            Err((_, errno)) => return Err(errno).doing(|| format!("flock {dir:?}")),
        }
        let _ = poll(&mut [], PollTimeout::from(1u8));
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn dir(name: &str) -> std::path::PathBuf {
        std::env::temp_dir().join(format!("shim-socket-{name}-{}", std::process::id()))
    }

    #[test]
    fn a_socket_that_answers_is_never_removed() {
        let dir = dir("live");
        let path = dir.join("s");
        let listener = match listen(&path).unwrap() {
            Listening::Ours(listener) => listener,
            Listening::Theirs => panic!("a new path"),
        };
        assert_eq!(fs::metadata(&dir).unwrap().permissions().mode() & 0o777, 0o700);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(matches!(listen(&path).unwrap(), Listening::Theirs));
        remove_stale(&path).unwrap();
        assert!(path.exists());
        drop(listener);
        assert!(matches!(listen(&path).unwrap(), Listening::Ours(_)));
        remove_stale(&path).unwrap();
        assert!(!path.exists());
        fs::remove_dir(&dir).unwrap();
    }

    #[test]
    fn of_many_that_find_a_dead_socket_one_replaces_it() {
        let dir = dir("race");
        let path = dir.join("s");
        for round in 0..200 {
            // A child that another test has just forked may hold the last one.
            while answers(&path).unwrap() {
                std::thread::sleep(Duration::from_millis(1));
            }
            let barrier = std::sync::Barrier::new(4);
            let found: Vec<Listening> = std::thread::scope(|scope| {
                let listen = || {
                    barrier.wait();
                    listen(&path).unwrap()
                };
                let threads: Vec<_> = (0..4).map(|_| scope.spawn(listen)).collect();
                threads.into_iter().map(|thread| thread.join().unwrap()).collect()
            });
            let ours = found.iter().filter(|found| matches!(found, Listening::Ours(_))).count();
            assert_eq!(ours, 1, "round {round}");
        }
        fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn a_file_that_is_no_socket_is_left_alone() {
        let dir = dir("file");
        fs::create_dir(&dir).unwrap();
        let path = dir.join("s");
        fs::write(&path, "").unwrap();
        remove_stale(&path).unwrap();
        assert!(path.exists());
        fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn a_path_of_108_bytes_is_refused_by_name() {
        let path = Path::new("/run").join("x".repeat(103));
        assert_eq!(path.as_os_str().len(), 108);
        let error = listen(&path).unwrap_err().to_string();
        assert!(error.contains("108 bytes, at most 107 fit"), "{error}");
    }
}
