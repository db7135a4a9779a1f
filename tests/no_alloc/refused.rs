//! Ops that the kernel, or the child itself, refuses, and what is said of it.

use super::*;
use containerd_shim_rs::plan::op::Scheduler;

/// Each op with something that the kernel, or the child itself, refuses.
pub fn refused_on_the_host(dir: &Dir) -> Vec<(Op, &'static str)> {
    let (none, bad) = (Slot(9), c"/dev/null/x".to_owned());
    let root = Slot(1);
    let fstype = c"no such type".to_owned();
    let attr = Attr { set: 1 << 60, ..Attr::default() };
    let slot = "no descriptor in the slot: EBADF";
    vec![
        (Op::JoinCgroup { procs: none }, slot),
        (Op::Unshare { flags: libc::CLONE_NEWUSER | libc::CLONE_FS | 0x3f }, "unshare: EINVAL"),
        (Op::Setns { ns: root, flags: libc::CLONE_NEWIPC }, "setns: E"),
        (Op::TimeOffsets { offsets: c"x".into() }, "write: E"),
        (Op::IdMap { mount: root, user: root, recursive: true }, "mount_setattr: E"),
        (Op::JoinKeyring { name: CString::new(vec![b'x'; 5000]).unwrap() }, "keyctl: EINVAL"),
        (Op::OomScore { adj: 2000 }, "write: EINVAL"),
        (Op::WriteFile { path: bad.clone(), data: c"".into() }, "open: ENOTDIR"),
        (Op::Sysctl { path: bad.clone(), value: c"".into() }, "open: ENOTDIR"),
        (Op::MakeGroup { path: dir.path("file") }, "mkdirat: EEXIST"),
        (Op::Rmdir { path: dir.path("file") }, "rmdir: ENOTDIR"),
        (Op::RemoveCgroup { path: dir.path("file") }, "openat2: ENOTDIR"),
        // For its file it is as one with a process.
        (Op::RemoveCgroup { path: dir.path("rootfs/bin") }, "rmdir: EBUSY"),
        (Op::Unmount { path: bad.clone() }, "umount2: ENOTDIR"),
        (Op::TakeTree { path: bad.clone(), into: none }, "open_tree: ENOTDIR"),
        (Op::OpenTree { source: bad.clone(), into: none, recursive: true }, "open_tree: ENOTDIR"),
        (Op::SetAttr { mount: root, attr }, "mount_setattr: EINVAL"),
        (
            Op::NewMount { fstype: fstype.clone(), params: vec![], attr: 0, into: none },
            "fsopen: ENODEV",
        ),
        (
            Op::OldMount {
                chdir: Some(bad.clone()),
                source: c"".into(),
                target: c"/".into(),
                fstype: fstype.clone(),
                flags: 0,
                data: c"".into(),
            },
            "chdir: ENOTDIR",
        ),
        (Op::Propagate { flags: libc::MS_SHARED | libc::MS_SLAVE }, "mount: EINVAL"),
        (Op::AttachRootfs { mount: root, path: bad.clone() }, "openat2: ENOTDIR"),
        (Op::OpenRootfs { path: bad.clone(), into: none }, "openat2: ENOTDIR"),
    ]
}

/// The same of those beneath a rootfs.
pub fn refused_inside() -> Vec<(Op, &'static str)> {
    let none = Slot(9);
    let target = |path: &str, missing| Target {
        prefixes: vec![CString::new(path).unwrap()],
        missing,
        no_symlinks: false,
        inside_proc: false,
    };
    let root = Slot(1);
    let below_a_file = |missing| Target {
        prefixes: vec![c"file".into(), c"file/x".into()],
        ..target("file", missing)
    };
    let fstype = c"no such type".to_owned();
    let slot = "no descriptor in the slot: EBADF";
    vec![
        (
            Op::Attach {
                mount: root,
                source: c"".into(),
                root,
                target: target("file", Missing::Fail),
            },
            "move_mount: E",
        ),
        (
            Op::Mount {
                fstype,
                params: vec![],
                attr: Attr::default(),
                root,
                target: target("new", Missing::Directory),
            },
            "fsopen: ENODEV",
        ),
        (
            Op::MakeDir { root, target: below_a_file(Missing::Directory), mode: 0o755 },
            "openat2: ENOTDIR",
        ),
        (
            Op::MakeNode {
                root,
                target: target("file", Missing::Directory),
                mode: libc::S_IFCHR | 0o666,
                major: 1,
                minor: 3,
                uid: 0,
                gid: 0,
            },
            "another file is there: EEXIST",
        ),
        (
            Op::Symlink { root, target: below_a_file(Missing::Directory), to: c"x".into() },
            "openat2: ENOTDIR",
        ),
        (
            Op::Mask {
                root: none,
                target: target("file", Missing::Fail),
                empty: none,
                label: None,
            },
            slot,
        ),
        (
            Op::CopyUp { mount: none, root, target: target("source", Missing::Fail), mode: true },
            slot,
        ),
        (
            Op::CopyUp { mount: root, root, target: target(".", Missing::Fail), mode: true },
            "the root itself: EBUSY",
        ),
        (
            Op::CopyUp {
                mount: root,
                root,
                target: target("rootfs/etc", Missing::Fail),
                mode: true,
            },
            "open: EEXIST",
        ),
        (Op::Readonly { root: none, target: target("file", Missing::Fail) }, slot),
        (Op::OpenPty { root, into: none, size: None, owner: 0 }, "openat2: ENOENT"),
        (Op::AttachConsole { pty: none, root }, "openat2: ENOENT"),
        (Op::Pivot { root }, "pivot_root: E"),
    ]
}

/// The same of the process itself.
pub fn refused_to_the_process() -> Vec<(Op, &'static str)> {
    let (none, root, bad) = (Slot(9), Slot(1), c"/dev/null/x".to_owned());
    let slot = "no descriptor in the slot: EBADF";
    vec![
        (Op::Seccomp { filter: Arc::default() }, "seccomp: EINVAL"),
        (Op::Hostname { name: CString::new(vec![b'x'; 500]).unwrap() }, "sethostname: EINVAL"),
        (Op::Domainname { name: CString::new(vec![b'x'; 500]).unwrap() }, "setdomainname: EINVAL"),
        (Op::Affinity { cpus: Set(vec![0]) }, "sched_setaffinity: EINVAL"),
        (Op::Scheduler(Scheduler { policy: 77, ..Scheduler::default() }), "sched_setattr: EINVAL"),
        (Op::IoPriority { class: 7, level: 0 }, "ioprio_set: EINVAL"),
        (Op::MemoryPolicy { mode: 77, nodes: Set(vec![1]) }, "set_mempolicy: EINVAL"),
        // No security module: the kernel has nobody who would take it.
        (
            Op::Label {
                files: vec![c"absent".into(), c"thread-self/attr/exec".into()],
                text: c"exec x".into(),
            },
            "write: E",
        ),
        (
            Op::Label { files: vec![c"thread-self/attr/absent".into()], text: c"".into() },
            "openat2: ENOENT",
        ),
        (
            Op::Label { files: vec![c"thread-self/root/proc".into()], text: c"".into() },
            "openat2: E",
        ),
        (
            Op::BringDevice { host: root, ns: root, name: c"lo".into(), to: c"net0".into() },
            "ioctl(SIOCGIFINDEX): EBADF",
        ),
        (Op::FileLabel { mount: none, label: c"".into() }, slot),
        (Op::ControllingTerminal, "ioctl: E"),
        (Op::Dup { from: none, to: 0 }, slot),
        (Op::Rlimit { resource: 999, soft: 0, hard: 0 }, "prlimit: EINVAL"),
        (Op::Ambient { caps: 1 << 63 }, "prctl: EINVAL"),
        (Op::Capset { effective: 1, permitted: 0, inheritable: 0 }, "capset: EPERM"),
        (Op::Chdir { path: bad.clone(), retry: true }, "chdir: ENOTDIR"),
        (Op::FindExecutable { candidates: vec![bad] }, "\"\": executable file not found"),
        (Op::Exec, "\"\": its interpreter: no such file"),
        (Op::ExecFd { exe: root }, "execve: E"),
    ]
}
