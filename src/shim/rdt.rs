//! Which groups of resctrl a container is to be in. It must never let a spec pass that asks for what
//! the kernel has not.

use std::path::Path;

use oci_spec::runtime::Spec;

use super::Shim;
use crate::error::Result;
use crate::plan::Rdt;
use crate::rdt;

impl Shim {
    /// Where resctrl is mounted, if it is.
    pub(super) fn resctrl(&self) -> &Path {
        self.settings.resctrl.as_deref().unwrap_or(Path::new(rdt::ROOT))
    }

    /// What the spec asks for, if the kernel has it.
    pub(super) fn rdt(&self, spec: &Spec, id: &str) -> Result<Option<Rdt>> {
        let rdt = Rdt::of(spec, id, self.resctrl())?;
        if let Some(rdt) = &rdt {
            rdt::check(rdt, self.resctrl())?;
        }
        Ok(rdt)
    }
}
