//! A containerd shim, a pod's sandbox and an OCI runtime in one process of one thread.
//!
//! Layers, top to bottom: `service` (TTRPC) → `shim` → `sandbox`, `container`, `process` →
//! `launch`, `cgroup`, `stdio`, … → `plan` (pure) and `child` (after clone) → `sys` (system calls).
//! A module imports downwards only. ARCHITECTURE.md has the invariants and what guards each.
#![deny(unsafe_code)]

pub mod cgroup;
pub mod error;
pub mod events;
pub mod plan;
pub mod shim;
