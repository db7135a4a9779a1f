//! The server's process, as `start` makes and ends it.
//!
//! It runs from a detached read-only mount, so that no container can write to the binary through
//! `/proc/PID/exe` (CVE-2019-5736). It must never inherit stdout or stderr of `start`: containerd
//! waits for their end.

use std::env;
use std::ffi::CString;
use std::fs::{self, File};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::time::Duration;

use containerd_shim_rs::error::{Doing, Error, Kind, Result};
use containerd_shim_rs::sys::exe::{self, Program};
use nix::fcntl::{AtFlags, OFlag};
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::fstatat;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{Pid, pipe2};

use crate::ready::{self, Said};

/// The link to the binary that runs.
const SELF: &str = "/proc/self/exe";

/// A server gets ready within milliseconds; only a machine without memory or CPU takes longer.
const READY_TIMEOUT: Duration = Duration::from_secs(10);

/// The only variables of containerd's that a server keeps. OCI hooks without an `env` get its PATH.
const KEPT_VARIABLES: [&str; 2] = ["PATH", "RUST_BACKTRACE"];

/// Tells a server which file to read beside the node's.
pub const CONFIG_PATH: &str = "SHIM_CONFIG_PATH";

/// What a server is told.
#[derive(Debug)]
pub struct Settings<'a> {
    pub namespace: &'a str,
    pub id: &'a str,
    /// containerd's GRPC socket; only `ps` reads it.
    pub address: &'a str,
    pub ttrpc_address: &'a str,
    pub debug: bool,
    /// The file that containerd's runtime options name.
    pub config_path: Option<&'a Path>,
}

/// A server that is ready but that nobody knows yet: dropped, it is killed.
#[derive(Debug)]
pub struct Server(Option<Pid>);

impl Server {
    /// Starts a server on `listener` and waits until it is ready.
    pub fn start(settings: &Settings<'_>, listener: UnixListener) -> Result<Server> {
        let null = File::options()
            .read(true)
            .write(true)
            .open("/dev/null")
            .doing(|| "open \"/dev/null\"")?;
        let (reader, writer) = pipe2(OFlag::O_CLOEXEC).doing(|| "pipe2")?;
        let (tree, name) = sealed_binary()?;
        let program = Program {
            dir: tree.as_fd(),
            name: &name,
            args: &arguments(settings)?,
            env: &environment(settings)?,
            fds: &[null.as_fd(), null.as_fd(), null.as_fd(), listener.as_fd(), writer.as_fd()],
        };
        let pid = exe::spawn(&program).map_err(|(call, errno)| Error::sys(call, errno))?;
        // From here on only the server has them: its death is an end of the pipe.
        drop((writer, listener));
        let mut server = Server(Some(pid));
        match ready::wait(reader, READY_TIMEOUT)? {
            Said::Ready => Ok(server),
            Said::Error(text) => Err(Error::new(Kind::Unknown, text)),
            Said::Nothing => {
                Err(Error::new(Kind::Unknown, format!("the server died: {}", server.end())))
            }
        }
    }

    /// The reply is out: the server lives on without us.
    pub fn release(mut self) {
        self.0 = None;
    }

    /// Kills and reaps it; says how it ended.
    fn end(&mut self) -> String {
        let Some(pid) = self.0.take() else { return String::new() };
        // Not reaped yet, so the number is still its own; dead already is fine.
        let _ = kill(pid, Signal::SIGKILL);
        match waitpid(pid, None) {
            Ok(WaitStatus::Exited(_, code)) => format!("exit status {code}"),
            Ok(WaitStatus::Signaled(_, signal, _)) => format!("signal {signal}"),
            Ok(status) => format!("{status:?}"),
            Err(errno) => format!("waitpid: {errno:?}"),
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.end();
    }
}

/// The running binary on a read-only mount of its own: the mount's root, and the name below it.
///
/// The root is the binary's directory, so that `/proc/PID/exe` still ends in the binary's name.
/// Where the directory does not show the running file (it was replaced, or is itself a bind mount)
/// the root is the file, and the name empty.
fn sealed_binary() -> Result<(OwnedFd, CString)> {
    let running = fs::metadata(SELF).doing(|| format!("stat {SELF:?}"))?;
    let path = fs::read_link(SELF).doing(|| format!("readlink {SELF:?}"))?;
    if let (Some(dir), Some(name)) = (path.parent(), path.file_name())
        && let Ok(tree) = exe::clone_mount_readonly(&c_string(dir.as_os_str().as_bytes())?)
    {
        let name = c_string(name.as_bytes())?;
        let found = fstatat(&tree, name.as_c_str(), AtFlags::AT_SYMLINK_NOFOLLOW);
        if found.is_ok_and(|found| (found.st_dev, found.st_ino) == (running.dev(), running.ino())) {
            return Ok((tree, name));
        }
    }
    let file = exe::clone_mount_readonly(&c_string(SELF.as_bytes())?)
        .doing(|| format!("make a read-only mount of {path:?} (open_tree, mount_setattr)"))?;
    Ok((file, CString::default()))
}

fn arguments(settings: &Settings<'_>) -> Result<Vec<CString>> {
    let Settings { namespace, id, address, debug, .. } = *settings;
    let mut args = vec![crate::NAME, "-namespace", namespace, "-id", id, "-address", address];
    args.extend(debug.then_some("-debug"));
    args.push("serve");
    args.iter().map(|arg| c_string(arg.as_bytes())).collect()
}

fn environment(settings: &Settings<'_>) -> Result<Vec<CString>> {
    let address = settings.ttrpc_address;
    let mut env = vec![c_string(format!("TTRPC_ADDRESS={address}").as_bytes())?];
    if let Some(path) = settings.config_path {
        let path = path.as_os_str().as_bytes();
        env.push(c_string(&[CONFIG_PATH.as_bytes(), b"=", path].concat())?);
    }
    for name in KEPT_VARIABLES {
        if let Some(value) = env::var_os(name) {
            env.push(c_string(&[name.as_bytes(), b"=", value.as_bytes()].concat())?);
        }
    }
    Ok(env)
}

fn c_string(bytes: &[u8]) -> Result<CString> {
    CString::new(bytes)
        .map_err(|_| Error::invalid(format!("a NUL in {:?}", String::from_utf8_lossy(bytes))))
}
