//! `delete`: the end of a pod or container without its server.
//!
//! containerd runs it after every normal end too, and kills it after 5 s. Its stdout is the reply
//! and nothing else; its stderr goes to containerd's log.

use std::env;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use containerd_shim_protos::protobuf::{Message, MessageField};
use containerd_shim_protos::shim::shim::DeleteResponse;
use containerd_shim_rs::cleanup::{self, Request};
use containerd_shim_rs::error::{Doing, Error, Result};

use crate::args::{self, Flags};
use crate::logger;

/// Cleans up and prints how the init ended.
pub fn run(flags: &Flags) -> Result<()> {
    let (id, namespace) = args::identity(flags)?;
    logger::install(logger::stderr(), namespace, id, flags.debug);
    let request =
        Request { namespace: namespace.to_string(), id: id.to_string(), bundle: bundle(flags)? };
    let outcome = cleanup::delete(&request);
    let response = DeleteResponse {
        pid: outcome.pid,
        exit_status: outcome.exit_status,
        exited_at: MessageField::some(outcome.exited_at.into()),
        ..DeleteResponse::default()
    };
    let bytes = response
        .write_to_bytes()
        .map_err(|error| Error::invalid(format!("encode DeleteResponse: {error}")))?;
    io::stdout().write_all(&bytes).doing(|| "write the reply to stdout")
}

/// `-bundle`, or beside the working directory: in a group that one is another container's.
fn bundle(flags: &Flags) -> Result<PathBuf> {
    if !flags.bundle.is_empty() {
        return Ok(PathBuf::from(&flags.bundle));
    }
    let cwd = env::current_dir().doing(|| "getcwd")?;
    Ok(cwd.parent().unwrap_or(Path::new("/")).join(&flags.id))
}
