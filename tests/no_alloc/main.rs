//! A child after clone never touches the allocator: the lock of it may be held by whoever the
//! parent was. Alone in its file, for the allocator of this binary ends a process that is not the
//! one that armed it.

mod refused;

use std::alloc::{GlobalAlloc, Layout, System};
use std::collections::BTreeMap;
use std::ffi::{CString, c_int};
use std::fs::{self, File};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use containerd_shim_rs::error::{Error, Result};
use containerd_shim_rs::launch;
use containerd_shim_rs::plan::seccomp::Arch;
use containerd_shim_rs::plan::{
    self, Attr, Facts, Input, Missing, Op, Param, Plan, RootfsMount, Set, Slot, Target,
};
use containerd_shim_rs::reaper::{Reaper, ended};
use containerd_shim_rs::sys::clone::clone3;
use containerd_shim_rs::user;
use nix::sched::{CloneFlags, unshare};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use refused::{refused_inside, refused_on_the_host, refused_to_the_process};
use serde_json::{Value, json};

/// What a child that allocated ends with.
const ALLOCATED: u32 = 99;
/// What a child whose step failed ends with.
const FAILED: u32 = 127;

/// The process that may allocate; 0: every one.
static OWNER: AtomicI32 = AtomicI32::new(0);

struct Guard;

fn check() {
    let owner = OWNER.load(Ordering::Relaxed);
    if owner != 0 && nix::unistd::getpid().as_raw() != owner {
        // SAFETY: ends this process; nothing of it is used after that.
        unsafe { libc::_exit(ALLOCATED as c_int) };
    }
}

// SAFETY: each call goes to the system's allocator as it came, or not at all.
unsafe impl GlobalAlloc for Guard {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        check();
        // SAFETY: as the caller promised.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        check();
        // SAFETY: as the caller promised.
        unsafe { System.dealloc(ptr, layout) }
    }

    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        check();
        // SAFETY: as the caller promised.
        unsafe { System.realloc(ptr, layout, size) }
    }
}

#[global_allocator]
static GUARD: Guard = Guard;

static TURN: Mutex<()> = Mutex::new(());

/// A directory with a rootfs, gone with the test.
struct Dir(PathBuf);

impl Dir {
    fn new() -> Dir {
        let template = std::env::temp_dir().join("no-alloc-XXXXXX");
        let dir = Dir(nix::unistd::mkdtemp(&template).unwrap());
        for name in ["rootfs/bin", "rootfs/etc", "source/below", "cgroup"] {
            fs::create_dir_all(dir.0.join(name)).unwrap();
        }
        fs::copy("/bin/busybox", dir.0.join("rootfs/bin/true")).unwrap();
        let lines: String = (0..200).map(|n| format!("user{n}:x:{n}:0::/home/{n}:\n")).collect();
        fs::write(dir.0.join("rootfs/etc/passwd"), lines).unwrap();
        fs::write(dir.0.join("file"), "").unwrap();
        fs::write(dir.0.join("rootfs/etc/file"), "").unwrap();
        dir
    }

    fn path(&self, name: &str) -> CString {
        plan::cpath("path", &self.0.join(name)).unwrap()
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).unwrap();
    }
}

/// Whether the machine lets us; says so where it does not.
fn skip() -> bool {
    let skip = !nix::unistd::geteuid().is_root() || !Path::new("/bin/busybox").exists();
    if skip {
        eprintln!("skipped: needs root and a static /bin/busybox");
    }
    skip
}

/// Runs every plan to its end. What its child ended with, and what it reported.
fn outcomes(plans: Vec<(Plan, Vec<(Input, OwnedFd)>)>) -> Vec<(u32, Result<()>)> {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let reaper = Arc::new(Reaper::default());
        let mut all = Vec::new();
        for (plan, mut inputs) in plans {
            let parks = plan.ops.contains(&Op::Ready);
            let hooks = plan.ops.contains(&Op::Hooks);
            OWNER.store(nix::unistd::getpid().as_raw(), Ordering::Relaxed);
            inputs.extend(user::inputs(&reaper, &plan).await.unwrap());
            let mut child = launch::launch(&reaper, plan, inputs, None).unwrap();
            if hooks && child.reached(&Op::Hooks).await.is_ok() {
                child.resume();
            }
            let parked = if parks { child.ready().await } else { Ok(()) };
            let result = match parked {
                // Its end first: a message that is queued can be read all the same, and a child
                // that is killed for its error would not end as it wants to.
                Ok(()) if !parks => {
                    ended(&mut child.exit).await;
                    child.go().await
                }
                Ok(()) => child.go().await,
                Err(error) => Err(error),
            };
            let exit = ended(&mut child.exit).await;
            OWNER.store(0, Ordering::Relaxed);
            all.push((exit.status, result));
        }
        all
    })
}

fn outcome(plan: Plan, inputs: Vec<(Input, OwnedFd)>) -> (u32, Result<()>) {
    outcomes(vec![(plan, inputs)]).remove(0)
}

macro_rules! kinds {
    ($($name:ident)*) => {
        /// The name of an op. A new one does not compile until it is in the list, and fails the
        /// test until it is run.
        fn kind(op: &Op) -> &'static str {
            match op { $(Op::$name { .. } => stringify!($name)),* }
        }
        const KINDS: usize = [$(stringify!($name)),*].len();
    };
}

kinds! {
    JoinCgroup Unshare Setns UserRoot TimeOffsets IdMap JoinKeyring OomScore WriteFile Sysctl MakeGroup Rmdir RemoveCgroup Unmount OpenTree TakeTree
    SetAttr NewMount OldMount Propagate AttachRootfs OpenRootfs Attach Mount MakeDir
    CopyUp MakeNode Symlink Mask Readonly OpenPty AttachConsole Hooks Pivot Hostname Domainname Setsid
    ControllingTerminal Birth LiftFds Dup ChownStdio Umask Rlimit BoundingSet KeepCaps Groups Gid Uid Capset Ambient
    NoNewPrivs Seccomp Chdir VerifyCwd Home FindExecutable ResetSignals Ready CloseFds Exec ExecFd
    Exit ResetAffinity Affinity Scheduler IoPriority Personality MemoryPolicy Label
    FileLabel BringDevice
}

fn spec(dir: &Dir) -> Value {
    json!({
        "ociVersion": "1.3.0",
        "process": {
            "user": {"uid": 150, "gid": 5, "additionalGids": [7, 8]},
            "args": ["true"],
            "cwd": "/made/for/it",
            "consoleSize": {"height": 24, "width": 80},
            "oomScoreAdj": 1000,
            "noNewPrivileges": true,
            "scheduler": {"policy": "SCHED_BATCH", "nice": 3},
            "ioPriority": {"class": "IOPRIO_CLASS_IDLE", "priority": 0},
            "rlimits": [{"type": "RLIMIT_NOFILE", "soft": 64, "hard": 64}],
            "capabilities": {"bounding": ["CAP_KILL"], "permitted": ["CAP_KILL"],
                "inheritable": ["CAP_KILL"], "ambient": ["CAP_KILL"]}
        },
        "root": {"path": "rootfs", "readonly": true},
        "hostname": "h", "domainname": "d",
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["size=1m"]},
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts",
                "options": ["newinstance", "ptmxmode=0666"]},
            {"destination": "/vol/deep/down", "source": dir.0.join("source"),
                "options": ["rbind", "rro", "nosuid", "rshared"]},
            {"destination": "/etc", "type": "tmpfs", "source": "tmpfs", "options": ["ro", "tmpcopyup"]},
            {"destination": "/a/file", "source": dir.0.join("file"), "options": ["bind", "ro"]}
        ],
        "linux": {
            "namespaces": [{"type": "mount"}, {"type": "pid"}, {"type": "uts"}, {"type": "ipc"},
                {"type": "network"}, {"type": "cgroup"}],
            "personality": {"domain": "LINUX32"},
            "memoryPolicy": {"mode": "MPOL_PREFERRED", "nodes": "0"},
            "sysctl": {"net.ipv4.ip_forward": "1"},
            "seccomp": {"defaultAction": "SCMP_ACT_ALLOW"},
            "devices": [{"path": "/dev/pipe", "type": "p", "uid": 3, "gid": 4}],
            "maskedPaths": ["/proc/kcore", "/vol", "/proc/fs", "/absent"],
            "readonlyPaths": ["/proc/sys", "/absent"],
            "rootfsPropagation": "rshared"
        }
    })
}

/// The same in a user and a time namespace.
fn inside(dir: &Dir) -> Value {
    let mut spec = spec(dir);
    let more = json!([{"type": "user"}, {"type": "time"}]);
    spec["linux"]["namespaces"].as_array_mut().unwrap().extend(more.as_array().unwrap().clone());
    let map = json!([{"containerID": 0, "hostID": 0, "size": 65536}]);
    (spec["linux"]["uidMappings"], spec["linux"]["gidMappings"]) = (map.clone(), map);
    spec["linux"]["timeOffsets"] = json!({"boottime": {"secs": 7}});
    spec["mounts"][3]["options"] = json!(["rbind", "ridmap"]);
    spec
}

/// The plan of a container that has everything.
fn container(dir: &Dir, terminal: bool, spec: Value) -> Plan {
    let (spec, _) = plan::spec::parse(&serde_json::to_vec(&spec).unwrap()).unwrap();
    let seccomp = spec.linux().as_ref().and_then(|linux| linux.seccomp().as_ref());
    let seccomp = seccomp.map(|p| plan::seccomp::compile(p, Arch::native().unwrap()).unwrap().0);
    let facts = Facts {
        bundle: dir.0.clone(),
        seccomp: seccomp.map(Arc::new),
        rootfs: vec![RootfsMount {
            fstype: "bind".into(),
            source: dir.0.join("rootfs").to_str().unwrap().into(),
            options: vec!["rbind".into()],
            ..RootfsMount::default()
        }],
        last_cap: 40,
        keyring: "no-alloc".into(),
        terminal,
        ..Facts::default()
    };
    plan::container(&spec, &facts).unwrap()
}

fn null() -> OwnedFd {
    File::options().read(true).write(true).open("/dev/null").unwrap().into()
}

fn stdio() -> Vec<(Input, OwnedFd)> {
    (0..3).map(|n| (Input::Stdio(n), null())).collect()
}

/// A plan of our own; its slot 0 is the report.
fn by_hand(namespaces: c_int, ops: Vec<Op>) -> Plan {
    let mut plan = Plan { namespaces, ..Plan::default() };
    plan.input(Input::Report);
    plan.slots = 16;
    plan.ops = ops;
    plan
}

/// What no container's plan has.
fn rest(dir: &Dir) -> (Plan, Vec<(Input, OwnedFd)>) {
    let param = |key: &str, value: &str| Param {
        key: CString::new(key).unwrap(),
        value: Some(CString::new(value).unwrap()),
    };
    let attr = Attr { propagation: libc::MS_PRIVATE, ..Attr::default() };
    let mut plan = by_hand(libc::CLONE_NEWNS | libc::CLONE_NEWIPC, Vec::new());
    plan.slots = 1;
    let procs = plan.input(Input::CgroupProcs(0));
    let ns = plan.input(Input::Namespace(0));
    let one = plan.slot();
    plan.ops = vec![
        Op::Affinity { cpus: Set(vec![1]) },
        Op::JoinCgroup { procs },
        Op::Setns { ns, flags: libc::CLONE_NEWIPC },
        Op::Propagate { flags: libc::MS_REC | libc::MS_SLAVE },
        Op::OldMount {
            chdir: Some(c"/".into()),
            source: c"t".into(),
            target: dir.path("source"),
            fstype: c"tmpfs".into(),
            flags: 0,
            data: c"mode=700".into(),
        },
        Op::NewMount {
            fstype: c"tmpfs".into(),
            params: vec![param("mode", "755")],
            attr: 0,
            into: one,
        },
        Op::FileLabel { mount: one, label: c"x".into() },
        Op::SetAttr { mount: one, attr },
        Op::AttachRootfs { mount: one, path: dir.path("cgroup") },
        Op::WriteFile { path: dir.path("file"), data: c"x".into() },
        Op::LiftFds { above: 64 },
        Op::MakeGroup { path: dir.path("source/group") },
        Op::Rmdir { path: dir.path("source/group") },
        Op::Rmdir { path: dir.path("absent") },
        Op::MakeGroup { path: dir.path("source/group") },
        Op::MakeGroup { path: dir.path("source/group/one") },
        Op::MakeGroup { path: dir.path("source/group/one/below") },
        Op::MakeGroup { path: dir.path("source/group/two") },
        Op::RemoveCgroup { path: dir.path("source/group") },
        // Fails unless it is gone.
        Op::MakeGroup { path: dir.path("source/group") },
        Op::RemoveCgroup { path: dir.path("absent") },
        Op::Unmount { path: dir.path("cgroup") },
        Op::Unmount { path: dir.path("absent") },
        Op::Hooks,
        Op::Birth,
        Op::Exit,
    ];
    let procs = File::options().write(true).open("/dev/null").unwrap();
    let ns = File::open("/proc/self/ns/ipc").unwrap();
    (plan, vec![(Input::CgroupProcs(0), procs.into()), (Input::Namespace(0), ns.into())])
}

fn holder(dir: &Dir) -> (Plan, Vec<(Input, OwnedFd)>) {
    let facts = Facts { bundle: dir.0.join("cgroup"), ..Facts::default() };
    let holds = plan::Holder { namespaces: libc::CLONE_NEWPID, ..Default::default() };
    let plan = plan::holder(&["true"], holds, &facts).unwrap();
    let exe = File::open("/bin/busybox").unwrap();
    let mut inputs = stdio();
    inputs.push((Input::Executable, exe.into()));
    (plan, inputs)
}

/// A device of another namespace, which this thread made for it, and is in no more.
fn devices() -> (Plan, Vec<(Input, OwnedFd)>) {
    let ip = |args: &str| Command::new("ip").args(args.split(' ')).status().unwrap().success();
    unshare(CloneFlags::CLONE_NEWNET).unwrap();
    assert!(ip("link add one type veth peer name two"));
    assert!(ip("addr add 192.0.2.1/24 dev one") && ip("addr add 2001:db8::1/64 dev one"));
    let links = containerd_shim_rs::sys::fd::route_socket().unwrap();
    unshare(CloneFlags::CLONE_NEWNET).unwrap();
    let ns = File::open("/proc/thread-self/ns/net").unwrap();
    let mut plan = by_hand(0, Vec::new());
    plan.slots = 1;
    let (host, ours) = (plan.input(Input::HostLinks), plan.input(Input::Namespace(0)));
    let bring = Op::BringDevice { host, ns: ours, name: c"one".into(), to: c"net0".into() };
    plan.ops = vec![bring, Op::Exit];
    (plan, vec![(Input::HostLinks, links), (Input::Namespace(0), ns.into())])
}

fn allocates(_: &mut ()) -> ! {
    drop(std::hint::black_box(Box::new(7)));
    // SAFETY: ends this process; nothing of it is used after that.
    unsafe { libc::_exit(0) }
}

#[test]
fn the_guard_catches_a_child_that_allocates() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    OWNER.store(nix::unistd::getpid().as_raw(), Ordering::Relaxed);
    // SAFETY: what the child does wrong is the test; no other thread holds this allocator's lock,
    // and the guard ends the child before it would take it.
    let cloned = unsafe { clone3(0, None, allocates, &mut ()) }.unwrap();
    let status = waitid(Id::PIDFd(cloned.pidfd.as_fd()), WaitPidFlag::WEXITED).unwrap();
    OWNER.store(0, Ordering::Relaxed);
    assert!(matches!(status, WaitStatus::Exited(_, code) if code as u32 == ALLOCATED));
}

#[test]
fn no_op_allocates() {
    if skip() {
        return;
    }
    let dir = Dir::new();
    let with_pty = container(&dir, true, spec(&dir));
    let without = container(&dir, false, spec(&dir));
    let inside = container(&dir, false, inside(&dir));
    let mut plans = vec![
        (with_pty, Vec::new()),
        (without, stdio()),
        (inside, stdio()),
        rest(&dir),
        holder(&dir),
    ];
    let has_ip = Command::new("ip").arg("-V").output().is_ok();
    plans.extend(has_ip.then(devices));
    let mut seen: BTreeMap<&str, usize> = BTreeMap::new();
    for op in plans.iter().flat_map(|(plan, _)| &plan.ops) {
        *seen.entry(kind(op)).or_default() += 1;
    }
    // Nobody takes a label on a machine without such a security module: it is in the next test.
    seen.insert("Label", 0);
    if !has_ip {
        eprintln!("not all: needs ip (Debian: iproute2)");
        seen.insert("BringDevice", 0);
    }
    assert_eq!(seen.len(), KINDS, "not every kind of op is run here: {seen:?}");
    for (i, (status, result)) in outcomes(plans).into_iter().enumerate() {
        assert!(result.is_ok(), "plan {i}: {result:?}");
        assert_eq!(status, 0, "plan {i}");
    }
}

#[test]
fn no_failure_allocates() {
    if skip() {
        return;
    }
    let dir = Dir::new();
    let all = [refused_on_the_host(&dir), refused_inside(), refused_to_the_process()].concat();
    let namespaces = libc::CLONE_NEWNS | libc::CLONE_NEWUTS | libc::CLONE_NEWIPC;
    let plans = all.iter().map(|(op, _)| {
        let enter = Op::OpenRootfs { path: dir.path(""), into: Slot(1) };
        let ops = vec![enter, Op::Setsid, op.clone(), Op::Exit];
        (by_hand(namespaces, ops), Vec::new())
    });
    for ((op, want), (status, result)) in all.iter().zip(outcomes(plans.collect())) {
        let text = result.err().map(|error| error.to_string()).unwrap_or_default();
        let said = text.strip_prefix(&format!("step 3/4: {op}: ")).unwrap_or_default();
        // AppArmor's ENOENT has words between.
        let well = said.starts_with(want) || said.contains(&format!(": {want}"));
        assert!(well, "{op}: {text:?} ({status})");
        assert_eq!(status, FAILED, "{op}");
    }
}

#[test]
fn no_lookup_of_home_allocates() {
    if skip() {
        return;
    }
    let dir = Dir::new();
    let long = format!("long:x:300:0::/{}:\n", "h".repeat(9000));
    let odd = ["", "\n\n::::::\n", "x:x:300", "x:x:99999999999999999999:0::/x:\n", long.as_str()];
    for passwd in odd {
        fs::write(dir.0.join("rootfs/etc/passwd"), passwd).unwrap();
        let mut spec = spec(&dir);
        spec["process"]["user"]["uid"] = json!(300);
        let (status, result) = outcome(container(&dir, false, spec), stdio());
        assert!(result.is_ok() && status == 0, "{passwd:?}: {status} {result:?}");
    }
}

#[test]
fn no_missing_program_allocates() {
    if skip() {
        return;
    }
    let dir = Dir::new();
    let mut wrong = spec(&dir);
    wrong["process"]["args"] = json!(["/nowhere"]);
    let (status, result) = outcome(container(&dir, false, wrong), stdio());
    let error: Error = result.unwrap_err();
    assert!(error.to_string().contains("executable file not found"), "{error}");
    assert_ne!(status, ALLOCATED);
}
