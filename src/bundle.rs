//! What is on disk: a container's spec, which we read, and our records, which suffice to clean up
//! after a shim that is gone.
//!
//! A record must be safe on disk before what it describes may run. Its format has a version: a
//! newer binary reads the record of an older one.

mod annotations;

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::error::{Doing, Error, Kind, Result};
use crate::events::Exit;
use crate::plan::Cgroups;

pub use annotations::{group, stands_for_all};

/// The format of records that this binary writes.
pub const RECORD_VERSION: u32 = 1;
/// A container's record, in its bundle.
const CONTAINER_RECORD: &str = "shim-container.json";
/// The serving process' own record, in its bundle.
const SERVER_RECORD: &str = "shim-server.json";
/// In the serving process' bundle: the records of all its containers. containerd removes a
/// container's own bundle as soon as it finds the server dead, before anyone asks us to clean up.
const CONTAINERS: &str = "shim-containers";
/// containerd's identifiers have at most 76 characters; a file name 255.
const MAX_ID: usize = 255;

/// A container as `delete` needs it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerRecord {
    pub version: u32,
    pub id: String,
    /// Of the init.
    pub pid: u32,
    /// Field 22 of its `/proc/PID/stat`: a pid alone may be another process' by now.
    pub start_time: u64,
    /// Its directories, one for each hierarchy.
    pub cgroups: Cgroups,
    /// The scope of systemd that it is in. Records without are older.
    #[serde(default)]
    pub unit: Option<String>,
    /// Its rootfs on the host, where hooks want it.
    pub rootfs_mount: Option<PathBuf>,
    /// The groups of resctrl that go with it, innermost first. Records without are older.
    #[serde(default)]
    pub resctrl: Vec<PathBuf>,
    /// Once it has ended.
    pub exit_status: Option<u32>,
    /// Milliseconds since 1970.
    pub exited_at_ms: Option<u64>,
}

/// The serving process, and its sandbox if it has one, as `delete` needs them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerRecord {
    pub version: u32,
    pub shim_pid: u32,
    pub shim_start_time: u64,
    /// Of the holder, if there is one.
    pub holder_pid: Option<u32>,
    pub holder_start_time: Option<u64>,
    /// A mount of the pod's `/dev/shm` on the host, where the kernel needs one.
    pub shm_mount: Option<PathBuf>,
}

/// A name that containerd gave us, and that we use as one component of a path.
pub fn check_id(id: &str) -> Result<()> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    if id.is_empty() || id.len() > MAX_ID || !id.bytes().all(plain) || id.bytes().all(|b| b == b'.')
    {
        let shown: String = id.chars().take(MAX_ID).collect();
        return Err(Error::invalid(format!(
            "id {shown:?}: not 1 to {MAX_ID} letters, digits, '.', '_' or '-'"
        )));
    }
    Ok(())
}

/// Reads at most `limit` bytes of a regular file, and refuses a longer one.
pub fn read_limited(path: &Path, limit: u64) -> Result<Vec<u8>> {
    let open = || format!("open {path:?}");
    let flags = nix::libc::O_NONBLOCK | nix::libc::O_NOFOLLOW;
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path).doing(open)?;
    let stat = file.metadata().doing(|| format!("fstat {path:?}"))?;
    if !stat.is_file() {
        return Err(Error::invalid(format!("{path:?} is not a file")));
    }
    if stat.len() > limit {
        return Err(Error::invalid(format!(
            "{path:?} has {} bytes; at most {limit} are read",
            stat.len()
        )));
    }
    let mut bytes = Vec::with_capacity(stat.len() as usize);
    file.take(limit).read_to_end(&mut bytes).doing(|| format!("read {path:?}"))?;
    Ok(bytes)
}

/// The spec of a bundle, as bytes.
pub fn config(bundle: &Path) -> Result<Vec<u8>> {
    read_limited(&bundle.join("config.json"), crate::plan::spec::LIMIT as u64)
        .map_err(|e| e.with_kind(Kind::InvalidArgument))
}

/// Writes a file so that it is there whole or not at all.
pub fn write_atomic(path: &Path, bytes: &[u8], mode: u32) -> Result<()> {
    let mut name = path.as_os_str().to_owned();
    // No id has this character: it cannot be another record.
    name.push("~");
    let new = PathBuf::from(name);
    let write = || -> std::io::Result<()> {
        let _ = fs::remove_file(&new);
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&new)?;
        file.write_all(bytes)?;
        fs::rename(&new, path)
    };
    write().doing(|| format!("write {path:?}"))
}

/// Field 22 of `/proc/PID/stat`.
pub fn start_time(pid: u32) -> Result<u64> {
    let path = format!("/proc/{pid}/stat");
    let mut text = String::new();
    File::open(&path)
        .and_then(|mut f| f.read_to_string(&mut text))
        .doing(|| format!("read {path}"))?;
    // The second field is a name in parentheses, in which anything may stand.
    let rest = text.rsplit_once(')').map_or("", |(_, rest)| rest);
    rest.split_whitespace()
        .nth(19)
        .and_then(|field| field.parse().ok())
        .ok_or_else(|| Error::new(Kind::Unknown, format!("{path}: no start time")))
}

/// Milliseconds since 1970.
pub fn millis(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64
}

impl ContainerRecord {
    /// Writes it into the server's bundle, and into the container's own.
    pub fn write(&self, home: &Path, bundle: &Path) -> Result<()> {
        let dir = home.join(CONTAINERS);
        match DirBuilder::new().mode(0o700).create(&dir) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                // The first member of a group without a pod is gone, and the server's bundle was
                // its own. Each member has a `delete` of its own then.
                return write_record(&bundle.join(CONTAINER_RECORD), self);
            }
            Err(e) if e.kind() != std::io::ErrorKind::AlreadyExists => {
                return Err(Error::io(format!("mkdir {dir:?}"), &e));
            }
            _ => {}
        }
        write_record(&dir.join(&self.id), self)?;
        write_record(&bundle.join(CONTAINER_RECORD), self)
    }

    /// `None`: there is none.
    pub fn read(bundle: &Path) -> Result<Option<ContainerRecord>> {
        read_record(&bundle.join(CONTAINER_RECORD))
    }

    /// Its exit, if it is known.
    pub fn exit(&self) -> Option<Exit> {
        let at = UNIX_EPOCH + Duration::from_millis(self.exited_at_ms?);
        Some(Exit { status: self.exit_status?, at })
    }
}

impl ServerRecord {
    /// Writes it into the server's bundle.
    pub fn write(&self, bundle: &Path) -> Result<()> {
        write_record(&bundle.join(SERVER_RECORD), self)
    }

    /// `None`: there is none.
    pub fn read(bundle: &Path) -> Result<Option<ServerRecord>> {
        read_record(&bundle.join(SERVER_RECORD))
    }
}

fn write_record(path: &Path, record: &impl Serialize) -> Result<()> {
    let json = serde_json::to_vec(record)
        .map_err(|e| Error::new(Kind::Unknown, format!("encode record: {e}")))?;
    write_atomic(path, &json, 0o600)
}

fn read_record<T: for<'de> Deserialize<'de>>(path: &Path) -> Result<Option<T>> {
    let bytes = match read_limited(path, 1 << 20) {
        Err(e) if e.errno() == Some(nix::errno::Errno::ENOENT) => return Ok(None),
        bytes => bytes?,
    };
    serde_json::from_slice(&bytes).map(Some).map_err(|e| Error::invalid(format!("{path:?}: {e}")))
}

/// Forgets a container: both its records.
pub fn forget_container(home: &Path, id: &str, bundle: &Path) -> Result<()> {
    let steps = [bundle.join(CONTAINER_RECORD), home.join(CONTAINERS).join(id)].map(|path| {
        match fs::remove_file(&path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                Err(Error::io(format!("unlink {path:?}"), &e))
            }
            _ => Ok(()),
        }
    });
    Error::join(steps.into_iter().filter_map(Result::err).collect())
}

/// The record of every container that the serving process of this bundle had. What cannot be read
/// comes as an error.
pub fn containers(home: &Path) -> Vec<Result<ContainerRecord>> {
    let Ok(dir) = fs::read_dir(home.join(CONTAINERS)) else { return Vec::new() };
    // `~`: a write that its process did not live to finish.
    let whole = dir.flatten().filter(|entry| !entry.file_name().as_encoded_bytes().ends_with(b"~"));
    whole.filter_map(|entry| read_record(&entry.path()).transpose()).collect()
}

/// Forgets a server, unless a container of its is still on record.
pub fn forget_server(home: &Path) {
    match fs::remove_dir(home.join(CONTAINERS)) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {}
        _ => drop(fs::remove_file(home.join(SERVER_RECORD))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_one_plain_component() {
        for good in ["a", "web-1", "a.b_c", &"x".repeat(MAX_ID)] {
            assert!(check_id(good).is_ok(), "{good}");
        }
        for bad in ["", ".", "..", "a/b", "../x", "a\0b", "a b", "ä", &"x".repeat(1024)] {
            assert_eq!(check_id(bad).unwrap_err().kind(), Kind::InvalidArgument, "{bad}");
        }
    }

    #[test]
    fn a_start_time_tells_two_processes_apart() {
        let own = start_time(std::process::id()).unwrap();
        let init = start_time(1).unwrap();
        assert!(own > init, "{own} {init}");
    }
}
