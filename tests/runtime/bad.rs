//! Wrong requests: what the error says, and that nothing is left of them.

use std::fs::{self, File};
use std::io::Write;

use caps::{CapSet::Effective, Capability::CAP_SYS_RESOURCE};
use containerd_shim_rs::error::Kind;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde_json::{Value, json};

use crate::alone::{Left, alone};
use crate::pod::{Pod, process, sh, with};

/// A create that fails so, and leaves nothing. `prepare` may spoil the bundle.
async fn refused(
    pod: &mut Pod,
    what: &str,
    spec: &Value,
    prepare: impl FnOnce(&std::path::Path),
    kind: Kind,
    want: &str,
) {
    let bundle = pod.write_bundle("c", spec);
    prepare(&bundle);
    let before = Left::now(&pod.dir);
    let request = pod.request("c");
    let error = pod.send(request).await.unwrap_err();
    let text = error.to_string();
    assert!(text.starts_with("create container \"c\": "), "{what}: {text}");
    assert!(text.contains(want), "{what}: {text}");
    assert_eq!(error.kind(), kind, "{what}: {text}");
    before.compare(&pod.dir).await;
    assert_eq!(pod.events().await, [""; 0], "{what}");
    assert_eq!(pod.state("c", "").unwrap_err().kind(), Kind::NotFound, "{what}");
    fs::remove_dir_all(&bundle).unwrap();
}

/// The first container makes the cgroup above all of them.
async fn first(pod: &mut Pod) {
    assert_eq!(pod.ran("first", &sh("true")).await.0, 0);
    pod.events().await;
}

#[test]
fn config_json() {
    alone(async |pod: &mut Pod| {
        first(pod).await;
        let good = sh("true");
        let invalid = Kind::InvalidArgument;
        refused(
            pod,
            "absent",
            &good,
            |b| fs::remove_file(b.join("config.json")).unwrap(),
            invalid,
            "config.json\": ENOENT",
        )
        .await;
        for (what, bytes, want) in [
            ("empty", "", "config.json: EOF"),
            ("broken", "{\"linux\": ", "config.json: EOF"),
            ("a list", "[]", "linux is missing"),
            ("deep", &"[".repeat(1 << 20), "config.json: recursion limit exceeded"),
        ] {
            let spoil = |b: &std::path::Path| fs::write(b.join("config.json"), bytes).unwrap();
            refused(pod, what, &good, spoil, invalid, want).await;
        }
        let large = |b: &std::path::Path| {
            File::create(b.join("config.json")).unwrap().set_len(200 << 20).unwrap();
        };
        refused(pod, "200 MB", &good, large, invalid, "config.json").await;
        let many = |b: &std::path::Path| {
            let mut file = File::create(b.join("config.json")).unwrap();
            let one = "{\"destination\":\"/a\"},";
            let list = one.repeat(1_000_000);
            write!(file, "{{\"mounts\":[{}]}}", list.trim_end_matches(',')).unwrap();
        };
        refused(pod, "a million mounts", &good, many, invalid, "config.json").await;
        let fit = json!({"destination": "/a", "type": "tmpfs", "source": "t"});
        let fit = with(good, "/mounts", Value::Array(vec![fit; 20_000]));
        refused(pod, "20000 mounts", &fit, |_| {}, invalid, "mounts: 20000, the limit is").await;
    });
}

#[test]
fn names() {
    alone(async |pod: &mut Pod| {
        for id in ["", ".", "..", "a/b", "../../x", "a\0b", &"x".repeat(1024)] {
            let mut request = pod.request("c");
            request.id = id.to_owned();
            let error = pod.send(request).await.unwrap_err();
            assert_eq!(error.kind(), Kind::InvalidArgument, "{id:?}: {error}");
        }
        for path in ["/rs-test/../../x", "..", "/", "a:b:c"] {
            let spec = with(sh("true"), "/linux/cgroupsPath", json!(path));
            let error = pod.create("c", &spec).await.unwrap_err();
            assert_ne!(error.kind(), Kind::Unknown, "{path:?}: {error}");
        }
    });
}

#[test]
fn what_we_do_not_have_is_refused_by_name() {
    alone(async |pod: &mut Pod| {
        first(pod).await;
        let id = json!({"containerID": 0, "hostID": 1000, "size": 1});
        let idmap = json!([{"destination": "/x", "type": "tmpfs", "source": "t",
            "uidMappings": [id], "gidMappings": [id]}]);
        let spec = with(sh("true"), "/mounts", idmap);
        let want = "mounts[0]: an id-mapped mount that is no bind mount is not supported";
        refused(pod, "/mounts", &spec, |_| {}, Kind::Unimplemented, want).await;
        let spec = with(sh("true"), "/linux/cgroupsPath", json!("a.slice:b:c"));
        // Unless systemd is pid 1 of the machine.
        if !std::path::Path::new("/run/systemd/system").exists() {
            let want = "systemd does not run here: there is no \"/run/systemd/system\"";
            refused(pod, "/linux/cgroupsPath", &spec, |_| {}, Kind::FailedPrecondition, want).await;
        }
        let mut request = pod.request("c");
        request.checkpoint = "/x".into();
        assert_eq!(pod.send(request).await.unwrap_err().kind(), Kind::Unimplemented);
        let mut request = pod.request("c");
        request.options.no_pivot_root = true;
        assert_eq!(pod.send(request).await.unwrap_err().kind(), Kind::Unimplemented);
    });
}

#[test]
fn steps_that_fail() {
    alone(async |pod: &mut Pod| {
        first(pod).await;
        let mount = |source: &str, to: &str| {
            let bind = json!({"destination": to, "source": source, "options": ["rbind"]});
            with(sh("true"), "/mounts/-", bind)
        };
        let args = |args: Value| with(sh(""), "/process/args", args);
        let unknown = json!({"destination": "/x", "type": "nosuchfs", "source": "x"});
        let option = json!({"destination": "/x", "type": "tmpfs", "source": "x",
            "options": ["nosuch=1"]});
        let rlimit = json!([{"type": "RLIMIT_NOFILE", "soft": 1, "hard": 1u64 << 40}]);
        let oom = with(sh("true"), "/process/oomScoreAdj", json!(-1000));
        for (what, spec, want) in [
            (
                "program",
                args(json!(["nowhere"])),
                "find executable [\"/bin/nowhere\"]: \"nowhere\": executable file not found in $PATH: ENOENT",
            ),
            ("path", args(json!(["/bin/nowhere"])), "executable file not found in $PATH: ENOENT"),
            (
                "no program",
                args(json!(["/etc/passwd"])),
                "find executable [\"/etc/passwd\"]: \"/etc/passwd\": permission denied: EACCES",
            ),
            ("source", mount("/no/such", "/x"), "open tree \"/no/such\" recursive -> "),
            ("directory on file", mount("/tmp", "/etc/passwd"), "move_mount: EINVAL"),
            ("file on directory", mount("/etc/passwd", "/tmp"), "move_mount: EINVAL"),
            ("below a file", mount("/tmp", "/etc/passwd/x"), "openat2: ENOTDIR"),
            (
                "type",
                with(sh("true"), "/mounts/-", unknown),
                "mount nosuchfs on \"/x\" source=x: fsopen: ENODEV",
            ),
            ("option", with(sh("true"), "/mounts/-", option), "fsconfig: EINVAL"),
            (
                "rlimit",
                with(sh("true"), "/process/rlimits", rlimit),
                "rlimit 7 1:1099511627776: prlimit: EPERM",
            ),
            ("oom", oom, "oom_score_adj -1000: write: EACCES"),
            (
                "cwd",
                with(sh("true"), "/process/cwd", json!("/etc/passwd/x")),
                "mkdir \"/etc/passwd/x\" 0o755: openat2: ENOTDIR",
            ),
        ] {
            // A host may grant what this one does not.
            if what != "oom" || !caps::has_cap(None, Effective, CAP_SYS_RESOURCE).unwrap() {
                refused(pod, what, &spec, |_| {}, Kind::Unknown, want).await;
            }
        }
    });
}

#[test]
fn root_file_systems() {
    alone(async |pod: &mut Pod| {
        first(pod).await;
        let good = sh("true");
        let elsewhere = pod.dir.join("elsewhere");
        fs::create_dir(&elsewhere).unwrap();
        let link = |b: &std::path::Path| {
            fs::remove_dir_all(b.join("rootfs")).unwrap();
            std::os::unix::fs::symlink(&elsewhere, b.join("rootfs")).unwrap();
        };
        refused(pod, "a symlink", &good, link, Kind::Unknown, "openat2: ELOOP").await;
        let absent = |b: &std::path::Path| fs::remove_dir_all(b.join("rootfs")).unwrap();
        refused(pod, "absent", &good, absent, Kind::Unknown, "open_tree: ENOENT").await;
        let file = |b: &std::path::Path| {
            fs::remove_dir_all(b.join("rootfs")).unwrap();
            fs::write(b.join("rootfs"), "").unwrap();
        };
        refused(pod, "a file", &good, file, Kind::Unknown, "ENOTDIR").await;
        let root = with(good.clone(), "/root/path", json!("/"));
        refused(
            pod,
            "the host's",
            &root,
            |_| {},
            Kind::InvalidArgument,
            "root.path is the host's root",
        )
        .await;
        fs::remove_dir(&elsewhere).unwrap();
    });
}

#[test]
fn namespaces_and_stdio() {
    alone(async |pod: &mut Pod| {
        first(pod).await;
        let invalid = Kind::InvalidArgument;
        let gone = json!([{"type": "mount"}, {"type": "network", "path": "/no/such"}]);
        let spec = with(sh("true"), "/linux/namespaces", gone);
        refused(
            pod,
            "absent",
            &spec,
            |_| {},
            invalid,
            "linux.namespaces[1]: open \"/no/such\": ENOENT",
        )
        .await;
        let wrong = json!([{"type": "mount"}, {"type": "ipc", "path": "/proc/self/ns/mnt"}]);
        let spec = with(with(sh("true"), "/linux/namespaces", wrong), "/hostname", json!(""));
        refused(pod, "of another type", &spec, |_| {}, Kind::Unknown, "setns: EINVAL").await;
        let none = with(sh("true"), "/linux/namespaces", json!([{"type": "pid"}]));
        refused(pod, "no mount namespace", &none, |_| {}, Kind::Unimplemented, "mount namespace")
            .await;
        let before = Left::now(&pod.dir);
        for stdout in [
            "relative",
            "/dev/null",
            "/no/such",
            "ttrpc+unix:///x",
            "binary:///no/such",
            "file://x/y",
        ] {
            pod.write_bundle("c", &sh("true"));
            let mut request = pod.request("c");
            request.stdio.stdout = stdout.into();
            let error = pod.send(request).await.unwrap_err();
            assert!(error.to_string().contains("stdout: "), "{error}");
            fs::remove_dir_all(pod.bundle("c")).unwrap();
            before.compare(&pod.dir).await;
        }
    });
}

/// Whatever runs out of descriptors first says so, and undoes the rest.
#[test]
fn no_descriptors_left() {
    alone(async |pod: &mut Pod| {
        first(pod).await;
        // Without a PID namespace a clone needs one descriptor less, and what follows it one more.
        let live = with(sh("sleep 100"), "/linux/namespaces", json!([{"type": "mount"}]));
        pod.create("live", &with(live, "/hostname", json!(""))).await.unwrap();
        pod.start("live", "").await.unwrap();
        let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        let open = || fs::read_dir("/proc/self/fd").unwrap().count() as u64;
        let (mut failed, mut went) = (0, 0);
        for more in 0..60 {
            pod.write_bundle("c", &sh("true"));
            let (request, left) = (pod.request("c"), Left::now(&pod.dir));
            let top = open() + more;
            setrlimit(Resource::RLIMIT_NOFILE, top, hard).unwrap();
            let result = pod.send(request).await;
            setrlimit(Resource::RLIMIT_NOFILE, soft, hard).unwrap();
            match result {
                Ok(_) => {
                    went += 1;
                    pod.end("c").await;
                }
                Err(error) => {
                    failed += 1;
                    assert!(error.to_string().contains("EMFILE"), "{error}");
                    left.compare(&pod.dir).await;
                    fs::remove_dir_all(pod.bundle("c")).unwrap();
                }
            }
            pod.exec("live", "e", &process("sleep 100")).unwrap();
            let left = (crate::alone::children(), pod.shim.pids("live").unwrap());
            setrlimit(Resource::RLIMIT_NOFILE, top, hard).unwrap();
            let result = pod.start("live", "e").await;
            setrlimit(Resource::RLIMIT_NOFILE, soft, hard).unwrap();
            match result {
                Ok(_) => {
                    pod.kill("live", "e", libc::SIGKILL).unwrap();
                    pod.wait("live", "e").await.unwrap();
                }
                Err(error) => {
                    assert!(error.to_string().contains("EMFILE"), "{error}");
                    for _ in 0..100 {
                        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
                        if (crate::alone::children(), pod.shim.pids("live").unwrap()) == left {
                            break;
                        }
                    }
                    let now = (crate::alone::children(), pod.shim.pids("live").unwrap());
                    assert_eq!(now, left, "a process that nobody knows of: {error}");
                }
            }
            pod.delete("live", "e").await.unwrap();
        }
        assert!(failed > 3 && went > 3, "{failed} failed, {went} went");
    });
}
