//! A pod: the process itself enters it, its containers share what they should, and the way out.
//! What stands for its PID namespace gives a container that may trace nothing.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use containerd_shim_rs::api::{CreateSandbox, NamespaceMode, PodConfig, State};
use containerd_shim_rs::error::Kind;
use serde_json::{Value, json};

use crate::alone::{Left, alone, children};
use crate::pod::{Pod, sh, target, with};

/// A network namespace by name, as CNI makes it; gone with the test.
pub struct Netns(String);

impl Netns {
    pub fn new() -> Netns {
        let name = format!("rs-test-{}", std::process::id());
        assert!(Command::new("ip").args(["netns", "add", &name]).status().unwrap().success());
        Netns(name)
    }

    pub fn path(&self) -> String {
        format!("/run/netns/{}", self.0)
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        let deleted = Command::new("ip").args(["netns", "del", &self.0]).status();
        assert!(deleted.unwrap().success());
    }
}

/// Where `ip` is missing there is no namespace to enter.
pub fn no_ip() -> bool {
    let missing = Command::new("ip").arg("-V").output().is_err();
    if missing {
        eprintln!("skipped: needs ip (Debian: iproute2)");
    }
    missing
}

pub fn request(pod: &Pod, netns: &str, pid: NamespaceMode) -> CreateSandbox {
    let mut config = PodConfig { hostname: "pod".into(), pid, ..PodConfig::default() };
    config.sysctls.insert("net.ipv4.ip_forward".into(), "1".into());
    let (id, bundle) = ("sandbox".into(), pod.dir.join("home"));
    CreateSandbox { id, bundle, netns_path: netns.into(), config }
}

/// This process' namespaces.
fn ours() -> Vec<PathBuf> {
    ["net", "ipc", "uts", "mnt", "pid", "pid_for_children"]
        .map(|kind| fs::read_link(format!("/proc/self/ns/{kind}")).unwrap())
        .to_vec()
}

/// A container of the pod, as CRI asks for it.
pub fn container(script: &str, sandbox: u32, shared_pid: bool) -> Value {
    let path = |kind: &str| format!("/proc/{sandbox}/ns/{kind}");
    let mut namespaces = json!([
        {"type": "mount"}, {"type": "cgroup"}, {"type": "ipc", "path": path("ipc")},
        {"type": "uts", "path": path("uts")}, {"type": "network", "path": path("net")},
        {"type": "pid"}
    ]);
    if shared_pid {
        namespaces[5]["path"] = json!(path("pid"));
    }
    let spec = with(sh(script), "/linux/namespaces", namespaces);
    let kind = json!({"io.kubernetes.cri.container-type": "container"});
    with(with(spec, "/hostname", json!("")), "/annotations", kind)
}

#[test]
fn the_life_of_a_pod() {
    if no_ip() {
        return;
    }
    alone(async |pod: &mut Pod| {
        let netns = Netns::new();
        let (before, shim) = (ours(), Arc::clone(&pod.shim));
        let left = Left::now(&pod.dir);
        assert_eq!(shim.sandbox_status("sandbox", false).unwrap_err().kind(), Kind::NotFound);
        let create = request(pod, &netns.path(), NamespaceMode::Container);
        shim.clone().create_sandbox(create.clone()).await.unwrap();
        let again = shim.clone().create_sandbox(create).await.unwrap_err();
        assert_eq!(again.kind(), Kind::AlreadyExists);
        assert!(!shim.sandbox_status("sandbox", false).unwrap().ready);
        let early = pod.create("early", &sh("true")).await.unwrap_err();
        assert_eq!(early.kind(), Kind::FailedPrecondition);
        assert_eq!(ours(), before);

        let started = shim.clone().start_sandbox("sandbox".into()).await.unwrap();
        assert_eq!(started.pid, std::process::id());
        let again = shim.clone().start_sandbox("sandbox".into()).await.unwrap_err();
        assert_eq!(again.kind(), Kind::FailedPrecondition);
        let inside = ours();
        for (kind, (now, then)) in ["net", "ipc", "uts"].iter().zip(inside.iter().zip(&before)) {
            assert_ne!(now, then, "{kind}");
        }
        assert_eq!(inside[3..], before[3..]);
        assert_eq!(shim.outside(|| ours()[0].clone()), before[0]);
        assert!(!shim.shutdown(), "a pod lives here");

        let script = "hostname; cat /etc/hostname /proc/sys/net/ipv4/ip_forward; ls /etc; \
            echo from one > /dev/shm/x; sleep 100";
        let one = container(script, started.pid, false);
        pod.write_bundle("one", &one);
        let mut create = pod.request("one");
        create.stdio = pod.logged("one");
        pod.send(create).await.unwrap();
        pod.start("one", "").await.unwrap();
        let two = "while [ ! -e /dev/shm/x ]; do sleep 0.01; done; cat /dev/shm/x; mount | grep -c /dev/shm";
        let (_, text) = pod.ran("two", &container(two, started.pid, false)).await;
        assert_eq!(text, "from one\n1\n");
        shim.clone().shutdown_sandbox("another".into()).await;
        assert_eq!(pod.state("one", "").unwrap(), State::Running);
        assert!(shim.sandbox_status("sandbox", false).unwrap().ready);
        let waiter = tokio::spawn({
            let shim = shim.clone();
            async move { shim.wait_sandbox("sandbox").await.unwrap() }
        });
        shim.clone().stop_sandbox("sandbox".into()).await.unwrap();
        assert_eq!(waiter.await.unwrap().status, 0);
        shim.clone().stop_sandbox("sandbox".into()).await.unwrap();
        assert_eq!(ours(), before);
        assert_eq!(pod.state("one", "").unwrap(), State::Stopped);
        let status = shim.sandbox_status("sandbox", true).unwrap();
        assert!(!status.ready && status.exited_at.is_some());
        let late = pod.create("late", &sh("true")).await.unwrap_err();
        assert_eq!(late.kind(), Kind::FailedPrecondition);
        pod.delete("one", "").await.unwrap();
        let output = pod.output("one");
        assert!(
            output.starts_with("pod\npod\n1\nhostname\nhosts\npasswd\nresolv.conf\n"),
            "{output}"
        );
        assert!(shim.shutdown());
        shim.clone().shutdown_sandbox("sandbox".into()).await;
        shim.ended().await;
        for id in ["early", "late", "one"] {
            fs::remove_dir_all(pod.bundle(id)).unwrap();
        }
        left.compare(&pod.dir).await;
        drop(netns);
    });
}

const TRACER: &str = "cd /proc/1; echo fd $(ls fd); echo root $(ls -A root/); echo cwd $(ls -A cwd/); \
    echo environ $(cat environ | wc -c); grep -E '^(Cap|NoNew|Seccomp:|Uid|Groups)' status; \
    ls -l exe; echo x > root/x && echo wrote; cat root/etc/passwd; ls task | wc -l";

/// Process 1 runs this binary in an empty root, where no linker is.
pub fn dynamic() -> bool {
    let dynamic = fs::read_to_string("/proc/self/maps").unwrap().contains("/ld-");
    if dynamic {
        eprintln!("skipped: needs a static test binary (-C target-feature=+crt-static --target …)");
    }
    dynamic
}

/// CVE-2016-9962 and what a forked process 1 would have been: a way to the host.
#[test]
fn a_tracer_gets_nothing_of_process_1() {
    if no_ip() || dynamic() {
        return;
    }
    alone(async |pod: &mut Pod| {
        let netns = Netns::new();
        let shim = Arc::clone(&pod.shim);
        let create = request(pod, &netns.path(), NamespaceMode::Pod);
        shim.clone().create_sandbox(create).await.unwrap();
        let started = shim.clone().start_sandbox("sandbox".into()).await.unwrap();
        assert_ne!(started.pid, std::process::id());
        // It is sure to have come to rest once it may do no more than that.
        let status = format!("/proc/{}/status", started.pid);
        while !fs::read_to_string(&status).unwrap().contains("Seccomp:\t2") {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        let all = json!([
            "CAP_SYS_PTRACE",
            "CAP_DAC_OVERRIDE",
            "CAP_SYS_ADMIN",
            "CAP_KILL",
            "CAP_SETUID",
            "CAP_SETGID"
        ]);
        let caps = json!({"bounding": all, "effective": all, "permitted": all});
        let spec = container(&format!("exec 2>/dev/null; {TRACER}"), started.pid, true);
        let (_, text) = pod.ran("c", &with(spec.clone(), "/process/capabilities", caps)).await;
        let none = "0000000000000000";
        let mut want = "fd\nroot\ncwd\n".to_owned();
        want += "environ 0\nUid:\t65534\t65534\t65534\t65534\nGroups:\t \n";
        for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
            want += &format!("{set}:\t{none}\n");
        }
        want += "NoNewPrivs:\t1\nSeccomp:\t2\n";
        let (start, end) = text.split_at(want.len().min(text.len()));
        assert_eq!(start, want);
        assert!(!end.contains("wrote") && !end.contains("root:") && end.ends_with("1\n"), "{end}");
        // Containers see each other, and what one leaves is buried by process 1.
        let script = "setsid sh -c 'sleep 0.1 & exit' & sleep 0.3; ps | grep -c '[Z] '";
        let spec = with(spec, "/process/args", json!(["/bin/sh", "-c", script]));
        assert_eq!(pod.ran("d", &spec).await.1, "0\n");

        // Its death is the pod's.
        let spec = container("sleep 100", started.pid, true);
        pod.create("e", &spec).await.unwrap();
        pod.start("e", "").await.unwrap();
        let process = nix::unistd::Pid::from_raw(started.pid as i32);
        nix::sys::signal::kill(process, nix::sys::signal::SIGKILL).unwrap();
        assert_eq!(shim.wait_sandbox("sandbox").await.unwrap().status, 137);
        assert_eq!(shim.wait(&target("e", "")).await.unwrap().status, 137);
        assert!(!Path::new(&status).exists());
        shim.clone().shutdown_sandbox("sandbox".into()).await;
        assert_eq!(children().len(), 0);
        drop(netns);
    });
}

#[test]
fn a_pod_that_cannot_start_is_where_it_was() {
    alone(async |pod: &mut Pod| {
        let (before, shim) = (ours(), Arc::clone(&pod.shim));
        let left = Left::now(&pod.dir);
        for id in ["", "..", "a/b", &"x".repeat(1024)] {
            let mut bad = request(pod, "/no/such", NamespaceMode::Pod);
            bad.id = id.to_owned();
            let error = shim.clone().create_sandbox(bad).await.unwrap_err();
            assert_eq!(error.kind(), Kind::InvalidArgument, "{id:?}");
        }
        left.compare(&pod.dir).await;
        let bad = request(pod, "/no/such", NamespaceMode::Pod);
        shim.clone().create_sandbox(bad).await.unwrap();
        for _ in 0..2 {
            let error = shim.clone().start_sandbox("sandbox".into()).await.unwrap_err();
            let text = error.to_string();
            assert!(text.contains("network namespace: open \"/no/such\": ENOENT"), "{text}");
            assert_eq!(ours(), before);
        }
        // Not a network namespace.
        shim.clone().shutdown_sandbox("sandbox".into()).await;
        left.compare(&pod.dir).await;
    });
}
