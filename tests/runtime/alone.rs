//! One process for each test: a pod's namespaces, the session keyring and the children belong to
//! the whole process, and `clone3` wants it to have one thread, as the server has.
//!
//! A test that leaves anything behind fails, whatever else it shows.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl;
use tokio::time::timeout;

use crate::pod::Pod;

/// Set to the name of the one test that a process runs.
const CHILD: &str = "RUNTIME_TEST_ALONE";
/// Only so that a hang is a failure; seconds. An emulated machine needs more.
const LIMIT: (&str, u64) = ("RUNTIME_TEST_SECONDS", 30);

static TURN: Mutex<()> = Mutex::new(());

/// Runs `test` in a process of its own, with a shim that nobody has used yet. The caller is the
/// test function itself: its name is taken from the closure's.
pub fn alone<F: AsyncFnOnce(&mut Pod)>(test: F) {
    let name = std::any::type_name::<F>();
    let name = name.trim_end_matches("::{{closure}}").split_once("::").unwrap().1;
    if std::env::var_os(CHILD).is_some_and(|child| child == name) {
        return in_one_thread(test);
    }
    if !nix::unistd::geteuid().is_root() {
        return eprintln!("skipped: needs root");
    }
    if !Path::new("/bin/busybox").exists() {
        return eprintln!("skipped: needs a static /bin/busybox (Debian: busybox-static)");
    }
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args([name, "--exact", "--test-threads=1", "--nocapture"]).env(CHILD, name);
    let output = command.output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text);
    assert!(output.status.success(), "{name}: {}\n{text}", output.status);
    assert!(text.contains("1 passed"), "{name} did not run:\n{text}");
}

/// libtest has a thread beside the test's, which a fork leaves behind.
fn in_one_thread<F: AsyncFnOnce(&mut Pod)>(test: F) {
    // SAFETY: the other thread waits for this one and holds no lock; the C library's own locks
    // survive a fork.
    match unsafe { nix::unistd::fork() }.unwrap() {
        nix::unistd::ForkResult::Parent { child } => {
            let status = nix::sys::wait::waitpid(child, None).unwrap();
            let well = matches!(status, nix::sys::wait::WaitStatus::Exited(_, 0));
            if !well {
                clean_up(child.as_raw() as u32);
            }
            assert!(well, "{status:?}");
        }
        nix::unistd::ForkResult::Child => {
            let result = catch_unwind(AssertUnwindSafe(|| inside(test)));
            std::process::exit(i32::from(result.is_err()));
        }
    }
}

/// After a test that failed: its processes, cgroups and files.
fn clean_up(child: u32) {
    let mut dirs = Vec::new();
    for top in cgroup_tops(child) {
        dirs.push(top.clone());
        walk(&top, &mut |path| {
            dirs.extend(path.is_dir().then(|| path.to_owned()));
            true
        });
    }
    for dir in &dirs {
        for pid in fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default().lines() {
            let pid = nix::unistd::Pid::from_raw(pid.parse().unwrap());
            let _ = nix::sys::signal::kill(pid, nix::sys::signal::SIGKILL);
        }
        let freezer = dir.join("freezer.state");
        let _ = freezer.exists().then(|| fs::write(freezer, "THAWED"));
    }
    for dir in dirs.iter().rev() {
        let mut tries = 0..100;
        while fs::remove_dir(dir).is_err() && tries.next().is_some() {
            std::thread::sleep(Duration::from_millis(10));
        }
    }
    let _ = fs::remove_dir_all(directory(child));
}

/// Where the process of a test has its files.
pub fn directory(child: u32) -> PathBuf {
    std::env::temp_dir().join(format!("rs-test-{child}"))
}

fn inside<F: AsyncFnOnce(&mut Pod)>(test: F) {
    // A host of its own, as systemd has it: all is shared, and nobody else mounts anything.
    unshare(CloneFlags::CLONE_NEWNS).unwrap();
    for flow in [MsFlags::MS_PRIVATE, MsFlags::MS_SHARED] {
        let none = None::<&str>;
        mount(none, "/", none, MsFlags::MS_REC | flow, none).unwrap();
    }
    // As the server does.
    prctl::set_child_subreaper(true).unwrap();
    prctl::set_dumpable(false).unwrap();
    let mut pod = Pod::new();
    {
        let (reader, writer) = UnixStream::pair().unwrap();
        reader.set_nonblocking(true).unwrap();
        let handler = signal_hook::low_level::pipe::register(libc::SIGCHLD, writer).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let sigchld = tokio::net::UnixStream::from_std(reader).unwrap();
            tokio::spawn(pod.shim.reaper().clone().run(sigchld));
            // tokio's own descriptors are there by now.
            let before = Left::now(&pod.dir);
            let seconds = std::env::var(LIMIT.0).map_or(LIMIT.1, |text| text.parse().unwrap());
            let limit = Duration::from_secs(seconds);
            timeout(limit, test(&mut pod)).await.expect("the test hangs");
            pod.delete_all().await;
            before.compare(&pod.dir).await;
        });
        signal_hook::low_level::unregister(handler);
    }
    pod.remove();
}

/// Everything that a container could leave behind.
#[derive(Debug, PartialEq, Eq)]
pub struct Left {
    descriptors: Vec<String>,
    children: BTreeSet<u32>,
    threads: usize,
    cgroups: BTreeSet<PathBuf>,
    mounts: BTreeSet<String>,
    files: BTreeSet<PathBuf>,
}

impl Left {
    /// What there is now. `dir`: where the bundles are; a rootfs belongs to its container.
    pub fn now(dir: &Path) -> Left {
        Left {
            descriptors: descriptors(),
            children: children(),
            threads: threads(),
            cgroups: cgroups(),
            mounts: lines("/proc/self/mountinfo"),
            files: files(dir),
        }
    }

    /// What is closed or killed by the loop is given a moment.
    pub async fn compare(&self, dir: &Path) {
        for _ in 0..200 {
            let mut now = Left::now(dir);
            // The kernel takes a mount away from everyone where somebody removes what is below it.
            now.mounts.extend(self.mounts.iter().cloned());
            if *self == now {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let now = Left::now(dir);
        assert_eq!(self.descriptors, now.descriptors, "descriptors");
        assert_eq!(self.children, now.children, "children");
        assert_eq!((self.threads, now.threads), (1, 1), "threads");
        assert_eq!(self.cgroups, now.cgroups, "cgroups");
        let mounts: Vec<_> = now.mounts.difference(&self.mounts).collect();
        assert!(mounts.is_empty(), "mounts: {mounts:#?}");
        assert_eq!(self.files, now.files, "files");
    }
}

/// What each open descriptor is, without the numbers that never come again.
fn descriptors() -> Vec<String> {
    let all = fs::read_dir("/proc/self/fd").unwrap().flatten();
    let links = all.filter_map(|entry| fs::read_link(entry.path()).ok());
    let names = links.map(|link| link.to_string_lossy().into_owned());
    let mut names: Vec<String> = names
        .filter(|name| !name.starts_with("/proc/"))
        .map(|name| name.trim_end_matches(|c: char| c.is_ascii_digit() || c == ']').to_owned())
        .collect();
    names.sort();
    names
}

/// Of this process, the dead ones too.
pub fn children() -> BTreeSet<u32> {
    let mut all = BTreeSet::new();
    for task in fs::read_dir("/proc/self/task").unwrap().flatten() {
        let text = fs::read_to_string(task.path().join("children")).unwrap_or_default();
        all.extend(text.split_whitespace().map(|pid| pid.parse::<u32>().unwrap()));
    }
    all
}

/// Where the cgroups of a test's process are, in every hierarchy.
pub fn cgroup_tops(child: u32) -> Vec<PathBuf> {
    let all = fs::read_dir("/sys/fs/cgroup").unwrap().flatten().map(|entry| entry.path());
    let mut tops: Vec<PathBuf> = all.filter(|path| path.is_dir() && !path.is_symlink()).collect();
    tops.push("/sys/fs/cgroup".into());
    let top = cgroup_top(child);
    tops.into_iter().map(|path| path.join(&top[1..])).filter(|path| path.is_dir()).collect()
}

/// The parent of all cgroups of a test's containers.
pub fn cgroup_top(child: u32) -> String {
    format!("/rs-test-{child}")
}

fn cgroups() -> BTreeSet<PathBuf> {
    let mut all = BTreeSet::new();
    for top in cgroup_tops(std::process::id()) {
        walk(&top, &mut |path| {
            all.insert(path.to_owned());
            true
        });
    }
    all.retain(|path| path.is_dir());
    all
}

fn files(dir: &Path) -> BTreeSet<PathBuf> {
    let mut all = BTreeSet::new();
    walk(dir, &mut |path| {
        all.insert(path.to_owned());
        !path.ends_with("rootfs")
    });
    // The server's own, made with its first container.
    all.retain(|path| !path.ends_with("shim-server.json") && !path.ends_with("shim-containers"));
    all
}

/// Everything below a directory; `visit` says whether to go deeper.
pub fn walk(dir: &Path, visit: &mut dyn FnMut(&Path) -> bool) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if visit(&path) && path.is_dir() && !path.is_symlink() {
            walk(&path, visit);
        }
    }
}

pub fn lines(path: &str) -> BTreeSet<String> {
    fs::read_to_string(path).unwrap().lines().map(str::to_owned).collect()
}

/// What is mounted now and was not before.
pub fn new_mounts(before: &BTreeSet<String>) -> Vec<String> {
    lines("/proc/self/mountinfo").difference(before).cloned().collect()
}

/// `Threads:` of this process.
pub fn threads() -> usize {
    fs::read_dir("/proc/self/task").unwrap().count()
}
