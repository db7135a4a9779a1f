//! The holder: process 1 of a pod's PID namespace.
//!
//! It must never hold a descriptor, memory or a capability that a co-container could use.

use nix::unistd::pause;

use crate::sys::exe;

/// Holds the namespaces it is in and reaps what is reparented to it, until it is killed.
pub fn run() -> ! {
    // With SIGCHLD ignored the kernel reaps: there is nothing to loop over, and no zombie ever.
    exe::ignore_sigchld();
    loop {
        pause();
    }
}
