//! What Create must know of a container's user namespace before it plans.

use std::os::fd::{AsFd, OwnedFd};

use oci_spec::runtime::{LinuxNamespaceType, Spec};

use super::Shim;
use super::create::Joined;
use crate::error::{Doing, Result};
use crate::plan::{Facts, IdMap};
use crate::{namespaces, user};

impl Shim {
    /// Fills in the mappings, and whether the network namespace that the spec names belongs to the
    /// user namespace that it names.
    pub(super) async fn user_facts(
        &self,
        facts: &mut Facts,
        spec: &Spec,
        joined: &[Joined],
    ) -> Result<()> {
        let listed = spec.linux().as_ref().and_then(|linux| linux.namespaces().as_deref());
        let find = |typ: LinuxNamespaceType| {
            let index = listed.unwrap_or_default().iter().position(|ns| ns.typ() == typ);
            joined.iter().find(|ns| Some(ns.index) == index)
        };
        let Some(inside) = find(LinuxNamespaceType::User).filter(|ns| !ns.ours) else {
            facts.user_map = IdMap::of_spec(spec);
            return Ok(());
        };
        let file = OwnedFd::from(inside.file.try_clone().doing(|| "dup(user namespace)")?);
        facts.user_map = Some(user::map_of(&self.reaper, file).await?);
        if let Some(network) = find(LinuxNamespaceType::Network) {
            facts.user_owns_network = namespaces::owner(network.file.as_fd())?
                .is_some_and(|owner| namespaces::same(&owner, &inside.file).unwrap_or(false));
        }
        Ok(())
    }
}
