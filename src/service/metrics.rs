//! A reading of a cgroup as containerd's metrics, of version 1 or 2.

use containerd_shim_protos::protobuf::MessageField;
use containerd_shim_protos::protobuf::well_known_types::any::Any;

use super::convert;
use crate::cgroup::Stats;

mod v1;
mod v2;

#[cfg(test)]
mod tests;

/// The metrics in the message that fits the cgroup's version.
pub(super) fn any(stats: Stats) -> Any {
    if stats.unified {
        convert::pack("io.containerd.cgroups.v2.Metrics", &v2::metrics(stats))
    } else {
        convert::pack("io.containerd.cgroups.v1.Metrics", &v1::metrics(stats))
    }
}

/// A field that is set only where the kernel has it.
fn field<T, M>(value: Option<T>, convert: impl FnOnce(T) -> M) -> MessageField<M> {
    MessageField::from_option(value.map(convert))
}
