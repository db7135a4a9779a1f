//! What `delete` does: ends and removes a pod or a container whose server is gone, from what is on
//! disk alone.
//!
//! It must never need the server, never wait for something that may not come (containerd kills it
//! after 5 s), and say the same when it is called twice.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::socket;

/// 128 + SIGKILL: what containerd's own shim answers when nobody saw the exit.
const KILLED: u32 = 137;

/// Whom to clean up after.
#[derive(Clone, Debug)]
pub struct Request {
    /// containerd's namespace.
    pub namespace: String,
    /// The sandbox or container.
    pub id: String,
    /// Its bundle; may be gone.
    pub bundle: PathBuf,
}

/// What containerd publishes as its exit.
#[derive(Clone, Copy, Debug)]
pub struct Outcome {
    /// 0: not known.
    pub pid: u32,
    pub exit_status: u32,
    pub exited_at: SystemTime,
}

/// Runs every step whatever the others did; what failed is logged.
pub fn delete(request: &Request) -> Outcome {
    if let Some(path) = address(&request.bundle)
        && let Err(error) = socket::remove_stale(&path)
    {
        log::warn!("delete {:?}: {error}", request.id);
    }
    Outcome { pid: 0, exit_status: KILLED, exited_at: SystemTime::now() }
}

/// The socket that `start` wrote into the bundle's `address`.
fn address(bundle: &Path) -> Option<PathBuf> {
    let text = fs::read_to_string(bundle.join("address")).ok()?;
    let path = Path::new(text.trim().strip_prefix("unix://")?);
    path.is_absolute().then(|| path.to_path_buf())
}
