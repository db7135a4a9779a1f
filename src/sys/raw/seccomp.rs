//! `seccomp(2)`. As the module above: no allocation, no state.

use std::ffi::c_int;

use nix::errno::Errno;

use super::{Arg, check};

/// Adds a filter to this process: `struct sock_filter`s of 8 bytes. The descriptor of a listener, if
/// the flags ask for one.
pub fn add_filter(flags: u32, program: &[u64]) -> Result<c_int, Errno> {
    let len = u16::try_from(program.len()).map_err(|_| Errno::E2BIG)?;
    let program = libc::sock_fprog { len, filter: program.as_ptr().cast_mut().cast() };
    let set = libc::SECCOMP_SET_MODE_FILTER;
    call!(
        "program and what it points to live across the call; the kernel only reads",
        libc::SYS_seccomp,
        set,
        flags,
        &raw const program
    )
}
