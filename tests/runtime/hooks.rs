//! OCI hooks: when and where each kind runs, what it is told, and what becomes of the container if
//! one fails, hangs or is forgotten.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use containerd_shim_rs::api::{NamespaceMode, State};
use containerd_shim_rs::error::{Kind, Result};
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use crate::alone::{Left, alone, lines, new_mounts};
use crate::hooks_rootfs::{bundle_without_rootfs, snapshot};
use crate::pod::{Pod, sh, target, with};
use crate::sandbox::{self, Netns, no_ip};

const NAMESPACES: [&str; 6] = ["mnt", "pid", "net", "ipc", "uts", "cgroup"];
const KINDS: [&str; 6] =
    ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"];

/// A hook that is a script.
pub fn script(text: &str) -> Value {
    json!({"path": "/bin/sh", "args": ["sh", "-c", text], "env": ["PATH=/bin:/usr/bin"]})
}

/// One hook of one kind.
pub fn hook(spec: Value, kind: &str, hook: Value) -> Value {
    let spec = if spec.get("hooks").is_none() { with(spec, "/hooks", json!({})) } else { spec };
    with(spec, &format!("/hooks/{kind}"), json!([hook]))
}

/// Says where it is and what it was told, in one write: the program writes to the same file.
fn tell(kind: &str, file: &Path) -> Value {
    let kinds = NAMESPACES.join(" ");
    let text = format!(
        "read -r state; line=$(printf '{kind}\\t%s\\t%s\\t' \"$state\" \"$(pwd)\"; \
         for n in {kinds}; do readlink /proc/self/ns/$n; done | tr '\\n' ' '; \
         printf '\\t'; tr '\\0' ' ' < /proc/self/environ; \
         printf '\\t'; grep -h CapEff /proc/self/status); \
         printf '%s\\n' \"$line\" >> {}",
        file.display()
    );
    let mut hook = script(&text);
    hook["env"] = json!(["PATH=/bin:/usr/bin", "ONE=1", format!("KIND={kind}")]);
    hook
}

/// What [`tell`] wrote: one for each kind, in order.
struct Told {
    kind: String,
    state: Value,
    cwd: String,
    namespaces: BTreeMap<&'static str, String>,
    env: String,
    caps: String,
}

fn told(file: &Path) -> Vec<Told> {
    let text = fs::read_to_string(file).unwrap_or_default();
    let line = |line: &str| {
        let fields: Vec<&str> = line.split('\t').collect();
        let ids = fields[3].split_whitespace().map(str::to_owned);
        Told {
            kind: fields[0].into(),
            state: serde_json::from_str(fields[1]).unwrap(),
            cwd: fields[2].into(),
            namespaces: NAMESPACES.into_iter().zip(ids).collect(),
            env: fields[4].trim().into(),
            caps: fields.last().unwrap().trim().into(),
        }
    };
    text.lines().map(line).collect()
}

fn namespaces(pid: &str) -> BTreeMap<&'static str, String> {
    let of = |kind: &str| fs::read_link(format!("/proc/{pid}/ns/{kind}")).unwrap();
    NAMESPACES.into_iter().map(|kind| (kind, of(kind).display().to_string())).collect()
}

/// A spec with a hook of every kind that tells, and a directory that host and container share.
fn all_tell(pod: &Pod, spec: Value) -> (Value, PathBuf) {
    let shared = pod.dir.join("shared");
    fs::create_dir_all(&shared).unwrap();
    let bind = json!({"destination": "/shared", "source": shared, "options": ["bind"]});
    let mut spec = with(spec, "/mounts/-", bind);
    let file = shared.join("told");
    for kind in KINDS {
        let inside = Path::new("/shared/told");
        let at = if kind == "startContainer" { inside } else { &file };
        spec = hook(spec, kind, tell(kind, at));
    }
    (spec, file)
}

#[test]
fn every_kind_in_its_time_and_place() {
    alone(async |pod: &mut Pod| {
        let (spec, file) = all_tell(pod, sh("echo program >> /shared/told; sleep 100"));
        let spec = with(spec, "/annotations", json!({"a.b/c": "d"}));
        let spec = with(spec, "/process/cwd", json!("/tmp"));
        let caps = json!(["CAP_KILL"]);
        let caps = json!({"bounding": caps, "effective": caps, "permitted": caps});
        let spec = with(spec, "/process/capabilities", caps);
        let before = lines("/proc/self/mountinfo");
        let pid = pod.create("c", &spec).await.unwrap();
        let bundle = pod.bundle("c");
        assert_eq!(told(&file).len(), 3);
        let container = namespaces(&pid.to_string());
        pod.start("c", "").await.unwrap();
        assert_eq!(new_mounts(&before), [""; 0], "there is no rootfs to mount");
        let program = fs::read_to_string(&file).unwrap();
        let lines: Vec<&str> = program.lines().collect();
        assert_eq!(lines.iter().position(|line| *line == "program"), Some(4), "{program}");
        let rest: Vec<&str> = lines.into_iter().filter(|line| *line != "program").collect();
        fs::write(&file, rest.join("\n") + "\n").unwrap();
        pod.end("c").await;

        let all = told(&file);
        let kinds: Vec<&str> = all.iter().map(|told| told.kind.as_str()).collect();
        assert_eq!(kinds, KINDS);
        let host = namespaces("self");
        for told in &all {
            let kind = told.kind.as_str();
            let inside = ["createContainer", "startContainer"].contains(&kind);
            assert_eq!(told.namespaces, if inside { &container } else { &host }.clone(), "{kind}");
            let (status, pid) = match kind {
                "createContainer" => ("creating", json!(1)),
                "startContainer" => ("created", json!(1)),
                "poststart" => ("running", json!(pid)),
                "poststop" => ("stopped", Value::Null),
                _ => ("creating", json!(pid)),
            };
            assert_eq!(told.state["status"], status, "{kind}");
            assert_eq!(told.state["pid"], pid, "{kind}");
            assert_eq!(told.state["id"], "c", "{kind}");
            assert_eq!(told.state["bundle"], json!(bundle), "{kind}");
            assert_eq!(told.state["annotations"], json!({"a.b/c": "d"}), "{kind}");
            assert!(told.state["ociVersion"].as_str().unwrap().starts_with("1."), "{kind}");
            let cwd = match kind {
                "createContainer" => bundle.join("rootfs"),
                "startContainer" => "/tmp".into(),
                _ => bundle.clone(),
            };
            assert_eq!(Path::new(&told.cwd), cwd, "{kind}");
            assert_eq!(told.env, format!("PATH=/bin:/usr/bin ONE=1 KIND={kind}"));
            // CAP_KILL alone.
            let few =
                told.caps == "CapEff:\t0000000000000020" || told.caps.ends_with("0000000000000020");
            assert_eq!(few, kind == "startContainer", "{kind}: {}", told.caps);
        }
        fs::remove_dir_all(pod.dir.join("shared")).unwrap();
    });
}

/// The shim is in the pod's namespaces, and its hooks must not be.
#[test]
fn hooks_of_a_pods_container_run_on_the_host() {
    if no_ip() {
        return;
    }
    alone(async |pod: &mut Pod| {
        let (netns, host) = (Netns::new(), namespaces("self"));
        let shim = Arc::clone(&pod.shim);
        let create = sandbox::request(pod, &netns.path(), NamespaceMode::Container);
        shim.clone().create_sandbox(create).await.unwrap();
        let sandbox = shim.clone().start_sandbox("sandbox".into()).await.unwrap();
        let (spec, file) = all_tell(pod, sandbox::container("sleep 100", sandbox.pid, false));
        let pid = pod.create("c", &spec).await.unwrap();
        let container = namespaces(&pid.to_string());
        for kind in ["net", "ipc", "uts"] {
            assert_ne!(container[kind], host[kind], "{kind}");
        }
        pod.start("c", "").await.unwrap();
        // By its poststop the shim is out of the pod again.
        shim.clone().stop_sandbox("sandbox".into()).await.unwrap();
        pod.delete("c", "").await.unwrap();
        let all = told(&file);
        assert_eq!(all.len(), KINDS.len());
        for told in all {
            let inside = ["createContainer", "startContainer"].contains(&told.kind.as_str());
            assert_eq!(&told.namespaces, if inside { &container } else { &host }, "{}", told.kind);
        }
        shim.clone().shutdown_sandbox("sandbox".into()).await;
        shim.ended().await;
        fs::remove_dir_all(pod.dir.join("shared")).unwrap();
        drop(netns);
    });
}

/// A create that fails so, leaves nothing, and has run the poststop hook.
async fn refused(pod: &mut Pod, spec: &Value, kind: Kind, want: &str) {
    let (request, snapshot) = snapshot(pod);
    let stopped = pod.dir.join("stopped");
    let spec = hook(spec.clone(), "poststop", script(&format!("touch {}", stopped.display())));
    bundle_without_rootfs(pod, &spec);
    let before = Left::now(&pod.dir);
    let error = pod.send(request).await.unwrap_err();
    let text = error.to_string();
    assert!(text.starts_with("create container \"c\": ") && text.ends_with(want), "{text}");
    assert_eq!(error.kind(), kind);
    fs::remove_file(&stopped).expect("no poststop hook has run");
    before.compare(&pod.dir).await;
    assert_eq!(pod.events().await, [""; 0], "{want}");
    assert_eq!(pod.state("c", "").unwrap_err().kind(), Kind::NotFound);
    fs::remove_dir_all(pod.bundle("c")).unwrap();
    fs::remove_dir_all(snapshot).unwrap();
}

#[test]
fn a_create_whose_hook_fails() {
    alone(async |pod: &mut Pod| {
        assert_eq!(pod.ran("first", &sh("true")).await.0, 0);
        pod.events().await;
        for kind in ["prestart", "createRuntime", "createContainer"] {
            let noisy = script("seq 100000; echo first; echo; echo '  no device' >&2; exit 3");
            let spec = hook(sh("true"), kind, noisy);
            let (request, snapshot) = snapshot(pod);
            bundle_without_rootfs(pod, &spec);
            let before = Left::now(&pod.dir);
            let error = pod.send(request).await.unwrap_err().to_string();
            let head =
                format!("create container \"c\": hooks.{kind}[0] \"/bin/sh\": exit status 3: ");
            assert!(error.starts_with(&head), "{error}");
            assert!(error.ends_with("; 100000; first; no device"), "{error}");
            assert!(error.len() < 6000, "{}", error.len());
            before.compare(&pod.dir).await;
            fs::remove_dir_all(snapshot).unwrap();

            let spec = hook(sh("true"), kind, script("exit 3"));
            let want = format!("hooks.{kind}[0] \"/bin/sh\": exit status 3");
            refused(pod, &spec, Kind::Unknown, &want).await;
            let mut slow = script("sleep 100 & sleep 100");
            slow["timeout"] = json!(1);
            let want = format!("hooks.{kind}[0] \"/bin/sh\": no end within 1s");
            refused(pod, &hook(sh("true"), kind, slow), Kind::DeadlineExceeded, &want).await;
        }
        let absent = hook(sh("true"), "prestart", json!({"path": "/no/such"}));
        let want = "find executable [\"/no/such\"]: \
            \"/no/such\": executable file not found in $PATH: ENOENT";
        refused(pod, &absent, Kind::Unknown, want).await;
        // All went well for the hooks, and then not for the container.
        let spec = hook(sh("true"), "createRuntime", json!({"path": "/bin/true"}));
        let spec = with(spec, "/process/args", json!(["/nowhere"]));
        let want = "find executable [\"/nowhere\"]: \
            \"/nowhere\": executable file not found in $PATH: ENOENT";
        refused(pod, &spec, Kind::Unknown, want).await;
    });
}

#[test]
fn a_start_whose_hook_fails() {
    alone(async |pod: &mut Pod| {
        for kind in ["startContainer", "poststart"] {
            let spec = hook(sh("sleep 100"), kind, script("echo oh no; exit 7"));
            pod.create("c", &spec).await.unwrap();
            let error = pod.start("c", "").await.unwrap_err().to_string();
            let what = format!("hooks.{kind}[0] \"/bin/sh\": exit status 7: oh no");
            assert_eq!(error, format!("start container \"c\": {what}"));
            assert_eq!(pod.wait("c", "").await.unwrap().status, 137);
            assert_eq!(pod.state("c", "").unwrap(), State::Stopped);
            pod.delete("c", "").await.unwrap();
            assert_eq!(pod.events().await, ["create c", "exit c 137", "delete c 137"], "{kind}");
            fs::remove_dir_all(pod.bundle("c")).unwrap();
        }
        // The end of a container that has hooks after it.
        let ok = pod.dir.join("ok");
        let spec = hook(sh("exit 5"), "poststop", script("exit 1"));
        let touch = script(&format!("touch {}", ok.display()));
        let spec = with(spec, "/hooks/poststop/-", touch);
        let spec = hook(spec, "poststart", script("sleep 0.2"));
        assert_eq!(pod.ran("c", &spec).await.0, 5);
        assert_eq!(pod.events().await, ["create c", "start c", "exit c 5", "delete c 5"]);
        fs::remove_file(ok).expect("the second poststop hook has not run");
    });
}

/// A script that says in a file that it hangs.
pub fn hang(file: &str) -> String {
    format!("echo hangs > {file}; sleep 1000 & sleep 1000")
}

pub async fn exists(path: &Path) {
    while !path.exists() {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// Why a hook that hangs has ended: the kernel ends those in the container's PID namespace.
fn ended(kind: &str) -> &str {
    match kind {
        "createContainer" | "startContainer" => "exit status 137",
        _ => "abandoned: the init was killed",
    }
}

pub fn creating(pod: &Pod, spec: &Value) -> JoinHandle<Result<u32>> {
    pod.write_bundle("c", spec);
    tokio::spawn(Arc::clone(&pod.shim).create(pod.request("c")))
}

#[test]
fn a_create_whose_hook_hangs_is_abandoned() {
    alone(async |pod: &mut Pod| {
        assert_eq!(pod.ran("first", &sh("true")).await.0, 0);
        let live = pod.running("live", "sleep 100").await;
        let hangs = pod.dir.join("hangs");
        let before = Left::now(&pod.dir);
        // Without a PID namespace the kernel ends nobody with the init.
        let open = with(sh("true"), "/linux/namespaces", json!([{"type": "mount"}]));
        let open = with(open, "/hostname", json!(""));
        let specs = [
            ("prestart", sh("true")),
            ("createRuntime", sh("true")),
            ("createContainer", sh("true")),
            ("createContainer", open),
        ];
        for (kind, spec) in specs {
            for by_delete in [false, true] {
                let alone = spec.pointer("/linux/namespaces/1").is_some();
                // Out of the hook's session, but not of the container's cgroup.
                let own = if alone { "" } else { "setsid sleep 1000 & " };
                let text = format!("{own}{}", hang(hangs.to_str().unwrap()));
                let spec = hook(spec.clone(), kind, script(&text));
                let create = creating(pod, &spec);
                exists(&hangs).await;
                assert_eq!(pod.state("live", "").unwrap(), State::Running);
                assert_eq!(pod.state("c", "").unwrap_err().kind(), Kind::NotFound);
                assert!(pod.shim.pids("live").unwrap().iter().any(|pid| pid.pid == live));
                match by_delete {
                    true => {
                        let error = pod.delete("c", "").await.unwrap_err();
                        assert_eq!(error.kind(), Kind::NotFound);
                    }
                    false => pod.kill("c", "", libc::SIGKILL).unwrap(),
                }
                let error = create.await.unwrap().unwrap_err().to_string();
                let why = if alone { ended(kind) } else { ended("") };
                let want = format!("hooks.{kind}[0] \"/bin/sh\": {why}");
                assert_eq!(error, format!("create container \"c\": {want}"));
                fs::remove_file(&hangs).unwrap();
                fs::remove_dir_all(pod.bundle("c")).unwrap();
                before.compare(&pod.dir).await;
            }
        }
    });
}

#[test]
fn a_start_whose_hook_hangs_ends_with_its_container() {
    alone(async |pod: &mut Pod| {
        let hangs = pod.dir.join("hangs");
        for kind in ["startContainer", "poststart"] {
            let inside = kind == "startContainer";
            let file = if inside { "/hangs" } else { hangs.to_str().unwrap() };
            pod.create("c", &hook(sh("sleep 100"), kind, script(&hang(file)))).await.unwrap();
            let start = tokio::spawn(Arc::clone(&pod.shim).start(target("c", "")));
            let file = if inside { pod.bundle("c").join("rootfs/hangs") } else { hangs.clone() };
            exists(&file).await;
            assert_eq!(pod.state("c", "").unwrap(), State::Running);
            pod.kill("c", "", libc::SIGKILL).unwrap();
            let error = start.await.unwrap().unwrap_err().to_string();
            let want = format!("hooks.{kind}[0] \"/bin/sh\": {}", ended(kind));
            assert_eq!(error, format!("start container \"c\": {want}"));
            assert_eq!(pod.wait("c", "").await.unwrap().status, 137);
            pod.delete("c", "").await.unwrap();
            fs::remove_dir_all(pod.bundle("c")).unwrap();
            fs::remove_file(&file).ok();
        }
    });
}

/// Delete waits for it for as long as it takes, but the end of the pod does not.
#[test]
fn a_poststop_hook_that_hangs_ends_with_the_pod() {
    if no_ip() {
        return;
    }
    alone(async |pod: &mut Pod| {
        let (netns, shim) = (Netns::new(), Arc::clone(&pod.shim));
        let create = sandbox::request(pod, &netns.path(), NamespaceMode::Container);
        shim.clone().create_sandbox(create).await.unwrap();
        let sandbox = shim.clone().start_sandbox("sandbox".into()).await.unwrap();
        let hangs = pod.dir.join("hangs");
        let spec = sandbox::container("true", sandbox.pid, false);
        let spec = hook(spec, "poststop", script(&hang(hangs.to_str().unwrap())));
        pod.create("c", &spec).await.unwrap();
        pod.start("c", "").await.unwrap();
        pod.wait("c", "").await.unwrap();
        let delete = tokio::spawn(shim.clone().delete(target("c", "")));
        exists(&hangs).await;
        assert_eq!(pod.state("c", "").unwrap(), State::Stopped);
        shim.clone().shutdown_sandbox("sandbox".into()).await;
        delete.await.unwrap().unwrap();
        shim.ended().await;
        fs::remove_file(hangs).unwrap();
        drop(netns);
    });
}

/// What a hook leaves running keeps nothing of the shim, and the shim does not wait for it.
#[test]
fn a_hook_may_leave_a_daemon_and_need_not_read() {
    alone(async |pod: &mut Pod| {
        let daemon = pod.dir.join("daemon");
        let text = format!("exec 0<&-; setsid sleep 100 & echo $! > {}", daemon.display());
        let spec = hook(sh("true"), "createRuntime", script(&text));
        // More than a pipe holds.
        let spec = with(spec, "/annotations", json!({"long": "x".repeat(300_000)}));
        let count = pod.dir.join("count");
        let spec = hook(spec, "poststart", script(&format!("wc -c > {}", count.display())));
        assert_eq!(pod.ran("c", &spec).await.0, 0);
        let read: usize = fs::read_to_string(&count).unwrap().trim().parse().unwrap();
        assert!(read > 300_000, "{read}");
        let pid: i32 = fs::read_to_string(&daemon).unwrap().trim().parse().unwrap();
        let fds = fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
        let mut fds: Vec<String> =
            fds.map(|fd| fd.unwrap().file_name().into_string().unwrap()).collect();
        fds.sort();
        assert!(fds.iter().all(|fd| ["0", "1", "2"].contains(&fd.as_str())), "{fds:?}");
        let pid = nix::unistd::Pid::from_raw(pid);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
        fs::remove_file(daemon).unwrap();
        fs::remove_file(count).unwrap();
    });
}
