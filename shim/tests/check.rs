//! `check` and `start` as processes, on this kernel and with one system call of it taken away.

#[allow(dead_code, reason = "most of it is for other tests")]
mod common;

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use common::{BINARY, Bundle, fails_with, on_syscall};

/// What no container can do without: the row of each call in the table.
const NEEDED: [(&str, i64); 13] = [
    ("openat2", libc::SYS_openat2),
    ("mount_setattr", libc::SYS_mount_setattr),
    ("open_tree", libc::SYS_open_tree),
    ("move_mount", libc::SYS_move_mount),
    ("fsopen", libc::SYS_fsopen),
    ("fsconfig", libc::SYS_fsconfig),
    ("fsmount", libc::SYS_fsmount),
    ("pidfd_open", libc::SYS_pidfd_open),
    ("pidfd_send_signal", libc::SYS_pidfd_send_signal),
    ("waitid of a pidfd", libc::SYS_waitid),
    ("close_range", libc::SYS_close_range),
    ("execveat", libc::SYS_execveat),
    ("setns of a pidfd", libc::SYS_setns),
];

/// What there is another way for, or what few ask for.
const WANTED: [(&str, i64); 5] = [
    ("clone3", libc::SYS_clone3),
    ("CLONE_INTO_CGROUP", libc::SYS_clone3),
    ("PIDFD_GET_INFO", libc::SYS_ioctl),
    ("pidfd_getfd", libc::SYS_pidfd_getfd),
    ("seccomp listeners", libc::SYS_seccomp),
];

fn check(command: &mut Command) -> (Vec<String>, String, bool) {
    let Output { status, stdout, stderr } = command.arg("check").output().unwrap();
    let text = String::from_utf8(stdout).unwrap();
    let errors = String::from_utf8(stderr).unwrap();
    assert!(status.code().is_some(), "{status:?} {errors}");
    (text.lines().map(str::to_owned).collect(), errors, status.success())
}

/// A row, without the blanks that align it.
fn row(lines: &[String], feature: &str) -> Vec<String> {
    let line = lines
        .iter()
        .find(|line| line.strip_prefix(feature).is_some_and(|rest| rest.starts_with("  ")));
    let line = line.unwrap_or_else(|| panic!("no row {feature:?} in {lines:#?}"));
    line.split("  ").map(str::trim).filter(|cell| !cell.is_empty()).map(str::to_owned).collect()
}

fn is_root() -> bool {
    // SAFETY: no arguments.
    let root = unsafe { libc::geteuid() } == 0;
    if !root {
        eprintln!("skipped: needs root");
    }
    root
}

#[test]
fn where_containers_run_nothing_that_is_needed_is_missing_and_nothing_is_left() {
    if !is_root() {
        return;
    }
    let (lines, errors, well) = check(&mut Command::new(BINARY));
    assert_eq!((errors.as_str(), well), ("", true), "{lines:#?}");
    assert!(lines[0].starts_with("Linux ") && lines[0].ends_with(", asked as root"), "{lines:?}");
    assert_eq!(row(&lines, "feature"), ["feature", "found", "needed", "without it"]);
    for (name, _) in NEEDED {
        assert_eq!(row(&lines, name)[1..3], ["yes", "yes"]);
    }
    assert_eq!(row(&lines, "namespaces")[1], "mnt pid net ipc uts");
    let mut child = Command::new(BINARY).arg("check").stdout(Stdio::null()).spawn().unwrap();
    assert!(child.wait().unwrap().success());
    let scratch = format!("/run/containerd-shim-rs-v2-check-{}", child.id());
    assert!(!Path::new(&scratch).exists());
}

#[test]
fn each_call_that_is_taken_away_is_seen() {
    if !is_root() {
        return;
    }
    for (errno, name) in [(libc::ENOSYS, "no: ENOSYS"), (libc::EPERM, "no: EPERM")] {
        let needed = NEEDED.into_iter().map(|call| (call, true));
        for ((feature, call), needed) in needed.chain(WANTED.map(|call| (call, false))) {
            let mut command = Command::new(BINARY);
            on_syscall(&mut command, call, fails_with(errno));
            let (lines, errors, well) = check(&mut command);
            let row = row(&lines, feature);
            assert_eq!(row[1..3], [name, if needed { "yes" } else { "no" }], "{feature}");
            assert_eq!(well, !needed, "{feature}: {errors}");
            let named = errors.contains("needed, and not there: ") && errors.contains(feature);
            assert_eq!(named, needed, "{errors}");
        }
    }
}

#[test]
fn start_refuses_where_a_call_is_missing_and_leaves_nothing() {
    for (name, call) in NEEDED {
        let Some(bundle) = Bundle::task() else { return };
        let mut command = bundle.command("start");
        on_syscall(&mut command, call, fails_with(libc::ENOSYS));
        let output = bundle.finish(command, &bundle.params(None));
        let text = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        assert!(!output.status.success(), "{text}");
        let start = "containerd-shim-rs-v2: the kernel lacks, or a seccomp filter refuses, what every \
                     container needs: ";
        assert!(text.starts_with(start), "{text}");
        assert!(text.contains(&format!("{name} (ENOSYS)")), "{text}");
        bundle.assert_nothing_left();
    }
}

#[test]
fn start_does_without_clone3() {
    let Some(bundle) = Bundle::task() else { return };
    let mut command = bundle.command("start");
    on_syscall(&mut command, libc::SYS_clone3, fails_with(libc::ENOSYS));
    let output = bundle.finish(command, &bundle.params(None));
    assert!(output.status.success(), "{output:?}");
    bundle.server();
    bundle.end_servers(libc::SIGTERM);
}

#[test]
fn without_root_it_says_what_it_cannot_know() {
    let Some(bundle) = Bundle::task() else { return };
    // Where nobody can get to it.
    let binary = bundle.copy_binary();
    let mut command = Command::new(binary);
    command.uid(65534).gid(65534).current_dir("/");
    let (lines, errors, well) = check(&mut command);
    assert!(!well);
    assert!(lines[0].ends_with(", asked without CAP_SYS_ADMIN"), "{}", lines[0]);
    for feature in ["fsopen", "mount_setattr", "namespaces", "overlay: lowerdir+"] {
        assert_eq!(row(&lines, feature)[1], "unknown: needs root");
    }
    assert_eq!(row(&lines, "openat2")[1], "yes");
    assert!(errors.contains("not known without root: mount_setattr, "), "{errors}");
    assert!(errors.contains("needed, and not there: capabilities"), "{errors}");
}
