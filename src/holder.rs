//! The holder: process 1 of a pod's PID namespace.
//!
//! A co-container with CAP_SYS_PTRACE can make it do anything it may do itself. So it must never
//! hold a descriptor, memory or a right that such a container lacks: `plan::holder` took the root,
//! the user and the capabilities away, `execve` the memory, and this takes the rest.

use crate::sys::exe;

/// Holds the namespaces it is in and buries what is reparented to it, until it is killed.
pub fn run() -> ! {
    // With SIGCHLD ignored the kernel buries: nothing to loop over, and no zombie ever.
    exe::ignore_sigchld();
    // The program file is readable, so `execve` made this process open to its own user: 65534, which
    // is somebody in many containers.
    let _ = nix::sys::prctl::set_dumpable(false);
    exe::close_all();
    exe::sleep_for_ever()
}
