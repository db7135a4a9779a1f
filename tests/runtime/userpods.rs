//! Pods with a user namespace: what is born in it, what the shim keeps out of, and a holder that has
//! nothing to give.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Child, Command};
use std::sync::Arc;
use std::time::Duration;

use containerd_shim_rs::api::{CreateSandbox, NamespaceMode, PodConfig};
use containerd_shim_rs::plan::{IdMap, IdRange};
use serde_json::{Value, json};

use crate::alone::alone;
use crate::pod::{Pod, process, with};
use crate::sandbox::dynamic;
use crate::usernamespace::{FIRST, SIZE, mapped, owned, privileged, ran, user};

/// The network namespace of a pod as CRI makes it: it belongs to a user namespace.
struct Network(Child);

impl Network {
    async fn new() -> Network {
        let child = Command::new("unshare").args(["-U", "-n", "sleep", "1000"]).spawn().unwrap();
        let network = Network(child);
        let ours = fs::read_link("/proc/self/ns/net").unwrap();
        while fs::read_link(network.path()).unwrap() == ours {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        for name in ["uid_map", "gid_map"] {
            let map = format!("0 {FIRST} {SIZE}");
            fs::write(format!("/proc/{}/{name}", network.0.id()), map).unwrap();
        }
        network
    }

    fn path(&self) -> String {
        format!("/proc/{}/ns/net", self.0.id())
    }

    fn user(&self) -> u64 {
        fs::metadata(format!("/proc/{}/ns/user", self.0.id())).unwrap().ino()
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

fn sandbox(pod: &Pod, network: Option<&Network>, pid: NamespaceMode) -> CreateSandbox {
    let range = || vec![IdRange { inside: 0, outside: FIRST, size: SIZE }];
    let user = Some(IdMap { uids: range(), gids: range() });
    let mode = if network.is_some() { NamespaceMode::Pod } else { NamespaceMode::Node };
    let mut config =
        PodConfig { hostname: "pod".into(), pid, user, network: mode, ..PodConfig::default() };
    config.sysctls.insert("kernel.shmmax".into(), "4096".into());
    if network.is_some() {
        config.sysctls.insert("net.ipv4.ip_forward".into(), "1".into());
    }
    let netns_path = network.map(Network::path).unwrap_or_default();
    CreateSandbox { id: "sandbox".into(), bundle: pod.dir.join("home"), netns_path, config }
}

/// A container of the pod, as CRI asks for it.
fn container(script: &str, sandbox: u32, shared_pid: bool) -> Value {
    let path = |kind: &str| format!("/proc/{sandbox}/ns/{kind}");
    let mut namespaces = json!([
        {"type": "mount"}, {"type": "cgroup"}, {"type": "ipc", "path": path("ipc")},
        {"type": "uts", "path": path("uts")}, {"type": "network", "path": path("net")},
        {"type": "user", "path": path("user")}, {"type": "pid"}
    ]);
    if shared_pid {
        namespaces[6]["path"] = json!(path("pid"));
    }
    let spec = with(user(script), "/linux/namespaces", namespaces);
    let kind = json!({"io.kubernetes.cri.container-type": "container"});
    with(with(spec, "/hostname", json!("")), "/annotations", kind)
}

fn status(pid: u32, field: &str) -> String {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(field)).unwrap();
    line.split_whitespace().next().unwrap().to_owned()
}

#[test]
fn a_pod_with_a_user_namespace() {
    if dynamic() {
        return;
    }
    alone(async |pod: &mut Pod| {
        let shim = Arc::clone(&pod.shim);
        let before = fs::read_link("/proc/self/ns/user").unwrap();
        let network = Network::new().await;
        let create = sandbox(pod, Some(&network), NamespaceMode::Container);
        shim.clone().create_sandbox(create).await.unwrap();
        let started = shim.clone().start_sandbox("sandbox".into()).await.unwrap();
        let holder = started.pid;
        assert_ne!(holder, std::process::id());
        assert!(started.spec.contains(&format!("/proc/{holder}/ns/user")), "{}", started.spec);
        // The holder is in the namespace that CRI made, with nothing in its hands.
        let inside = fs::metadata(format!("/proc/{holder}/ns/user")).unwrap().ino();
        assert_eq!(inside, network.user());
        assert!(["net", "ipc", "uts", "mnt"].iter().all(|kind| owned(holder, kind)));
        for field in ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
            assert_eq!(status(holder, field), "0000000000000000", "{field}");
        }
        assert_eq!(status(holder, "Uid:"), (FIRST + 65534).to_string());
        assert_eq!(status(holder, "NoNewPrivs:"), "1");
        assert_eq!(fs::read_dir(format!("/proc/{holder}/root")).unwrap().count(), 0);
        assert_eq!(fs::read_link("/proc/self/ns/user").unwrap(), before, "the shim is outside");

        let script = "hostname; cat /etc/hostname /proc/sys/kernel/shmmax /proc/sys/net/ipv4/ip_forward; \
            stat -c %u:%g:%a /dev/shm /etc/hosts; ls /sys/class/net; echo one > /dev/shm/x; \
            hostname new; sleep 100";
        pod.write_bundle("one", &privileged(container(script, holder, false)));
        let mut request = pod.request("one");
        request.rootfs = vec![mapped(&pod.bundle("one").join("rootfs"))];
        request.stdio = pod.logged("one");
        let pid = pod.send(request).await.unwrap();
        assert_eq!(fs::metadata(format!("/proc/{pid}/ns/user")).unwrap().ino(), network.user());
        assert!(["mnt", "pid", "net", "ipc", "uts"].iter().all(|kind| owned(pid, kind)));
        pod.start("one", "").await.unwrap();
        let two = "while [ ! -e /dev/shm/x ]; do sleep 0.01; done; cat /dev/shm/x; \
            while [ $(hostname) = pod ]; do sleep 0.01; done; hostname";
        assert_eq!(ran(pod, &container(two, holder, false)).await.1, "one\nnew\n");
        let (_, text) =
            pod.executed("one", "e", &process("id -u; hostname; stat -c %u /dev/shm/x")).await;
        assert_eq!(text, "0\nnew\n0\n");
        shim.clone().stop_sandbox("sandbox".into()).await.unwrap();
        pod.delete("one", "").await.unwrap();
        assert_eq!(pod.output("one"), "pod\npod\n4096\n1\n0:0:1777\n0:0:644\nlo\n");
        fs::remove_dir_all(pod.bundle("one")).unwrap();
        assert!(!Path::new(&format!("/proc/{holder}")).exists());
        shim.clone().shutdown_sandbox("sandbox".into()).await;
    });
}

#[test]
fn a_pod_with_a_user_and_a_shared_pid_namespace() {
    if dynamic() {
        return;
    }
    alone(async |pod: &mut Pod| {
        let shim = Arc::clone(&pod.shim);
        // A new user namespace: the network is the host's.
        {
            let create = sandbox(pod, None, NamespaceMode::Pod);
            shim.clone().create_sandbox(create).await.unwrap();
            let holder = shim.clone().start_sandbox("sandbox".into()).await.unwrap().pid;
            assert!(owned(holder, "pid") && owned(holder, "ipc"));
            // Root of the pod, with the right to trace, gets nothing from the holder.
            let script = "exec 2>/dev/null; tr '\\0' ' ' < /proc/1/cmdline; echo; ls /proc/1/root | wc -l; \
                ls /proc/1/fd | wc -l; readlink /proc/1/ns/user; readlink /proc/self/ns/user";
            let spec = privileged(container(script, holder, true));
            let (_, text) = ran(pod, &spec).await;
            let lines: Vec<&str> = text.lines().collect();
            assert_eq!(lines[..3], ["containerd-shim-rs-v2 holder ", "0", "0"], "{text}");
            assert_eq!(lines[3], lines[4]);
            shim.clone().stop_sandbox("sandbox".into()).await.unwrap();
            assert!(!Path::new(&format!("/proc/{holder}")).exists());
            shim.clone().shutdown_sandbox("sandbox".into()).await;
        }
    });
}

/// A createContainer hook has the host's tree for its root. In a PID namespace that others share, one of
/// them that may trace could look at it, and leave by it.
#[test]
fn a_hook_is_not_seen_by_the_pods_containers() {
    alone(async |pod: &mut Pod| {
        let canary = pod.dir.join("canary");
        fs::write(&canary, "").unwrap();
        let script = format!(
            "while :; do for root in /proc/[0-9]*/root; do test -e $root{} && touch /seen; done; \
                echo >> /rounds; done 2>/dev/null",
            canary.display()
        );
        pod.write_bundle("a", &privileged(user(&script)));
        let rootfs = pod.bundle("a").join("rootfs");
        let mut request = pod.request("a");
        request.rootfs = vec![mapped(&rootfs)];
        let first = pod.send(request).await.unwrap();
        pod.start("a", "").await.unwrap();
        pod.until("a", "rounds").await;
        // Long enough for the other to have looked everywhere meanwhile.
        let hook = format!(
            "rounds() {{ grep -c ^ {}; }}; n=$(rounds); while test $(rounds) -lt $((n + 3)); do :; done",
            rootfs.join("rounds").display()
        );
        let hooks = json!({"createContainer": [
            {"path": "/bin/sh", "args": ["sh", "-c", hook], "env": ["PATH=/bin:/usr/bin"], "timeout": 60}
        ]});
        let spec = with(container("true", first, true), "/hooks", hooks);
        pod.write_bundle("b", &spec);
        let mut request = pod.request("b");
        request.rootfs = vec![mapped(&pod.bundle("b").join("rootfs"))];
        pod.send(request).await.unwrap();
        assert!(!rootfs.join("seen").exists());
        pod.end("b").await;
        pod.end("a").await;
        fs::remove_file(&canary).unwrap();
    });
}
