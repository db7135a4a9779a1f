//! TTRPC in and out: the Task, Sandbox and Streaming services on one socket, and events to containerd.
//!
//! The only layer that knows protobuf and TTRPC. Each verb is: convert, call the [`Shim`],
//! convert. It must never decide anything about containers, and never use protobuf's reflection
//! (`Any::pack`, `descriptor_dyn`, `{:?}` of a message): its tables cost half a megabyte.

use std::collections::HashMap;
use std::os::unix::net::UnixListener;
use std::sync::Arc;

use containerd_shim_protos::sandbox_async::create_sandbox;
use containerd_shim_protos::shim_async::create_task;
use containerd_shim_protos::ttrpc::asynchronous::{Server, Service};

use crate::error::{Doing, Result};
use crate::shim::Shim;

mod accept;
mod call;
mod convert;
mod cri;
pub mod forward;
mod frame;
mod metrics;
pub mod options;
mod sandbox;
mod stream;
mod task;

/// The messages of `proto/`.
#[allow(clippy::all)]
mod proto {
    include!(concat!(env!("OUT_DIR"), "/proto/mod.rs"));
}

/// containerd 1.6 and 1.7 ask for the Task service by this name; the messages are the same.
const TASK_V2: &str = "containerd.task.v2.Task";

/// A server of both services on `listener`, for clients with our own user id. It serves once it
/// is started. To be called within the runtime.
pub fn server(shim: Arc<Shim>, listener: UnixListener) -> Result<Server> {
    let uid = nix::unistd::geteuid().as_raw();
    let listener = accept::listener(listener, uid, shim.clients.clone(), shim.streams.clone())
        .doing(|| "listen on the shim's socket")?;
    let tasks = Arc::new(task::Tasks { shim: shim.clone() });
    let old: HashMap<String, Service> =
        create_task(tasks.clone()).into_values().map(|s| (TASK_V2.to_string(), s)).collect();
    Ok(Server::new()
        .register_service(create_task(tasks))
        .register_service(old)
        .register_service(create_sandbox(Arc::new(sandbox::Sandboxes { shim })))
        .add_listener(listener))
}

#[cfg(test)]
mod tests;
