//! What a container leaves that is hard to end or to remove, with its shim and without: a pause, and
//! cgroups that it made itself, nested deeper than a path may be long.

use std::ffi::{CString, OsStr};
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use containerd_shim_rs::cgroup::Cgroup;
use containerd_shim_rs::cleanup;
use containerd_shim_rs::launch;
use containerd_shim_rs::plan::{CgroupDir, Cgroups, Op, Plan};
use containerd_shim_rs::sys::raw;
use nix::fcntl::{OFlag, open, openat};
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::{Mode, mkdirat};
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, Pid, UnlinkatFlags, fork, unlinkat};
use serde_json::Value;

use crate::alone::{alone, cgroup_top, lines};
use crate::limits::limit;
use crate::pod::{Pod, sh};

/// The directory of the cgroup that says who is in the container.
fn main_cgroup(spec: &Value) -> PathBuf {
    limit(spec, "freezer.state", "cgroup.freeze").parent().unwrap().to_owned()
}

/// `delete`, while the shim looks elsewhere.
fn delete_alone(pod: &Pod, id: &str) {
    let (namespace, bundle) = ("rs-test".into(), pod.bundle(id));
    cleanup::delete(&cleanup::Request { namespace, id: id.into(), bundle });
}

/// Cgroups in each other below `top`, whose path would be 4.5 kB long; gone with a test that fails.
struct Nest {
    /// Each with its parent's descriptor.
    dirs: Vec<(OwnedFd, OwnedFd)>,
}

const NAME_LEN: usize = 250;
const DEPTH: usize = 18;

impl Nest {
    fn new(top: &Path) -> Nest {
        let name = "n".repeat(NAME_LEN);
        let directory = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let mut nest = Nest { dirs: Vec::new() };
        let mut at = open(top, directory, Mode::empty()).unwrap();
        for _ in 0..DEPTH {
            mkdirat(&at, name.as_str(), Mode::from_bits_truncate(0o755)).unwrap();
            let below = openat(&at, name.as_str(), directory, Mode::empty()).unwrap();
            nest.dirs.push((at, below.try_clone().unwrap()));
            at = below;
        }
        nest
    }

    fn procs(&self, flags: OFlag) -> nix::Result<File> {
        let (_, deepest) = self.dirs.last().unwrap();
        openat(deepest, "cgroup.procs", flags, Mode::empty()).map(File::from)
    }

    /// Moves a process to the lowest.
    fn take(&self, pid: u32) {
        self.procs(OFlag::O_WRONLY).unwrap().write_all(pid.to_string().as_bytes()).unwrap();
    }
}

impl Drop for Nest {
    fn drop(&mut self) {
        let mut pids = String::new();
        let _ = self.procs(OFlag::O_RDONLY).map(|mut file| file.read_to_string(&mut pids));
        for pid in pids.lines() {
            let _ = kill(Pid::from_raw(pid.parse().unwrap()), Signal::SIGKILL);
        }
        for (parent, _) in self.dirs.iter().rev() {
            let name = "n".repeat(NAME_LEN);
            let remove = || unlinkat(parent, OsStr::new(&name), UnlinkatFlags::RemoveDir);
            let mut tries = 0..100;
            while remove() == Err(nix::Error::EBUSY) && tries.next().is_some() {
                std::thread::sleep(Duration::from_millis(10));
            }
        }
    }
}

/// Of v1 it is that a frozen process does not die of SIGKILL: to wait for its end would take all the
/// time that `delete` has.
#[test]
fn delete_without_a_server_ends_what_is_paused() {
    alone(async |pod: &mut Pod| {
        let spec = sh("touch /n; sleep 1000 & sleep 1000");
        pod.create("c", &spec).await.unwrap();
        pod.start("c", "").await.unwrap();
        pod.until("c", "n").await;
        Arc::clone(&pod.shim).pause("c".into()).await.unwrap();
        let (dir, record) = (main_cgroup(&spec), pod.bundle("c").join("shim-container.json"));
        let pids = pod.shim.pids("c").unwrap();
        assert!(dir.exists() && record.exists() && !pids.is_empty());
        delete_alone(pod, "c");
        assert!(!dir.exists(), "its cgroup is left");
        assert!(!record.exists(), "its record is left");
        assert_eq!(pod.wait("c", "").await.unwrap().status, 137);
        for process in pids {
            assert!(!Path::new("/proc").join(process.pid.to_string()).exists());
        }
    });
}

/// A container with cgroups as in `Nest`, and one of its processes in the lowest of them.
async fn nested(pod: &mut Pod, id: &str) -> (PathBuf, Nest) {
    let spec = sh("sleep 1000 & echo $! > /n; sleep 1000; :");
    pod.create(id, &spec).await.unwrap();
    let dir = main_cgroup(&spec);
    pod.start(id, "").await.unwrap();
    while pod.shim.pids(id).unwrap().len() < 3 {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let nest = Nest::new(&dir);
    let pids: Vec<u32> = pod.shim.pids(id).unwrap().iter().map(|process| process.pid).collect();
    nest.take(*pids.last().unwrap());
    let now: Vec<u32> = pod.shim.pids(id).unwrap().iter().map(|process| process.pid).collect();
    assert_eq!(now, pids);
    (dir, nest)
}

#[test]
fn cgroups_nested_deeper_than_a_path_is_long() {
    alone(async |pod: &mut Pod| {
        let (dir, nest) = nested(pod, "c").await;
        pod.end("c").await;
        assert!(!dir.exists());
        drop(nest);
    });
}

#[test]
fn delete_without_a_server_removes_cgroups_however_deep() {
    alone(async |pod: &mut Pod| {
        let (dir, nest) = nested(pod, "c").await;
        delete_alone(pod, "c");
        assert!(!dir.exists());
        drop(nest);
        pod.end("c").await;
    });
}

#[test]
fn a_cgroup_that_is_busy_is_removed_once_its_process_has_gone() {
    alone(async |pod: &mut Pod| {
        let top = limit(&sh("true"), "pids.max", "pids.max");
        let dir = top.parent().unwrap().with_file_name("busy");
        fs::create_dir_all(&dir).unwrap();
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        fs::write(dir.join("cgroup.procs"), child.id().to_string()).unwrap();
        let path = CString::new(dir.as_os_str().as_bytes()).unwrap();
        let ops = vec![Op::RemoveCgroup { path }, Op::Exit];
        let plan = Plan { ops, ..Plan::default() };
        let removed = launch::run(pod.shim.reaper(), plan, Duration::from_secs(60));
        let later = async {
            tokio::time::sleep(Duration::from_millis(100)).await;
            assert!(dir.exists());
            child.kill().unwrap();
        };
        let (removed, ()) = tokio::join!(removed, later);
        // The reaper may have had it first.
        let _ = child.wait();
        removed.unwrap();
        assert!(!dir.exists());
    });
}

/// A child with two threads, of which the first has ended.
fn without_its_first_thread() -> Pid {
    // SAFETY: this process has one thread.
    match unsafe { fork() }.unwrap() {
        ForkResult::Parent { child } => child,
        ForkResult::Child => {
            std::thread::spawn(|| raw::sleep_ms(60_000));
            // SAFETY: ends this thread, of which the other has nothing.
            unsafe { libc::syscall(libc::SYS_exit, 0) };
            raw::exit(1)
        }
    }
}

/// What the kernel lists of such a process, where it lists threads, is none that can be signalled.
#[test]
fn a_process_of_a_threaded_cgroup_whose_first_thread_has_ended() {
    alone(async |_: &mut Pod| {
        let mounts = lines("/proc/self/mountinfo");
        let Some(line) = mounts.iter().find(|line| line.contains(" - cgroup2 ")) else {
            return eprintln!("skipped: needs a cgroup v2");
        };
        let mountpoint = PathBuf::from(line.split(' ').nth(4).unwrap());
        let path = mountpoint.join(&cgroup_top(std::process::id())[1..]).join("lone");
        fs::create_dir_all(&path).unwrap();
        fs::write(path.join("cgroup.type"), "threaded").unwrap();
        let at = CgroupDir { controllers: Vec::new(), mountpoint, path: path.clone() };
        let cgroup = Cgroup::from_record(Cgroups { unified: true, dirs: vec![at] });
        let child = without_its_first_thread();
        let pid = child.as_raw();
        let status = || fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        while !(status().contains("State:\tZ") && status().contains("Threads:\t2")) {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        fs::write(path.join("cgroup.procs"), pid.to_string()).unwrap();
        let listed = cgroup.pids();
        let killed = cgroup.kill_all(libc::SIGKILL);
        for _ in (0..500).take_while(|_| !cgroup.empty().unwrap()) {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        let empty = cgroup.empty();
        let _ = kill(child, Signal::SIGKILL);
        let _ = waitpid(child, None);
        fs::remove_dir(&path).unwrap();
        assert_eq!(listed.unwrap(), [pid as u32]);
        assert!(killed.is_ok() && empty.unwrap());
    });
}
