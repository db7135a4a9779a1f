//! `bpf(2)`: the device filter of a cgroup v2.
//!
//! It must never leave a cgroup without the filter that it had: a new one is attached first.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use nix::errno::Errno;

use crate::error::{Doing, Result};

// linux/bpf.h; libc does not have them.
const PROG_LOAD: u32 = 5;
const PROG_ATTACH: u32 = 8;
const PROG_DETACH: u32 = 9;
const PROG_GET_FD_BY_ID: u32 = 13;
const PROG_QUERY: u32 = 16;
const TYPE_CGROUP_DEVICE: u32 = 15;
const CGROUP_DEVICE: u32 = 6;
const ALLOW_MULTI: u32 = 2;

/// The most programs a cgroup can have (`BPF_CGROUP_MAX_PROGS`).
const MAX_PROGRAMS: usize = 64;

// Each struct is the part of `union bpf_attr` that its command reads, without padding.

#[derive(Clone, Copy)]
#[repr(C)]
struct Load {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
    prog_name: [u8; 16],
}

#[derive(Clone, Copy)]
#[repr(C)]
struct Attach {
    target_fd: i32,
    attach_bpf_fd: i32,
    attach_type: u32,
    attach_flags: u32,
}

#[derive(Clone, Copy)]
#[repr(C)]
struct Query {
    target_fd: i32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    prog_ids: u64,
    prog_cnt: u32,
    pad: u32,
}

#[derive(Clone, Copy)]
#[repr(C)]
struct ById {
    id: u32,
    next_id: u32,
    open_flags: u32,
}

/// # Safety
/// Every address in `attr` must be good for what the command does with it.
unsafe fn bpf<A>(command: u32, attr: &mut A) -> Result<i32, Errno> {
    let (pointer, size) = (std::ptr::from_mut(attr), size_of::<A>());
    // SAFETY: the kernel reads and writes `size` bytes at `pointer`, which is a live value of that
    // size; what it points to is good by this function's own contract.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, pointer, size) };
    Errno::result(result).map(|fd| fd as i32)
}

fn owned(fd: i32) -> OwnedFd {
    // SAFETY: called with what `bpf` has just made for us (close-on-exec) and nobody else knows.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// Loads a program; each instruction is as `plan::device_filter::Insn::encode` gives it.
fn load(program: &[u64]) -> Result<OwnedFd, Errno> {
    let mut attr = Load {
        prog_type: TYPE_CGROUP_DEVICE,
        insn_cnt: u32::try_from(program.len()).map_err(|_| Errno::E2BIG)?,
        insns: program.as_ptr() as u64,
        license: c"Apache-2.0".as_ptr() as u64,
        log_level: 0,
        log_size: 0,
        log_buf: 0,
        kern_version: 0,
        prog_flags: 0,
        prog_name: *b"devices\0\0\0\0\0\0\0\0\0",
    };
    let mut tries = 5;
    loop {
        // SAFETY: `program` and the literal outlive the call, which reads `insn_cnt` instructions
        // and a string that ends in 0.
        match unsafe { bpf(PROG_LOAD, &mut attr) } {
            // The verifier gives up when a signal is pending.
            Err(Errno::EAGAIN) if tries > 0 => tries -= 1,
            done => return done.map(owned),
        }
    }
}

/// Whether the kernel takes a device filter; it is attached to nothing.
pub fn can_load(program: &[u64]) -> Result<(), Errno> {
    load(program).map(drop)
}

/// The device programs of this very cgroup, without those of its parents.
fn attached(cgroup: BorrowedFd<'_>) -> Result<Vec<OwnedFd>, Errno> {
    let mut ids = [0u32; MAX_PROGRAMS];
    let mut query = Query {
        target_fd: cgroup.as_raw_fd(),
        attach_type: CGROUP_DEVICE,
        query_flags: 0,
        attach_flags: 0,
        prog_ids: ids.as_mut_ptr() as u64,
        prog_cnt: MAX_PROGRAMS as u32,
        pad: 0,
    };
    // SAFETY: the kernel writes at most `prog_cnt` ids to `ids`, which has that many.
    unsafe { bpf(PROG_QUERY, &mut query) }?;
    let mut programs = Vec::new();
    for id in ids.into_iter().take(query.prog_cnt as usize) {
        let mut attr = ById { id, next_id: 0, open_flags: 0 };
        // SAFETY: there is no address in it.
        match unsafe { bpf(PROG_GET_FD_BY_ID, &mut attr) } {
            Ok(fd) => programs.push(owned(fd)),
            // Detached and gone since.
            Err(Errno::ENOENT) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(programs)
}

/// Attaches or detaches.
fn change(command: u32, mut attr: Attach) -> Result<(), Errno> {
    // SAFETY: there is no address in it.
    unsafe { bpf(command, &mut attr) }.map(drop)
}

/// Makes `program` the only device filter of the cgroup; those of its parents stay in force.
pub fn set_device_filter(cgroup: impl AsFd, program: &[u64]) -> Result<()> {
    let cgroup = cgroup.as_fd();
    let len = program.len();
    let new = load(program)
        .doing(|| format!("bpf(BPF_PROG_LOAD, {{BPF_PROG_TYPE_CGROUP_DEVICE, {len} insns}})"))?;
    let old = attached(cgroup).doing(|| "bpf(BPF_PROG_QUERY, BPF_CGROUP_DEVICE)")?;
    let attach = |program: &OwnedFd, attach_flags| Attach {
        target_fd: cgroup.as_raw_fd(),
        attach_bpf_fd: program.as_raw_fd(),
        attach_type: CGROUP_DEVICE,
        attach_flags,
    };
    change(PROG_ATTACH, attach(&new, ALLOW_MULTI))
        .doing(|| "bpf(BPF_PROG_ATTACH, BPF_CGROUP_DEVICE)")?;
    // Until then an access needs the consent of both.
    for program in old {
        change(PROG_DETACH, attach(&program, 0))
            .doing(|| "bpf(BPF_PROG_DETACH, BPF_CGROUP_DEVICE)")?;
    }
    Ok(())
}
