//! Against a v2 hierarchy, which may be without controllers: a hybrid host's.

use std::os::fd::AsFd;
use std::time::Duration;

use crate::sys::bpf::set_device_filter;

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
fn an_exec_follows_its_init_but_not_out_of_its_cgroup() {
    let Some(mut scratch) = scratch("follow") else { return };
    let cgroup = Cgroup::create(&scratch.cgroups, &Limits::default()).unwrap();
    let own = Dir::open(&scratch.cgroups.dirs[0]).unwrap().unwrap();
    if own.write("cgroup.subtree_control", "+pids").is_err() {
        eprintln!("skipped: v2 has no controllers here");
        return;
    }
    own.make("inner".as_ref()).unwrap();
    let outside = own.path().with_file_name("box2");
    fs::create_dir(&outside).unwrap();
    let inner = scratch.run("inner", "exec sleep 60");
    assert!(within(|| cgroup.pids().unwrap() == [inner]));
    let followed = cgroup.clone().for_process(inner).unwrap();
    assert_eq!(followed.cgroups().dirs[0].path, own.path().join("inner"));
    fs::write(outside.join("cgroup.procs"), inner.to_string()).unwrap();
    let error = cgroup.clone().for_process(inner).unwrap_err();
    fs::write(own.path().join("inner/cgroup.procs"), inner.to_string()).unwrap();
    fs::remove_dir(&outside).unwrap();
    assert_eq!(error.kind(), Kind::FailedPrecondition);
    assert!(error.to_string().contains("box2\", which is not below"), "{error}");
    cgroup.kill_all(libc::SIGKILL).unwrap();
    assert!(within(|| cgroup.empty().unwrap()));
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
fn what_is_nested_in_a_threaded_cgroup_is_listed_and_killed() {
    let Some(mut scratch) = scratch("lists") else { return };
    let (cgroup, own) = (scratch.cgroup(), scratch.cgroups.dirs[0].path.clone());
    // By hand: with a controller handed on to it, it would be no such cgroup.
    fs::create_dir_all(own.join("inner")).unwrap();
    for dir in [own.clone(), own.join("inner")] {
        fs::write(dir.join("cgroup.type"), "threaded").unwrap();
    }
    let mut pids = [scratch.run("", "exec sleep 60"), scratch.run("inner", "exec sleep 60")];
    pids.sort_unstable();
    assert!(within(|| cgroup.pids().unwrap() == pids));
    cgroup.kill_all(libc::SIGKILL).unwrap();
    assert!(within(|| cgroup.empty().unwrap()));
    carry_out(&cgroup.remove().unwrap()).unwrap();
    assert!(!own.exists());
}

#[test]
fn what_goes_while_it_is_looked_at_is_no_error() {
    let Some(scratch) = scratch("going") else { return };
    let own = &scratch.cgroups.dirs[0].path;
    let both = ["one", "other"].map(|name| own.join(name));
    both.iter().for_each(|dir| fs::create_dir_all(dir).unwrap());
    let mut seen = Vec::new();
    let walked = Dir::open(&scratch.cgroups.dirs[0]).unwrap().unwrap().walk(&mut |dir| {
        seen.push(dir.path().to_owned());
        if dir.path() != own {
            both.iter().for_each(|dir| fs::remove_dir(dir).unwrap());
            assert_eq!(dir.read("cgroup.procs").unwrap(), None);
        }
        Ok(())
    });
    both.iter().for_each(|dir| drop(fs::remove_dir(dir)));
    assert!(seen.len() == 2 && seen[0] == *own && both.contains(&seen[1]), "{seen:?}");
    walked.unwrap();
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

/// One of a host with controllers, and its parent.
fn controlled(name: &str) -> Option<(Scratch, PathBuf)> {
    let scratch = scratch(name)?;
    let at = &scratch.cgroups.dirs[0];
    if !fs::read_to_string(at.mountpoint.join("cgroup.controllers")).unwrap().contains("memory") {
        eprintln!("skipped: needs a cgroup v2 with controllers");
        return None;
    }
    let parent = at.path.parent().unwrap().to_owned();
    fs::create_dir(&parent).unwrap();
    Some((scratch, parent))
}

#[test]
fn a_parent_with_processes_is_named() {
    let Some((mut scratch, parent)) = controlled("busy") else { return };
    fs::create_dir(&scratch.cgroups.dirs[0].path).unwrap();
    scratch.run("..", "exec sleep 60");
    assert!(within(|| !fs::read_to_string(parent.join("cgroup.procs")).unwrap().is_empty()));
    fs::remove_dir(&scratch.cgroups.dirs[0].path).unwrap();
    let limits = new_limits(r#"{"memory": {"limit": 33554432}}"#, true);
    let error = Cgroup::create(&scratch.cgroups, &limits).unwrap_err();
    assert_eq!(error.kind(), Kind::FailedPrecondition, "{error}");
    assert!(error.to_string().contains("has processes of its own: write \"+memory\""), "{error}");
    assert!(!scratch.cgroups.dirs[0].path.exists());
    // What knows threads works all the same.
    let limits = new_limits(r#"{"pids": {"limit": 5}, "cpu": {"shares": 2048}}"#, true);
    let cgroup = Cgroup::create(&scratch.cgroups, &limits).unwrap();
    assert_eq!(scratch.read("pids", "cgroup.type"), "threaded");
    assert_eq!(scratch.read("pids", "pids.max"), "5");
    let pid = scratch.run("", "exec sleep 60");
    assert!(within(|| fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap().contains("/box")));
    cgroup.kill_all(libc::SIGKILL).unwrap();
    assert!(within(|| cgroup.empty().unwrap()));
    carry_out(&cgroup.remove().unwrap()).unwrap();
}

#[test]
fn below_a_threaded_parent_only_limits_of_threads_are() {
    let Some((scratch, parent)) = controlled("threads") else { return };
    fs::write(parent.join("cgroup.type"), "threaded").unwrap();
    let limits = new_limits(r#"{"memory": {"limit": 33554432}}"#, true);
    let error = Cgroup::create(&scratch.cgroups, &limits).unwrap_err();
    assert_eq!(error.kind(), Kind::FailedPrecondition, "{error}");
    let text = error.to_string();
    assert!(text.contains("is of type \"threaded\", without \"memory.max\""), "{text}");
    let cgroup =
        Cgroup::create(&scratch.cgroups, &new_limits(r#"{"pids": {"limit": 5}}"#, true)).unwrap();
    assert_eq!(scratch.read("pids", "cgroup.type"), "threaded");
    carry_out(&cgroup.remove().unwrap()).unwrap();
}

/// Every file after an update and after its way back.
#[test]
fn an_update_and_its_way_back_with_controllers() {
    let Some((mut scratch, _)) = controlled("update") else { return };
    let limits = new_limits(
        r#"{"cpu": {"shares": 512, "quota": 50000, "period": 200000, "cpus": "0"},
            "memory": {"limit": 67108864, "swap": 67108864, "reservation": 1048576},
            "pids": {"limit": 9}, "unified": {"memory.high": "60000000"}}"#,
        true,
    );
    let cgroup = Cgroup::create(&scratch.cgroups, &limits).unwrap();
    scratch.run("", "exec sleep 60");
    let files = [
        "cpu.weight",
        "cpu.max",
        "cpuset.cpus",
        "memory.max",
        "memory.swap.max",
        "memory.low",
        "pids.max",
        "memory.high",
    ];
    let all = || files.map(|file| scratch.read("", file));
    let old = all();
    let update = serde_json::from_str(
        r#"{"cpu": {"shares": 1024, "quota": -1, "cpus": "0-1"},
            "memory": {"limit": 33554432, "swap": -1, "reservation": -1},
            "pids": {"limit": -1}, "unified": {"memory.high": "max"}}"#,
    );
    let update = cgroup.update(&update.unwrap()).unwrap();
    cgroup.apply(&update.direct).unwrap();
    carry_out(&update.ops).unwrap();
    let new = ["100", "max 200000", "0-1", "33554432", "max", "max", "max", "max"];
    assert_eq!(all(), new);
    assert!(old.iter().zip(new).all(|(old, new)| old != new), "{old:?}");
    carry_out(&update.undo).unwrap();
    cgroup.set_back(&update).unwrap();
    assert_eq!(all(), old);
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
fn a_filter_is_replaced_without_a_moment_of_none() {
    let Some(mut scratch) = scratch("window") else { return };
    let Ok(_) = fs::File::open("/dev/kmsg") else { return eprintln!("skipped: needs /dev/kmsg") };
    let limits = new_limits(r#"{"devices": [{"allow": false, "access": "rwm"}]}"#, true);
    Cgroup::create(&scratch.cgroups, &limits).unwrap();
    let dir = Dir::open(&scratch.cgroups.dirs[0]).unwrap().unwrap();
    let file = std::env::temp_dir().join(format!("rs-test-{}-window", std::process::id()));
    let path = file.display();
    let tries = format!("until (: < /dev/kmsg) 2>/dev/null; do echo x >> {path}; done; exit 3");
    scratch.run("", &tries);
    let program: Vec<u64> =
        limits.device_filter.unwrap().iter().map(|insn| insn.encode()).collect();
    let tried = || fs::metadata(&file).map_or(0, |file| file.len());
    let mut rounds = 0;
    assert!(within(|| {
        set_device_filter(dir.as_fd(), &program).unwrap();
        rounds += 1;
        rounds > 100 && tried() > 200
    }));
    let ended = scratch.children[0].try_wait().unwrap();
    // The shell first: it would make the file again.
    drop(scratch);
    fs::remove_file(file).unwrap();
    assert_eq!(ended, None, "it could open what it may not");
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
