//! A containerd shim, a pod's sandbox and an OCI runtime in one process of one thread.
//!
//! Layers, top to bottom: `service` (TTRPC) → `shim` → `sandbox`, `container`, `process` →
//! `launch`, `cgroup`, `stdio`, … → `plan` (pure) and `child` (after clone) → `sys` (system calls).
//! A module imports downwards only. ARCHITECTURE.md has the invariants and what guards each.
#![deny(unsafe_code)]

pub mod agent;
pub mod api;
pub mod bundle;
pub mod cgroup;
pub mod check;
pub mod child;
pub mod cleanup;
pub mod config;
pub mod console;
pub mod container;
pub mod error;
pub mod events;
pub mod fifo;
pub mod holder;
pub mod hooks;
pub mod launch;
pub mod namespaces;
pub mod plan;
pub mod process;
pub mod rdt;
pub mod reaper;
pub mod relay;
pub mod sandbox;
pub mod service;
pub mod shim;
pub mod socket;
pub mod stdio;
pub mod sys;
pub mod systemd;
pub mod user;
