//! What of `linux.resources` is left out, by name. Pure.
//!
//! Each is a field that the host's cgroup version, or every kernel since 5.16, has not. runc leaves
//! the same ones out, and containers whose specs were written for an older host must still run; but
//! it must never happen in silence.

use oci_spec::runtime::LinuxResources;

use super::set;

/// The fields that are given and have no effect.
pub fn ignored(resources: &LinuxResources, unified: bool) -> Vec<&'static str> {
    let mut names = Vec::new();
    let mut when = |given: bool, name| names.extend(given.then_some(name));
    if let Some(memory) = resources.memory() {
        let limited = |value: Option<i64>| value.is_some_and(|value| value > 0);
        when(limited(memory.kernel()), "memory.kernel");
        // A cgroup counts what is below it, always since 5.11.
        when(memory.use_hierarchy() == Some(false), "memory.useHierarchy");
        when(unified && limited(memory.kernel_tcp()), "memory.kernelTCP");
        // Go clients say "not set" with the highest number.
        let swappiness = memory.swappiness().is_some_and(|value| value != u64::MAX);
        when(unified && swappiness, "memory.swappiness");
        when(unified && memory.disable_oom_killer() == Some(true), "memory.disableOOMKiller");
    }
    if let Some(io) = resources.block_io() {
        let mut devices = io.weight_device().iter().flatten();
        let leaf = set(io.leaf_weight()).is_some()
            || devices.any(|device| set(device.leaf_weight()).is_some());
        when(unified && leaf, "blockIO.leafWeight");
    }
    if let Some(network) = resources.network() {
        when(unified && set(network.class_id()).is_some(), "network.classID");
        let any = network.priorities().as_ref().is_some_and(|list| !list.is_empty());
        when(unified && any, "network.priorities");
    }
    names
}
