//! When, where and on which memory a process runs, as the kernel says of it.

use std::fs;

use containerd_shim_rs::error::Kind;
use serde_json::{Value, json};

use crate::alone::alone;
use crate::pod::{Pod, process, sh, with};

/// Of `/proc/PID/stat`: nice, real-time priority, policy.
fn scheduled(pid: u32) -> (i32, u32, u32) {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    let field = |n: usize| fields[n - 3];
    (field(19).parse().unwrap(), field(40).parse().unwrap(), field(41).parse().unwrap())
}

/// Class and level.
fn io_priority(pid: u32) -> (i64, i64) {
    // SAFETY: the call takes numbers.
    let got = unsafe { libc::syscall(libc::SYS_ioprio_get, 1, pid) };
    (got >> 13, got & 0x1fff)
}

/// A field of `/proc/PID/status`.
fn status(pid: u32, name: &str) -> String {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.unwrap().trim().to_owned()
}

/// A process of this test, on its first CPU only. What it was on.
fn pin() -> nix::sched::CpuSet {
    let this = nix::unistd::Pid::from_raw(0);
    let before = nix::sched::sched_getaffinity(this).unwrap();
    let mut one = nix::sched::CpuSet::new();
    one.set(0).unwrap();
    nix::sched::sched_setaffinity(this, &one).unwrap();
    before
}

#[test]
fn schedulers() {
    alone(async |pod: &mut Pod| {
        for (scheduler, want) in [
            (json!({"policy": "SCHED_OTHER", "nice": 5}), (5, 0, 0)),
            (json!({"policy": "SCHED_OTHER", "nice": -5}), (-5, 0, 0)),
            (json!({"policy": "SCHED_BATCH", "nice": 19}), (19, 0, 3)),
            (json!({"policy": "SCHED_IDLE"}), (scheduled(std::process::id()).0, 0, 5)),
        ] {
            let spec = with(sh("sleep 100"), "/process/scheduler", scheduler.clone());
            let pid = pod.create("c", &spec).await.unwrap();
            pod.start("c", "").await.unwrap();
            assert_eq!(scheduled(pid), want, "{scheduler}");
            let exec = with(process("sleep 100"), "/scheduler", scheduler.clone());
            pod.exec("c", "e", &exec).unwrap();
            let pid = pod.start("c", "e").await.unwrap();
            assert_eq!(scheduled(pid), want, "exec {scheduler}");
            // As it is given, not as the container's.
            pod.exec("c", "plain", &process("sleep 100")).unwrap();
            let pid = pod.start("c", "plain").await.unwrap();
            assert_eq!(scheduled(pid), scheduled(std::process::id()));
            pod.end("c").await;
        }
    });
}

#[test]
fn real_time() {
    alone(async |pod: &mut Pod| {
        // Where groups share out real-time, on v1, each needs a share, which is free again some time
        // after its end. This makes the group above.
        pod.running("first", "sleep 100").await;
        let mut shares = json!({});
        for top in crate::alone::cgroup_tops(std::process::id()) {
            if fs::write(top.join("cpu.rt_runtime_us"), "100000").is_ok() {
                shares = json!({"cpu": {"realtimeRuntime": 10000}});
            }
        }
        let spec = with(sh("sleep 100"), "/linux/resources", shares);
        for (scheduler, want) in [
            (json!({"policy": "SCHED_FIFO", "priority": 7}), (7, 1)),
            (
                json!({"policy": "SCHED_RR", "priority": 99, "flags": ["SCHED_FLAG_RESET_ON_FORK"]}),
                (99, 2),
            ),
            (
                json!({"policy": "SCHED_DEADLINE", "runtime": 1000000, "deadline": 10000000,
                    "period": 20000000}),
                (0, 6),
            ),
        ] {
            let spec = with(spec.clone(), "/process/scheduler", scheduler.clone());
            let pid = pod.create("c", &spec).await.unwrap();
            pod.start("c", "").await.unwrap();
            let (_, priority, policy) = scheduled(pid);
            assert_eq!((priority, policy), want, "{scheduler}");
            pod.end("c").await;
        }
        let exec = json!({"policy": "SCHED_FIFO", "priority": 3});
        pod.create("c", &spec).await.unwrap();
        pod.start("c", "").await.unwrap();
        pod.exec("c", "e", &with(process("sleep 100"), "/scheduler", exec)).unwrap();
        let pid = pod.start("c", "e").await.unwrap();
        assert_eq!(scheduled(pid).1, 3);
    });
}

#[test]
fn io_priorities() {
    alone(async |pod: &mut Pod| {
        for (class, level, want) in [
            ("IOPRIO_CLASS_RT", 3, (1, 3)),
            ("IOPRIO_CLASS_BE", 7, (2, 7)),
            ("IOPRIO_CLASS_IDLE", 0, (3, 0)),
        ] {
            let given = json!({"class": class, "priority": level});
            let spec = with(sh("sleep 100"), "/process/ioPriority", given.clone());
            let pid = pod.create("c", &spec).await.unwrap();
            pod.start("c", "").await.unwrap();
            assert_eq!(io_priority(pid), want, "{class}");
            pod.exec("c", "e", &with(process("sleep 100"), "/ioPriority", given)).unwrap();
            let pid = pod.start("c", "e").await.unwrap();
            assert_eq!(io_priority(pid), want, "exec {class}");
            pod.end("c").await;
        }
    });
}

#[test]
fn personality_and_memory_policy_are_every_processes() {
    alone(async |pod: &mut Pod| {
        let spec = with(sh("sleep 100"), "/linux/personality", json!({"domain": "LINUX32"}));
        let policy = json!({"mode": "MPOL_BIND", "nodes": "0"});
        let spec = with(spec, "/linux/memoryPolicy", policy);
        let init = pod.create("c", &spec).await.unwrap();
        pod.start("c", "").await.unwrap();
        pod.exec("c", "e", &process("sleep 100")).unwrap();
        let exec = pod.start("c", "e").await.unwrap();
        for pid in [init, exec] {
            let read = |name| fs::read_to_string(format!("/proc/{pid}/{name}")).unwrap();
            assert_eq!(read("personality"), "00000008\n");
            assert_eq!(read("numa_maps").split_whitespace().nth(1), Some("bind:0"));
        }
        pod.end("c").await;
        let pid = pod.running("plain", "sleep 100").await;
        let read = |name| fs::read_to_string(format!("/proc/{pid}/{name}")).unwrap();
        assert_eq!(read("personality"), "00000000\n");
        assert_eq!(read("numa_maps").split_whitespace().nth(1), Some("default"));
    });
}

#[test]
fn nobody_inherits_the_cpus_that_the_shim_is_pinned_to() {
    alone(async |pod: &mut Pod| {
        let all = status(std::process::id(), "Cpus_allowed_list");
        let before = pin();
        assert_eq!(status(std::process::id(), "Cpus_allowed_list"), "0");
        let init = pod.running("c", "sleep 100").await;
        pod.exec("c", "e", &process("sleep 100")).unwrap();
        let exec = pod.start("c", "e").await.unwrap();
        assert_eq!(status(init, "Cpus_allowed_list"), all);
        assert_eq!(status(exec, "Cpus_allowed_list"), all);
        nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &before).unwrap();
    });
}

#[test]
fn cpus_of_an_exec() {
    alone(async |pod: &mut Pod| {
        // Of an init's process it is not.
        let affinity = json!({"initial": "0", "final": "0"});
        let spec = with(sh("sleep 100"), "/process/execCPUAffinity", affinity);
        let all = status(std::process::id(), "Cpus_allowed_list");
        let init = pod.create("c", &spec).await.unwrap();
        pod.start("c", "").await.unwrap();
        assert_eq!(status(init, "Cpus_allowed_list"), all);
        for (id, affinity, want) in [
            ("final", json!({"final": "0"}), "0"),
            ("both", json!({"initial": "0", "final": "1"}), "1"),
            ("initial", json!({"initial": "0"}), "0"),
            ("neither", json!({"initial": "", "final": ""}), all.as_str()),
        ] {
            let spec = with(process("sleep 100"), "/execCPUAffinity", affinity);
            pod.exec("c", id, &spec).unwrap();
            let pid = pod.start("c", id).await.unwrap();
            // Without a final it is the kernel's choice: before 6.2, and where the container has a
            // cpuset of its own on v1, the whole cpuset.
            let got = status(pid, "Cpus_allowed_list");
            assert!(got == want || id == "initial" && got == all, "{id}: {got}");
        }
        // No CPU of the container's at all.
        let spec = with(process("sleep 100"), "/execCPUAffinity", json!({"final": "8000"}));
        pod.exec("c", "none", &spec).unwrap();
        let error = pod.start("c", "none").await.unwrap_err().to_string();
        assert!(error.contains("cpu affinity 8000: sched_setaffinity: EINVAL"), "{error}");
    });
}

/// Each with the field's name.
#[test]
fn what_is_no_schedule_is_refused() {
    alone(async |pod: &mut Pod| {
        let scheduler = |more: Value| ("/process/scheduler", "process.scheduler", more);
        let memory = |more: Value| ("/linux/memoryPolicy", "linux.memoryPolicy.nodes", more);
        let cases = [
            scheduler(json!({"policy": "SCHED_OTHER", "nice": 20})),
            scheduler(json!({"policy": "SCHED_BATCH", "nice": -21})),
            scheduler(json!({"policy": "SCHED_OTHER", "priority": 1})),
            scheduler(json!({"policy": "SCHED_FIFO"})),
            scheduler(json!({"policy": "SCHED_RR", "priority": 100})),
            scheduler(json!({"policy": "SCHED_FIFO", "priority": -1})),
            scheduler(json!({"policy": "SCHED_IDLE", "runtime": 1})),
            (
                "/process/ioPriority",
                "process.ioPriority.priority",
                json!({"class": "IOPRIO_CLASS_BE", "priority": 8}),
            ),
            (
                "/process/ioPriority",
                "process.ioPriority.priority",
                json!({"class": "IOPRIO_CLASS_RT", "priority": -1}),
            ),
            memory(json!({"mode": "MPOL_DEFAULT", "nodes": "0"})),
            memory(json!({"mode": "MPOL_BIND"})),
            memory(json!({"mode": "MPOL_INTERLEAVE", "nodes": "1-0"})),
            memory(json!({"mode": "MPOL_BIND", "nodes": "1024"})),
            ("/process/scheduler", "config.json", json!({"policy": "SCHED_WISHFUL"})),
            (
                "/process/ioPriority",
                "config.json",
                json!({"class": "IOPRIO_CLASS_NONE", "priority": 0}),
            ),
            ("/linux/personality", "config.json", json!({"domain": "LINUX64"})),
            ("/process/execCPUAffinity", "config.json", json!({"initial": "zero"})),
        ];
        for (pointer, field, value) in cases {
            let spec = with(sh("true"), pointer, value.clone());
            let error = pod.create("bad", &spec).await.unwrap_err();
            assert_eq!(error.kind(), Kind::InvalidArgument, "{value}: {error}");
            let text = error.to_string();
            assert!(text.starts_with(&format!("create container \"bad\": {field}")), "{text}");
        }
        for (pointer, value, want) in [
            ("/process/scheduler", json!({"policy": "SCHED_ISO"}), "process.scheduler: SCHED_ISO"),
            (
                "/linux/personality",
                json!({"domain": "LINUX", "flags": ["X"]}),
                "linux.personality.flags",
            ),
        ] {
            let error = pod.create("bad", &with(sh("true"), pointer, value)).await.unwrap_err();
            assert_eq!(error.kind(), Kind::Unimplemented);
            assert!(error.to_string().ends_with(&format!("{want} is not supported")), "{error}");
        }
        pod.running("c", "sleep 100").await;
        for (pointer, field, value) in [
            ("/execCPUAffinity", "process.execCPUAffinity.final", json!({"final": "1-0"})),
            ("/execCPUAffinity", "process.execCPUAffinity.initial", json!({"initial": "8192"})),
            ("/scheduler", "process.scheduler.nice", json!({"policy": "SCHED_OTHER", "nice": 99})),
        ] {
            pod.exec("c", "e", &with(process("true"), pointer, value)).unwrap();
            let error = pod.start("c", "e").await.unwrap_err();
            assert_eq!(error.kind(), Kind::InvalidArgument, "{error}");
            assert!(error.to_string().contains(field), "{error}");
            pod.delete("c", "e").await.unwrap();
        }
    });
}

/// On a kernel with such a module the profile or type `x` is not there either.
#[test]
fn a_label_that_cannot_be_given_is_no_silence() {
    alone(async |pod: &mut Pod| {
        for (pointer, field, module) in [
            ("/process/apparmorProfile", "process.apparmorProfile", "AppArmor"),
            ("/process/selinuxLabel", "process.selinuxLabel", "SELinux"),
            ("/linux/mountLabel", "linux.mountLabel", "SELinux"),
        ] {
            let error = pod.create("bad", &with(sh("true"), pointer, json!("x"))).await;
            let text = error.as_ref().unwrap_err().to_string();
            if text.contains("the kernel does not run with") {
                let want = format!("{field} \"x\": the kernel does not run with {module}");
                assert_eq!(text, format!("create container \"bad\": {want}"));
                assert_eq!(error.unwrap_err().kind(), Kind::FailedPrecondition);
            } else {
                assert!(text.contains("\"exec x\"") || text.contains("\"x\""), "{text}");
            }
        }
        assert_eq!(
            pod.ran("c", &with(sh("echo ran"), "/process/apparmorProfile", json!("unconfined")))
                .await
                .1,
            "ran\n"
        );
    });
}
