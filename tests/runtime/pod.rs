//! A shim without containerd: bundles, requests, and what came of them.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use containerd_shim_rs::api::{CreateContainer, Deleted, State, StdioPaths, Target};
use containerd_shim_rs::error::Result;
use containerd_shim_rs::events::{Event, Exit};
use containerd_shim_rs::plan::RootfsMount;
use containerd_shim_rs::shim::{Settings, Shim};
use serde_json::{Value, json};

use crate::alone::{cgroup_top, cgroup_tops, directory};

/// What the containers of these tests run; hard links, as an image has them.
const APPLETS: &str = "busybox sh cat echo env false find grep head hostname id kill ls mkdir mount \
    mkfifo nproc ps readlink rm setsid sleep sort stat sync test touch tr true ulimit umask umount \
    wc yes unshare dd ln seq sed cut";

/// See the module text.
pub struct Pod {
    pub shim: Arc<Shim>,
    pub dir: PathBuf,
    ids: BTreeMap<String, ()>,
}

/// An exec's, or an init's.
pub fn target(container: &str, exec: &str) -> Target {
    let exec = (!exec.is_empty()).then(|| exec.to_owned());
    Target { container: container.into(), exec }
}

impl Pod {
    pub fn new() -> Pod {
        let dir = directory(std::process::id());
        fs::create_dir(&dir).unwrap();
        // Users of containers must get to what is bound from here.
        fs::set_permissions(&dir, PermissionsExt::from_mode(0o755)).unwrap();
        let home = dir.join("home");
        fs::create_dir(&home).unwrap();
        fs::copy("/bin/busybox", dir.join("busybox")).unwrap();
        let settings = Settings {
            namespace: "rs-test".into(),
            id: "home".into(),
            bundle: home,
            // Nobody's real one: see rdt.rs.
            resctrl: Some(dir.join("resctrl")),
            ..Settings::default()
        };
        Pod { shim: Shim::new(settings), dir, ids: BTreeMap::new() }
    }

    /// Everything that the test wrote, and the cgroups that no container owns.
    pub fn remove(self) {
        for top in cgroup_tops(std::process::id()) {
            fs::remove_dir(&top).unwrap_or_else(|e| panic!("rmdir {top:?}: {e}"));
        }
        fs::remove_dir_all(&self.dir).unwrap();
    }

    /// A rootfs as a plain directory.
    pub fn rootfs(&self, at: &Path) -> PathBuf {
        for name in ["bin", "etc", "proc", "sys", "dev", "tmp", "root"] {
            fs::create_dir_all(at.join(name)).unwrap();
        }
        for name in APPLETS.split_whitespace() {
            let link = at.join("bin").join(name);
            if !link.exists() {
                fs::hard_link(self.dir.join("busybox"), link).unwrap();
            }
        }
        let passwd = "root:x:0:0::/root:/bin/sh\nuser:x:1000:1000::/home/user:/bin/sh\n";
        fs::write(at.join("etc/passwd"), passwd).unwrap();
        at.to_owned()
    }

    /// Where a container's bundle is.
    pub fn bundle(&self, id: &str) -> PathBuf {
        self.dir.join(id)
    }

    /// Writes a bundle with a rootfs.
    pub fn write_bundle(&self, id: &str, spec: &Value) -> PathBuf {
        let bundle = self.bundle(id);
        self.rootfs(&bundle.join("rootfs"));
        fs::write(bundle.join("config.json"), serde_json::to_vec(spec).unwrap()).unwrap();
        bundle
    }

    /// The log file of a container's or an exec's output.
    fn log(&self, id: &str) -> PathBuf {
        self.dir.join("home").join(format!("{id}.out"))
    }

    /// stdout and stderr in one file.
    pub fn logged(&self, id: &str) -> StdioPaths {
        let stdout = format!("file://{}", self.log(id).display());
        StdioPaths { stdout, ..StdioPaths::default() }
    }

    /// What was logged; forgets it.
    pub fn output(&self, id: &str) -> String {
        let text = fs::read_to_string(self.log(id)).unwrap();
        fs::remove_file(self.log(id)).unwrap();
        text
    }

    pub fn request(&self, id: &str) -> CreateContainer {
        CreateContainer { id: id.into(), bundle: self.bundle(id), ..CreateContainer::default() }
    }

    pub async fn send(&mut self, request: CreateContainer) -> Result<u32> {
        self.ids.insert(request.id.clone(), ());
        Arc::clone(&self.shim).create(request).await
    }

    /// Create, in a bundle that it writes.
    pub async fn create(&mut self, id: &str, spec: &Value) -> Result<u32> {
        self.write_bundle(id, spec);
        let request = self.request(id);
        self.send(request).await
    }

    /// Create and Start.
    pub async fn running(&mut self, id: &str, script: &str) -> u32 {
        let pid = self.create(id, &sh(script)).await.unwrap();
        assert_eq!(self.start(id, "").await.unwrap(), pid);
        pid
    }

    pub async fn start(&self, id: &str, exec: &str) -> Result<u32> {
        Arc::clone(&self.shim).start(target(id, exec)).await
    }

    pub async fn wait(&self, id: &str, exec: &str) -> Result<Exit> {
        self.shim.wait(&target(id, exec)).await
    }

    pub async fn delete(&self, id: &str, exec: &str) -> Result<Deleted> {
        Arc::clone(&self.shim).delete(target(id, exec)).await
    }

    pub fn kill(&self, id: &str, exec: &str, signal: i32) -> Result<()> {
        self.shim.kill(&target(id, exec), signal as u32, false)
    }

    pub fn state(&self, id: &str, exec: &str) -> Result<State> {
        self.shim.state(&target(id, exec)).map(|status| status.state)
    }

    pub fn exec(&self, id: &str, exec: &str, process: &Value) -> Result<()> {
        let stdio = self.logged(exec);
        self.shim.exec(target(id, exec), &serde_json::to_vec(process).unwrap(), stdio)
    }

    /// A whole exec: its status and what it said.
    pub async fn executed(&self, id: &str, exec: &str, process: &Value) -> (u32, String) {
        self.exec(id, exec, process).unwrap();
        self.start(id, exec).await.unwrap();
        let exit = self.wait(id, exec).await.unwrap();
        assert_eq!(self.delete(id, exec).await.unwrap().exit, exit);
        (exit.status, self.output(exec))
    }

    /// A whole container: its status and what it said. Its bundle is gone afterwards.
    pub async fn ran(&mut self, id: &str, spec: &Value) -> (u32, String) {
        self.write_bundle(id, spec);
        let request = self.request(id);
        self.ran_request(request).await
    }

    pub async fn ran_request(&mut self, mut request: CreateContainer) -> (u32, String) {
        let id = request.id.clone();
        request.stdio = self.logged(&id);
        self.send(request).await.unwrap();
        self.start(&id, "").await.unwrap();
        let exit = self.wait(&id, "").await.unwrap();
        assert_eq!(self.delete(&id, "").await.unwrap().exit, exit);
        fs::remove_dir_all(self.bundle(&id)).unwrap();
        (exit.status, self.output(&id))
    }

    /// Waits until a container has made a file.
    pub async fn until(&self, id: &str, file: &str) {
        let file = self.bundle(id).join("rootfs").join(file);
        while !file.exists() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// Kills, waits for and deletes a container.
    pub async fn end(&self, id: &str) {
        if self.state(id, "").unwrap() != State::Stopped {
            self.kill(id, "", libc::SIGKILL).unwrap();
        }
        self.wait(id, "").await.unwrap();
        self.delete(id, "").await.unwrap();
        fs::remove_dir_all(self.bundle(id)).unwrap();
    }

    /// All that a test has not deleted, with the bundles.
    pub async fn delete_all(&mut self) {
        for id in std::mem::take(&mut self.ids).into_keys() {
            if self.state(&id, "").is_ok() {
                self.end(&id).await;
            }
        }
        for entry in fs::read_dir(&self.dir).unwrap().flatten() {
            if entry.path().join("rootfs").exists() {
                fs::remove_dir_all(entry.path()).unwrap();
            }
        }
        for entry in fs::read_dir(self.dir.join("home")).unwrap().flatten() {
            if entry.path().extension().is_some_and(|e| e == "out") {
                fs::remove_file(entry.path()).unwrap();
            }
        }
    }

    /// The events since this was last asked, as `exit web/1 7`.
    pub async fn events(&self) -> Vec<String> {
        let mut all = Vec::new();
        loop {
            tokio::select! {
                biased;
                (_, event) = self.shim.queue.next() => all.push(text(&event)),
                () = std::future::ready(()) => return all,
            }
        }
    }
}

fn text(event: &Event) -> String {
    match event {
        Event::Create { container_id, .. } => format!("create {container_id}"),
        Event::Start { container_id, .. } => format!("start {container_id}"),
        Event::Exit { container_id, id, exit, .. } if id == container_id => {
            format!("exit {id} {}", exit.status)
        }
        Event::Exit { container_id, id, exit, .. } => {
            format!("exit {container_id}/{id} {}", exit.status)
        }
        Event::Delete { container_id, exit, .. } => {
            format!("delete {container_id} {}", exit.status)
        }
        Event::ExecAdded { container_id, exec_id } => format!("added {container_id}/{exec_id}"),
        Event::ExecStarted { container_id, exec_id, .. } => {
            format!("started {container_id}/{exec_id}")
        }
        Event::Paused { container_id } => format!("paused {container_id}"),
        Event::Resumed { container_id } => format!("resumed {container_id}"),
        Event::Oom { container_id } => format!("oom {container_id}"),
    }
}

/// A process of `sh`, or of the words where the script begins with a slash.
pub fn process(script: &str) -> Value {
    json!({
        "user": {"uid": 0, "gid": 0},
        "args": ["/bin/sh", "-c", script],
        "env": ["PATH=/bin"],
        "cwd": "/",
        "noNewPrivileges": true,
    })
}

/// The spec of a container that runs a script, as containerd writes one.
pub fn sh(script: &str) -> Value {
    json!({
        "ociVersion": "1.3.0",
        "process": process(script),
        "root": {"path": "rootfs"},
        "hostname": "box",
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc",
                "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
                "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts",
                "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"]},
            {"destination": "/sys", "type": "sysfs", "source": "sysfs",
                "options": ["nosuid", "noexec", "nodev", "ro"]},
            {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
                "options": ["nosuid", "noexec", "nodev", "relatime", "ro"]},
        ],
        "linux": {
            "cgroupsPath": format!("{}/{}", cgroup_top(std::process::id()), next()),
            "resources": {"devices": [{"allow": false, "access": "rwm"}]},
            "namespaces": [{"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"},
                {"type": "network"}, {"type": "cgroup"}],
            "maskedPaths": ["/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/timer_list",
                "/proc/scsi", "/sys/firmware"],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys",
                "/proc/sysrq-trigger"],
        },
    })
}

/// The same with a change by JSON pointer.
pub fn with(mut spec: Value, pointer: &str, value: Value) -> Value {
    let (above, name) = pointer.rsplit_once('/').unwrap();
    let above = spec.pointer_mut(above).unwrap();
    match above {
        Value::Array(list) if name == "-" => list.push(value),
        above => above[name] = value,
    }
    spec
}

/// Counts, for names that are used once.
fn next() -> u32 {
    use std::sync::atomic::{AtomicU32, Ordering};
    static NEXT: AtomicU32 = AtomicU32::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// A mount of `CreateContainer.rootfs`.
pub fn rootfs_mount(fstype: &str, source: &Path, options: &[String]) -> RootfsMount {
    RootfsMount {
        fstype: fstype.into(),
        source: source.to_str().unwrap().into(),
        target: String::new(),
        options: options.to_vec(),
    }
}
