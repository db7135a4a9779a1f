//! Groups of resctrl. No machine at hand has the hardware: but for the first test, the file system is
//! a fixture, a directory with files of the kernel's names. So what the kernel would make in a new
//! group, and take away with it, the tests make and take away.

use std::fs;
use std::path::{Path, PathBuf};

use containerd_shim_rs::cleanup;
use containerd_shim_rs::error::Kind;
use serde_json::{Value, json};

use crate::alone::alone;
use crate::pod::{Pod, process, sh, with};

fn spec(rdt: Value) -> Value {
    with(sh("sleep 100"), "/linux/intelRdt", rdt)
}

/// A file system with nothing but its root, where the shim looks for it.
fn resctrl(pod: &mut Pod) -> PathBuf {
    let root = pod.dir.join("resctrl");
    fs::create_dir_all(root.join("info")).unwrap();
    root
}

/// A group as the kernel makes it.
fn group(at: &Path) {
    fs::create_dir_all(at).unwrap();
    for name in ["tasks", "schemata"] {
        fs::write(at.join(name), "").unwrap();
    }
}

/// What the kernel takes away with a group.
fn empty(at: &Path) {
    for name in ["tasks", "schemata"] {
        fs::remove_file(at.join(name)).unwrap();
    }
}

fn read(at: &Path, name: &str) -> String {
    fs::read_to_string(at.join(name)).unwrap()
}

#[test]
fn resctrl_that_is_not_mounted() {
    alone(async |pod: &mut Pod| {
        let error = pod.create("c", &spec(json!({}))).await.unwrap_err();
        assert_eq!(error.kind(), Kind::FailedPrecondition);
        let want = "linux.intelRdt: resctrl is not mounted at /";
        assert!(error.to_string().contains(want), "{error}");
    });
}

#[test]
fn a_group_that_the_spec_names() {
    alone(async |pod: &mut Pod| {
        let root = resctrl(pod);
        let error = pod.create("c", &spec(json!({"closID": "gold"}))).await.unwrap_err();
        assert_eq!(error.kind(), Kind::FailedPrecondition);
        assert!(error.to_string().contains("there is no group"), "{error}");
        assert!(!root.join("gold").exists());
        let (gold, monitor) = (root.join("gold"), root.join("gold/mon_groups/c"));
        group(&gold);
        group(&monitor);
        let all = json!({"closID": "gold", "l3CacheSchema": "L3:0=f", "memBwSchema": "MB:0=20",
            "enableMonitoring": true});
        pod.create("c", &spec(all)).await.unwrap();
        assert_eq!(read(&gold, "schemata"), "L3:0=f\nMB:0=20\n");
        // Whoever writes 0 puts itself in.
        assert_eq!((read(&gold, "tasks"), read(&monitor, "tasks")), ("0".into(), "0".into()));
        pod.start("c", "").await.unwrap();
        for at in [&gold, &monitor] {
            fs::write(at.join("tasks"), "").unwrap();
        }
        assert_eq!(pod.executed("c", "e", &process("true")).await.0, 0);
        assert_eq!((read(&gold, "tasks"), read(&monitor, "tasks")), ("0".into(), "0".into()));
        empty(&monitor);
        pod.end("c").await;
        // It was there before the container.
        assert!(!monitor.exists() && gold.join("tasks").exists());
        fs::remove_dir_all(root).unwrap();
    });
}

#[test]
fn a_group_of_its_own() {
    alone(async |pod: &mut Pod| {
        let root = resctrl(pod);
        let own = root.join("c");
        group(&own);
        pod.create("c", &spec(json!({"schemata": ["L2:0=3"]}))).await.unwrap();
        assert_eq!((read(&own, "schemata"), read(&own, "tasks")), ("L2:0=3\n".into(), "0".into()));
        pod.start("c", "").await.unwrap();
        empty(&own);
        pod.end("c").await;
        assert!(!own.exists());
        fs::remove_dir_all(root).unwrap();
    });
}

/// Here the fixture is no kernel: a new group has no files, so that each step after it fails.
#[test]
fn a_failed_create_leaves_no_group() {
    alone(async |pod: &mut Pod| {
        let root = resctrl(pod);
        fs::write(root.join("info/last_cmd_status"), "mask out of range\n").unwrap();
        for (rdt, want) in [
            (json!({}), "tasks\": open: ENOENT"),
            (json!({"closID": "gold", "memBwSchema": "MB:0=1"}), "ENOENT; mask out of range"),
            (json!({"closID": "gold", "memBwSchema": "MB:0=1", "enableMonitoring": true}), "mkdir"),
        ] {
            let error = pod.create("c", &spec(rdt)).await.unwrap_err().to_string();
            assert!(error.contains("/resctrl/") && error.contains(want), "{error}");
            let left: Vec<_> = fs::read_dir(&root).unwrap().map(|e| e.unwrap().path()).collect();
            assert_eq!(left, [root.join("info")], "{error}");
        }
        fs::remove_dir_all(root).unwrap();
    });
}

#[test]
fn delete_without_a_server_removes_the_group() {
    alone(async |pod: &mut Pod| {
        let root = resctrl(pod);
        let own = root.join("c");
        group(&own);
        pod.create("c", &spec(json!({}))).await.unwrap();
        empty(&own);
        let bundle = pod.bundle("c");
        let request = cleanup::Request { namespace: "rs-test".into(), id: "c".into(), bundle };
        cleanup::delete(&request);
        assert!(!own.exists());
        pod.end("c").await;
        fs::remove_dir_all(root).unwrap();
    });
}
