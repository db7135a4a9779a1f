//! Containers where the kernel, or a seccomp filter around the shim, refuses a system call: either
//! there is another way, or the error names the call and nothing is left.

use std::fs;
use std::io::{Read, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use containerd_shim_rs::api::State;
use containerd_shim_rs::bundle::{ContainerRecord, RECORD_VERSION, start_time};
use containerd_shim_rs::cgroup::Layout;
use containerd_shim_rs::cleanup;
use containerd_shim_rs::sys::{self, raw};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid};
use nix::unistd::{ForkResult, fork};
use serde_json::json;

use crate::alone::{alone, cgroup_top, threads};
use crate::pod::{Pod, process, sh, with};

/// From now on this process and its children get `errno` from the call, where it has an argument of
/// this place and value.
fn refuse_where(call: i64, argument: Option<(u32, u32)>, errno: i32) {
    let insn = |code: u32, jt: u64, jf: u64, k: u32| {
        // `struct sock_filter`, as this machine lays it out.
        u64::from(code) | jt << 16 | jf << 24 | u64::from(k) << 32
    };
    let jump = |jf, k| insn(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, jf, k);
    let load = |offset| insn(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, offset);
    let answer = |action: u32| insn(libc::BPF_RET | libc::BPF_K, 0, 0, action);
    // The lower half of an argument of `struct seccomp_data`.
    let looks = argument.map(|(place, value)| [load(16 + 8 * place), jump(1, value)]);
    let skip = if looks.is_some() { 3 } else { 1 };
    let mut filter = vec![load(0), jump(skip, call as u32)];
    filter.extend(looks.into_iter().flatten());
    filter.push(answer(libc::SECCOMP_RET_ERRNO | errno as u32));
    filter.push(answer(libc::SECCOMP_RET_ALLOW));
    raw::add_filter(0, &filter).unwrap();
}

/// The same, whatever the arguments are.
fn refuse(call: i64, errno: i32) {
    refuse_where(call, None, errno);
}

/// A life with an exec, on whatever cgroups there are.
async fn live(pod: &mut Pod, id: &str) {
    let pid = pod.running(id, "echo $$; sleep 100").await;
    assert!(pid > 1);
    assert_eq!(pod.state(id, "").unwrap(), State::Running);
    let own = "while read line; do case $line in 0::*) echo $line;; esac; done </proc/self/cgroup";
    let (status, output) = pod.executed(id, "e", &process(&format!("{own}; exit 3"))).await;
    assert_eq!((status, output.as_str()), (3, "0::/\n"));
    pod.kill(id, "", libc::SIGKILL).unwrap();
    assert_eq!(pod.wait(id, "").await.unwrap().status, 137);
    pod.delete(id, "").await.unwrap();
    assert_eq!(threads(), 1);
}

/// Where this is not a host of cgroup v2 alone, with its v2, which has no controllers, in place of all
/// the others, in this process' mount namespace.
async fn on_v2(test: impl AsyncFnOnce()) {
    let unified = || Layout::probe().unwrap().unified();
    let (at, none) = ("/sys/fs/cgroup", None::<&str>);
    let bound = !unified();
    if bound && mount(Some("/sys/fs/cgroup/unified"), at, none, MsFlags::MS_BIND, none).is_err() {
        return eprintln!("skipped: needs a cgroup v2");
    }
    assert!(unified());
    test().await;
    if bound {
        umount2(at, MntFlags::MNT_DETACH).unwrap();
    }
}

#[test]
fn born_in_a_cgroup_of_v2() {
    alone(async |pod: &mut Pod| on_v2(async || live(pod, "c").await).await);
}

#[test]
fn without_clone3_a_container_of_v2_walks_into_its_cgroup() {
    alone(async |pod: &mut Pod| {
        refuse(libc::SYS_clone3, libc::ENOSYS);
        on_v2(async || live(pod, "c").await).await;
    });
}

#[test]
fn a_filter_that_says_eperm_to_clone3() {
    alone(async |pod: &mut Pod| {
        refuse(libc::SYS_clone3, libc::EPERM);
        let (status, output) = pod.ran("c", &sh("echo $$ here; exit 4")).await;
        assert_eq!((status, output.as_str()), (4, "1 here\n"));
        let user = json!({"type": "user"});
        let ids = json!([{"containerID": 0, "hostID": 100_000, "size": 65536}]);
        let spec = with(sh("cat /proc/self/uid_map"), "/linux/namespaces/-", user);
        let spec = with(with(spec, "/linux/uidMappings", ids.clone()), "/linux/gidMappings", ids);
        let (status, output) = pod.ran("u", &spec).await;
        let map: Vec<&str> = output.split_whitespace().collect();
        assert_eq!((status, map), (0, vec!["0", "100000", "65536"]));
    });
}

#[test]
fn without_clone3_signals_reach_child_and_parent_as_before() {
    alone(async |pod: &mut Pod| {
        refuse(libc::SYS_clone3, libc::ENOSYS);
        let flag = Arc::new(AtomicBool::new(false));
        let handler = signal_hook::flag::register(libc::SIGTERM, Arc::clone(&flag)).unwrap();
        // Without a PID namespace: its process 1 gets no signal at all that it does not handle.
        let spec = with(sh("sleep 100"), "/linux/namespaces", json!([{"type": "mount"}]));
        pod.create("c", &with(spec, "/hostname", json!(""))).await.unwrap();
        pod.kill("c", "", libc::SIGTERM).unwrap();
        assert_eq!(pod.wait("c", "").await.unwrap().status, 143);
        // The parent has its own handler back, and its mask.
        nix::sys::signal::raise(nix::sys::signal::Signal::SIGTERM).unwrap();
        assert!(flag.load(Ordering::Relaxed));
        signal_hook::low_level::unregister(handler);
    });
}

/// `start` would have refused, as it does where nothing could be removed either (openat2, close_range).
#[test]
fn what_has_no_substitute_is_named_and_nothing_is_left() {
    alone(async |pod: &mut Pod| {
        // The later of a container's life first: a refusal is for good.
        for (name, call) in [
            ("fsmount", libc::SYS_fsmount),
            ("fsconfig", libc::SYS_fsconfig),
            ("fsopen", libc::SYS_fsopen),
            ("move_mount", libc::SYS_move_mount),
            ("mount_setattr", libc::SYS_mount_setattr),
            ("open_tree", libc::SYS_open_tree),
        ] {
            refuse(call, libc::ENOSYS);
            let error = pod.create("c", &sh("true")).await.unwrap_err().to_string();
            assert!(error.starts_with("create container \"c\": "), "{error}");
            assert!(error.contains(&format!(": {name}")) && error.ends_with("ENOSYS"), "{error}");
        }
    });
}

/// An init that ended with its shim, and is waited for by another process while `delete` is at work.
fn lost_exit(dir: &Path, id: &str) -> u32 {
    let (home, bundle) = (dir.join("lost"), dir.join(id));
    fs::create_dir_all(&home).unwrap();
    fs::create_dir(&bundle).unwrap();
    let path = format!("{}/{id}", cgroup_top(std::process::id()));
    let cgroups = Layout::probe().unwrap().cgroups(Path::new(&path));
    for dir in &cgroups.dirs {
        fs::create_dir_all(&dir.path).unwrap();
    }
    let last = cgroups.dirs.last().unwrap().path.clone();
    let (mut reader, mut writer) = std::io::pipe().unwrap();
    // SAFETY: this process has one thread.
    let parent = match unsafe { fork() }.unwrap() {
        ForkResult::Parent { child } => child,
        ForkResult::Child => {
            // SAFETY: as above.
            match unsafe { fork() }.unwrap() {
                ForkResult::Child => raw::exit(7),
                ForkResult::Parent { child } => {
                    // It has ended by itself before anybody can find it.
                    let ended = WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT;
                    while waitid(Id::Pid(child), ended).is_err() {}
                    writer.write_all(&child.as_raw().to_ne_bytes()).unwrap();
                    // A `delete` that removes nothing must not make this wait for ever.
                    for _ in (0..5000).take_while(|_| last.exists()) {
                        raw::sleep_ms(1);
                    }
                    let ended = waitpid(child, None);
                    raw::exit(i32::from(ended != Ok(WaitStatus::Exited(child, 7))));
                }
            }
        }
    };
    let mut pid = [0; 4];
    reader.read_exact(&mut pid).unwrap();
    let pid = u32::from_ne_bytes(pid);
    let record = ContainerRecord {
        version: RECORD_VERSION,
        id: id.into(),
        pid,
        start_time: start_time(pid).unwrap(),
        cgroups,
        ..ContainerRecord::default()
    };
    record.write(&home, &bundle).unwrap();
    let (namespace, id, bundle) = ("rs-test".into(), id.into(), bundle);
    let outcome = cleanup::delete(&cleanup::Request { namespace, id, bundle: bundle.clone() });
    assert_eq!(outcome.pid, pid);
    assert_eq!(waitpid(parent, None), Ok(WaitStatus::Exited(parent, 0)));
    for dir in [home, bundle] {
        fs::remove_dir_all(dir).unwrap();
    }
    outcome.exit_status
}

#[test]
fn delete_knows_the_status_of_who_ended_with_the_shim() {
    alone(async |pod: &mut Pod| {
        match sys::probe::pidfd_get_info() {
            Ok(()) => assert_eq!(lost_exit(&pod.dir, "seen"), 7),
            Err(errno) => eprintln!("skipped: PIDFD_GET_INFO: {errno:?}"),
        }
        // PIDFD_GET_INFO, as an older kernel answers it.
        refuse_where(libc::SYS_ioctl, Some((1, 0xc040_ff0b)), libc::ENOTTY);
        assert_eq!(lost_exit(&pod.dir, "unseen"), 137);
    });
}
