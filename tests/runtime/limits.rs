//! Pause, Resume, Update and what a cgroup counts.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use containerd_shim_rs::api::State;
use containerd_shim_rs::cgroup::Layout;
use serde_json::json;

use crate::alone::alone;
use crate::pod::{Pod, process, sh, with};

/// The file of a limit in the container's cgroup: by its name on v1 and on v2.
pub fn limit(spec: &serde_json::Value, v1: &str, v2: &str) -> PathBuf {
    let path = PathBuf::from(spec["linux"]["cgroupsPath"].as_str().unwrap());
    let cgroups = Layout::probe().unwrap().cgroups(&path);
    let controller = v1.split('.').next().unwrap();
    let has = |dir: &&containerd_shim_rs::plan::CgroupDir| {
        cgroups.unified || dir.controllers.iter().any(|name| name == controller)
    };
    let dir = cgroups.dirs.iter().find(has).unwrap();
    dir.path.join(if cgroups.unified { v2 } else { v1 })
}

#[test]
fn pause_and_resume() {
    alone(async |pod: &mut Pod| {
        let count = "touch /n; while :; do echo x >> /n; sleep 0.005; done";
        pod.running("c", count).await;
        pod.until("c", "n").await;
        let size = |pod: &Pod| fs::metadata(pod.bundle("c").join("rootfs/n")).unwrap().len();
        pod.exec("c", "e", &process("sleep 100")).unwrap();
        pod.start("c", "e").await.unwrap();
        pod.events().await;
        Arc::clone(&pod.shim).pause("c".into()).await.unwrap();
        assert_eq!(pod.state("c", "").unwrap(), State::Paused);
        assert_eq!(pod.state("c", "e").unwrap(), State::Paused);
        let frozen = size(pod);
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        assert_eq!(size(pod), frozen, "it runs");
        // A signal that does not kill waits for the end of the pause.
        pod.kill("c", "e", libc::SIGTERM).unwrap();
        Arc::clone(&pod.shim).resume("c".into()).await.unwrap();
        assert_eq!(pod.state("c", "").unwrap(), State::Running);
        assert_eq!(pod.wait("c", "e").await.unwrap().status, 143);
        while size(pod) == frozen {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
        assert_eq!(pod.events().await, ["paused c", "resumed c", "exit c/e 143"]);
    });
}

#[test]
fn what_is_paused_can_be_killed() {
    alone(async |pod: &mut Pod| {
        pod.running("c", "sleep 100 & sleep 100").await;
        Arc::clone(&pod.shim).pause("c".into()).await.unwrap();
        pod.kill("c", "", libc::SIGKILL).unwrap();
        assert_eq!(pod.wait("c", "").await.unwrap().status, 137);
        assert_eq!(pod.state("c", "").unwrap(), State::Stopped);
        pod.delete("c", "").await.unwrap();
        let want = ["create c", "start c", "paused c", "exit c 137", "delete c 137"];
        assert_eq!(pod.events().await, want);
    });
}

#[test]
fn a_kill_of_an_exec_does_not_end_the_pause() {
    alone(async |pod: &mut Pod| {
        pod.running("c", "touch /n; while :; do echo x >> /n; sleep 0.005; done").await;
        pod.until("c", "n").await;
        let size = |pod: &Pod| fs::metadata(pod.bundle("c").join("rootfs/n")).unwrap().len();
        pod.exec("c", "e", &process("sleep 100")).unwrap();
        pod.start("c", "e").await.unwrap();
        Arc::clone(&pod.shim).pause("c".into()).await.unwrap();
        let frozen = size(pod);
        pod.kill("c", "e", libc::SIGKILL).unwrap();
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        assert_eq!(pod.state("c", "").unwrap(), State::Paused);
        assert_eq!(size(pod), frozen, "it is called paused, and runs");
        Arc::clone(&pod.shim).resume("c".into()).await.unwrap();
        assert_eq!(pod.wait("c", "e").await.unwrap().status, 137);
    });
}

#[test]
fn limits_are_there_before_the_program_and_after_an_update() {
    alone(async |pod: &mut Pod| {
        let resources = json!({"memory": {"limit": 64 << 20}, "pids": {"limit": 20}});
        let spec = with(sh("sleep 100"), "/linux/resources", resources);
        let pids = limit(&spec, "pids.max", "pids.max");
        let memory = limit(&spec, "memory.limit_in_bytes", "memory.max");
        let read = |path: &PathBuf| fs::read_to_string(path).unwrap().trim().to_owned();
        pod.create("c", &spec).await.unwrap();
        assert_eq!(read(&pids), "20");
        assert_eq!(read(&memory), (64u64 << 20).to_string());
        pod.start("c", "").await.unwrap();
        let update = json!({"memory": {"limit": 32 << 20}, "pids": {"limit": 7}});
        let update = serde_json::to_vec(&update).unwrap();
        Arc::clone(&pod.shim).update("c".into(), update).await.unwrap();
        assert_eq!(read(&pids), "7");
        assert_eq!(read(&memory), (32u64 << 20).to_string());
        // No limit is asked for: as it was. It would read as 0, which is 1.
        Arc::clone(&pod.shim).update("c".into(), br#"{"pids": {}}"#.to_vec()).await.unwrap();
        assert_eq!(read(&pids), "7");
        let bad = Arc::clone(&pod.shim).update("c".into(), b"[".to_vec()).await.unwrap_err();
        assert_eq!(bad.kind(), containerd_shim_rs::error::Kind::InvalidArgument);
        // An exec is inside the same limits.
        let (status, _) = pod.executed("c", "e", &process("cat /proc/self/cgroup")).await;
        assert_eq!(status, 0);
    });
}

#[test]
fn out_of_memory_comes_before_the_exit() {
    alone(async |pod: &mut Pod| {
        let resources = json!({"memory": {"limit": 16 << 20, "swap": 16 << 20}});
        let spec = with(sh("tail /dev/zero | cat"), "/linux/resources", resources);
        let spec = with(spec, "/process/args", json!(["/bin/sort", "/dev/zero"]));
        assert_eq!(pod.ran("c", &spec).await.0, 137);
        let want = ["create c", "start c", "oom c", "exit c 137", "delete c 137"];
        assert_eq!(pod.events().await, want);
    });
}

/// What of a spec's limits is in force.
fn in_force(spec: &serde_json::Value) -> Vec<String> {
    let files = [
        ("pids.max", "pids.max"),
        ("cpu.shares", "cpu.weight"),
        ("cpu.cfs_quota_us", "cpu.max"),
        ("cpuset.cpus", "cpuset.cpus"),
        ("memory.limit_in_bytes", "memory.max"),
    ];
    files.map(|(v1, v2)| fs::read_to_string(limit(spec, v1, v2)).unwrap()).into()
}

#[test]
fn an_update_that_fails_changes_nothing_and_names_the_file() {
    alone(async |pod: &mut Pod| {
        let resources = json!({"memory": {"limit": 128 << 20, "swap": 128 << 20},
            "pids": {"limit": 20}, "cpu": {"shares": 512, "quota": 50000, "cpus": "0"}});
        let script = "x=$(yes | head -c 20000000); touch /n; sleep 100; :";
        let spec = with(sh(script), "/linux/resources", resources);
        pod.create("c", &spec).await.unwrap();
        pod.start("c", "").await.unwrap();
        pod.until("c", "n").await;
        let before = in_force(&spec);
        let change = json!({"pids": {"limit": 7}, "cpu": {"shares": 99, "quota": 20000}});
        let mut bad = vec![
            // The last write: there is no such processor.
            (with(change.clone(), "/cpu/cpus", json!("4000")), "cpuset.cpus", "InvalidArgument"),
            (with(change.clone(), "/cpu/period", json!(1)), "cpu.", "InvalidArgument"),
        ];
        // The limit is written, then that on memory and swap is refused: it counts both.
        let both = json!({"limit": 64 << 20, "swap": 32 << 20});
        bad.push((with(change.clone(), "/memory", both), "sw", "InvalidArgument"));
        if !Layout::probe().unwrap().unified() {
            let swappiness = with(change.clone(), "/memory", json!({"swappiness": 101}));
            bad.push((swappiness, "101", "InvalidArgument"));
            // More is in use, and there is no swap: v1 says so, v2 would kill for it.
            let memory = json!({"limit": 4 << 20, "swap": 4 << 20});
            bad.push((
                with(change.clone(), "/memory", memory),
                "limit_in_bytes",
                "FailedPrecondition",
            ));
            let unified = json!({"memory.high": "1"});
            bad.push((with(change, "/unified", unified), "cgroup v2", "InvalidArgument"));
        }
        for (json, file, kind) in bad {
            let json = serde_json::to_vec(&json).unwrap();
            let done = Arc::clone(&pod.shim).update("c".into(), json).await;
            let error = done.expect_err(file);
            assert!(error.to_string().contains(file), "{error}");
            assert_eq!(format!("{:?}", error.kind()), kind, "{error}");
            assert!(!error.to_string().contains("set back"), "{error}");
            assert_eq!(in_force(&spec), before, "{error}");
        }
    });
}

#[test]
fn the_way_back_of_an_update_does_not_undo_another() {
    alone(async |pod: &mut Pod| {
        let resources = json!({"pids": {"limit": 20}, "cpu": {"cpus": "0"}});
        let spec = with(sh("sleep 100"), "/linux/resources", resources);
        pod.create("c", &spec).await.unwrap();
        pod.start("c", "").await.unwrap();
        let update = |json: serde_json::Value| {
            Arc::clone(&pod.shim).update("c".into(), serde_json::to_vec(&json).unwrap())
        };
        // There is no such processor; it is a child that finds out.
        let bad = update(json!({"pids": {"limit": 7}, "cpu": {"cpus": "4000"}}));
        let good = update(json!({"pids": {"limit": 9}}));
        let (bad, good) = tokio::join!(bad, good);
        bad.unwrap_err();
        good.unwrap();
        let pids = limit(&spec, "pids.max", "pids.max");
        assert_eq!(fs::read_to_string(pids).unwrap().trim(), "9");
    });
}

#[test]
fn verbs_in_the_wrong_state_are_refused() {
    use containerd_shim_rs::error::Kind;
    alone(async |pod: &mut Pod| {
        let refused = |done: containerd_shim_rs::error::Result<()>, what: &str| {
            let error = done.unwrap_err();
            assert_eq!(error.kind(), Kind::FailedPrecondition);
            assert!(error.to_string().ends_with(what), "{error}");
        };
        pod.create("c", &sh("sleep 100")).await.unwrap();
        let shim = Arc::clone(&pod.shim);
        let shim = || Arc::clone(&shim);
        refused(shim().pause("c".into()).await, "it is created");
        pod.start("c", "").await.unwrap();
        refused(shim().resume("c".into()).await, "it is running");
        shim().pause("c".into()).await.unwrap();
        refused(shim().pause("c".into()).await, "it is paused");
        refused(pod.delete("c", "").await.map(drop), "it is paused");
        refused(pod.exec("c", "e", &process("true")), "is paused");
        // Its limits can be changed all the same.
        shim().update("c".into(), br#"{"pids": {"limit": 9}}"#.to_vec()).await.unwrap();
        assert_eq!(shim().stats("c").unwrap().pids.unwrap().limit, 9);
        pod.kill("c", "", libc::SIGKILL).unwrap();
        pod.wait("c", "").await.unwrap();
        refused(shim().pause("c".into()).await, "it is stopped");
        refused(shim().resume("c".into()).await, "it is stopped");
        refused(shim().update("c".into(), b"{}".to_vec()).await, "it is stopped");
    });
}

#[test]
fn all_signals_reach_what_is_paused() {
    alone(async |pod: &mut Pod| {
        pod.running("c", "sleep 100 & sleep 100").await;
        Arc::clone(&pod.shim).pause("c".into()).await.unwrap();
        pod.shim.kill(&crate::pod::target("c", ""), libc::SIGKILL as u32, true).unwrap();
        assert_eq!(pod.wait("c", "").await.unwrap().status, 137);
        pod.delete("c", "").await.unwrap();
    });
}

#[test]
fn a_container_with_more_cgroups_than_a_plan_has_steps() {
    // On v2 they take half a GiB of the kernel's memory.
    if Layout::probe().is_ok_and(|layout| layout.unified()) {
        return eprintln!("skipped: needs a host of cgroup v1");
    }
    alone(async |pod: &mut Pod| {
        let spec = sh("sleep 1000");
        pod.create("c", &spec).await.unwrap();
        let dir = limit(&spec, "pids.max", "pids.max").parent().unwrap().to_owned();
        for n in 0..=u16::MAX {
            fs::create_dir(dir.join(n.to_string())).unwrap();
        }
        pod.delete("c", "").await.unwrap();
        assert!(!dir.exists());
    });
}
