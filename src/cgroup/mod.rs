//! A container's cgroup on the host.

pub mod stats;

pub use stats::Stats;
