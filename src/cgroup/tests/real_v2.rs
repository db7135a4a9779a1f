//! Against a v2 hierarchy, which may be without controllers: a hybrid host's.

use std::time::Duration;

use super::real_v1::{Scratch, new_limits, within};
use super::*;

/// None: not root, or no v2 anywhere.
fn scratch(name: &str) -> Option<Scratch> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let line = mounts.lines().find(|line| line.contains(" - cgroup2 "));
    let Some(line) = line.filter(|_| nix::unistd::geteuid().is_root()) else {
        eprintln!("skipped: needs root and a cgroup v2");
        return None;
    };
    let mountpoint = PathBuf::from(line.split(' ').nth(4).unwrap());
    let path = mountpoint.join(format!("rs-test-{}-{name}/box", std::process::id()));
    let dirs = vec![CgroupDir { controllers: vec![], mountpoint, path }];
    Some(Scratch { cgroups: Cgroups { unified: true, dirs }, children: Vec::new() })
}

#[test]
fn pause_kill_and_remove() {
    let Some(mut scratch) = scratch("kill") else { return };
    let cgroup = Cgroup::create(&scratch.cgroups, &Limits::default()).unwrap();
    Dir::open(&scratch.cgroups.dirs[0]).unwrap().unwrap().make("inner".as_ref()).unwrap();
    assert!(cgroup.empty().unwrap());
    let mut pids = [scratch.run("", "exec sleep 60"), scratch.run("inner", "exec sleep 60")];
    pids.sort_unstable();
    assert!(within(|| cgroup.pids().unwrap() == pids));
    assert!(!cgroup.empty().unwrap());
    let again = Cgroup::create(&scratch.cgroups, &Limits::default()).unwrap_err();
    assert!(again.to_string().contains("has 2 processes"), "{again}");
    assert!(cgroup.stats().unwrap().unified);
    cgroup.freeze().unwrap();
    assert!(within(|| cgroup.frozen().unwrap()));
    cgroup.thaw().unwrap();
    assert!(within(|| !cgroup.frozen().unwrap()));
    cgroup.freeze().unwrap();
    assert!(within(|| cgroup.frozen().unwrap()));
    cgroup.kill_all(libc::SIGKILL).unwrap();
    assert!(within(|| cgroup.empty().unwrap()));
    carry_out(&cgroup.remove().unwrap()).unwrap();
    assert!(!scratch.cgroups.dirs[0].path.exists() && scratch.exists());
}

#[test]
fn kill_without_the_kernels_help() {
    let Some(mut scratch) = scratch("each") else { return };
    let cgroup = Cgroup::create(&scratch.cgroups, &Limits::default()).unwrap();
    let pid = scratch.run("", "exec sleep 60");
    assert!(within(|| cgroup.pids().unwrap() == [pid]));
    kill_each(&scratch.cgroups.dirs[0], libc::SIGKILL).unwrap();
    assert!(within(|| cgroup.empty().unwrap()));
}

#[test]
fn a_cgroup_below_a_frozen_one_is_refused() {
    let Some(scratch) = scratch("frozen") else { return };
    Cgroup::create(&scratch.cgroups, &Limits::default()).unwrap();
    fs::write(scratch.cgroups.dirs[0].path.parent().unwrap().join("cgroup.freeze"), "1").unwrap();
    let frozen = || {
        let error = Cgroup::create(&scratch.cgroups, &Limits::default()).unwrap_err();
        error.to_string().ends_with("is frozen")
    };
    assert!(within(frozen));
}

#[test]
fn without_its_controller_a_limit_fails_by_name() {
    let Some(scratch) = scratch("memory") else { return };
    let mountpoint = &scratch.cgroups.dirs[0].mountpoint;
    if fs::read_to_string(mountpoint.join("cgroup.controllers")).unwrap().contains("memory") {
        return eprintln!("skipped: needs a cgroup v2 without controllers");
    }
    let limits = new_limits(r#"{"memory": {"limit": 33554432}}"#, true);
    let error = Cgroup::create(&scratch.cgroups, &limits).unwrap_err();
    assert!(error.to_string().contains("no \"memory\" cgroup controller"), "{error}");
    assert!(!scratch.exists());
}

/// Whether a process of the cgroup can open a device, each in its own process.
fn opens(scratch: &mut Scratch, device: &str, redirect: &str) -> bool {
    scratch.run("", &format!("exec 3{redirect} {device}"));
    scratch.children.pop().unwrap().wait().unwrap().success()
}

#[test]
fn devices_are_filtered() {
    let Some(mut scratch) = scratch("devices") else { return };
    let Ok(_) = fs::File::open("/dev/kmsg") else { return eprintln!("skipped: needs /dev/kmsg") };
    let deny = r#"{"devices": [{"allow": false, "access": "rwm"}]}"#;
    let kmsg = r#"{"devices": [{"allow": true, "type": "c", "major": 1, "minor": 11,
        "access": "r"}]}"#;
    let privileged = r#"{"devices": [{"allow": true, "access": "rwm"}]}"#;
    // Each over the one before: it is replaced.
    for (json, reads, both) in [(deny, false, false), (kmsg, true, false), (deny, false, false)] {
        Cgroup::create(&scratch.cgroups, &new_limits(json, true)).unwrap();
        assert!(opens(&mut scratch, "/dev/null", "<>"));
        assert_eq!(opens(&mut scratch, "/dev/kmsg", "<"), reads, "{json}");
        assert_eq!(opens(&mut scratch, "/dev/kmsg", "<>"), both, "{json}");
    }
    carry_out(&scratch.cgroup().remove().unwrap()).unwrap();
    Cgroup::create(&scratch.cgroups, &new_limits(privileged, true)).unwrap();
    assert!(opens(&mut scratch, "/dev/kmsg", "<>"));
}

#[test]
fn a_long_list_of_devices_passes_the_verifier() {
    let Some(mut scratch) = scratch("verifier") else { return };
    let rules: Vec<String> = (0..1000)
        .map(|i| {
            let (allow, access) = (i % 3 != 0, ["r", "w", "m", "rw", "rwm"][i % 5]);
            format!(
                r#"{{"allow": {allow}, "type": "{}", "major": {}, "minor": {}, "access": "{access}"}}"#,
                ["a", "b", "c"][i % 3], i % 256, i
            )
        })
        .collect();
    let json = format!(r#"{{"devices": [{}]}}"#, rules.join(","));
    Cgroup::create(&scratch.cgroups, &new_limits(&json, true)).unwrap();
    assert!(opens(&mut scratch, "/dev/null", "<>"));
}

#[test]
fn an_events_file_gives_notice_of_each_change() {
    let Some(scratch) = scratch("notices") else { return };
    let cgroup = Cgroup::create(&scratch.cgroups, &Limits::default()).unwrap();
    let at = &scratch.cgroups.dirs[0];
    let dir = Dir::open(at).unwrap().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        // The memory controller's file is such another one, but the host may have it on v1.
        let notices = Notices::events(&dir, at, "cgroup.events").unwrap().unwrap();
        let quiet =
            async || tokio::time::timeout(Duration::from_millis(50), notices.next()).await.is_err();
        let changed = async || {
            tokio::time::timeout(Duration::from_secs(5), notices.next()).await.unwrap().unwrap();
        };
        // A first one says nothing new.
        let _ = quiet().await;
        assert!(quiet().await);
        for frozen in [true, false, true] {
            cgroup.set_frozen(frozen).unwrap();
            changed().await;
            assert_eq!(cgroup.frozen().unwrap(), frozen);
            assert!(quiet().await);
        }
        assert!(Notices::events(&dir, at, "none.events").unwrap().is_none());
    });
    cgroup.thaw().unwrap();
}
