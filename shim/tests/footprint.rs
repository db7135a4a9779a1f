//! What one pod's server costs: one thread whatever is called, and little memory with a container.
//!
//! The figures are those of a release build, static as it is shipped: `SHIM_BINARY` names it. Any
//! other build must have one thread all the same.

#[allow(dead_code, reason = "most of it is for other tests")]
mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use common::*;
use containerd_shim_protos::api::*;
use containerd_shim_protos::protobuf::MessageField;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::sandbox_api::*;
use containerd_shim_protos::sandbox_sync::SandboxClient;
use containerd_shim_protos::ttrpc::{self, Code, Error, context};
use containerd_shim_protos::{Client, TaskClient};
use serde_json::json;

const CONTAINER: &str = "web";

fn shipped() -> Option<String> {
    std::env::var("SHIM_BINARY").ok().filter(|path| !path.is_empty())
}

/// A pod that shares the host's network, with a bundle for one container.
struct Pod {
    bundle: Bundle,
    pid: i32,
    container: PathBuf,
}

impl Pod {
    fn new() -> Option<Pod> {
        let bundle = Bundle::new("io.containerd.sandbox.controller.v1.shim")?;
        let program = shipped().unwrap_or_else(|| BINARY.to_string());
        let output = bundle.finish(bundle.command_of(&program, "start"), &bundle.params(None));
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let pid = bundle.server();
        let container = bundle.sockets.with_file_name(CONTAINER);
        let bin = container.join("rootfs/bin");
        fs::create_dir_all(&bin).unwrap();
        for folder in ["proc", "dev", "sys"] {
            fs::create_dir(container.join("rootfs").join(folder)).unwrap();
        }
        fs::copy("/bin/busybox", bin.join("sh")).expect("a static busybox (busybox-static)");
        fs::set_permissions(bin.join("sh"), fs::Permissions::from_mode(0o755)).unwrap();
        let spec = spec(&bundle.id).to_string();
        fs::write(container.join("config.json"), spec).unwrap();
        Some(Pod { bundle, pid, container })
    }

    fn client(&self) -> Client {
        Client::connect(&format!("unix://{}", self.bundle.socket().display())).unwrap()
    }

    fn field(&self, name: &str) -> u64 {
        let status = proc_file(self.pid, "status");
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.split_whitespace().next().unwrap().parse().unwrap()
    }

    fn one_thread(&self, after: &str) {
        assert_eq!(self.field("Threads:"), 1, "threads after {after}");
    }

    /// The answer, or the code of the error; either way the server has one thread.
    fn called<T>(&self, name: &str, answer: ttrpc::Result<T>) -> Result<T, (Code, String)> {
        self.one_thread(name);
        answer.map_err(|error| match error {
            Error::RpcStatus(status) => (status.code(), status.message),
            error => panic!("{name}: {error}"),
        })
    }

    fn start(&self, sandboxes: &SandboxClient, tasks: &TaskClient) {
        let (id, limit) = (self.bundle.id.clone(), limit());
        let create = CreateSandboxRequest {
            sandbox_id: id.clone(),
            bundle_path: self.bundle.dir.display().to_string(),
            options: MessageField::some(host_network()),
            ..Default::default()
        };
        self.called("CreateSandbox", sandboxes.create_sandbox(limit.clone(), &create)).unwrap();
        let start = StartSandboxRequest { sandbox_id: id, ..Default::default() };
        self.called("StartSandbox", sandboxes.start_sandbox(limit.clone(), &start)).unwrap();
        let create = CreateTaskRequest {
            id: CONTAINER.into(),
            bundle: self.container.display().to_string(),
            ..Default::default()
        };
        self.called("Create", tasks.create(limit.clone(), &create)).unwrap();
        let start = StartRequest { id: CONTAINER.into(), ..Default::default() };
        self.called("Start", tasks.start(limit, &start)).unwrap();
    }

    /// An exec of the shell, from Exec to Delete, and what it exits with.
    fn exec(&self, tasks: &TaskClient, exec: &str, terminal: bool, script: &str) -> u32 {
        let (id, exec_id, limit) = (CONTAINER.to_string(), exec.to_string(), limit());
        let process = json!({"args": ["/bin/sh", "-c", script], "cwd": "/", "terminal": terminal,
            "user": {"uid": 0, "gid": 0}});
        let request = ExecProcessRequest {
            id: id.clone(),
            exec_id: exec_id.clone(),
            terminal,
            spec: MessageField::some(oci("Process", process)),
            ..Default::default()
        };
        self.called("Exec", tasks.exec(limit.clone(), &request)).unwrap();
        let request =
            StartRequest { id: id.clone(), exec_id: exec_id.clone(), ..Default::default() };
        self.called("Start of an exec", tasks.start(limit.clone(), &request)).unwrap();
        if terminal {
            let size = ResizePtyRequest {
                id: id.clone(),
                exec_id: exec_id.clone(),
                width: 80,
                height: 25,
                ..Default::default()
            };
            self.called("ResizePty", tasks.resize_pty(limit.clone(), &size)).unwrap();
        }
        let request =
            WaitRequest { id: id.clone(), exec_id: exec_id.clone(), ..Default::default() };
        let exit = self.called("Wait", tasks.wait(limit.clone(), &request)).unwrap();
        let request = DeleteRequest { id, exec_id, ..Default::default() };
        self.called("Delete of an exec", tasks.delete(limit, &request)).unwrap();
        exit.exit_status
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        // After a failure there are containers. They and the server may not mind a SIGTERM.
        let children = format!("/proc/{0}/task/{0}/children", self.pid);
        for pid in fs::read_to_string(children).unwrap_or_default().split_whitespace() {
            // SAFETY: integers only; a child of our server is no other's.
            unsafe { libc::kill(pid.parse().unwrap(), libc::SIGKILL) };
        }
        self.bundle.end_servers(libc::SIGKILL);
        let tops = fs::read_dir("/sys/fs/cgroup").unwrap().flatten().map(|entry| entry.path());
        for top in tops.chain([PathBuf::from("/sys/fs/cgroup")]) {
            let pod = top.join(&self.bundle.id);
            // EBUSY until the kernel has forgotten a process.
            for dir in [pod.join(CONTAINER), pod].iter().filter(|dir| dir.exists()) {
                eventually(|| fs::remove_dir(dir));
            }
        }
    }
}

fn limit() -> context::Context {
    context::with_duration(Duration::from_secs(30))
}

/// A part of an OCI spec, as containerd packs it.
fn oci(kind: &str, json: serde_json::Value) -> Any {
    let type_url = format!("types.containerd.io/opencontainers/runtime-spec/1/{kind}");
    Any { type_url, value: json.to_string().into_bytes(), ..Any::default() }
}

/// What CRI sends for a pod on the host's network, with a PID namespace for each container:
/// `linux.security_context.namespace_options` = {network: NODE, pid: CONTAINER}.
fn host_network() -> Any {
    let value = vec![0x42, 8, 0x12, 6, 0x0a, 4, 0x08, 2, 0x10, 1];
    Any { type_url: "runtime.v1.PodSandboxConfig".into(), value, ..Any::default() }
}

/// A container as CRI makes it, in short.
fn spec(pod: &str) -> serde_json::Value {
    let capabilities =
        ["CAP_CHOWN", "CAP_KILL", "CAP_SETUID", "CAP_SETGID", "CAP_NET_BIND_SERVICE"];
    json!({
        "ociVersion": "1.2.0",
        "root": {"path": "rootfs"},
        "process": {
            "args": ["/bin/sh", "-c", "trap 'exit 3' TERM; while :; do sleep 1; done"],
            "cwd": "/", "env": ["PATH=/bin"], "user": {"uid": 0, "gid": 0}, "noNewPrivileges": true,
            "capabilities": {"bounding": capabilities, "effective": capabilities,
                "permitted": capabilities},
        },
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc",
                "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
                "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts",
                "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"]},
            {"destination": "/sys", "type": "sysfs", "source": "sysfs",
                "options": ["nosuid", "noexec", "nodev", "ro"]},
        ],
        "linux": {
            "cgroupsPath": format!("/{pod}/{CONTAINER}"),
            "resources": {"memory": {"limit": 67_108_864}, "pids": {"limit": 200},
                "devices": [{"allow": false, "access": "rwm"}]},
            "namespaces": [{"type": "pid"}, {"type": "mount"}],
            "maskedPaths": ["/proc/kcore", "/proc/keys", "/proc/timer_list", "/sys/firmware"],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys"],
        },
    })
}

/// Every call of both services that has not been made by `Pod::start`, but for those of the end.
fn use_all(pod: &Pod, sandboxes: &SandboxClient, tasks: &TaskClient) {
    let (id, container, limit) = (pod.bundle.id.clone(), CONTAINER.to_string(), limit());
    let request = PlatformRequest { sandbox_id: id.clone(), ..Default::default() };
    pod.called("Platform", sandboxes.platform(limit.clone(), &request)).unwrap();
    let request =
        SandboxStatusRequest { sandbox_id: id.clone(), verbose: true, ..Default::default() };
    pod.called("SandboxStatus", sandboxes.sandbox_status(limit.clone(), &request)).unwrap();
    let request = PingRequest { sandbox_id: id.clone(), ..Default::default() };
    pod.called("PingSandbox", sandboxes.ping_sandbox(limit.clone(), &request)).unwrap();
    let request = SandboxMetricsRequest { sandbox_id: id, ..Default::default() };
    pod.called("SandboxMetrics", sandboxes.sandbox_metrics(limit.clone(), &request)).unwrap();

    let request = StateRequest { id: container.clone(), ..Default::default() };
    pod.called("State", tasks.state(limit.clone(), &request)).unwrap();
    let request = PidsRequest { id: container.clone(), ..Default::default() };
    pod.called("Pids", tasks.pids(limit.clone(), &request)).unwrap();
    let request = ConnectRequest { id: container.clone(), ..Default::default() };
    pod.called("Connect", tasks.connect(limit.clone(), &request)).unwrap();
    let request = StatsRequest { id: container.clone(), ..Default::default() };
    pod.called("Stats", tasks.stats(limit.clone(), &request)).unwrap();
    let request = PauseRequest { id: container.clone(), ..Default::default() };
    pod.called("Pause", tasks.pause(limit.clone(), &request)).unwrap();
    let request = ResumeRequest { id: container.clone(), ..Default::default() };
    pod.called("Resume", tasks.resume(limit.clone(), &request)).unwrap();
    let resources = oci("LinuxResources", json!({"memory": {"limit": 33_554_432}}));
    let request = UpdateTaskRequest {
        id: container.clone(),
        resources: MessageField::some(resources),
        ..Default::default()
    };
    pod.called("Update", tasks.update(limit.clone(), &request)).unwrap();
    let request = CloseIORequest { id: container.clone(), stdin: true, ..Default::default() };
    pod.called("CloseIO", tasks.close_io(limit.clone(), &request)).unwrap();
    let request = CheckpointTaskRequest { id: container, ..Default::default() };
    let refused = pod.called("Checkpoint", tasks.checkpoint(limit, &request));
    assert_eq!(refused.unwrap_err().0, Code::UNIMPLEMENTED);
    assert_eq!(pod.exec(tasks, "plain", false, "exit 4"), 4);
    assert_eq!(pod.exec(tasks, "terminal", true, "sleep 0.2; exit 5"), 5);
}

/// Kill to Shutdown: the server has answered everything, and ends.
fn end(pod: &Pod, sandboxes: &SandboxClient, tasks: &TaskClient) {
    let (id, container, limit) = (pod.bundle.id.clone(), CONTAINER.to_string(), limit());
    let request =
        KillRequest { id: container.clone(), signal: libc::SIGTERM as u32, ..Default::default() };
    pod.called("Kill", tasks.kill(limit.clone(), &request)).unwrap();
    let request = WaitRequest { id: container.clone(), ..Default::default() };
    let exit = pod.called("Wait", tasks.wait(limit.clone(), &request)).unwrap();
    assert_eq!(exit.exit_status, 3);
    let request = DeleteRequest { id: container, ..Default::default() };
    pod.called("Delete", tasks.delete(limit.clone(), &request)).unwrap();
    let request = ShutdownRequest { id: id.clone(), ..Default::default() };
    pod.called("Shutdown", tasks.shutdown(limit.clone(), &request)).unwrap();
    let request = StopSandboxRequest { sandbox_id: id.clone(), ..Default::default() };
    pod.called("StopSandbox", sandboxes.stop_sandbox(limit.clone(), &request)).unwrap();
    let request = WaitSandboxRequest { sandbox_id: id.clone(), ..Default::default() };
    pod.called("WaitSandbox", sandboxes.wait_sandbox(limit.clone(), &request)).unwrap();
    let request = ShutdownSandboxRequest { sandbox_id: id, ..Default::default() };
    // It may be gone before anybody can look at it.
    sandboxes.shutdown_sandbox(limit, &request).unwrap();
}

#[test]
fn every_call_leaves_one_thread() {
    let Some(pod) = Pod::new() else { return };
    let client = pod.client();
    let (sandboxes, tasks) = (SandboxClient::new(client.clone()), TaskClient::new(client));
    pod.start(&sandboxes, &tasks);
    use_all(&pod, &sandboxes, &tasks);

    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let watch = scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                pod.one_thread("a hundred clients at once, or during them");
                thread::sleep(Duration::from_millis(1));
            }
        });
        let clients: Vec<_> = (0..100)
            .map(|n| {
                let (pod, tasks) = (&pod, TaskClient::new(pod.client()));
                scope.spawn(move || pod.exec(&tasks, &format!("many{n}"), false, "exit 6"))
            })
            .collect();
        let exits: Vec<_> = clients.into_iter().map(|client| client.join()).collect();
        over.store(true, Ordering::Relaxed);
        watch.join().unwrap();
        assert!(exits.iter().all(|exit| *exit.as_ref().unwrap() == 6), "{exits:?}");
    });

    drop((sandboxes, tasks));
    thread::sleep(Duration::from_millis(500));
    pod.one_thread("half a second without a client");
    let client = pod.client();
    let (sandboxes, tasks) = (SandboxClient::new(client.clone()), TaskClient::new(client));
    use_all(&pod, &sandboxes, &tasks);
    end(&pod, &sandboxes, &tasks);
    // It ends when its last client has gone, and when it has tried to say so to a containerd that
    // is not there.
    drop((sandboxes, tasks));
    let deadline = Instant::now() + Duration::from_secs(10);
    while !pod.bundle.servers().is_empty() {
        assert!(Instant::now() < deadline, "it serves on");
        thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_container_costs_little_memory() {
    if shipped().is_none() {
        return eprintln!("skipped: SHIM_BINARY names no release build");
    }
    let Some(pod) = Pod::new() else { return };
    let client = pod.client();
    let (sandboxes, tasks) = (SandboxClient::new(client.clone()), TaskClient::new(client));
    pod.start(&sandboxes, &tasks);
    let started = (pod.field("RssAnon:"), pod.field("VmRSS:"));
    use_all(&pod, &sandboxes, &tasks);
    let used = (pod.field("RssAnon:"), pod.field("VmRSS:"));
    // At rest it lets go of the program's text; anonymous memory only ever grows.
    let deadline = Instant::now() + Duration::from_secs(10);
    while pod.field("VmRSS:") >= 2048 && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(100));
    }
    let rest = (pod.field("RssAnon:"), pod.field("VmRSS:"));
    println!(
        "anonymous and resident memory, KB: started {started:?}, used {used:?}, rest {rest:?}"
    );
    assert!(rest.0 < 400, "{} KB of anonymous memory", rest.0);
    assert!(rest.1 < 2048, "{} KB resident", rest.1);
}
