//! One call of a client: how it is run, logged and answered.
//!
//! This is the only place that logs errors. It must never log a message by `{:?}`: that builds
//! protobuf's reflection tables, which are larger than the rest of the shim.

use std::any::Any;
use std::fmt;
use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::task::Poll;
use std::time::Instant;

use containerd_shim_protos::ttrpc::{self, Code};

use super::convert;
use crate::api::Target;
use crate::error::{Kind, Result};

/// What a client asks for, as the log names it.
#[derive(Debug)]
pub(super) struct Call {
    rpc: &'static str,
    id: String,
    exec: Option<String>,
}

impl Call {
    /// A call about a sandbox or a container.
    pub fn new(rpc: &'static str, id: &str) -> Call {
        Call { rpc, id: id.to_string(), exec: None }
    }

    /// A call about a process.
    pub fn to(rpc: &'static str, target: &Target) -> Call {
        Call { rpc, id: target.container.clone(), exec: target.exec.clone() }
    }
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:?}", self.rpc, self.id)?;
        match &self.exec {
            Some(exec) => write!(f, " exec {exec:?}"),
            None => Ok(()),
        }
    }
}

/// Runs a verb that only looks or waits: TTRPC drops it when its client goes away.
pub(super) async fn run<T>(call: Call, verb: impl Future<Output = Result<T>>) -> ttrpc::Result<T> {
    let since = Instant::now();
    match guarded(verb).await {
        Ok(Ok(answer)) => {
            log::debug!("{call}: ok in {:?}", since.elapsed());
            Ok(answer)
        }
        Ok(Err(error)) => {
            // "Not found" is how a client learns that a process has ended: no fault of anyone.
            let level = match error.kind() {
                Kind::NotFound => log::Level::Debug,
                _ => log::Level::Warn,
            };
            log::log!(level, "{call}: {error} (in {:?})", since.elapsed());
            Err(convert::status(&error))
        }
        Err(panic) => {
            log::error!("{call}: panic: {panic}");
            Err(status(Code::INTERNAL, format!("panic: {panic}")))
        }
    }
}

/// Runs a verb that changes something: to its end, even if its client goes away or its time is
/// up, for half a Create is a leak.
pub(super) async fn detached<T: Send + 'static>(
    call: Call,
    verb: impl Future<Output = Result<T>> + Send + 'static,
) -> ttrpc::Result<T> {
    match tokio::spawn(run(call, verb)).await {
        Ok(answer) => answer,
        Err(_) => Err(status(Code::UNAVAILABLE, "the shim is ending")),
    }
}

/// Turns a panic inside of `verb` into its message, for TTRPC would leave the client without any
/// answer.
async fn guarded<T>(verb: impl Future<Output = T>) -> std::result::Result<T, String> {
    let mut verb = pin!(verb);
    // The verb is dropped after a panic and never polled again, so nobody sees it broken.
    poll_fn(|cx| match catch_unwind(AssertUnwindSafe(|| verb.as_mut().poll(cx))) {
        Ok(poll) => poll.map(Ok),
        Err(panic) => Poll::Ready(Err(text(panic.as_ref()))),
    })
    .await
}

fn status(code: Code, text: impl ToString) -> ttrpc::Error {
    ttrpc::Error::RpcStatus(ttrpc::get_status(code, text))
}

fn text(panic: &(dyn Any + Send)) -> String {
    match (panic.downcast_ref::<&str>(), panic.downcast_ref::<String>()) {
        (Some(text), _) => text.to_string(),
        (_, Some(text)) => text.clone(),
        _ => "no message".to_string(),
    }
}
