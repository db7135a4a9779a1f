//! What cgroup v2 alone has: cgroups that a container makes itself, and kills of all of a container.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use containerd_shim_rs::api::State;
use containerd_shim_rs::cgroup::Layout;
use containerd_shim_rs::error::Kind;
use serde_json::{Value, json};

use crate::alone::alone;
use crate::limits::limit;
use crate::pod::{Pod, process, sh, with};
use crate::usernamespace::{FIRST, mapped, privileged, user};

/// `hack/vm-test.sh` has it.
pub fn unified() -> bool {
    let unified = Layout::probe().is_ok_and(|layout| layout.unified());
    if !unified {
        eprintln!("skipped: needs a host of cgroup v2 alone");
    }
    unified
}

/// Its cgroups can be written.
fn writable(spec: Value) -> Value {
    with(spec, "/mounts/4/options", json!(["nosuid", "noexec", "nodev", "relatime", "rw"]))
}

fn dir(spec: &Value) -> PathBuf {
    limit(spec, "pids.max", "pids.max").parent().unwrap().to_owned()
}

/// As systemd does it in a container.
const NESTED: &str = "cd /sys/fs/cgroup; mkdir init && echo 0 > init/cgroup.procs && \
    echo '+pids +memory' > cgroup.subtree_control && touch /n && sleep 1000";

#[test]
fn a_cgroup_namespace_begins_with_its_container() {
    alone(async |pod: &mut Pod| {
        let at_top = |text: &str| {
            assert!(!text.is_empty() && text.lines().all(|line| line.ends_with(":/")), "{text}");
        };
        at_top(&pod.ran("a", &sh("cat /proc/self/cgroup")).await.1);
        pod.running("c", "sleep 1000").await;
        at_top(&pod.executed("c", "e", &process("cat /proc/self/cgroup")).await.1);
        let shown = process("ls /sys/fs/cgroup | grep -c -e cgroup.events -e pids -e '^memory$'");
        assert_eq!(pod.executed("c", "f", &shown).await.0, 0);
    });
}

#[test]
fn an_exec_goes_where_an_init_has_gone_that_makes_cgroups() {
    if !unified() {
        return;
    }
    alone(async |pod: &mut Pod| {
        let spec = writable(sh(NESTED));
        pod.create("c", &spec).await.unwrap();
        pod.start("c", "").await.unwrap();
        pod.until("c", "n").await;
        let says = process("cat /proc/self/cgroup");
        let walks = with(says.clone(), "/execCPUAffinity", json!({"initial": "0"}));
        for process in [says, walks] {
            let said = pod.executed("c", "e", &process).await;
            assert_eq!(said, (0, "0::/init\n".into()));
        }
        // One that leaves more, and processes in there.
        let leave = "cd /sys/fs/cgroup; mkdir -p a/b/c; \
            setsid sleep 1000 >/dev/null 2>&1 & echo $! > a/b/c/cgroup.procs";
        assert_eq!(pod.executed("c", "f", &process(leave)).await.0, 0);
        assert_eq!(pod.shim.pids("c").unwrap().len(), 2);
        let dir = dir(&spec);
        assert!(dir.join("a/b/c").exists());
        pod.end("c").await;
        assert!(!dir.exists());
    });
}

#[test]
fn a_users_root_is_given_the_cgroup_and_not_its_limits() {
    if !unified() {
        return;
    }
    alone(async |pod: &mut Pod| {
        let raise = "(echo max > /sys/fs/cgroup/memory.max) 2>/dev/null && touch /raised;";
        let script = format!("{raise} {NESTED}");
        let limits = json!({"memory": {"limit": 64 << 20}, "pids": {"limit": 30}});
        let spec = with(writable(privileged(user(&script))), "/linux/resources", limits);
        pod.write_bundle("c", &spec);
        let mut request = pod.request("c");
        request.rootfs = vec![mapped(&pod.bundle("c").join("rootfs"))];
        pod.send(request).await.unwrap();
        let dir = dir(&spec);
        let owner = |file: &str| fs::metadata(dir.join(file)).unwrap().uid();
        for file in ["", "cgroup.procs", "cgroup.threads", "cgroup.subtree_control"] {
            assert_eq!(owner(file), FIRST, "{file}");
        }
        for file in ["memory.max", "pids.max", "cgroup.freeze", "cgroup.kill", "cpu.weight"] {
            assert_eq!(owner(file), 0, "{file}");
        }
        pod.start("c", "").await.unwrap();
        pod.until("c", "n").await;
        assert!(!pod.bundle("c").join("rootfs/raised").exists());
        let (status, text) = pod.executed("c", "e", &process("cat /proc/self/cgroup")).await;
        assert_eq!((status, text.as_str()), (0, "0::/init\n"));
        assert!(dir.join("init/pids.max").exists());
        pod.end("c").await;
        // What it may only read is not given away.
        let spec = user("sleep 1000");
        pod.create("d", &spec).await.unwrap();
        assert_eq!(fs::metadata(self::dir(&spec).join("cgroup.procs")).unwrap().uid(), 0);
    });
}

#[test]
fn a_group_is_killed_as_a_whole() {
    if !unified() {
        return;
    }
    alone(async |pod: &mut Pod| {
        let limits = json!({"memory": {"limit": 16 << 20, "swap": 16 << 20}, "unified": {"memory.oom.group": "1"}});
        let spec = with(sh("sleep 1000 & sort /dev/zero; sleep 1000"), "/linux/resources", limits);
        assert_eq!(pod.ran("c", &spec).await.0, 137);
        let want = ["create c", "start c", "oom c", "exit c 137", "delete c 137"];
        let mut events = pod.events().await;
        // The kernel counts them as they die.
        events.dedup();
        assert_eq!(events, want);
    });
}

#[test]
fn a_limit_that_would_kill_is_refused_if_it_is_to_be_checked() {
    if !unified() {
        return;
    }
    alone(async |pod: &mut Pod| {
        let limits = json!({"memory": {"limit": 128 << 20, "swap": 128 << 20}});
        let script = "x=$(yes | head -c 20000000); touch /n; sleep 1000; :";
        let spec = with(sh(script), "/linux/resources", limits);
        pod.create("c", &spec).await.unwrap();
        pod.start("c", "").await.unwrap();
        pod.until("c", "n").await;
        let update = |check: bool| {
            let memory = json!({"limit": 4 << 20, "swap": 4 << 20, "checkBeforeUpdate": check});
            let json = json!({"memory": memory}).to_string().into_bytes();
            Arc::clone(&pod.shim).update("c".into(), json)
        };
        let refused = update(true).await.unwrap_err();
        assert_eq!(refused.kind(), Kind::FailedPrecondition, "{refused}");
        let max = limit(&spec, "memory.limit_in_bytes", "memory.max");
        assert_eq!(fs::read_to_string(&max).unwrap().trim(), (128 << 20).to_string());
        assert_eq!(pod.state("c", "").unwrap(), State::Running);
        // Else the kernel makes room, as it can.
        let _ = update(false).await;
        assert_eq!(pod.wait("c", "").await.unwrap().status, 137);
        while !pod.events().await.iter().any(|event| event == "oom c") {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    });
}

#[test]
fn numbers_of_every_controller() {
    if !unified() {
        return;
    }
    alone(async |pod: &mut Pod| {
        let limits =
            json!({"memory": {"limit": 64 << 20, "swap": 96 << 20}, "pids": {"limit": 20}});
        let spec = with(
            sh("dd if=/dev/zero of=/f bs=4096 count=50; sync; touch /n; sleep 1000"),
            "/linux/resources",
            limits,
        );
        pod.create("c", &spec).await.unwrap();
        pod.start("c", "").await.unwrap();
        pod.until("c", "n").await;
        let stats = pod.shim.stats("c").unwrap();
        let dir = dir(&spec);
        let has = |file: &str| dir.join(file).exists();
        let (cpu, memory) = (stats.cpu.unwrap(), stats.memory.unwrap());
        assert!(cpu.usage > 0 && cpu.usage >= cpu.user);
        assert_eq!((memory.limit, memory.swap_limit), (64 << 20, 32 << 20));
        assert!(
            memory.usage > 0 && memory.stat["file"] > 0 && memory.events.contains_key("oom_kill")
        );
        assert_eq!(cpu.pressure.is_some(), has("cpu.pressure"));
        assert_eq!(memory.pressure.is_some(), has("memory.pressure"));
        assert_eq!(stats.io_pressure.is_some(), has("io.pressure"));
        let sizes = fs::read_dir(&dir).unwrap().flatten().filter(|entry| {
            let name = entry.file_name().into_string().unwrap();
            name.starts_with("hugetlb.") && name.ends_with(".current") && !name.contains("rsvd")
        });
        assert_eq!(stats.hugetlb.len(), sizes.count());
        let lines = fs::read_to_string(dir.join("io.stat")).unwrap();
        assert_eq!(
            stats.io.len(),
            lines.lines().filter(|line| line.contains(' ')).count(),
            "{lines}"
        );
    });
}
