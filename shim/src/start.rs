//! `start`: from containerd's request to a listening server, or to nothing at all.
//!
//! containerd parses stdout and stderr together as the reply. When `start` fails, nobody runs
//! `delete`: it must leave no process, socket or file behind.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process;

use containerd_shim::StartOpts;
use containerd_shim_rs::bundle;
use containerd_shim_rs::check;
use containerd_shim_rs::config::Config;
use containerd_shim_rs::error::{Doing, Error, Result};
use containerd_shim_rs::socket::{self, Listening};

use crate::args::{self, Flags};
use crate::server::{Server, Settings};
use crate::{bootstrap, confine};

/// Where containerd 1.6 and 1.7 look for the address after a restart.
const ADDRESS_FILE: &str = "address";

/// Starts a server for `-id`, or finds the one that runs, and prints its address.
pub fn run(flags: &Flags) -> Result<()> {
    let (id, namespace) = args::identity(flags)?;
    let bundle = env::current_dir().doing(|| "getcwd")?;
    let (options, reply) = bootstrap::read(flags, &bundle)?;
    let given = bootstrap::options(&options)?;
    let config = Config::read(given.path.as_deref())?;
    // Half a pod is worse than none.
    check::every_container()?;
    confine::core_scheduling()?;
    confine::oom_score()?;
    confine::join_cgroup(&config.options(&given)?.shim_cgroup)?;

    let group = bundle::group(&bundle, id)?;
    let address =
        socket_address(options.socket_dir.as_deref(), &options.address, namespace, &group);
    let path = socket_path(&address)?;
    let file = bundle.join(ADDRESS_FILE);
    let mut undo = Undo::default();
    let server = match socket::listen(&path)? {
        Listening::Theirs => {
            undo.address_file = (!file.exists()).then_some(&file);
            write_address(&file, &address)?;
            None
        }
        Listening::Ours(listener) => {
            undo.socket = Some(&path);
            undo.address_file = Some(&file);
            write_address(&file, &address)?;
            let settings = Settings {
                namespace,
                id,
                address: &options.address,
                ttrpc_address: &options.ttrpc_address,
                debug: options.debug,
                config_path: given.path.as_deref(),
            };
            Some(Server::start(&settings, listener).doing(|| "start the server")?)
        }
    };
    bootstrap::answer(reply, &address)?;
    undo.keep();
    if let Some(server) = server {
        server.release();
    }
    Ok(())
}

/// What `start` has made and removes if it fails.
#[derive(Debug, Default)]
struct Undo<'a> {
    socket: Option<&'a Path>,
    address_file: Option<&'a Path>,
}

impl Undo<'_> {
    /// All went well.
    fn keep(mut self) {
        self.socket = None;
        self.address_file = None;
    }
}

impl Drop for Undo<'_> {
    fn drop(&mut self) {
        if let Some(file) = self.address_file {
            let _ = fs::remove_file(file);
        }
        if let Some(socket) = self.socket {
            // Our server is dead by now, and somebody else may have taken its place.
            let _ = socket::remove_stale(socket);
        }
    }
}

/// The address that containerd's own shim would have: the SHA-256 of the parts, joined as Go does.
fn socket_address(dir: Option<&str>, grpc_address: &str, namespace: &str, id: &str) -> String {
    let options = StartOpts {
        address: clean(grpc_address),
        namespace: namespace.to_string(),
        socket_dir: dir.map(String::from),
        ..StartOpts::default()
    };
    options.socket_address(id)
}

/// What Go's `filepath.Clean` makes of `path`.
fn clean(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match (part, parts.last()) {
            ("" | ".", _) => {}
            ("..", None) if path.starts_with('/') => {}
            ("..", Some(&last)) if last != ".." => drop(parts.pop()),
            _ => parts.push(part),
        }
    }
    let root = if path.starts_with('/') { "/" } else { "" };
    format!("{root}{}", parts.join("/"))
}

fn socket_path(address: &str) -> Result<PathBuf> {
    match address.strip_prefix("unix://").map(PathBuf::from) {
        Some(path) if path.is_absolute() => Ok(path),
        _ => Err(Error::invalid(format!("socket {address:?} is not an absolute path"))),
    }
}

/// Atomically: containerd may read it at any time after a restart.
fn write_address(file: &Path, address: &str) -> Result<()> {
    let new = file.with_file_name(format!(".{ADDRESS_FILE}.{}", process::id()));
    let written = fs::write(&new, address)
        .doing(|| format!("write {new:?}"))
        .and_then(|()| fs::rename(&new, file).doing(|| format!("rename {new:?} to {file:?}")));
    if written.is_err() {
        let _ = fs::remove_file(&new);
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_joined_as_go_does() {
        for (path, expected) in [
            ("/run/containerd/containerd.sock", "/run/containerd/containerd.sock"),
            ("/run//containerd/./x/../containerd.sock/", "/run/containerd/containerd.sock"),
            ("/../a", "/a"),
            ("a/../../b", "../b"),
            ("unix:///run/c.sock", "unix:/run/c.sock"),
            ("", ""),
        ] {
            assert_eq!(clean(path), expected);
        }
        // sha256("/run/containerd/containerd.sock/default/123")
        let hash = "0ddfbd72d02b3551e75f3a0ed90b9965b533401be618f43a568bc522764e0ad0";
        let address = socket_address(None, "/run//containerd/containerd.sock", "default", "123");
        assert_eq!(address, format!("unix:///run/containerd/s/{hash}"));
        let address =
            socket_address(Some("/d/"), "/run/containerd/containerd.sock", "default", "123");
        assert_eq!(address, format!("unix:///d/{hash}"));
    }
}
