//! Plans: what a child will do after clone, decided beforehand as data.
//!
//! Everything below is pure: an OCI spec and a few [`Facts`] go in, a [`Plan`] comes out, and the
//! same input gives the same text. It must never do I/O, read a clock or log.

use std::ffi::CString;
use std::fmt;
use std::path::PathBuf;

pub mod op;

pub use op::{Attr, Missing, Op, Param, Slot, Target};

/// A descriptor that the parent opens before clone and puts in a slot.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Input {
    /// The socket on which child and parent speak. Always there.
    Report,
    /// 0, 1 or 2 of the new process.
    Stdio(u8),
    /// The `cgroup.procs` of a hierarchy, by its index in the cgroup's list of directories.
    CgroupProcs(usize),
    /// A namespace that the spec names by path, by its index in `linux.namespaces`.
    Namespace(usize),
    /// The pidfd of the container's init, for an exec.
    Init,
    /// The pod's `/dev/shm`, a detached tmpfs.
    SandboxShm,
    /// An executable file.
    Executable,
}

/// What the parent knows about the host and the pod when it plans: all that a decision needs
/// beside the spec. Gathered by `host` and the callers; nothing in it is looked up later.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// The bundle directory, absolute.
    pub bundle: PathBuf,
    /// The container's rootfs as containerd's mounts; empty: `root.path` is already one.
    pub rootfs: Vec<RootfsMount>,
    /// Whether `fsconfig(2)` of overlay takes `lowerdir+` (kernel 6.8, probed).
    pub overlay_lowerdir_plus: bool,
    /// For each entry of `linux.namespaces` that has a path: whether it is the namespace that the
    /// shim itself is in, so that a child need not join it. Other entries: false.
    pub ours: Vec<bool>,
    /// The cgroup hierarchies of the host and the container's directory in each.
    pub cgroups: Cgroups,
    /// `/proc/sys/kernel/cap_last_cap`.
    pub last_cap: u8,
    /// What the pod gives its containers and containerd may have left out of the spec.
    pub sandbox: Option<SandboxFiles>,
    /// The session keyring's name is `_ses.<this>`; empty: keep the shim's keyring.
    pub keyring: String,
    /// Whether stdin, stdout and stderr of the process are a pty.
    pub terminal: bool,
}

/// One mount of `CreateTaskRequest.rootfs` (containerd's `types.Mount`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RootfsMount {
    /// `overlay`, `bind`, or any file system's name.
    pub fstype: String,
    /// Device or directory.
    pub source: String,
    /// Where, below the rootfs; empty: the rootfs itself.
    pub target: String,
    /// As `mount -o` takes them.
    pub options: Vec<String>,
}

/// Files of the sandbox that containers see; CRI mounts its own only if they exist, and removes them when it restarts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SandboxFiles {
    /// Directory with `hostname`, `hosts` and `resolv.conf`.
    pub dir: PathBuf,
    /// The pod has its own `/dev/shm`, on [`Input::SandboxShm`].
    pub shm: bool,
}

/// The cgroup hierarchies in use, and one container's directory in each.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cgroups {
    /// Only the unified hierarchy, version 2, is in use.
    pub unified: bool,
    /// On v2 one entry. On v1 one for each mounted hierarchy (named ones too), sorted by
    /// mountpoint, without the hybrid `unified`.
    pub dirs: Vec<CgroupDir>,
}

/// One hierarchy and the container's directory in it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CgroupDir {
    /// `["cpu", "cpuacct"]`; `["name=systemd"]`; on v2 what `cgroup.controllers` lists.
    pub controllers: Vec<String>,
    /// Where the hierarchy is mounted on the host: `/sys/fs/cgroup/cpu,cpuacct`.
    pub mountpoint: PathBuf,
    /// The container's directory, absolute on the host, below `mountpoint`.
    pub path: PathBuf,
}

/// What a child will do, step by step.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// `CLONE_NEW*` for `clone3(2)`.
    pub namespaces: i32,
    /// The PID namespace to join around the clone, if any.
    pub pid_namespace: Option<Input>,
    /// The steps, in order.
    pub ops: Vec<Op>,
    /// `argv` of the program that `Exec` runs.
    pub args: Vec<CString>,
    /// Its environment.
    pub env: Vec<CString>,
    /// Where each of the parent's descriptors goes.
    pub inputs: Vec<(Input, Slot)>,
    /// How many slots there are.
    pub slots: u16,
}

impl Plan {
    /// A slot that nothing uses yet.
    pub fn slot(&mut self) -> Slot {
        let slot = Slot(self.slots);
        self.slots += 1;
        slot
    }

    /// The slot of a descriptor that the parent brings.
    pub fn input(&mut self, input: Input) -> Slot {
        if let Some((_, slot)) = self.inputs.iter().find(|(have, _)| *have == input) {
            return *slot;
        }
        let slot = self.slot();
        self.inputs.push((input, slot));
        slot
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "clone {}", op::namespaces(self.namespaces))?;
        if let Some(input) = &self.pid_namespace {
            writeln!(f, "in pid namespace of {input:?}")?;
        }
        for (input, slot) in &self.inputs {
            writeln!(f, "input {slot} {input:?}")?;
        }
        for (i, op) in self.ops.iter().enumerate() {
            writeln!(f, "{i:3} {op}")?;
        }
        if !self.args.is_empty() {
            writeln!(f, "args {:?}", self.args)?;
            writeln!(f, "env {:?}", self.env)?;
        }
        Ok(())
    }
}
