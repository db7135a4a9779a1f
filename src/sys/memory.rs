//! What this process keeps mapped.

use std::ffi::c_void;

unsafe extern "C" {
    /// Where the program begins, and where its text ends: symbols that every linker defines.
    static __executable_start: u8;
    static etext: u8;
}

/// Unmaps the program's text, which is clean and comes back from the page cache at the next call.
///
/// A Create touches most of it once: JSON, planning, protobuf. At rest a few pages are enough.
pub fn release_text() {
    const PAGE: usize = 4096;
    let start = (&raw const __executable_start).addr().next_multiple_of(PAGE);
    let end = (&raw const etext).addr() & !(PAGE - 1);
    let length = end.saturating_sub(start);
    // SAFETY: the range is the program's own text: a private file mapping that nothing has written
    // to, so the kernel reads the same bytes again. An error changes nothing.
    unsafe { libc::madvise(start as *mut c_void, length, libc::MADV_DONTNEED) };
}
