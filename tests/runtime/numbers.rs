//! Stats: what a container's cgroup says, until it is deleted.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use containerd_shim_rs::api::{CreateSandbox, PodConfig};
use containerd_shim_rs::cgroup::{Layout, Stats};
use containerd_shim_rs::error::Kind;
use serde_json::{Value, json};

use crate::alone::{Left, alone, cgroup_top};
use crate::limits::limit;
use crate::pod::{Pod, process, sh, with};

fn number(path: &PathBuf) -> u64 {
    let text = fs::read_to_string(path).unwrap();
    if text.trim() == "max" { u64::MAX } else { text.trim().parse().unwrap() }
}

fn limited(script: &str) -> Value {
    let resources = json!({"memory": {"limit": 64 << 20}, "pids": {"limit": 20},
        "cpu": {"quota": 50000, "period": 100000}});
    with(sh(script), "/linux/resources", resources)
}

#[test]
fn they_are_the_files_of_the_cgroup() {
    alone(async |pod: &mut Pod| {
        let spec = limited("touch /n; while :; do :; done");
        pod.create("c", &spec).await.unwrap();
        pod.start("c", "").await.unwrap();
        pod.until("c", "n").await;
        pod.exec("c", "e", &process("sleep 100")).unwrap();
        pod.start("c", "e").await.unwrap();
        let periods = || {
            let stat = fs::read_to_string(limit(&spec, "cpu.stat", "cpu.stat")).unwrap();
            let line = stat.lines().find_map(|line| line.strip_prefix("nr_periods "));
            line.unwrap().parse::<u64>().unwrap()
        };
        while periods() == 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        // Nothing moves any more, but for the kernel's timer of the periods.
        Arc::clone(&pod.shim).pause("c".into()).await.unwrap();
        let before = periods();
        let stats = pod.shim.stats("c").unwrap();
        let read = |v1, v2| number(&limit(&spec, v1, v2));
        let pids = stats.pids.unwrap();
        assert_eq!((pids.current, pids.limit), (read("pids.current", "pids.current"), 20));
        assert!(pids.current >= 2);
        let memory = stats.memory.unwrap();
        assert_eq!(memory.limit, read("memory.limit_in_bytes", "memory.max"));
        // The kernel gives single pages back later.
        let near = |a: u64, b: u64| a > 0 && a.abs_diff(b) < 128 << 10;
        assert!(near(memory.usage, read("memory.usage_in_bytes", "memory.current")));
        assert!(near(memory.max_usage, read("memory.max_usage_in_bytes", "memory.peak")));
        let file = limit(&spec, "memory.stat", "memory.stat");
        for line in fs::read_to_string(file).unwrap().lines() {
            let (name, value) = line.split_once(' ').unwrap();
            // What the host reclaims meanwhile is not the container's doing.
            if name.contains("pgfault") || name == "total_rss" || name == "anon" {
                assert_eq!(memory.stat[name].to_string(), value, "{name}");
            }
        }
        let cpu = stats.cpu.unwrap();
        if !stats.unified {
            assert_eq!(cpu.usage, read("cpuacct.usage", ""));
            assert_eq!(cpu.user, read("cpuacct.usage_user", ""));
        }
        assert!((before..=periods()).contains(&cpu.periods), "{before} {cpu:?}");
        Arc::clone(&pod.shim).resume("c".into()).await.unwrap();
    });
}

/// What only grows.
fn used(stats: &Stats) -> (u64, u64) {
    let stat = &stats.memory.as_ref().unwrap().stat;
    let faults = stat.get("total_pgfault").or(stat.get("pgfault"));
    (stats.cpu.as_ref().unwrap().usage, *faults.unwrap())
}

#[test]
fn they_stay_from_create_until_delete() {
    alone(async |pod: &mut Pod| {
        pod.create("c", &limited("exit 3")).await.unwrap();
        let created = used(&pod.shim.stats("c").unwrap());
        pod.start("c", "").await.unwrap();
        assert_eq!(pod.wait("c", "").await.unwrap().status, 3);
        let stopped = pod.shim.stats("c").unwrap();
        // The kernel adds page faults up when it has time.
        assert!(used(&stopped).0 > created.0 && used(&stopped).1 >= created.1);
        assert_eq!(stopped.pids.unwrap().current, 0);
        pod.delete("c", "").await.unwrap();
        assert_eq!(pod.shim.stats("c").unwrap_err().kind(), Kind::NotFound);
    });
}

#[test]
fn a_thousand_at_once_leave_nothing_and_block_nobody() {
    alone(async |pod: &mut Pod| {
        pod.create("c", &limited("sleep 100")).await.unwrap();
        pod.start("c", "").await.unwrap();
        let left = Left::now(&pod.dir);
        let asked: Vec<_> = (0..1000)
            .map(|_| {
                let shim = Arc::clone(&pod.shim);
                tokio::spawn(async move { shim.stats("c").map(|stats| stats.pids.unwrap().limit) })
            })
            .collect();
        // Asked after all of them.
        let (status, _) = pod.executed("c", "e", &process("exit 5")).await;
        assert_eq!(status, 5);
        for one in asked {
            assert_eq!(one.await.unwrap().unwrap(), 20);
        }
        left.compare(&pod.dir).await;
    });
}

#[test]
fn a_pods_are_those_of_the_cgroup_that_the_kubelet_made() {
    alone(async |pod: &mut Pod| {
        let top = cgroup_top(std::process::id());
        let cgroups = Layout::probe().unwrap().cgroups(top.as_ref());
        let config = PodConfig { cgroup_parent: top, ..PodConfig::default() };
        let (id, bundle) = ("sandbox".to_owned(), pod.dir.join("home"));
        let request = CreateSandbox { id, bundle, netns_path: "/proc/self/ns/net".into(), config };
        Arc::clone(&pod.shim).create_sandbox(request).await.unwrap();
        let stats = || pod.shim.sandbox_metrics("sandbox");
        assert_eq!(stats().unwrap_err().kind(), Kind::NotFound);
        for dir in &cgroups.dirs {
            fs::create_dir(&dir.path).unwrap();
            let file = dir.path.join("pids.max");
            let _ = file.exists().then(|| fs::write(file, "33").unwrap());
        }
        let pids = stats().unwrap().pids.unwrap();
        assert_eq!((pids.current, pids.limit), (0, 33));
        let memory = stats().unwrap().memory.unwrap();
        assert!(memory.limit > 1 << 40 && !memory.events.is_empty());
        assert!(stats().unwrap().cpu.is_some());
        assert_eq!(pod.shim.sandbox_metrics("other").unwrap_err().kind(), Kind::NotFound);
        Arc::clone(&pod.shim).shutdown_sandbox("sandbox".into()).await;
    });
}
