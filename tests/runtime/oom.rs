//! Kills for want of memory, of processes that are not the init.

use std::fs;
use std::time::Duration;

use containerd_shim_rs::api::State;
use serde_json::json;

use crate::alone::{alone, cgroup_tops};
use crate::pod::{Pod, sh, with};

/// Eats memory once the test has made the file.
fn eat_after(file: &str) -> String {
    format!("until [ -e {file} ]; do sleep 0.005; done; sort /dev/zero; touch {file}.done; ")
}

fn limited(script: &str) -> serde_json::Value {
    let resources = json!({"memory": {"limit": 16 << 20, "swap": 16 << 20}});
    with(sh(script), "/linux/resources", resources)
}

impl Pod {
    fn go(&self, id: &str, file: &str) {
        fs::write(self.bundle(id).join("rootfs").join(file), "").unwrap();
    }

    /// The events up to the wanted one.
    async fn events_until(&self, wanted: &str) -> Vec<String> {
        let mut all = Vec::new();
        while !all.iter().any(|event| event == wanted) {
            tokio::time::sleep(Duration::from_millis(2)).await;
            all.extend(self.events().await);
        }
        all
    }
}

#[test]
fn a_worker_is_told_of_while_its_container_lives_and_only_once() {
    alone(async |pod: &mut Pod| {
        let script = eat_after("/a") + &eat_after("/b") + "sleep 100";
        pod.create("c", &limited(&script)).await.unwrap();
        pod.start("c", "").await.unwrap();
        assert_eq!(pod.events().await, ["create c", "start c"]);
        for file in ["a", "b"] {
            pod.go("c", file);
            assert_eq!(pod.events_until("oom c").await, ["oom c"]);
            pod.until("c", &format!("{file}.done")).await;
            assert_eq!(pod.state("c", "").unwrap(), State::Running);
        }
        pod.kill("c", "", libc::SIGKILL).unwrap();
        pod.wait("c", "").await.unwrap();
        pod.delete("c", "").await.unwrap();
        assert_eq!(pod.events().await, ["exit c 137", "delete c 137"]);
    });
}

#[test]
fn of_a_pod_without_memory_the_container_is_told_that_lost_a_process() {
    alone(async |pod: &mut Pod| {
        pod.running("idle", "sleep 100").await;
        pod.running("eats", &(eat_after("/a") + "sleep 100")).await;
        pod.events().await;
        // As the kubelet limits a pod: above its containers.
        let files = [
            ("memory.limit_in_bytes", 32 << 20),
            ("memory.memsw.limit_in_bytes", 32 << 20),
            ("memory.max", 32 << 20),
            ("memory.swap.max", 0),
        ];
        for top in cgroup_tops(std::process::id()) {
            for (file, limit) in files.iter().filter(|(file, _)| top.join(file).exists()) {
                fs::write(top.join(file), limit.to_string()).unwrap();
            }
        }
        pod.go("eats", "a");
        assert_eq!(pod.events_until("oom eats").await, ["oom eats"]);
        pod.until("eats", "a.done").await;
        assert_eq!(pod.state("idle", "").unwrap(), State::Running);
        pod.end("idle").await;
        assert_eq!(pod.events().await, ["exit idle 137", "delete idle 137"]);
    });
}

#[test]
fn a_created_container_that_never_started_is_watched_and_let_go() {
    alone(async |pod: &mut Pod| {
        pod.create("c", &limited("true")).await.unwrap();
        pod.kill("c", "", libc::SIGKILL).unwrap();
        pod.wait("c", "").await.unwrap();
        pod.delete("c", "").await.unwrap();
        assert_eq!(pod.events().await, ["create c", "exit c 137", "delete c 137"]);
    });
}
