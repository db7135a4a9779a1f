//! The shim runs its own binary as process 1 of a pod, which in these tests is this one: before
//! libtest sees the arguments, it must become what the shim's binary would.

use std::ffi::{CStr, c_char, c_int};

type Start = extern "C" fn(c_int, *const *const c_char);

#[used]
// SAFETY: the C library calls every function in this section before main, with its arguments.
#[unsafe(link_section = ".init_array")]
static START: Start = start;

extern "C" fn start(count: c_int, args: *const *const c_char) {
    let argument = |n: usize| {
        // SAFETY: `n` is below `count`, as both callers see to.
        let text = unsafe { args.add(n) };
        // SAFETY: the same.
        let text = unsafe { *text };
        // SAFETY: an argument is a C string that lives as long as the process.
        unsafe { CStr::from_ptr(text) }
    };
    if count == 2 && argument(0) == c"containerd-shim-rs-v2" && argument(1) == c"holder" {
        containerd_shim_rs::holder::run();
    }
}
