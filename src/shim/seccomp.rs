//! The containers' seccomp filters: compiled when a container is made, kept once for all that have
//! the same.
//!
//! It must never compare profiles instead of filters: two profiles may differ and mean the same, and a
//! profile is ten times as large as what it becomes.

use std::sync::Arc;

use oci_spec::runtime::Spec;

use super::Shim;
use crate::agent::Agent;
use crate::container::{ExecBase, listener};
use crate::error::{Error, Result};
use crate::plan::seccomp::{self, Arch, Filter};

impl Shim {
    /// The filter of a container's spec, if it has one; also for its execs.
    pub(super) fn filter(&self, id: &str, spec: &Spec) -> Result<Option<Arc<Filter>>> {
        let Some(profile) = spec.linux().as_ref().and_then(|linux| linux.seccomp().as_ref()) else {
            return Ok(None);
        };
        let native = Arch::native();
        let native = native.ok_or_else(|| Error::unimplemented("linux.seccomp on this machine"))?;
        let (filter, unknown) = seccomp::compile(profile, native)?;
        if !unknown.is_empty() {
            log::debug!("linux.seccomp of {id:?}: unknown system calls, ignored: {unknown:?}");
        }
        let state = self.lock();
        let mut others = state.containers.values().filter_map(|c| c.base.facts.seccomp.as_ref());
        let same = others.find(|other| ***other == filter).cloned();
        Ok(Some(same.unwrap_or_else(|| Arc::new(filter))))
    }

    /// Who has to hear of a process of a container, if its filter says so. `init`: 0 for the init itself.
    pub(super) fn agent(&self, id: &str, base: &ExecBase, init: u32) -> Result<Option<Agent>> {
        let (Some(listener), Some(told)) = (listener(&base.facts), &base.told) else {
            return Ok(None);
        };
        let mut state = told.clone();
        state["id"] = id.into();
        state["status"] = if init == 0 { "creating" } else { "running" }.into();
        if init != 0 {
            state["pid"] = init.into();
        }
        self.outside(|| Agent::new(listener.clone(), state)).map(Some)
    }
}
