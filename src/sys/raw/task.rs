//! What the scheduler and the memory of a task go by. As the module above: no allocation, no state.

use std::ffi::c_int;

use nix::errno::Errno;

use super::{Arg, check};

/// `sched_setattr(2)` on itself. `times`: runtime, deadline and period in nanoseconds.
pub fn sched_setattr(
    policy: u32,
    flags: u64,
    nice: i32,
    priority: u32,
    times: [u64; 3],
) -> Result<c_int, Errno> {
    /// `struct sched_attr`, in the size that Linux 5.3 gave it.
    #[repr(C)]
    struct SchedAttr {
        size: u32,
        policy: u32,
        flags: u64,
        nice: i32,
        priority: u32,
        times: [u64; 3],
        utilization: [u32; 2],
    }
    let size = size_of::<SchedAttr>() as u32;
    let attr = SchedAttr { size, policy, flags, nice, priority, times, utilization: [0; 2] };
    call!("attr has the kernel's layout", libc::SYS_sched_setattr, 0, &raw const attr, 0)
}

/// `sched_setaffinity(2)` on itself; the kernel leaves out what the cpuset does not have.
pub fn sched_setaffinity(cpus: &[u64]) -> Result<c_int, Errno> {
    let size = size_of_val(cpus);
    call!("the slice lives across the call", libc::SYS_sched_setaffinity, 0, size, cpus.as_ptr())
}

/// `ioprio_set(IOPRIO_WHO_PROCESS)` on itself.
pub fn ioprio_set(priority: u32) -> Result<c_int, Errno> {
    const WHO_PROCESS: c_int = 1;
    call!("numbers", libc::SYS_ioprio_set, WHO_PROCESS, 0, priority)
}

/// `personality(2)`.
pub fn personality(domain: u32) -> Result<c_int, Errno> {
    call!("a number", libc::SYS_personality, domain)
}

/// `set_mempolicy(2)`. The kernel takes one node less than it is told of.
pub fn set_mempolicy(mode: u32, nodes: &[u64]) -> Result<c_int, Errno> {
    let bits = nodes.len() * 64;
    let (nodes, most) =
        if nodes.is_empty() { (std::ptr::null(), 0) } else { (nodes.as_ptr(), bits + 1) };
    call!("the slice lives across the call", libc::SYS_set_mempolicy, mode, nodes, most)
}
