//! How a step reads in a log, a golden file and an error. It must never leave out what tells two steps apart.

use std::fmt;

use super::{Attr, Op, Param, Scheduler, Slot, Target};

impl fmt::Display for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#{}", self.0)
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.prefixes.last().map(|p| p.to_string_lossy()).unwrap_or_default();
        write!(f, "{:?}", format!("/{path}"))
    }
}

/// Params as the data string of `mount(2)` would show them.
struct Params<'a>(&'a [Param]);

impl fmt::Display for Params<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, Param { key, value }) in self.0.iter().enumerate() {
            f.write_str(if i == 0 { " " } else { "," })?;
            f.write_str(&key.to_string_lossy())?;
            if let Some(value) = value {
                write!(f, "={}", value.to_string_lossy())?;
            }
        }
        Ok(())
    }
}

const ATTR_NAMES: [(u64, &str); 8] = [
    (libc::MOUNT_ATTR_RDONLY, "ro"),
    (libc::MOUNT_ATTR_NOSUID, "nosuid"),
    (libc::MOUNT_ATTR_NODEV, "nodev"),
    (libc::MOUNT_ATTR_NOEXEC, "noexec"),
    (libc::MOUNT_ATTR_NOATIME, "noatime"),
    (libc::MOUNT_ATTR_STRICTATIME, "strictatime"),
    (libc::MOUNT_ATTR_NODIRATIME, "nodiratime"),
    (libc::MOUNT_ATTR_NOSYMFOLLOW, "nosymfollow"),
];

fn attr_names(bits: u64) -> String {
    let names: Vec<&str> =
        ATTR_NAMES.iter().filter(|(bit, _)| bits & bit != 0).map(|(_, name)| *name).collect();
    names.join(",")
}

impl fmt::Display for Attr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let propagation = match self.propagation {
            libc::MS_PRIVATE => "private",
            libc::MS_SLAVE => "slave",
            libc::MS_SHARED => "shared",
            libc::MS_UNBINDABLE => "unbindable",
            _ => "",
        };
        let parts =
            [("+", attr_names(self.set)), ("-", attr_names(self.clear)), ("", propagation.into())];
        for (sign, text) in parts.iter().filter(|(_, text)| !text.is_empty()) {
            write!(f, " {sign}{text}")?;
        }
        f.write_str(if self.recursive { " recursive" } else { "" })
    }
}

const NAMESPACES: [(i32, &str); 8] = [
    (libc::CLONE_NEWNS, "mnt"),
    (libc::CLONE_NEWPID, "pid"),
    (libc::CLONE_NEWNET, "net"),
    (libc::CLONE_NEWIPC, "ipc"),
    (libc::CLONE_NEWUTS, "uts"),
    (libc::CLONE_NEWCGROUP, "cgroup"),
    (libc::CLONE_NEWUSER, "user"),
    (0x80, "time"),
];

/// The namespaces in a set of `CLONE_NEW*` flags, as `/proc/PID/ns` names them.
pub(in crate::plan) fn namespaces(flags: i32) -> String {
    let names: Vec<&str> =
        NAMESPACES.iter().filter(|(bit, _)| flags & bit != 0).map(|(_, name)| *name).collect();
    names.join("|")
}

impl fmt::Display for Scheduler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "scheduler {} nice {} priority {}", self.policy, self.nice, self.priority)?;
        if self.flags != 0 {
            write!(f, " flags {:#x}", self.flags)?;
        }
        match self.times {
            [0, 0, 0] => Ok(()),
            [runtime, deadline, period] => write!(f, " time {runtime}/{deadline}/{period}"),
        }
    }
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Op::JoinCgroup { procs } => write!(f, "join cgroup {procs}"),
            Op::Unshare { flags } => write!(f, "unshare {}", namespaces(*flags)),
            Op::Setns { ns, flags } => write!(f, "setns {ns} {}", namespaces(*flags)),
            Op::UserRoot => f.write_str("become root of the user namespace"),
            Op::TimeOffsets { offsets } => write!(f, "time offsets {offsets:?}"),
            Op::JoinKeyring { name } => write!(f, "join session keyring {name:?}"),
            Op::OomScore { adj } => write!(f, "oom_score_adj {adj}"),
            Op::ResetAffinity => f.write_str("cpu affinity of the whole cpuset"),
            Op::Affinity { cpus } => write!(f, "cpu affinity {cpus}"),
            Op::Scheduler(scheduler) => write!(f, "{scheduler}"),
            Op::IoPriority { class, level } => write!(f, "io priority {class}:{level}"),
            Op::Personality { domain } => write!(f, "personality {domain:#x}"),
            Op::MemoryPolicy { mode, nodes } => {
                write!(
                    f,
                    "memory policy {mode:#x}{}{nodes}",
                    if nodes.0.is_empty() { "" } else { " nodes " }
                )
            }
            Op::Label { files, text } => {
                let file = files.first().map(|file| file.to_string_lossy()).unwrap_or_default();
                write!(f, "label {text:?} to {file:?}")
            }
            Op::FileLabel { mount, label } => write!(f, "label {label:?} to the root of {mount}"),
            Op::BringDevice { name, to, .. } => {
                write!(f, "bring network device {name:?} as {to:?}")
            }
            Op::WriteFile { path, data } => write!(f, "write {data:?} to {path:?}"),
            Op::Sysctl { path, value } => write!(f, "sysctl {path:?} = {value:?}"),
            Op::MakeGroup { path } => write!(f, "mkdir {path:?}"),
            Op::Rmdir { path } => write!(f, "rmdir {path:?}"),
            Op::RemoveCgroup { path } => write!(f, "remove cgroup {path:?}"),
            Op::Unmount { path } => write!(f, "unmount {path:?}"),
            Op::TakeTree { path, into } => write!(f, "take tree {path:?} -> {into}"),
            Op::OpenTree { source, into, recursive } => {
                write!(
                    f,
                    "open tree {source:?}{} -> {into}",
                    if *recursive { " recursive" } else { "" }
                )
            }
            Op::SetAttr { mount, attr } => write!(f, "set attributes of {mount}{attr}"),
            Op::IdMap { mount, user, recursive } => {
                let how = if *recursive { " recursive" } else { "" };
                write!(f, "map ids of {mount} as {user}{how}")
            }
            Op::NewMount { fstype, params, attr, into } => {
                let fstype = fstype.to_string_lossy();
                write!(f, "new mount {fstype} -> {into} [{}]{}", attr_names(*attr), Params(params))
            }
            Op::OldMount { chdir, source, target, fstype, flags, data } => {
                let at = chdir.as_ref().map(|d| format!(" in {d:?}")).unwrap_or_default();
                write!(f, "mount({source:?}, {target:?}, {fstype:?}, {flags:#x}, {data:?}){at}")
            }
            Op::Propagate { flags } => write!(f, "propagation of \"/\": {flags:#x}"),
            Op::AttachRootfs { mount, path } => write!(f, "attach rootfs {mount} on {path:?}"),
            Op::OpenRootfs { path, into } => write!(f, "open rootfs {path:?} -> {into}"),
            Op::Attach { mount, source, target, .. } => {
                write!(f, "attach {mount} {source:?} on {target}")
            }
            Op::Mount { fstype, params, attr, target, .. } => {
                write!(f, "mount {} on {target}{attr}{}", fstype.to_string_lossy(), Params(params))
            }
            Op::CopyUp { mount, target, mode, .. } => {
                write!(f, "copy {target} into {mount}{}", if *mode { " with its mode" } else { "" })
            }
            Op::MakeDir { target, mode, .. } => write!(f, "mkdir {target} {mode:#o}"),
            Op::MakeNode { target, mode, major, minor, uid, gid, .. } => {
                write!(f, "mknod {target} {mode:#o} {major}:{minor} owner {uid}:{gid}")
            }
            Op::Symlink { target, to, .. } => write!(f, "symlink {target} -> {to:?}"),
            Op::Mask { target, label, .. } => {
                let label = label.as_ref().map(|l| format!(" context={l:?}")).unwrap_or_default();
                write!(f, "mask {target}{label}")
            }
            Op::Readonly { target, .. } => write!(f, "make {target} read-only"),
            Op::OpenPty { into, size, .. } => match size {
                Some((rows, cols)) => write!(f, "open pty {rows}x{cols} -> {into}"),
                None => write!(f, "open pty -> {into}"),
            },
            Op::AttachConsole { pty, .. } => write!(f, "attach {pty} on \"/dev/console\""),
            Op::Hooks => f.write_str("hooks"),
            Op::Pivot { root } => write!(f, "pivot root {root}"),
            Op::Hostname { name } => write!(f, "hostname {name:?}"),
            Op::Domainname { name } => write!(f, "domainname {name:?}"),
            Op::Setsid => f.write_str("setsid"),
            Op::ControllingTerminal => f.write_str("controlling terminal"),
            Op::Birth => f.write_str("birth in the pid namespace"),
            Op::LiftFds { above } => write!(f, "lift fds above {above}"),
            Op::Dup { from, to } => write!(f, "dup {from} to {to}"),
            Op::ChownStdio { uid } => write!(f, "chown stdio to {uid}"),
            Op::Umask { mask } => write!(f, "umask {mask:#o}"),
            Op::Rlimit { resource, soft, hard } => write!(f, "rlimit {resource} {soft}:{hard}"),
            Op::BoundingSet { keep } => write!(f, "bounding set {keep:#x}"),
            Op::KeepCaps { on } => write!(f, "keepcaps {}", u8::from(*on)),
            Op::Groups { gids } => write!(f, "setgroups {gids:?}"),
            Op::Gid { gid } => write!(f, "setgid {gid}"),
            Op::Uid { uid } => write!(f, "setuid {uid}"),
            Op::Capset { effective, permitted, inheritable } => {
                write!(f, "capset eff={effective:#x} perm={permitted:#x} inh={inheritable:#x}")
            }
            Op::Ambient { caps } => write!(f, "ambient {caps:#x}"),
            Op::NoNewPrivs => f.write_str("no new privileges"),
            Op::Seccomp { filter } => {
                write!(f, "seccomp filter of {} instructions", filter.program.len())?;
                write!(f, ", flags {:#x}", filter.flags)
            }
            Op::Chdir { path, retry } => {
                write!(f, "chdir {path:?}{}", if *retry { " (may wait for the user)" } else { "" })
            }
            Op::VerifyCwd => f.write_str("verify that the working directory is inside the root"),
            Op::Home { uid } => write!(f, "look up HOME of {uid}"),
            Op::FindExecutable { candidates } => write!(f, "find executable {candidates:?}"),
            Op::ResetSignals => f.write_str("reset signals"),
            Op::Ready => f.write_str("ready"),
            Op::CloseFds => f.write_str("close fds"),
            Op::Exec => f.write_str("exec"),
            Op::ExecFd { exe } => write!(f, "exec {exe}"),
            Op::Exit => f.write_str("exit"),
        }
    }
}
