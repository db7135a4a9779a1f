//! The steps of a plan, and how each reads in a log, a golden file and an error.
//!
//! An [`Op`] is one step of a child after clone: a handful of system calls on data that is already
//! in the form the kernel wants. It must never hold anything that still needs a decision, a parse
//! or an allocation; `child::apply` is the only place that carries it out.

use std::ffi::CString;
use std::sync::Arc;

use super::Set;
use super::seccomp::Filter;

mod text;

pub(in crate::plan) use text::namespaces;

/// An index into the table of descriptors that parent and child share.
///
/// The parent fills the slots that a plan names in [`super::Plan::inputs`] before clone; the
/// child's own ops fill the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Slot(pub u16);

/// A place beneath the rootfs, resolved with `openat2(RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS)`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Every prefix of the path, shortest first and the path itself last, without a leading slash.
    /// Empty for the root itself.
    pub prefixes: Vec<CString>,
    /// What to make where nothing is: see [`Missing`].
    pub missing: Missing,
    /// Refuse a symlink anywhere in the path (CVE-2019-19921, CVE-2023-27561: `/proc` and `/sys`).
    pub no_symlinks: bool,
    /// The place may lie in a procfs (a fixed list of files; CVE-2019-16884).
    pub inside_proc: bool,
}

/// What an op makes when its target does not exist.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Missing {
    /// An error.
    Fail,
    /// Directories, mode 0755.
    Directory,
    /// Directories, and at the end what the source is: a directory or an empty file.
    LikeSource,
    /// Directories, and at the end an empty file.
    File,
}

/// One parameter of `fsconfig(2)`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Param {
    /// The key.
    pub key: CString,
    /// `FSCONFIG_SET_STRING` with this value, or `FSCONFIG_SET_FLAG`.
    pub value: Option<CString>,
}

/// What `sched_setattr(2)` sets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Scheduler {
    /// `SCHED_*`.
    pub policy: u32,
    /// `SCHED_FLAG_*`.
    pub flags: u64,
    /// -20 to 19.
    pub nice: i32,
    /// 1 to 99, for the real-time policies.
    pub priority: u32,
    /// Runtime, deadline and period in nanoseconds, for `SCHED_DEADLINE`.
    pub times: [u64; 3],
}

/// What `mount_setattr(2)` does to a mount.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Attr {
    /// `MOUNT_ATTR_*` to set.
    pub set: u64,
    /// `MOUNT_ATTR_*` to clear.
    pub clear: u64,
    /// `MS_PRIVATE`, `MS_SLAVE`, `MS_SHARED`, `MS_UNBINDABLE` or 0.
    pub propagation: u64,
    /// Also the mounts beneath it.
    pub recursive: bool,
}

/// One step of a child. Paths marked "host" are resolved before `pivot_root`, in the host's tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Writes `0` to an open `cgroup.procs`: no window outside the limits, on v1.
    JoinCgroup { procs: Slot },
    /// `unshare(2)`.
    Unshare { flags: i32 },
    /// `setns(2)` with a namespace's fd, or a pidfd and several flags.
    Setns { ns: Slot, flags: i32 },
    /// Becomes the root of the user namespace that it is in: no groups, gid 0, uid 0.
    UserRoot,
    /// Writes the clocks' offsets of the new time namespace, and enters it.
    TimeOffsets { offsets: CString },
    /// `keyctl(KEYCTL_JOIN_SESSION_KEYRING)`; a kernel without keyrings is not an error.
    JoinKeyring { name: CString },
    /// Writes `/proc/self/oom_score_adj`.
    OomScore { adj: i32 },
    /// `sched_setaffinity(2)` of every CPU; the kernel keeps to the cpuset.
    ResetAffinity,
    /// `sched_setaffinity(2)`.
    Affinity { cpus: Set },
    /// `sched_setattr(2)`.
    Scheduler(Scheduler),
    /// `ioprio_set(2)`.
    IoPriority { class: u32, level: u32 },
    /// `personality(2)`.
    Personality { domain: u32 },
    /// `set_mempolicy(2)`; the mode has its flags in it.
    MemoryPolicy { mode: u32, nodes: Set },
    /// Writes to the first of these files that is there, in a procfs of its own that is attached
    /// nowhere: what a container mounts cannot stand in for it (CVE-2019-16884, CVE-2025-52881).
    Label { files: Vec<CString>, text: CString },
    /// `fsetxattr(security.selinux)` of a mount's root.
    FileLabel { mount: Slot, label: CString },
    /// Moves a network device from the namespace of the socket `host` into `ns`, which this process
    /// is in, under the name `to`; with the addresses that are its own, and up.
    BringDevice { host: Slot, ns: Slot, name: CString, to: CString },
    /// Writes a host file in one `write(2)`.
    WriteFile { path: CString, data: CString },
    /// Writes below `/proc/sys` through the host's procfs, which no container can cover.
    Sysctl { path: CString, value: CString },
    /// Makes a host directory, which must not be there.
    MakeGroup { path: CString },
    /// Removes a host directory; one that is absent is not an error. EBUSY is tried again for 1 s.
    Rmdir { path: CString },
    /// Removes a cgroup with all below it; one that is absent is not an error. EBUSY is tried again
    /// for 1 s each.
    RemoveCgroup { path: CString },
    /// Takes a mount of the host away, lazily; what is no mount point is not an error.
    Unmount { path: CString },

    /// `open_tree(OPEN_TREE_CLONE)` of a host path.
    OpenTree { source: CString, into: Slot, recursive: bool },
    /// The same, with all beneath, of a mount of our own in place of the one that is in `into`.
    TakeTree { path: CString, into: Slot },
    /// `mount_setattr(2)` on a mount by fd.
    SetAttr { mount: Slot, attr: Attr },
    /// `mount_setattr(MOUNT_ATTR_IDMAP)` of an open mount that is attached nowhere yet.
    IdMap { mount: Slot, user: Slot, recursive: bool },
    /// `fsopen`, `fsconfig` and `fsmount`: a mount that is attached nowhere yet.
    NewMount { fstype: CString, params: Vec<Param>, attr: u64, into: Slot },
    /// `mount(2)` on a host path, for what the new mount calls cannot say on an old kernel.
    OldMount {
        chdir: Option<CString>,
        source: CString,
        target: CString,
        fstype: CString,
        flags: u64,
        data: CString,
    },
    /// `mount(NULL, "/", NULL, flags)`.
    Propagate { flags: u64 },
    /// `move_mount(2)` onto a host path, which must not pass through a symlink.
    AttachRootfs { mount: Slot, path: CString },
    /// Opens a host directory, which must not pass through a symlink, as the root of all targets.
    OpenRootfs { path: CString, into: Slot },
    /// Attaches an open mount beneath the rootfs. `source` is for the text only.
    Attach { mount: Slot, source: CString, root: Slot, target: Target },
    /// A new mount, attached beneath the rootfs. A `tmpfs` without a `mode` among its params gets
    /// that of the directory it covers.
    Mount { fstype: CString, params: Vec<Param>, attr: Attr, root: Slot, target: Target },
    /// Copies what a directory beneath the rootfs has into a mount that is attached nowhere yet; with
    /// `mode`, the mount's root gets its mode. See `child::copy`.
    CopyUp { mount: Slot, root: Slot, target: Target, mode: bool },
    /// Makes a directory and those above it, beneath the rootfs.
    MakeDir { root: Slot, target: Target, mode: u32 },
    /// `mknodat(2)` beneath the rootfs; what is there must be the same device. Here and for
    /// `Symlink`, what is missing above is made.
    MakeNode { root: Slot, target: Target, mode: u32, major: u32, minor: u32, uid: u32, gid: u32 },
    /// `symlinkat(2)` beneath the rootfs; what is there stays.
    Symlink { root: Slot, target: Target, to: CString },
    /// Covers a directory with an empty read-only tmpfs, a file with the host's `/dev/null`; skips
    /// what is absent. The tmpfs in `empty` is one for all (one mount each wakes the shrinker).
    Mask { root: Slot, target: Target, empty: Slot, label: Option<CString> },
    /// Bind-mounts a path on itself, read-only; skips what is absent.
    Readonly { root: Slot, target: Target },
    /// Opens a new pty in the rootfs' own devpts and sends the master to the parent.
    OpenPty { root: Slot, into: Slot, size: Option<(u16, u16)>, owner: u32 },
    /// Attaches the pty's slave on `/dev/console`.
    AttachConsole { pty: Slot, root: Slot },
    /// As `Ready`, for the hooks that come before the root is changed.
    Hooks,
    /// `pivot_root(".", ".")` into the rootfs and away with the old tree.
    Pivot { root: Slot },

    /// `sethostname(2)`.
    Hostname { name: CString },
    /// `setdomainname(2)`.
    Domainname { name: CString },
    /// `setsid(2)`.
    Setsid,
    /// `ioctl(0, TIOCSCTTY)`, after `Setsid`.
    ControllingTerminal,
    /// `clone(CLONE_PARENT)`: the rest of the plan is carried out by a new process, born in the PID
    /// namespace of an earlier `Setns`, and this one ends. What a container's processes can see of
    /// it has the container's root and rights already (CVE-2016-9962).
    Birth,
    /// `fcntl(F_DUPFD_CLOEXEC)` of every filled slot whose number is not above this one, so that a
    /// `Dup` onto such a number closes nothing that is still needed.
    LiftFds { above: i32 },
    /// `dup3(2)` onto a number of the new process.
    Dup { from: Slot, to: i32 },
    /// Gives the pipes on 0, 1 and 2 to the user, so that `/dev/stdout` can be opened again.
    ChownStdio { uid: u32 },
    /// `umask(2)`.
    Umask { mask: u32 },
    /// `prlimit(2)` on itself.
    Rlimit { resource: u32, soft: u64, hard: u64 },
    /// `prctl(PR_CAPBSET_DROP)` of every capability that is not in `keep`.
    BoundingSet { keep: u64 },
    /// `prctl(PR_SET_KEEPCAPS)`.
    KeepCaps { on: bool },
    /// `setgroups(2)`.
    Groups { gids: Vec<u32> },
    /// `setresgid(2)`.
    Gid { gid: u32 },
    /// `setresuid(2)`.
    Uid { uid: u32 },
    /// `capset(2)`.
    Capset { effective: u64, permitted: u64, inheritable: u64 },
    /// `prctl(PR_CAP_AMBIENT)`: clears all and raises these.
    Ambient { caps: u64 },
    /// `prctl(PR_SET_NO_NEW_PRIVS)`.
    NoNewPrivs,
    /// `seccomp(SECCOMP_SET_MODE_FILTER)`: from here on the filter looks at every system call.
    Seccomp { filter: Arc<Filter> },
    /// `chdir(2)`. With `retry`, EACCES and EPERM are left to a second `Chdir` after `Uid`, which
    /// does nothing if the first went well: root may enter what the user may not.
    Chdir { path: CString, retry: bool },
    /// The working directory must lie inside the root (CVE-2024-21626).
    VerifyCwd,
    /// `HOME` from the rootfs' `/etc/passwd`, else `/`, into the plan's last environment entry.
    Home { uid: u32 },
    /// The first of these that is a file and may be executed; none: ENOENT, or EACCES.
    FindExecutable { candidates: Vec<CString> },
    /// Default dispositions and an empty mask.
    ResetSignals,
    /// Tells the parent that all went well, and waits for its word.
    Ready,
    /// Closes every descriptor above 2 but the report's, and that of an `ExecFd` that follows:
    /// these `execve` closes.
    CloseFds,
    /// `execve(2)` of what `FindExecutable` found.
    Exec,
    /// `execveat(AT_EMPTY_PATH)` of an open file.
    ExecFd { exe: Slot },
    /// Ends a plan that runs no program.
    Exit,
}
