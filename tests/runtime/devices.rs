//! `linux.netDevices`, with a network namespace of the test's own in the place of the host's.

use std::fs;
use std::process::Command;
use std::sync::Arc;

use containerd_shim_rs::api::NamespaceMode;
use containerd_shim_rs::error::Kind;
use nix::sched::{CloneFlags, unshare};
use serde_json::{Value, json};

use crate::alone::alone;
use crate::pod::{Pod, sh, with};
use crate::sandbox::{Netns, container, no_ip, request};

fn ip(args: &str) {
    let output = Command::new("ip").args(args.split(' ')).output().unwrap();
    assert!(output.status.success(), "ip {args}: {}", String::from_utf8_lossy(&output.stderr));
}

/// `ip -o` in the network namespace of a process.
fn shown(pid: u32, args: &str) -> String {
    let ns = format!("--net=/proc/{pid}/ns/net");
    let words = ["ip", "-o"].into_iter().chain(args.split(' '));
    let output = Command::new("nsenter").arg(ns).args(words).output().unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// A host with a pair of devices, one of them with addresses.
fn host() {
    unshare(CloneFlags::CLONE_NEWNET).unwrap();
    ip("link add dev0 type veth peer name peer0");
    ip("link set peer0 up");
    ip("link set dev0 up");
    ip("addr add 192.0.2.7/24 dev dev0");
    ip("addr add 198.51.100.1 peer 198.51.100.2 dev dev0");
    ip("addr add 2001:db8::7/64 dev dev0 nodad");
    // Not to be kept: of the link's scope, and on loan.
    ip("addr add 203.0.113.1/24 dev dev0 scope link");
    ip("addr add 203.0.113.129/25 dev dev0 valid_lft 1000 preferred_lft 1000");
}

fn devices(spec: Value, devices: Value) -> Value {
    with(spec, "/linux/netDevices", devices)
}

#[track_caller]
fn has_all(pid: u32, name: &str) {
    let link = shown(pid, &format!("link show dev {name}"));
    assert!(link.contains(",UP"), "{link}");
    let all = shown(pid, &format!("addr show dev {name}"));
    for want in ["192.0.2.7/24", "198.51.100.1 peer 198.51.100.2/32", "2001:db8::7/64"] {
        assert!(all.contains(want), "{want}: {all}");
    }
    assert!(!all.contains("203.0.113."), "{all}");
}

#[test]
fn a_device_moves_with_its_addresses() {
    if no_ip() {
        return;
    }
    alone(async |pod: &mut Pod| {
        host();
        let spec = devices(sh("sleep 100"), json!({"dev0": {"name": "net0"}}));
        let pid = pod.create("c", &spec).await.unwrap();
        has_all(pid, "net0");
        assert_eq!(shown(std::process::id(), "link show dev dev0"), "");
        pod.start("c", "").await.unwrap();
        assert!(fs::read_to_string(format!("/proc/{pid}/net/dev")).unwrap().contains("net0:"));
        pod.end("c").await;
        // Without a name it keeps its own.
        ip("link add dev1 type veth peer name peer1");
        let pid = pod.create("d", &devices(sh("sleep 100"), json!({"dev1": {}}))).await.unwrap();
        assert!(shown(pid, "link show dev dev1").contains(",UP"));
    });
}

#[test]
fn a_device_moves_into_the_pods_namespace() {
    if no_ip() {
        return;
    }
    alone(async |pod: &mut Pod| {
        host();
        let netns = Netns::new();
        let create = request(pod, &netns.path(), NamespaceMode::Container);
        Arc::clone(&pod.shim).create_sandbox(create).await.unwrap();
        let sandbox = Arc::clone(&pod.shim).start_sandbox("sandbox".into()).await.unwrap();
        // Its name is taken in the pod, but that is not the one it gets.
        let path = netns.path();
        let name = path.rsplit_once('/').unwrap().1;
        ip(&format!("-n {name} link add dev0 type veth peer name other"));
        let spec = container("sleep 100", sandbox.pid, false);
        let spec = devices(spec, json!({"dev0": {"name": "net0"}}));
        let pid = pod.create("c", &spec).await.unwrap();
        has_all(pid, "net0");
        has_all(sandbox.pid, "net0");
        pod.end("c").await;
        has_all(sandbox.pid, "net0");
        Arc::clone(&pod.shim).stop_sandbox("sandbox".into()).await.unwrap();
        Arc::clone(&pod.shim).shutdown_sandbox("sandbox".into()).await;
    });
}

#[test]
fn devices_that_cannot_move() {
    if no_ip() {
        return;
    }
    alone(async |pod: &mut Pod| {
        host();
        let long = "sixteen-letters-";
        for (name, given) in [
            ("", json!({})),
            ("a/b", json!({})),
            ("..", json!({})),
            ("a b", json!({})),
            (long, json!({})),
            ("dev0", json!({"name": "net%d"})),
            ("dev0", json!({"name": long})),
            ("dev0", json!({"name": "a:b"})),
        ] {
            let spec = devices(sh("true"), json!({ name: given }));
            let error = pod.create("bad", &spec).await.unwrap_err();
            assert_eq!(error.kind(), Kind::InvalidArgument, "{error}");
            let want = format!("create container \"bad\": linux.netDevices[{name:?}]");
            assert!(error.to_string().starts_with(&want), "{error}");
        }
        let both = json!({"dev0": {"name": "x"}, "peer0": {"name": "x"}});
        let error = pod.create("bad", &devices(sh("true"), both)).await.unwrap_err();
        assert_eq!(error.kind(), Kind::InvalidArgument, "{error}");
        let none = with(sh("true"), "/linux/namespaces", json!([{"type": "mount"}]));
        let none = with(none, "/hostname", json!(""));
        let error = pod.create("bad", &devices(none, json!({"dev0": {}}))).await.unwrap_err();
        assert!(error.to_string().contains("no network namespace"), "{error}");
        let error = pod.create("bad", &devices(sh("true"), json!({"absent": {}}))).await;
        let text = error.unwrap_err().to_string();
        assert!(text.contains("bring network device \"absent\" as \"absent\""), "{text}");
        assert!(text.contains("there is no such device: ioctl(SIOCGIFINDEX): ENODEV"), "{text}");
        // All of it is where it was.
        let all = shown(std::process::id(), "addr show");
        assert!(all.contains("192.0.2.7/24") && all.contains("peer0"), "{all}");
    });
}
