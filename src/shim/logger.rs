//! Loggers: whether the program that a request names may run, and its start.
//!
//! It runs as root on the host, and who names it may be an image's author (CVE-2026-53488). It must
//! never start in a pod's namespaces.

use std::path::PathBuf;

use super::Shim;
use crate::api::StdioPaths;
use crate::error::{Doing, Error, Result};
use crate::stdio::{Logger, Stream};

impl Shim {
    /// Starts the logger that `stdio` names for the process `id`, if it names one.
    pub(super) async fn start_logger(
        &self,
        stdio: &StdioPaths,
        id: &str,
        owner: (u32, u32),
        allowed: Option<&[PathBuf]>,
    ) -> Result<Option<Logger>> {
        let Stream::Logger(program) = Stream::parse(&stdio.stdout).doing(|| "stdout")? else {
            return Ok(None);
        };
        if self.lock().sandbox.is_some() {
            let text = "stdout: a logger (binary://) for a container of a sandbox";
            return Err(Error::unimplemented(text));
        }
        program.allowed(allowed).doing(|| "stdout")?;
        let namespace = &self.settings.namespace;
        let started = Logger::start(&self.reaper, &program, (id, namespace), owner).await;
        started.map(Some).doing(|| "stdout")
    }
}
