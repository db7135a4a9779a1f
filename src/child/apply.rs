//! One op, carried out. The match is exhaustive: a new op does not compile until it has an arm.
//!
//! It must never decide anything that the plan could have decided.

use super::report::Call;
use super::{At, Fail, Fd, Frozen, attributes, cgroup, copy, device, path, process, user};
use crate::plan::{Attr, Op, Param, Slot, Target};
use crate::sys::raw;

const CLOSE_ON_EXEC: bool = true;

pub(super) fn apply<'a>(f: &mut Frozen<'a>, op: &'a Op, index: u16) -> Result<(), Fail> {
    match op {
        Op::JoinCgroup { procs } => raw::write(f.fd(*procs)?, b"0").at(Call::Write),
        Op::Unshare { flags } => raw::unshare(*flags).at(Call::Unshare).map(drop),
        Op::Setns { ns, flags } => raw::setns(f.fd(*ns)?, *flags).at(Call::Setns).map(drop),
        Op::UserRoot => user::root(),
        Op::TimeOffsets { offsets } => user::time_offsets(offsets),
        Op::JoinKeyring { name } => process::join_keyring(name),
        Op::OomScore { adj } => process::oom_score(*adj),
        Op::ResetAffinity => attributes::reset_affinity(),
        Op::Affinity { cpus } => {
            raw::sched_setaffinity(&cpus.0).at(Call::SchedSetaffinity).map(drop)
        }
        Op::Scheduler(scheduler) => attributes::scheduler(scheduler),
        Op::IoPriority { class, level } => attributes::io_priority(*class, *level),
        Op::Personality { domain } => raw::personality(*domain).at(Call::Personality).map(drop),
        Op::MemoryPolicy { mode, nodes } => {
            raw::set_mempolicy(*mode, &nodes.0).at(Call::SetMempolicy).map(drop)
        }
        Op::Label { files, text } => attributes::label(files, text.to_bytes()),
        Op::FileLabel { mount, label } => attributes::file_label(f.fd(*mount)?, label.to_bytes()),
        Op::BringDevice { host, ns, name, to } => device::bring(f.fd(*host)?, f.fd(*ns)?, name, to),
        Op::WriteFile { path, data } => path::write_file(path, data.to_bytes()),
        Op::Sysctl { path, value } => path::write_file(path, value.to_bytes()),
        Op::MakeGroup { path } => raw::mkdirat(raw::CWD, path, 0o755).at(Call::Mkdirat).map(drop),
        Op::Rmdir { path } => cgroup::rmdir(path, &mut cgroup::wait),
        Op::RemoveCgroup { path } => cgroup::remove(path, &mut cgroup::wait).map(drop),
        Op::Unmount { path } => path::unmount(path),

        Op::OpenTree { source, into, recursive } => {
            let fd = raw::clone_tree(raw::CWD, source, *recursive).at(Call::OpenTree)?;
            f.fill(*into, fd)
        }
        Op::TakeTree { path, into } => {
            if let Ok(old) = f.fd(*into) {
                raw::close(old);
            }
            let fd = raw::clone_tree(raw::CWD, path, true).at(Call::OpenTree)?;
            f.fill(*into, fd)
        }
        Op::SetAttr { mount, attr } => set_attr(f.fd(*mount)?, attr),
        Op::IdMap { mount, user, recursive } => {
            let (mount, user) = (f.fd(*mount)?, f.fd(*user)?);
            raw::map_ids(mount, user, *recursive).at(Call::MountSetattr).map(drop)
        }
        Op::NewMount { fstype, params, attr, into } => {
            let fd = new_mount(fstype, params, *attr, None)?;
            f.fill(*into, fd)
        }
        Op::OldMount { chdir, source, target, fstype, flags, data } => {
            if let Some(dir) = chdir {
                raw::chdir(dir).at(Call::Chdir)?;
            }
            raw::mount(Some(source), target, Some(fstype), *flags, Some(data)).at(Call::Mount)?;
            raw::chdir(c"/").at(Call::Chdir).map(drop)
        }
        Op::Propagate { flags } => {
            raw::mount(None, c"/", None, *flags, None).at(Call::Mount).map(drop)
        }
        Op::AttachRootfs { mount, path } => {
            let target = path::open_no_symlinks(path)?;
            raw::attach(f.fd(*mount)?, target.0).at(Call::MoveMount).map(drop)
        }
        Op::OpenRootfs { path, into } => {
            let fd = path::open_no_symlinks(path)?;
            let number = fd.0;
            std::mem::forget(fd);
            f.fill(*into, number)
        }
        Op::Attach { mount, root, target, .. } => {
            let mount = f.fd(*mount)?;
            let target = path::mount_point(f.fd(*root)?, target, Some(mount))?;
            raw::attach(mount, target.0).at(Call::MoveMount).map(drop)
        }
        Op::Mount { fstype, params, attr, root, target } => {
            mount(f, fstype, params, attr, *root, target)
        }
        Op::CopyUp { mount, root, target, mode } => {
            let from = path::mount_point(f.fd(*root)?, target, None)?;
            copy::tree(from.0, f.fd(*mount)?, *mode)
        }
        Op::MakeDir { root, target, mode } => path::make_dir(f.fd(*root)?, target, *mode),
        Op::MakeNode { root, target, mode, major, minor, uid, gid } => {
            let dev = libc::makedev(*major, *minor);
            path::make_node(f.fd(*root)?, target, *mode, dev, (*uid, *gid))
        }
        Op::Symlink { root, target, to } => path::symlink(f.fd(*root)?, target, to),
        Op::Mask { root, target, empty, label } => mask(f, *root, target, *empty, label.as_deref()),
        Op::Readonly { root, target } => read_only(f.fd(*root)?, target),
        Op::OpenPty { root, into, size, owner } => {
            let slave = process::open_pty(f, f.fd(*root)?, *size, *owner, index)?;
            f.fill(*into, slave)
        }
        Op::AttachConsole { pty, root } => {
            let target = path::console(f.fd(*root)?)?;
            let slave = Fd(raw::clone_tree(f.fd(*pty)?, c"", false).at(Call::OpenTree)?);
            raw::attach(slave.0, target.0).at(Call::MoveMount).map(drop)
        }
        Op::Pivot { root } => pivot(f.fd(*root)?),

        Op::Hostname { name } => raw::sethostname(name.to_bytes()).at(Call::Sethostname).map(drop),
        Op::Domainname { name } => {
            raw::setdomainname(name.to_bytes()).at(Call::Setdomainname).map(drop)
        }
        Op::Setsid => raw::setsid().at(Call::Setsid).map(drop),
        Op::ControllingTerminal => raw::ioctl(0, libc::TIOCSCTTY, 0).at(Call::Ioctl).map(drop),
        Op::Birth => process::birth(f.fd(f.report)?, index),
        Op::LiftFds { above } => lift_fds(f, *above),
        Op::Dup { from, to } => process::dup(f.fd(*from)?, *to),
        Op::ChownStdio { uid } => process::chown_stdio(*uid),
        Op::Umask { mask } => {
            raw::umask(*mask);
            Ok(())
        }
        Op::Rlimit { resource, soft, hard } => {
            raw::set_rlimit(*resource, *soft, *hard).at(Call::Prlimit).map(drop)
        }
        Op::BoundingSet { keep } => process::bounding_set(*keep),
        Op::KeepCaps { on } => {
            raw::prctl(libc::PR_SET_KEEPCAPS, u64::from(*on), 0).at(Call::Prctl).map(drop)
        }
        Op::Groups { gids } => raw::setgroups(gids).at(Call::Setgroups).map(drop),
        Op::Gid { gid } => raw::setgid(*gid).at(Call::Setgid).map(drop),
        Op::Uid { uid } => {
            raw::setuid(*uid).at(Call::Setuid)?;
            // fs.suid_dumpable may have let others in again.
            raw::prctl(libc::PR_SET_DUMPABLE, 0, 0).at(Call::Prctl).map(drop)
        }
        Op::Capset { effective, permitted, inheritable } => {
            raw::capset(*effective, *permitted, *inheritable).at(Call::Capset).map(drop)
        }
        Op::Ambient { caps } => process::ambient(*caps),
        Op::NoNewPrivs => raw::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0).at(Call::Prctl).map(drop),
        Op::Seccomp { filter } => process::seccomp(f.fd(f.report)?, filter, index),
        Op::Chdir { path, retry } => process::chdir(f, path, *retry),
        Op::VerifyCwd => process::verify_cwd(),
        Op::Home { uid } => process::home(f, *uid),
        Op::FindExecutable { candidates } => {
            f.state.executable = Some(process::find_executable(candidates)?);
            Ok(())
        }
        Op::ResetSignals => process::reset_signals(),
        Op::Hooks | Op::Ready => process::ready(f.fd(f.report)?, index),
        Op::CloseFds => close_fds(f),
        Op::Exec => process::exec(f),
        Op::ExecFd { exe } => process::exec_fd(f, f.fd(*exe)?),
        Op::Exit => raw::exit(0),
    }
}

/// Moves the report to 3, and what `ExecFd` runs to 4; closes the rest for real, for a magic link
/// in /proc still opens what close-on-exec will only close later (CVE-2024-21626).
fn close_fds(f: &mut Frozen<'_>) -> Result<(), Fail> {
    let exe = f.ops.iter().find_map(|op| match op {
        Op::ExecFd { exe } => Some(*exe),
        _ => None,
    });
    // The limit of open files may leave no number free before.
    for (slot, fd) in f.slots.iter().enumerate() {
        let kept = [Some(f.report), exe].iter().flatten().any(|kept| usize::from(kept.0) == slot);
        if *fd > 2 && !kept {
            raw::close(*fd);
        }
    }
    let report = raw::dup_above(f.fd(f.report)?, 5).at(Call::Dup3)?;
    if let Some(exe) = exe {
        let from = raw::dup_above(f.fd(exe)?, 5).at(Call::Dup3)?;
        raw::dup3(from, 4, CLOSE_ON_EXEC).at(Call::Dup3)?;
        f.fill(exe, 4)?;
    }
    raw::dup3(report, 3, CLOSE_ON_EXEC).at(Call::Dup3)?;
    f.fill(f.report, 3)?;
    raw::close_from(if exe.is_some() { 5 } else { 4 }).at(Call::CloseRange).map(drop)
}

/// The old numbers stay open, close-on-exec, until they are overwritten.
fn lift_fds(f: &mut Frozen<'_>, above: i32) -> Result<(), Fail> {
    for fd in f.slots.iter_mut().filter(|fd| (0..=above).contains(*fd)) {
        *fd = raw::dup_above(*fd, above.saturating_add(1)).at(Call::Dup3)?;
    }
    Ok(())
}

fn set_attr(mount: i32, attr: &Attr) -> Result<(), Fail> {
    let Attr { set, clear, propagation, recursive } = *attr;
    raw::set_mount_attr(mount, set, clear, propagation, recursive).at(Call::MountSetattr).map(drop)
}

/// A new file system. A tmpfs without a mode takes that of the directory which it will cover.
fn new_mount(
    fstype: &std::ffi::CStr,
    params: &[Param],
    attr: u64,
    covers: Option<i32>,
) -> Result<i32, Fail> {
    let fs = Fd(raw::fsopen(fstype).at(Call::Fsopen)?);
    for Param { key, value } in params {
        raw::fsconfig(fs.0, key, value.as_deref()).at(Call::Fsconfig)?;
    }
    let own_mode = params.iter().any(|param| param.key.as_c_str() == c"mode");
    if fstype == c"tmpfs"
        && !own_mode
        && let Some(covers) = covers
    {
        let text = process::octal(raw::fstat(covers).at(Call::Fstat)?.st_mode);
        let text = std::ffi::CStr::from_bytes_until_nul(&text).unwrap_or(c"755");
        raw::fsconfig(fs.0, c"mode", Some(text)).at(Call::Fsconfig)?;
    }
    raw::fscreate(fs.0).at(Call::Fscreate)?;
    raw::fsmount(fs.0, attr).at(Call::Fsmount)
}

fn mount(
    f: &Frozen<'_>,
    fstype: &std::ffi::CStr,
    params: &[Param],
    attr: &Attr,
    root: Slot,
    target: &Target,
) -> Result<(), Fail> {
    let target = path::mount_point(f.fd(root)?, target, None)?;
    let mount = Fd(new_mount(fstype, params, attr.set, Some(target.0))?);
    if attr.propagation != 0 || attr.recursive {
        set_attr(mount.0, attr)?;
    }
    raw::attach(mount.0, target.0).at(Call::MoveMount).map(drop)
}

/// A tmpfs with no room for a single file, for all masked directories of a container: one mount
/// each costs the kernel a shrinker each (runc #5275). A detached tree cannot be cloned before
/// 6.15, so the first target gets the mount itself and the others get clones of it.
fn mask(
    f: &mut Frozen<'_>,
    root: Slot,
    target: &Target,
    empty: Slot,
    label: Option<&std::ffi::CStr>,
) -> Result<(), Fail> {
    let Some(target) = path::existing(f.fd(root)?, target)? else { return Ok(()) };
    let stat = raw::fstat(target.0).at(Call::Fstat)?;
    let attr = libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NOEXEC;
    if stat.st_mode & libc::S_IFMT != libc::S_IFDIR {
        // The host's own node, not the container's, which may be anything (CVE-2025-31133).
        let null = Fd(raw::clone_tree(raw::CWD, c"/dev/null", false).at(Call::OpenTree)?);
        raw::set_mount_attr(null.0, attr, 0, libc::MS_PRIVATE, false).at(Call::MountSetattr)?;
        return raw::attach(null.0, target.0).at(Call::MoveMount).map(drop);
    }
    if f.state.mask_attached {
        let copy = Fd(raw::clone_tree(f.fd(empty)?, c"", false).at(Call::OpenTree)?);
        return raw::attach(copy.0, target.0).at(Call::MoveMount).map(drop);
    }
    let fs = Fd(raw::fsopen(c"tmpfs").at(Call::Fsopen)?);
    for (key, value) in [(c"nr_inodes", c"1"), (c"nr_blocks", c"1"), (c"mode", c"0755")] {
        raw::fsconfig(fs.0, key, Some(value)).at(Call::Fsconfig)?;
    }
    if label.is_some() {
        raw::fsconfig(fs.0, c"context", label).at(Call::Fsconfig)?;
    }
    raw::fscreate(fs.0).at(Call::Fscreate)?;
    let mount = raw::fsmount(fs.0, attr | libc::MOUNT_ATTR_NODEV).at(Call::Fsmount)?;
    f.fill(empty, mount)?;
    raw::attach(mount, target.0).at(Call::MoveMount)?;
    f.state.mask_attached = true;
    Ok(())
}

fn read_only(root: i32, target: &Target) -> Result<(), Fail> {
    let Some(target) = path::existing(root, target)? else { return Ok(()) };
    let tree = Fd(raw::clone_tree(target.0, c"", true).at(Call::OpenTree)?);
    raw::set_mount_attr(tree.0, libc::MOUNT_ATTR_RDONLY, 0, 0, true).at(Call::MountSetattr)?;
    raw::attach(tree.0, target.0).at(Call::MoveMount).map(drop)
}

/// pivot_root(2), "pivot_root(".", ".")": the old root ends up on top of the new one, at ".", and
/// is taken away there. `/` is a slave by then, so the host does not see the umount.
fn pivot(root: i32) -> Result<(), Fail> {
    raw::fchdir(root).at(Call::Fchdir)?;
    raw::pivot_root(c".", c".").at(Call::PivotRoot)?;
    raw::umount(c".", libc::MNT_DETACH).at(Call::Umount)?;
    raw::chdir(c"/").at(Call::Chdir).map(drop)
}
