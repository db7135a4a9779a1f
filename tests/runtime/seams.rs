//! Two things at once that were made apart: hooks, filters, user namespaces, the end of a pod.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

use containerd_shim_rs::api::NamespaceMode;
use containerd_shim_rs::cleanup;
use containerd_shim_rs::error::Kind;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde_json::json;

use crate::alone::{Left, alone, lines, new_mounts};
use crate::hooks::{creating, exists, hang, hook, script};
use crate::pod::{Pod, process, sh, target, with};
use crate::sandbox::{self, Netns, no_ip};
use crate::seccomp::{answer, spec, told};
use crate::usernamespace::{mapped, user};

/// StopSandbox was there before, so that nothing changes any more by itself.
#[test]
fn a_poststop_hook_that_hangs_ends_with_a_pod_that_was_stopped() {
    if no_ip() {
        return;
    }
    alone(async |pod: &mut Pod| {
        let (netns, shim) = (Netns::new(), Arc::clone(&pod.shim));
        let create = sandbox::request(pod, &netns.path(), NamespaceMode::Container);
        shim.clone().create_sandbox(create).await.unwrap();
        let sandbox = shim.clone().start_sandbox("sandbox".into()).await.unwrap();
        let hangs = pod.dir.join("hangs");
        let spec = sandbox::container("sleep 100", sandbox.pid, false);
        let spec = hook(spec, "poststop", script(&hang(hangs.to_str().unwrap())));
        pod.create("c", &spec).await.unwrap();
        pod.start("c", "").await.unwrap();
        shim.clone().stop_sandbox("sandbox".into()).await.unwrap();
        let delete = tokio::spawn(shim.clone().delete(target("c", "")));
        exists(&hangs).await;
        shim.clone().shutdown_sandbox("sandbox".into()).await;
        delete.await.unwrap().unwrap();
        shim.ended().await;
        fs::remove_file(hangs).unwrap();
        drop(netns);
    });
}

/// It has the container's filter, and so notifications of its own.
#[test]
fn a_hook_in_the_container_has_the_agent_too() {
    alone(async |pod: &mut Pod| {
        let path = pod.dir.join("agent.sock");
        let agent = tokio::net::UnixListener::bind(&path).unwrap();
        for nnp in [true, false] {
            let profile = json!({"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": path,
                "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_NOTIFY"}]});
            let spec = hook(spec("sleep 100", profile, nnp), "startContainer", script("true"));
            pod.write_bundle("c", &spec);
            let request = pod.request("c");
            let (made, _) = tokio::join!(pod.send(request), told(&agent));
            let pid = made.unwrap();
            let (started, (state, _)) = tokio::join!(pod.start("c", ""), told(&agent));
            started.unwrap();
            assert_ne!(state["pid"], json!(pid));
            assert_eq!(state["state"]["pid"], json!(pid));
            pod.end("c").await;
        }
        drop(agent);
        fs::remove_file(&path).unwrap();
    });
}

/// It waits for the answer, so the agent must be there by then.
#[test]
fn an_exec_that_asks_the_agent_before_its_birth() {
    alone(async |pod: &mut Pod| {
        let path = pod.dir.join("agent.sock");
        let agent = tokio::net::UnixListener::bind(&path).unwrap();
        let profile = json!({"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": path,
            "syscalls": [{"names": ["getcwd", "clone"], "action": "SCMP_ACT_NOTIFY"}]});
        pod.write_bundle("c", &spec("exec sleep 100", profile, true));
        let request = pod.request("c");
        let (made, _) = tokio::join!(pod.send(request), told(&agent));
        let pid = made.unwrap();
        pod.start("c", "").await.unwrap();
        for (nnp, call) in [(false, "getcwd"), (true, "clone")] {
            let exec = with(process("true"), "/noNewPrivileges", json!(nnp));
            pod.exec("c", "e", &exec).unwrap();
            let asked = async {
                let (state, fd) = told(&agent).await;
                (state, answer(fd, libc::EXDEV).await.0)
            };
            let (started, (state, asker)) = tokio::join!(pod.start("c", "e"), asked);
            let error = started.unwrap_err().to_string();
            assert!(error.ends_with(&format!("{call}: EXDEV")), "{error}");
            assert_eq!((&state["pid"], &state["state"]["pid"]), (&json!(asker), &json!(pid)));
            pod.delete("c", "e").await.unwrap();
        }
        pod.end("c").await;
        drop(agent);
        fs::remove_file(&path).unwrap();
    });
}

/// Before there is a child to kill: the parent is still at the user namespace.
#[test]
fn a_delete_that_comes_early_ends_a_create_whose_hook_hangs() {
    alone(async |pod: &mut Pod| {
        assert_eq!(pod.ran("first", &sh("true")).await.0, 0);
        let hangs = pod.dir.join("hangs");
        let before = Left::now(&pod.dir);
        let text = hang(hangs.to_str().unwrap());
        let create = creating(pod, &hook(user("true"), "createRuntime", script(&text)));
        // It has made its first steps.
        tokio::task::yield_now().await;
        let deleted = pod.delete("c", "").await;
        let error = create.await.unwrap().unwrap_err();
        assert_eq!(deleted.unwrap_err().kind(), Kind::NotFound);
        assert_eq!(error.kind(), Kind::Unknown, "{error}");
        assert!(!hangs.exists(), "a hook has run for whom nobody waited");
        fs::remove_dir_all(pod.bundle("c")).unwrap();
        before.compare(&pod.dir).await;
    });
}

/// A limit that comes early must not be in the way of what is still to be opened.
#[test]
fn few_files_in_a_user_namespace() {
    alone(async |pod: &mut Pod| {
        for limit in [10, 16] {
            let limits = json!([{"type": "RLIMIT_NOFILE", "soft": limit, "hard": limit}]);
            let text = format!("{limit}\n");
            let plain = with(sh("ulimit -n"), "/process/rlimits", limits.clone());
            assert_eq!(pod.ran("c", &plain).await, (0, text.clone()));
            let inside = with(user("ulimit -n"), "/process/rlimits", limits);
            assert_eq!(crate::usernamespace::ran(pod, &inside).await, (0, text));
        }
    });
}

/// Each in the user namespace of its place, and on the host's side of the rootfs nothing stays.
#[test]
fn every_kind_of_hook_with_a_user_namespace() {
    alone(async |pod: &mut Pod| {
        let file = pod.dir.join("told");
        fs::write(&file, "").unwrap();
        fs::set_permissions(&file, PermissionsExt::from_mode(0o666)).unwrap();
        let host = file.display().to_string();
        let mut spec = user("sleep 100");
        let kinds = [
            ("prestart", host.as_str()),
            ("createRuntime", &host),
            ("createContainer", &host),
            ("startContainer", "/told"),
            ("poststart", &host),
            ("poststop", &host),
        ];
        for (kind, to) in kinds {
            let text = format!("echo {kind} $(id -u) $(cat /proc/self/uid_map) >> {to}");
            spec = hook(spec, kind, script(&text));
        }
        pod.write_bundle("c", &spec);
        let mut request = pod.request("c");
        request.rootfs = vec![mapped(&pod.bundle("c").join("rootfs"))];
        let before = lines("/proc/self/mountinfo");
        pod.send(request).await.unwrap();
        pod.start("c", "").await.unwrap();
        let (_, text) = pod.executed("c", "e", &process("cat /told")).await;
        assert_eq!(text, "startContainer 0 0 1000000 65536\n");
        pod.end("c").await;
        let all = "0 0 0 4294967295";
        let told = format!(
            "prestart {all}\ncreateRuntime {all}\ncreateContainer 0 0 1000000 65536\n\
             poststart {all}\npoststop {all}\n"
        );
        assert_eq!(fs::read_to_string(&file).unwrap(), told);
        assert_eq!(new_mounts(&before), [""; 0]);
        fs::remove_file(&file).unwrap();
    });
}

/// A Delete that could not remove all leaves the record, by which `delete` finds the rest.
#[test]
fn a_delete_that_fails_forgets_nothing() {
    alone(async |pod: &mut Pod| {
        let pid = pod.running("c", "sleep 100").await;
        let cgroup = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
        let Some((_, path)) = cgroup.lines().find_map(|line| line.split_once(":pids:")) else {
            return eprintln!("skipped: needs cgroup v1");
        };
        let busy = Path::new("/sys/fs/cgroup/pids").join(&path[1..]).join("busy");
        fs::create_dir(&busy).unwrap();
        let none = None::<&str>;
        mount(Some("t"), &busy, Some("tmpfs"), MsFlags::empty(), none).unwrap();
        pod.kill("c", "", libc::SIGKILL).unwrap();
        pod.wait("c", "").await.unwrap();
        let error = pod.delete("c", "").await.unwrap_err().to_string();
        assert!(error.contains("remove cgroup") && error.ends_with("openat2: EXDEV"), "{error}");
        for record in
            [pod.dir.join("home/shim-containers/c"), pod.bundle("c").join("shim-container.json")]
        {
            assert!(record.exists(), "{record:?}");
        }
        umount2(&busy, MntFlags::MNT_DETACH).unwrap();
        pod.delete("c", "").await.unwrap();
        assert!(!pod.dir.join("home/shim-containers/c").exists());
        fs::remove_dir_all(pod.bundle("c")).unwrap();
    });
}

/// As many as a shim may have files open, and more: all of them are signalled.
#[test]
fn more_processes_than_the_shim_may_open_files() {
    alone(async |pod: &mut Pod| {
        let script = "for i in $(seq 100); do sleep 1000 & done; touch /made; wait";
        pod.running("c", script).await;
        pod.until("c", "made").await;
        let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        setrlimit(Resource::RLIMIT_NOFILE, 64, hard).unwrap();
        let killed = pod.shim.kill(&target("c", ""), libc::SIGKILL as u32, true);
        setrlimit(Resource::RLIMIT_NOFILE, soft, hard).unwrap();
        killed.unwrap();
        assert_eq!(pod.wait("c", "").await.unwrap().status, 137);
        pod.end("c").await;
    });
}

/// The same for a Create that could not be undone.
#[test]
fn a_create_that_is_not_undone_forgets_nothing() {
    alone(async |pod: &mut Pod| {
        let pids = Path::new("/sys/fs/cgroup/pids");
        if !pids.join("cgroup.procs").exists() {
            return eprintln!("skipped: needs cgroup v1");
        }
        let spec = sh("true");
        let path = spec["linux"]["cgroupsPath"].as_str().unwrap().trim_start_matches('/');
        let busy = pids.join(path).join("busy");
        let text = format!("mkdir {0} && mount -t tmpfs t {0}; exit 1", busy.display());
        let spec = hook(spec, "createRuntime", script(&text));
        let error = pod.create("c", &spec).await.unwrap_err().to_string();
        assert!(error.ends_with("exit status 1"), "{error}");
        assert!(pod.dir.join("home/shim-containers/c").exists());
        umount2(&busy, MntFlags::MNT_DETACH).unwrap();
        let other = pod.dir.join("other");
        fs::create_dir(&other).unwrap();
        fs::rename(pod.dir.join("home/shim-containers"), other.join("shim-containers")).unwrap();
        let (namespace, id, bundle) = ("rs-test".into(), "home".into(), other.clone());
        cleanup::delete(&cleanup::Request { namespace, id, bundle });
        assert!(!busy.parent().unwrap().exists());
        fs::remove_dir_all(&other).unwrap();
        fs::remove_dir_all(pod.bundle("c")).unwrap();
    });
}
