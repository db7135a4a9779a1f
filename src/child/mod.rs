//! After clone: a loop over the ops of a plan.
//!
//! It makes system calls only. It must never allocate, lock, log, panic or run a destructor that
//! does more than close a descriptor: the child has a copy of a process in the middle of its work.
#![allow(unsafe_code)]
#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]

mod apply;
mod attributes;
pub(crate) mod cgroup;
mod copy;
mod device;
mod path;
mod process;
pub mod report;
mod user;

use std::ffi::{CString, c_char};

use crate::plan::{Op, Slot};
use crate::sys::raw;
use nix::errno::Errno;
use report::{Call, Report};

/// Bytes for `HOME=` and a path.
const HOME_LEN: usize = 5 + 4096;

/// A plan in the form that needs no allocation, made by the parent.
#[derive(Debug)]
pub struct Frozen<'a> {
    ops: &'a [Op],
    /// Descriptors by slot; -1: none yet.
    slots: Vec<i32>,
    report: Slot,
    /// Every open descriptor of the plan, and 0 to 2, sorted: all others are closed first.
    keep: Vec<i32>,
    argv: Vec<*const c_char>,
    envp: Vec<*const c_char>,
    home: Vec<u8>,
    state: State<'a>,
}

/// What one op leaves for a later one.
#[derive(Debug, Default)]
struct State<'a> {
    /// What `FindExecutable` found.
    executable: Option<&'a CString>,
    /// The first `Chdir` was left to the second.
    chdir_pending: bool,
    /// The mask's tmpfs is attached somewhere, and can be cloned from there.
    mask_attached: bool,
}

/// A failed call, before it is known which op it was in.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fail(pub(crate) Call, pub(crate) Errno);

/// Names the call of a failed result.
trait At<T> {
    fn at(self, call: Call) -> Result<T, Fail>;
}

impl<T> At<T> for Result<T, Errno> {
    fn at(self, call: Call) -> Result<T, Fail> {
        self.map_err(|errno| Fail(call, errno))
    }
}

/// A descriptor that is closed at the end of its scope: one system call, nothing else.
struct Fd(i32);

impl Drop for Fd {
    fn drop(&mut self) {
        raw::close(self.0);
    }
}

impl<'a> Frozen<'a> {
    /// Freezes a plan's ops, arguments and environment. `inputs` are descriptors by slot; they must
    /// stay open until the clone. The last entry of `env` may be a placeholder for `Op::Home`.
    pub fn new(
        ops: &'a [Op],
        args: &'a [CString],
        env: &'a [CString],
        slots: u16,
        inputs: &[(Slot, i32)],
        report: Slot,
    ) -> Frozen<'a> {
        let pointers = |strings: &[CString]| {
            let null = std::iter::once(std::ptr::null());
            strings.iter().map(|s| s.as_ptr()).chain(null).collect::<Vec<_>>()
        };
        let mut table = vec![-1; usize::from(slots)];
        for (slot, fd) in inputs {
            if let Some(entry) = table.get_mut(usize::from(slot.0)) {
                *entry = *fd;
            }
        }
        let mut keep: Vec<i32> = table.iter().copied().filter(|fd| *fd > 2).chain(0..=2).collect();
        keep.sort_unstable();
        keep.dedup();
        let (argv, envp) = (pointers(args), pointers(env));
        let home = if ops.iter().any(|op| matches!(op, Op::Home { .. })) {
            vec![0; HOME_LEN]
        } else {
            vec![]
        };
        Frozen { ops, slots: table, keep, report, argv, envp, home, state: State::default() }
    }

    fn fd(&self, slot: Slot) -> Result<i32, Fail> {
        match self.slots.get(usize::from(slot.0)) {
            Some(fd) if *fd >= 0 => Ok(*fd),
            _ => Err(Fail(Call::Slot, Errno::EBADF)),
        }
    }

    fn fill(&mut self, slot: Slot, fd: i32) -> Result<(), Fail> {
        let entry =
            self.slots.get_mut(usize::from(slot.0)).ok_or(Fail(Call::Slot, Errno::EBADF))?;
        *entry = fd;
        Ok(())
    }
}

/// Closes what the shim had open and the plan has no use for. A child may hang for long, on a dead
/// NFS say; held by it, other containers' pipes would never end, and a dead shim's sockets never close.
fn close_strangers(keep: &[i32]) -> Result<(), Fail> {
    for (i, fd) in keep.iter().enumerate() {
        let first = fd.saturating_add(1);
        let next = keep.get(i.saturating_add(1)).copied();
        let last = next.map_or(u32::MAX, |next| next.saturating_sub(1) as u32);
        if first as u32 <= last {
            raw::close_range(first, last).at(Call::CloseRange)?;
        }
    }
    Ok(())
}

/// The child's whole life. The entry point for `sys::clone::clone3`.
pub fn run(frozen: &mut Frozen<'_>) -> ! {
    let ops = frozen.ops;
    if let Err(Fail(call, errno)) = close_strangers(&frozen.keep) {
        fail(frozen, 0, call, errno);
    }
    for (i, op) in ops.iter().enumerate() {
        let index = i as u16;
        if let Err(Fail(call, errno)) = apply::apply(frozen, op, index) {
            fail(frozen, index, call, errno);
        }
    }
    raw::exit(0)
}

/// Reports a failed step and ends.
fn fail(frozen: &Frozen<'_>, op: u16, call: Call, errno: Errno) -> ! {
    if let Ok(socket) = frozen.fd(frozen.report) {
        let _ = Report::Failed { op, call, errno: errno as i32 }.send(socket);
    }
    raw::exit(127)
}
