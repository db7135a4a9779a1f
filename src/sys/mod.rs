//! The only door to raw system calls, beside `child`.
//!
//! Thin functions that add safe defaults and say so. It must never hold logic, state or a log line.
#![allow(unsafe_code)]

pub mod bpf;
pub mod clone;
pub mod exe;
pub mod fd;
pub mod io;
pub mod memory;
pub mod mount;
pub mod netlink;
pub mod probe;
pub mod raw;
