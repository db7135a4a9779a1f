//! Dispositions and masks of signals. As the module above: no allocation, no state.
//!
//! The raw calls: libc's keep some signals to themselves, and take a lock.

use std::ffi::{c_int, c_void};

use nix::errno::Errno;

use super::{Arg, check};

/// Signals 1 to 64.
const SIGNALS: c_int = 64;
/// Of a set of them, in bytes.
const SET: usize = 8;

/// Default disposition of one signal.
pub fn default_signal(signal: c_int) -> Result<c_int, Errno> {
    let action = [0u64; 4];
    let null = std::ptr::null::<c_void>();
    call!(
        "all zero is SIG_DFL in the kernel's sigaction",
        libc::SYS_rt_sigaction,
        signal,
        action.as_ptr(),
        null,
        SET
    )
}

/// The address of a signal's handler, `SIG_DFL` or `SIG_IGN`.
pub fn handler(signal: c_int) -> Result<u64, Errno> {
    let mut action = [0u64; 4];
    let null = std::ptr::null::<c_void>();
    call!(
        "action has the size of the kernel's sigaction on every machine, or more",
        libc::SYS_rt_sigaction,
        signal,
        null,
        action.as_mut_ptr(),
        SET
    )?;
    let [handler, ..] = action;
    Ok(handler)
}

/// Default disposition of what has a handler; what is ignored stays so, as with `CLONE_CLEAR_SIGHAND`.
pub fn clear_handlers() -> Result<(), Errno> {
    for signal in (1..=SIGNALS).filter(|s| ![libc::SIGKILL, libc::SIGSTOP].contains(s)) {
        if ![libc::SIG_DFL as u64, libc::SIG_IGN as u64].contains(&handler(signal)?) {
            default_signal(signal)?;
        }
    }
    Ok(())
}

/// Blocks just these signals; those that were blocked before.
pub fn set_signal_mask(set: u64) -> Result<u64, Errno> {
    let mut before = 0u64;
    call!(
        "both sets have the kernel's size",
        libc::SYS_rt_sigprocmask,
        libc::SIG_SETMASK,
        &raw const set,
        &raw mut before,
        SET
    )?;
    Ok(before)
}

/// An empty signal mask.
pub fn unblock_signals() -> Result<c_int, Errno> {
    set_signal_mask(0).map(|_| 0)
}
